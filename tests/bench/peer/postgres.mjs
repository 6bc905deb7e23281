// The opponent of the Postgres measures: the same server as server.mjs with the npm package pg instead of better-sqlite3.
//
// Jobs wait while a commit runs, and the next one takes all of them. During a login live messages are kept back until the
// replay is sent, and only then the socket joins the room: it misses and doubles nothing.
//
// With `each` a push is a statement of its own, through a pool of pg's default size, as such servers are usually written.
//
// Usage: node postgres.mjs postgres://USER@HOST:PORT/DATABASE [PORT [each]]

import { createServer } from 'node:http';
import pg from 'pg';
import { Server } from 'socket.io';

const [url, port = '0', mode] = process.argv.slice(2);
const PAGE = 100;

const setup = new pg.Client(url);
await setup.connect();
await setup.query(`
  create table if not exists notification (
    seq bigint generated always as identity primary key, token text not null, entity_type text not null,
    data json not null, created_at timestamptz not null, delivered_at timestamptz
  );
  create index if not exists undelivered on notification (token, seq) where delivered_at is null;
`);
await setup.end();
pg.types.setTypeParser(pg.types.builtins.INT8, Number);
pg.types.setTypeParser(pg.types.builtins.JSON, (text) => text);
const readers = new pg.Pool({ connectionString: url, max: 4 });
// One: whatever comes during a commit goes into the next.
const writer = new pg.Client(url);
await writer.connect();
const each = mode === 'each' && new pg.Pool({ connectionString: url });

const INSERT = {
  name: 'insert',
  text: `insert into notification (token, entity_type, data, created_at)
    select * from unnest($1::text[], $2::text[], $3::json[], $4::timestamptz[]) returning seq`,
};
const ACK = {
  name: 'ack',
  text: `update notification set delivered_at = now() from unnest($1::text[], $2::bigint[]) as acked (token, seq)
    where notification.seq = acked.seq and notification.token = acked.token and delivered_at is null`,
};
const ACK_UP_TO = {
  name: 'ack up to',
  text: `update notification set delivered_at = now()
    from (select token, max(upto) as upto from unnest($1::text[], $2::bigint[]) as acked (token, upto) group by token) as acked
    where notification.token = acked.token and seq <= acked.upto and delivered_at is null`,
};
const UNDELIVERED = {
  name: 'undelivered',
  text: `select seq, entity_type as "entityType", data, created_at as "createdAt"
    from notification where token = $1 and delivered_at is null order by seq`,
};

let pushes = []; // of { rows, done(seqs), failed(error) }
let acks = []; // of { token, seq, upTo, done(), failed(error) }
let committing = false;

async function commit() {
  if (committing) return;
  committing = true;
  while (pushes.length + acks.length > 0) {
    const [pushed, acked] = [pushes, acks];
    [pushes, acks] = [[], []];
    try {
      const rows = pushed.flatMap((job) => job.rows);
      const columns = [0, 1, 2, 3].map((column) => rows.map((row) => row[column]));
      const ids = acked.filter((job) => job.seq !== undefined);
      const upTos = acked.filter((job) => job.upTo !== undefined);
      let inserted = { rows: [] };
      if (acked.length > 0) await writer.query('begin');
      if (ids.length > 0) await writer.query({ ...ACK, values: [ids.map((job) => job.token), ids.map((job) => job.seq)] });
      if (upTos.length > 0) {
        await writer.query({ ...ACK_UP_TO, values: [upTos.map((job) => job.token), upTos.map((job) => job.upTo)] });
      }
      if (rows.length > 0) inserted = await writer.query({ ...INSERT, values: columns });
      if (acked.length > 0) await writer.query('commit');
      let at = 0;
      for (const job of pushed) job.done(inserted.rows.slice(at, (at += job.rows.length)).map((row) => row.seq));
      for (const job of acked) job.done();
    } catch (error) {
      await writer.query('rollback').catch(() => {});
      for (const job of [...pushed, ...acked]) job.failed(error);
    }
  }
  committing = false;
}

function push(body, response) {
  const { tokens, entityType = '', data = {} } = JSON.parse(body);
  const unique = [...new Set([tokens ?? []].flat().map(String))];
  const text = JSON.stringify(data);
  const createdAt = new Date().toISOString();
  const job = {
    rows: unique.map((token) => [token, entityType, text, createdAt]),
    done(seqs) {
      const results = unique.map((token, n) => ({ token, seq: seqs[n] }));
      answer(response, 200, { responseCode: 0, data: 'OK!', id: String(seqs[0]), accepted: unique.length, results });
      for (const { token, seq } of results) {
        if (!rooms.has(token) && !replaying.has(token)) continue;
        const message = { entityType, data, id: String(seq), seq, rev: seq, createdAt, replay: false, read: false };
        const waiting = replaying.get(token);
        if (waiting) waiting.forEach((kept) => kept.push(message));
        io.to(token).emit('receive_message', message); // encoded once, however many sockets are in the room
      }
    },
    failed: (error) => answer(response, 503, { code: 'storage_unavailable', detail: String(error) }),
  };
  if (each) return insertAlone(job);
  pushes.push(job);
  commit();
}

function insertAlone(job) {
  const values = [0, 1, 2, 3].map((column) => job.rows.map((row) => row[column]));
  each.query({ ...INSERT, values }).then(({ rows }) => job.done(rows.map((row) => row.seq)), job.failed);
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
const replaying = new Map(); // token -> set of the lists of live messages that came during a replay
io.engine.on('connection', (raw) => (raw.request = null)); // frees the upgrade request, as socket.io's manual advises

io.on('connection', (socket) => {
  let token;
  socket.on('user_login', async ({ tokenId, batch }, reply) => {
    token = String(tokenId);
    const kept = [];
    if (!replaying.has(token)) replaying.set(token, new Set());
    replaying.get(token).add(kept);
    try {
      const { rows } = await readers.query({ ...UNDELIVERED, values: [token] });
      const replay = rows.map((row) => ({
        entityType: row.entityType, data: JSON.parse(row.data), id: String(row.seq), seq: row.seq, rev: row.seq,
        createdAt: row.createdAt, replay: true, read: false,
      }));
      const head = replay.at(-1)?.seq ?? 0;
      reply?.({ ok: true, rev: head, undelivered: replay.length });
      if (batch) {
        for (let at = 0; at < replay.length; at += PAGE) socket.emit('receive_messages', replay.slice(at, at + PAGE));
      } else {
        for (const message of replay) socket.emit('receive_message', message);
      }
      socket.emit('replay_complete', { count: replay.length, rev: head });
      const sent = new Set(replay.map((message) => message.seq));
      for (const message of kept) if (!sent.has(message.seq)) socket.emit('receive_message', message);
      socket.join(token);
    } catch {
      reply?.({ ok: false, code: 'unavailable' });
    } finally {
      replaying.get(token).delete(kept);
      if (replaying.get(token).size === 0) replaying.delete(token);
    }
  });
  // An id, or { upTo: rev }.
  socket.on('ack', (rows, reply) => {
    const which = typeof rows === 'string' ? { seq: Number(rows) } : { upTo: rows.upTo };
    acks.push({ token, ...which, done: () => reply?.({ ok: true }), failed: () => reply?.({ ok: false, code: 'unavailable' }) });
    commit();
  });
});

server.listen({ host: '127.0.0.1', port: Number(port), backlog: 4096 }, () => {
  console.log(`Peer listens on http://127.0.0.1:${server.address().port}`);
});
