//! Every way in which a client may confirm what it gets, at every size of replay that is at or beside the end of a window or
//! of a page.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::api::{Api, Pushed};
use crate::load::Seeded;
use crate::server::{PATIENCE, TestServer};
use crate::socket::{Dial, Engine, Event, Message, Socket};

/// `--window` and `--replay-rows` are 64 and 500.
const ROWS: [usize; 6] = [1, 64, 65, 128, 129, 1000];

/// Pushes while the replay runs, or right after it.
const LIVE: usize = 4;

/// The default of `--window`: a client that acks is sent no more than this ahead of its acks.
const WINDOW: usize = 64;

/// The default of `--max-receipt-ids`.
const MAX_IDS: usize = 1000;

/// So many packets wait for a socket at most.
const ENGINE_BUFFER: usize = 128;

/// How many clients there are at a time.
const CLIENTS: usize = 8;

/// How long one client may take. On an idle machine it is a second or two.
const DEADLINE: Duration = Duration::from_secs(60);

/// Nothing came for so long: a client that acks late now acks.
const LATE: Duration = Duration::from_millis(50);

/// Once so many clients have failed, no more are tried.
const ENOUGH_FAILURES: usize = 4;

/// How a client confirms what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `["ack","<id>"]` for each message.
    Id,
    /// `["ack",["<id>"]]` for each message.
    Array,
    /// `["ack",{"ids":["<id>"]}]` for each message.
    Ids,
    /// `["ack",{"upTo":<rev>}]` for each message.
    UpTo,
    /// `["read",{"ids":["<id>"]}]` for each message, and no ack.
    Read,
    /// Each message twice.
    Twice,
    /// Each message with an id that is not in the inbox.
    Unknown,
    /// Acks each message by one form or another, reads some and makes some of those unread again.
    Mixed,
    /// All ids of so many messages in one ack.
    Every(usize),
    /// All ids in one ack when a window has come, and at the end.
    Window,
    /// Each message alone, when a window has come, and at the end.
    WindowOneByOne,
    /// The newest first.
    WindowReversed,
    /// `upTo` of the newest, then of each older one.
    WindowUpToReversed,
    /// All ids in one ack when nothing has come for a while.
    Late,
}

const STYLES: [Style; 16] = [
    Style::Id,
    Style::Array,
    Style::Ids,
    Style::UpTo,
    Style::Read,
    Style::Twice,
    Style::Unknown,
    Style::Mixed,
    Style::Every(2),
    Style::Every(7),
    Style::Every(WINDOW),
    Style::Window,
    Style::WindowOneByOne,
    Style::WindowReversed,
    Style::WindowUpToReversed,
    Style::Late,
];

/// How the client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Websocket,
    Polling,
    /// Polling, and a websocket in the middle of the replay, or from the login on if that is large.
    Upgrade,
}

/// One client and the replay that waits for it.
#[derive(Debug, Clone)]
struct Case {
    token: String,
    rows: usize,
    style: Style,
    /// Whether receipts have acknowledgement callbacks.
    callbacks: bool,
    batch: bool,
    /// Whether it logs in with a `rev` that it has reached, in the middle of the backlog.
    cursor: bool,
    engine: Engine,
    transport: Transport,
}

impl Case {
    fn by_chance(chance: &mut Seeded, number: usize, rows: usize, style: Style) -> Self {
        Self {
            token: format!("user-{number}"),
            rows,
            style,
            callbacks: chance.percent(50),
            batch: chance.percent(50),
            cursor: chance.percent(25),
            engine: *chance.pick(&[Engine::V3, Engine::V4]),
            transport: *chance.pick(&[Transport::Websocket, Transport::Polling, Transport::Upgrade]),
        }
    }

    /// Connects and logs in.
    async fn login(&self, api: &Api, address: SocketAddr) -> Socket {
        let dial = Dial::new(address).engine(self.engine);
        let dial = if self.transport == Transport::Websocket { dial } else { dial.polling() };
        let mut socket = dial.connect().await;
        // In the middle of a replay that fills the engine's buffer it may find no room to answer the probe.
        let early = !self.batch && self.rows >= ENGINE_BUFFER;
        if self.transport == Transport::Upgrade && early {
            socket.upgrade().await;
        }
        let mut request = json!({"tokenId": self.token});
        if self.batch {
            request["batch"] = json!(true);
        }
        if self.cursor {
            request["rev"] = json!(self.rows / 2);
            request["epoch"] = api.list(&self.token, "limit=1").await["epoch"].clone();
        }
        let login = socket.login_with(&json!(["user_login", request]).to_string()).await;
        let rows = i64::try_from(self.rows).expect("a small number");
        assert_eq!((login.rev, login.unread, login.undelivered), (rows, rows, rows));
        if self.transport == Transport::Upgrade && !early {
            socket.upgrade().await;
        }
        socket
    }
}

/// One event of a client that marks rows.
#[derive(Debug)]
struct Receipt {
    name: &'static str,
    payload: Value,
    /// One of the rows that it names.
    seq: i64,
}

impl Receipt {
    fn new(name: &'static str, payload: Value, message: &Message) -> Self {
        Self { name, payload, seq: message.rev }
    }

    fn event(&self) -> String {
        json!([self.name, self.payload]).to_string()
    }

    /// An ack by id, by list or up to a rev.
    fn ack(style: Style, message: &Message) -> Self {
        let payload = match style {
            Style::Array => json!([message.id]),
            Style::Ids => json!({"ids": [message.id]}),
            Style::UpTo | Style::WindowUpToReversed => json!({"upTo": message.rev}),
            _ => json!(message.id),
        };
        Self::new("ack", payload, message)
    }

    fn ack_all(messages: &[Message]) -> Option<Self> {
        let ids: Vec<&str> = messages.iter().map(|message| message.id.as_str()).collect();
        messages.last().map(|last| Self::new("ack", json!({"ids": ids}), last))
    }
}

/// A client after its replay and the live messages, still connected.
struct Client {
    case: Case,
    socket: Socket,
    api: Api,
    chance: Seeded,
    received: Vec<Message>,
    /// Of the newest event.
    rev: i64,
    /// Received, and not yet confirmed.
    unconfirmed: Vec<Message>,
    /// What it read and left so.
    read: BTreeSet<String>,
    calls: Vec<(u64, Receipt)>,
    /// The newest `rev` that a callback told, and the `unread` with it.
    told: (i64, i64),
    replay_completed: bool,
}

impl Client {
    /// Logs in, takes and confirms everything, and waits for the callbacks.
    async fn run(case: Case, api: Api, address: SocketAddr, chance: Seeded) -> Self {
        let socket = case.login(&api, address).await;
        let pushing = tokio::spawn({
            let (api, token) = (api.clone(), case.token.clone());
            async move { api.push_numbers(&token, LIVE).await }
        });
        let mut client = Self {
            case,
            socket,
            api,
            chance,
            received: Vec::new(),
            rev: 0,
            unconfirmed: Vec::new(),
            read: BTreeSet::new(),
            calls: Vec::new(),
            told: (0, 0),
            replay_completed: false,
        };
        client.take(client.case.rows + LIVE).await;
        let mut live = pushing.await.expect("every push is accepted");
        live.push(client.api.push(&client.case.token, r#""after all that""#).await);
        client.take(client.case.rows + live.len()).await;
        client.expect_each_once(&live);
        client.expect_callbacks().await;
        client
    }

    /// Receives and confirms until so many messages have come in all, and the end of the replay.
    async fn take(&mut self, count: usize) {
        while self.received.len() < count || !self.replay_completed {
            let late = self.case.style == Style::Late && !self.unconfirmed.is_empty();
            let events = timeout(if late { LATE } else { PATIENCE }, self.socket.events_at_last()).await;
            let Ok(events) = events.or_else(|stalled| if late { Ok(Ok(Vec::new())) } else { Err(stalled) }) else {
                let (came, unconfirmed) = (self.received.len(), self.unconfirmed.len());
                panic!(
                    "{:?}: nothing comes after {came} of {count}, of which {unconfirmed} are unconfirmed",
                    self.case
                );
            };
            let events = events.expect("the connection stays");
            let quiet = events.is_empty();
            events.iter().for_each(|event| self.hear(event));
            let receipts = self.receipts(quiet || self.replay_completed);
            self.send(receipts).await;
        }
        assert_eq!(self.received.len(), count, "no more than that");
    }

    fn hear(&mut self, event: &Event) {
        if event.name == "replay_complete" {
            assert_eq!(self.received.len(), self.case.rows, "the replay is complete when all of it has come");
            assert_eq!(event.value()["count"], json!(self.case.rows));
            self.replay_completed = true;
            return;
        }
        if event.name == "inbox_changed" && matches!(self.case.style, Style::Read | Style::Mixed) {
            // A session that is behind the ring reads its events from the table, which does not know who made them.
            self.follow(event.value()["rev"].as_i64().expect("a rev"));
            return;
        }
        let expected = if self.case.batch { "receive_messages" } else { "receive_message" };
        assert_eq!(event.name, expected, "{}", event.text());
        let messages = event.messages();
        messages.iter().for_each(|message| self.follow(message.rev));
        self.received.extend(messages.iter().cloned());
        self.unconfirmed.extend(messages);
    }

    fn follow(&mut self, rev: i64) {
        assert!(rev > self.rev, "rev rises: {rev} after {}", self.rev);
        self.rev = rev;
    }

    /// What the client emits now for what it has not confirmed yet: all of it at an end, else as its style has it.
    fn receipts(&mut self, end: bool) -> Vec<Receipt> {
        let style = self.case.style;
        let batch = match style {
            Style::Every(count) => count,
            Style::Window | Style::WindowOneByOne | Style::WindowReversed | Style::WindowUpToReversed => WINDOW,
            Style::Late => MAX_IDS,
            _ => 1,
        };
        let mut receipts = Vec::new();
        while !self.unconfirmed.is_empty() && (end || self.unconfirmed.len() >= batch) {
            let rest = self.unconfirmed.split_off(batch.min(self.unconfirmed.len()));
            let messages = std::mem::replace(&mut self.unconfirmed, rest);
            match style {
                Style::Every(_) | Style::Window | Style::Late => receipts.extend(Receipt::ack_all(&messages)),
                Style::WindowReversed | Style::WindowUpToReversed => {
                    receipts.extend(messages.iter().rev().map(|message| Receipt::ack(style, message)));
                }
                _ => messages.iter().for_each(|message| self.confirm(message, &mut receipts)),
            }
        }
        receipts
    }

    /// Confirms one message alone.
    fn confirm(&mut self, message: &Message, receipts: &mut Vec<Receipt>) {
        let ack = Receipt::ack(self.case.style, message);
        match self.case.style {
            Style::Read => {
                self.read.insert(message.id.clone());
                receipts.push(Receipt::new("read", json!({"ids": [message.id]}), message));
            }
            Style::Twice => receipts.extend([ack, Receipt::ack(self.case.style, message)]),
            Style::Unknown => {
                receipts.push(Receipt::new("ack", json!("00000000-0000-7000-8000-000000000000"), message));
                receipts.push(ack);
            }
            Style::Mixed => {
                let form = *self.chance.pick(&[Style::Id, Style::Ids, Style::UpTo]);
                let before = receipts.len();
                if self.chance.percent(12) {
                    self.read.insert(message.id.clone());
                    receipts.push(Receipt::new("read", json!({"ids": [message.id]}), message));
                    if self.chance.percent(50) {
                        self.read.remove(&message.id);
                        receipts.push(Receipt::new("unread", json!({"ids": [message.id]}), message));
                    }
                }
                // Before its read or after it.
                let place = if self.chance.percent(50) { before } else { receipts.len() };
                receipts.insert(place, Receipt::ack(form, message));
            }
            _ => receipts.push(ack),
        }
    }

    /// Emits receipts, all at once. Of some it awaits the callback and looks at once whether the row is marked.
    async fn send(&mut self, receipts: Vec<Receipt>) {
        let mut packets = Vec::new();
        for receipt in receipts {
            if self.case.callbacks {
                let (call, packet) = self.socket.packet_of_call(&receipt.event());
                packets.push(packet);
                self.calls.push((call, receipt));
            } else {
                packets.push(format!("42{}", receipt.event()));
            }
        }
        if packets.is_empty() {
            return;
        }
        self.socket.send_many(packets).await.expect("the connection stays");
        if self.case.callbacks && self.chance.percent(4) {
            let (call, receipt) = self.calls.pop().expect("there was one at least");
            self.expect_marked(call, &receipt).await;
        }
    }

    /// Awaits a callback; the receipt must be committed by then.
    async fn expect_marked(&mut self, call: u64, receipt: &Receipt) {
        self.expect_ok(call, receipt).await;
        let path = format!("limit=1&before={}", receipt.seq + 1);
        let row = self.api.list(&self.case.token, &path).await["items"][0].clone();
        assert_eq!(row["seq"], json!(receipt.seq), "{row}");
        match receipt.name {
            "unread" => assert_eq!(row["readAt"], Value::Null, "unread is answered after its commit: {row}"),
            "read" => assert!(row["readAt"].is_string(), "read is answered after its commit: {row}"),
            _ => assert!(row["deliveredAt"].is_string(), "an ack is answered after its commit: {row}"),
        }
    }

    async fn expect_callbacks(&mut self) {
        let mut calls = std::mem::take(&mut self.calls);
        if let Some((call, receipt)) = calls.pop() {
            self.expect_marked(call, &receipt).await;
        }
        for (call, receipt) in calls {
            self.expect_ok(call, &receipt).await;
        }
    }

    async fn expect_ok(&mut self, call: u64, receipt: &Receipt) {
        let answer = self.socket.answer(call).await.expect("the connection stays");
        if receipt.name == "ack" {
            assert_eq!(answer, json!({"ok": true}), "{receipt:?}");
            return;
        }
        assert_eq!(answer["ok"], json!(true), "{receipt:?}: {answer}");
        let number = |name: &str| answer[name].as_i64().unwrap_or_else(|| panic!("no {name} in {answer}"));
        self.told = self.told.max((number("rev"), number("unread")));
    }

    /// Every row came, once, in order: those that waited as a replay, those that were pushed later live.
    fn expect_each_once(&self, live: &[Pushed]) {
        assert!(self.received.iter().all(|message| message.rev == message.seq));
        let (replayed, later) = self.received.split_at(self.case.rows);
        assert!(
            replayed.iter().map(|message| message.seq).eq(1..=i64::try_from(self.case.rows).expect("a small number"))
        );
        assert!(replayed.iter().all(|message| message.replay) && !later.iter().any(|message| message.replay));
        let live: Vec<(&str, i64)> = live.iter().map(|pushed| (pushed.id.as_str(), pushed.results[0].seq)).collect();
        let later: Vec<(&str, i64)> = later.iter().map(|message| (message.id.as_str(), message.seq)).collect();
        assert_eq!(later, live);
    }
}

/// Pushes `{"n":..}` to every token until each has as many rows as its client expects.
async fn push_backlogs(api: &Api, cases: &[Case]) {
    let most = cases.iter().map(|case| case.rows).max().unwrap_or_default();
    let pushes: Vec<Value> = (1..=most)
        .map(|n| {
            let tokens: Vec<&str> =
                cases.iter().filter(|case| case.rows >= n).map(|case| case.token.as_str()).collect();
            json!({"tokens": tokens, "entityType": "like", "data": {"n": n}})
        })
        .collect();
    for pushes in pushes.chunks(50) {
        join_all(pushes.iter().map(|push| api.push_as(push.clone()))).await;
    }
}

/// What is wrong with the table after all receipts.
async fn violations(server: &TestServer, clients: &[Client]) -> Vec<String> {
    let table = server.table().snapshot().await;
    let mut violations = Vec::new();
    let inboxes: BTreeMap<&str, _> = table.inboxes.iter().map(|inbox| (inbox.token.as_str(), inbox)).collect();
    for Client { case, read, received, told, .. } in clients {
        let rows: Vec<_> = table.notifications.iter().filter(|row| row.token == case.token).collect();
        let mut expect = |what: &str, found: i64, expected: usize| {
            if usize::try_from(found) != Ok(expected) {
                violations.push(format!("{case:?}: {found} {what}, not {expected}"));
            }
        };
        let count = |count: usize| i64::try_from(count).expect("a small number");
        expect("rows", count(rows.len()), received.len());
        expect("undelivered", count(rows.iter().filter(|row| row.delivered_at.is_none()).count()), 0);
        let inbox = inboxes[case.token.as_str()];
        let unread = rows.iter().filter(|row| row.read_at.is_none()).count();
        expect("unread by its counter", inbox.unread, unread);
        if told.0 == inbox.rev {
            expect("unread as the last callback told it", told.1, unread);
        }
        let found: BTreeSet<&str> =
            rows.iter().filter(|row| row.read_at.is_some()).map(|row| row.id.as_str()).collect();
        let expected: BTreeSet<&str> = read.iter().map(String::as_str).collect();
        let wrong: Vec<&&str> = found.symmetric_difference(&expected).collect();
        if !wrong.is_empty() {
            violations.push(format!("{case:?}: these are read and should not be, or the reverse: {wrong:?}"));
        }
    }
    violations
}

/// Runs clients, a few at a time, and checks the table when all have got everything.
async fn expect_complete(server: &TestServer, cases: Vec<Case>, mut chance: Seeded) {
    let (api, address) = (server.api(), server.address());
    push_backlogs(&api, &cases).await;
    let clients = cases.into_iter().map(|case| {
        let (api, chance, name) = (api.clone(), chance.fork(), format!("{case:?}"));
        // A task of its own, so that a failed assertion ends this client alone.
        async move {
            let run = tokio::spawn(timeout(DEADLINE, Client::run(case, api, address, chance)));
            match run.await {
                Ok(Ok(client)) => Ok(client),
                Ok(Err(_)) => Err(format!("{name}: not done within {DEADLINE:?}")),
                Err(_) => Err(format!("{name}: failed as said above")),
            }
        }
    });
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    let mut clients = stream::iter(clients).buffer_unordered(CLIENTS);
    while let Some(outcome) = clients.next().await {
        match outcome {
            Ok(client) => done.push(client),
            Err(failure) => failures.push(failure),
        }
        assert!(failures.len() < ENOUGH_FAILURES, "{} clients were done; {failures:#?}", done.len());
    }
    assert!(failures.is_empty(), "{} clients were done; {failures:#?}", done.len());
    // Receipts without a callback may still be on their way.
    let settled = async {
        while !violations(server, &done).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let settled = timeout(PATIENCE, settled).await;
    if settled.is_err() {
        panic!("{:#?}", violations(server, &done).await);
    }
    server.table().expect_sound().await;
    for client in done {
        let login = server.connect().await.login(&client.case.token).await;
        assert_eq!(login.undelivered, 0, "{:?}", client.case);
    }
}

#[tokio::test]
async fn however_a_client_acks_its_replay_completes_and_live_messages_follow() {
    let mut chance = Seeded::announced();
    let server = TestServer::start().await;
    let mut cases = Vec::new();
    for style in STYLES {
        for rows in ROWS {
            cases.push(Case::by_chance(&mut chance, cases.len(), rows, style));
        }
    }
    expect_complete(&server, cases, chance).await;
}

#[tokio::test]
async fn however_a_client_acks_a_window_and_a_queue_of_one_are_enough() {
    let mut chance = Seeded::announced();
    let server = TestServer::with(&["--window=1", "--replay-rows=7", "--event-queue=1", "--ring=2"]).await;
    let mut cases = Vec::new();
    for style in [Style::Id, Style::UpTo, Style::Read, Style::Twice, Style::Unknown, Style::Mixed, Style::Late] {
        for rows in [1, 7, 8, 65] {
            cases.push(Case::by_chance(&mut chance, cases.len(), rows, style));
        }
    }
    expect_complete(&server, cases, chance).await;
}
