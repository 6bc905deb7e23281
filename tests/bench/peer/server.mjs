// The opponent in `make bench`: what a competent team writes with socket.io and better-sqlite3 for the same contract.
//
// A push or ack is answered after the commit that holds it. Jobs wait while a commit runs, and the next commit takes all
// of them (group commit). A login, being synchronous, can miss nothing: what is committed is replayed, what is not yet
// committed finds the socket in its room. The id of a notification is its row number, and so is its rev: an ack finds its row
// by the primary key. Only what the load uses is here.
//
// Usage: node server.mjs FILE [PORT]

import { createServer } from 'node:http';
import Database from 'better-sqlite3';
import { Server } from 'socket.io';

const [file = 'peer.db', port = '0'] = process.argv.slice(2);
const PAGE = 100;

const db = new Database(file);
db.pragma('journal_mode = wal');
db.pragma('synchronous = full');
db.pragma('wal_autocheckpoint = 4000'); // pages; measured 20-40 % more rows a second than the default of 1000
db.pragma('cache_size = -65536');
db.exec(`
  create table if not exists notification (
    seq integer primary key, token text not null, entity_type text not null,
    data text not null, created_at text not null, delivered_at text
  ) strict;
  create index if not exists undelivered on notification (token, seq) where delivered_at is null;
`);
const begin = db.prepare('begin immediate');
const end = db.prepare('commit');
const rollback = db.prepare('rollback');
// A row at a time: here measured faster than one `insert ... select ... from json_each(?)`.
const insert = db.prepare(
  'insert into notification (seq, token, entity_type, data, created_at) values (?, ?, ?, ?, ?)',
);
const ackUpTo = db.prepare(
  'update notification set delivered_at = ? where token = ? and seq <= ? and delivered_at is null',
);
// A row at a time, too: one statement for the acks of a commit took 13 µs an ack where this takes 8.
const ackId = db.prepare('update notification set delivered_at = ? where seq = ? and token = ? and delivered_at is null');
const undelivered = db.prepare(`
  select seq, entity_type as entityType, data, created_at as createdAt
  from notification where token = ? and delivered_at is null order by seq
`);
let head = db.prepare('select coalesce(max(seq), 0) from notification').pluck().get();

const jobs = []; // of { write(now), done(), failed(error) }

function enqueue(job) {
  if (jobs.push(job) === 1) setImmediate(commit);
}

function commit() {
  const batch = jobs.splice(0);
  const now = new Date().toISOString();
  const before = head;
  try {
    begin.run();
    for (const job of batch) job.write(now);
    end.run();
  } catch (error) {
    if (db.inTransaction) rollback.run();
    head = before;
    for (const job of batch) job.failed(error);
    return;
  }
  for (const job of batch) job.done();
}

function push(body, response) {
  const { tokens, entityType = '', data = {} } = JSON.parse(body);
  const unique = [...new Set([tokens ?? []].flat().map(String))];
  const text = JSON.stringify(data);
  let first, createdAt;
  enqueue({
    write(now) {
      createdAt = now;
      first = head + 1;
      for (const token of unique) insert.run(++head, token, entityType, text, now);
    },
    done() {
      const results = unique.map((token, n) => ({ token, seq: first + n }));
      answer(response, 200, { responseCode: 0, data: 'OK!', id: String(first), accepted: unique.length, results });
      for (const { token, seq } of results) {
        if (!rooms.has(token)) continue;
        const message = { entityType, data, id: String(seq), seq, rev: seq, createdAt, replay: false, read: false };
        io.to(token).emit('receive_message', message); // encoded once, however many sockets are in the room
      }
    },
    failed: (error) => answer(response, 503, { code: 'storage_unavailable', detail: String(error) }),
  });
}

function answer(response, status, body) {
  const text = JSON.stringify(body);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  response.end(text);
}

const server = createServer({ keepAliveTimeout: 65_000 }, (request, response) => {
  if (request.url !== '/api' || request.method !== 'POST') return answer(response, 404, { code: 'not_found' });
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    try {
      push(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks), response);
    } catch (error) {
      answer(response, 400, { code: 'invalid_body', detail: String(error) });
    }
  });
});

const io = new Server(server, {
  allowEIO3: true,
  serveClient: false,
  perMessageDeflate: false,
  httpCompression: false,
  maxHttpBufferSize: 65_536,
});
const { rooms } = io.of('/').adapter;
io.engine.on('connection', (raw) => (raw.request = null)); // frees the upgrade request, as socket.io's manual advises

io.on('connection', (socket) => {
  let token;
  socket.on('user_login', ({ tokenId, batch }, reply) => {
    token = String(tokenId);
    const replay = undelivered.all(token).map(({ seq, entityType, data, createdAt }) => (
      { entityType, data: JSON.parse(data), id: String(seq), seq, rev: seq, createdAt, replay: true, read: false }
    ));
    reply?.({ ok: true, rev: head, undelivered: replay.length });
    if (batch) {
      for (let at = 0; at < replay.length; at += PAGE) socket.emit('receive_messages', replay.slice(at, at + PAGE));
    } else {
      for (const message of replay) socket.emit('receive_message', message);
    }
    socket.emit('replay_complete', { count: replay.length, rev: head });
    socket.join(token);
  });
  // An id, or { upTo: rev }.
  socket.on('ack', (rows, reply) => {
    enqueue({
      write(now) {
        if (typeof rows === 'string') ackId.run(now, Number(rows), token);
        else ackUpTo.run(now, token, rows.upTo);
      },
      done: () => reply?.({ ok: true }),
      failed: () => reply?.({ ok: false, code: 'unavailable' }),
    });
  });
});

server.listen({ host: '127.0.0.1', port: Number(port), backlog: 4096 }, () => {
  console.log(`Peer listens on http://127.0.0.1:${server.address().port}`);
});
