//! Seeded load that writes a history for the oracle: producers that push, some of them with keys that they retry, and
//! readers that log in, read, ack, come back and are cut off.
//!
//! Everything random comes from one seed, which the test prints. Time does not, so two runs differ, but the mix is the same.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::api::{Answer, Api, Pushed};
use crate::oracle::{History, Outcome, Post, Receipt, Received, Rows, Session, Tick, assert_sound};
use crate::server::{PATIENCE, TestServer};
use crate::socket::{Dial, Event, Gone, Message, Socket};

/// A small generator (splitmix64): good enough to vary a load, and the same on every machine.
#[derive(Clone)]
pub(crate) struct Seeded(u64);

impl Seeded {
    /// From `TIDINGS_TEST_SEED`, else from the clock; printed, so that a failure can be run again.
    pub(crate) fn announced() -> Self {
        let seed = std::env::var("TIDINGS_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        });
        println!("TIDINGS_TEST_SEED={seed}");
        Self(seed)
    }

    /// Another stream of the same seed.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to but without `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// From one up to but without another.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(from.len() as u64)).expect("an index fits");
        &from[at]
    }
}

/// Collects the history, in one order of ticks.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    clock: Arc<AtomicU64>,
    marks: Arc<AtomicU64>,
    accepted: Arc<watch::Sender<u64>>,
    history: Arc<Mutex<History>>,
}

impl Recorder {
    pub(crate) fn tick(&self) -> Tick {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Data that no other push has.
    pub(crate) fn unique_data(&self) -> String {
        format!(r#"{{"n":{}}}"#, self.marks.fetch_add(1, Ordering::SeqCst))
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().expect("nobody panics while holding the history")
    }

    pub(crate) fn add_session(&self, session: Session) {
        self.history().sessions.push(session);
    }

    /// How many pushes were accepted, refused and left unknown so far.
    pub(crate) fn tally(&self) -> (usize, usize, usize) {
        self.history().posts.iter().fold((0, 0, 0), |(ok, failed, unknown), post| match post.outcome {
            Outcome::Ok { .. } => (ok + 1, failed, unknown),
            Outcome::Failed => (ok, failed + 1, unknown),
            Outcome::Unknown => (ok, failed, unknown + 1),
        })
    }

    /// Waits until that many more pushes have been accepted.
    pub(crate) async fn accepts_more(&self, count: u64) {
        let mut accepted = self.accepted.subscribe();
        let goal = *accepted.borrow() + count;
        let wait = accepted.wait_for(|accepted| *accepted >= goal);
        timeout(PATIENCE, wait).await.expect("pushes are accepted in time").expect("the recorder is there");
    }

    /// Posts and writes down what became of it; the outcome as well.
    pub(crate) async fn post(
        &self,
        api: &Api,
        producer: u64,
        key: Option<&str>,
        tokens: &[String],
        data: &str,
    ) -> Outcome {
        let list = serde_json::to_string(tokens).expect("tokens are text");
        let body = format!(r#"{{"tokens":{list},"entityType":"load","data":{data}}}"#);
        let answer = api.try_post(key, &body).await;
        let outcome = outcome_of(answer);
        self.history().posts.push(Post {
            producer,
            tokens: tokens.to_vec(),
            entity_type: "load".to_owned(),
            data: data.to_owned(),
            outcome: outcome.clone(),
        });
        if matches!(outcome, Outcome::Ok { .. }) {
            self.accepted.send_modify(|count| *count += 1);
        }
        outcome
    }

    /// Logs every token in once more, reads what each replays, and holds everything against the table.
    pub(crate) async fn settle(&self, server: &TestServer, tokens: &[String]) {
        self.settle_but(server, tokens, "").await;
    }

    /// The same, leaving out one token that the test used without writing it down.
    pub(crate) async fn settle_but(&self, server: &TestServer, tokens: &[String], but: &str) {
        for token in tokens {
            let mut reader = Reader::new(self, token, server.address(), false);
            reader.connect_and_login().await.expect("a login when all is over");
            while reader.session.replay_completed.is_none() {
                reader.hear_one().await.expect("the replay when all is over");
            }
        }
        let (ok, failed, unknown) = self.tally();
        let history = self.history().clone();
        let received: usize = history.sessions.iter().map(|session| session.received.len()).sum();
        println!(
            "{ok} pushes accepted, {failed} refused, {unknown} unknown; {received} received in {} sessions",
            history.sessions.len()
        );
        let mut table = server.table().snapshot().await;
        table.inboxes.retain(|inbox| inbox.token != but);
        table.notifications.retain(|row| row.token != but);
        assert_sound(&history, &table);
        server.table().expect_sound().await;
    }
}

/// What an answer says about the rows.
pub(crate) fn outcome_of(answer: Result<Answer, reqwest::Error>) -> Outcome {
    match answer {
        Err(error) if error.is_connect() => Outcome::Failed,
        Err(_) => Outcome::Unknown,
        Ok(answer) => match (answer.status, answer.code().as_str()) {
            (200, _) => {
                let Pushed { id, results, .. } = answer.pushed();
                Outcome::Ok { id, results: results.into_iter().map(|result| (result.token, result.seq)).collect() }
            }
            // In flight: another attempt with this key will say.
            (503, "outcome_unknown") | (409, "idempotency_in_flight") => Outcome::Unknown,
            (503, "busy" | "storage_full" | "storage_unavailable" | "draining") => Outcome::Failed,
            (status, code) => panic!("a load is never answered {status} {code}: {}", answer.text),
        },
    }
}

/// A client whose session is written down, whole, when it is dropped.
pub(crate) struct Reader {
    recorder: Recorder,
    address: SocketAddr,
    batch: bool,
    pub(crate) socket: Option<Socket>,
    pub(crate) session: Session,
}

impl Reader {
    pub(crate) fn new(recorder: &Recorder, token: &str, address: SocketAddr, batch: bool) -> Self {
        let session = Session {
            token: token.to_owned(),
            login_sent: 0,
            head: None,
            replay_completed: None,
            received: Vec::new(),
            receipts: Vec::new(),
            counts: Vec::new(),
        };
        Self { recorder: recorder.clone(), address, batch, socket: None, session }
    }

    pub(crate) async fn connect_and_login(&mut self) -> Result<(), Gone> {
        self.socket = Some(Dial::new(self.address).try_connect().await?);
        self.log_in().await
    }

    /// Logs in on the socket it was given.
    pub(crate) async fn log_in(&mut self) -> Result<(), Gone> {
        self.session.login_sent = self.recorder.tick();
        let token = serde_json::to_string(&self.session.token).expect("a token is text");
        let batch = if self.batch { r#","batch":true"# } else { "" };
        let answer = self.call(&format!(r#"["user_login",{{"tokenId":{token}{batch}}}]"#)).await?;
        match (answer["ok"].as_bool(), answer["rev"].as_i64(), answer["unread"].as_i64()) {
            (Some(true), Some(rev), Some(unread)) => {
                self.session.head = Some(rev);
                self.session.counts.push((rev, unread));
                Ok(())
            }
            (Some(false), ..) => Err(Gone(format!("login refused: {answer}"))),
            _ => panic!("not the answer to a login: {answer}"),
        }
    }

    async fn call(&mut self, event: &str) -> Result<serde_json::Value, Gone> {
        self.socket.as_mut().expect("connected").try_call(event).await
    }

    /// Takes the next event, however long it takes, and writes it down. Cancel safe.
    pub(crate) async fn hear_one(&mut self) -> Result<Event, Gone> {
        let event = self.socket.as_mut().expect("connected").event_at_last().await?;
        let at = self.recorder.tick();
        let counts = |event: &Event| {
            let value = event.value();
            (value["rev"].as_i64().expect("a rev"), value["unread"].as_i64().expect("a count"))
        };
        match event.name.as_str() {
            "receive_message" | "receive_messages" => {
                let messages = event.messages();
                assert!((1..=100).contains(&messages.len()), "an event carries 1 to 100 notifications");
                self.session.received.extend(messages.into_iter().map(|message| received(at, message)));
            }
            "replay_complete" => {
                self.session.replay_completed = Some(at);
                self.session.counts.push(counts(&event));
            }
            "inbox_changed" => self.session.counts.push(counts(&event)),
            "disconnect" => return Err(Gone("disconnected by the server".to_owned())),
            _ => {}
        }
        Ok(event)
    }

    /// Sends a receipt and writes down whether it was confirmed.
    pub(crate) async fn confirm(&mut self, read: bool, rows: Rows) -> Result<(), Gone> {
        let payload = match &rows {
            Rows::Ids(ids) => format!(r#"{{"ids":{}}}"#, serde_json::to_string(ids).expect("ids are text")),
            Rows::UpTo(rev) => format!(r#"{{"upTo":{rev}}}"#),
        };
        let sent = self.recorder.tick();
        self.session.receipts.push(Receipt { read, rows, sent, confirmed: None });
        let answer = self.call(&format!(r#"["{}",{payload}]"#, if read { "read" } else { "ack" })).await?;
        if answer["ok"].as_bool() == Some(true) {
            let receipt = self.session.receipts.last_mut().expect("just pushed");
            receipt.confirmed = Some(self.recorder.tick());
            if let (Some(rev), Some(unread)) = (answer["rev"].as_i64(), answer["unread"].as_i64()) {
                self.session.counts.push((rev, unread));
            }
        }
        Ok(())
    }

    /// Acks, reads, or does neither, as chance has it; never leaves so much unacked that the window closes.
    async fn react(&mut self, chance: &mut Seeded) -> Result<(), Gone> {
        let Some(last) = self.session.received.last().map(|got| (got.id.clone(), got.rev)) else { return Ok(()) };
        let acked = self.session.receipts.iter().filter_map(|receipt| match receipt.rows {
            Rows::UpTo(rev) => Some(rev),
            Rows::Ids(_) => None,
        });
        let acked = acked.max().unwrap_or(0);
        let open = self.session.received.iter().rev().take_while(|got| got.rev > acked).count();
        match chance.below(100) {
            _ if open >= 32 => self.confirm(false, Rows::UpTo(last.1)).await,
            0..10 => self.confirm(false, Rows::UpTo(last.1)).await,
            10..35 => self.confirm(false, Rows::Ids(vec![last.0])).await,
            35..45 => self.confirm(true, Rows::Ids(vec![last.0])).await,
            45..47 => self.confirm(true, Rows::UpTo(last.1)).await,
            _ => Ok(()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.recorder.add_session(self.session.clone());
    }
}

fn received(at: Tick, message: Message) -> Received {
    Received {
        at,
        id: message.id,
        seq: message.seq,
        rev: message.rev,
        entity_type: message.entity_type,
        data: message.data.get().to_owned(),
        created_at: message.created_at,
        replay: message.replay,
    }
}

/// Producers and readers that run until they are stopped, following the server to each new address.
pub(crate) struct Load {
    pub(crate) recorder: Recorder,
    pub(crate) tokens: Vec<String>,
    stop: watch::Sender<bool>,
    running: JoinSet<()>,
}

impl Load {
    /// Starts `producers` and, for each of `tokens` tokens, one reader.
    pub(crate) fn start(server: &TestServer, chance: &mut Seeded, producers: u64, tokens: usize) -> Self {
        Self::on_nodes(&[server], chance, producers, tokens)
    }

    /// The same on several nodes of one database: producers take them in turns, and each token has a reader on each.
    pub(crate) fn on_nodes(nodes: &[&TestServer], chance: &mut Seeded, producers: u64, tokens: usize) -> Self {
        let recorder = Recorder::default();
        let tokens: Vec<String> = (1..=tokens).map(|n| format!("user-{n}")).collect();
        let stop = watch::Sender::new(false);
        let mut running = JoinSet::new();
        for (producer, node) in (0..producers).zip(nodes.iter().cycle()) {
            let shared = (recorder.clone(), tokens.clone(), node.addresses(), stop.subscribe());
            running.spawn(produce(shared, producer, chance.fork()));
        }
        for (token, node) in tokens.iter().flat_map(|token| nodes.iter().map(move |node| (token, node))) {
            let shared = (recorder.clone(), token.clone(), node.addresses(), stop.subscribe());
            running.spawn(read(shared, chance.fork()));
        }
        Self { recorder, tokens, stop, running }
    }

    /// Ends all of it and waits for the last word of each.
    pub(crate) async fn finish(mut self) -> (Recorder, Vec<String>) {
        self.stop.send_replace(true);
        while let Some(ended) = self.running.join_next().await {
            ended.expect("producers and readers do not panic");
        }
        (self.recorder, self.tokens)
    }
}

async fn produce(
    (recorder, tokens, mut addresses, stop): (
        Recorder,
        Vec<String>,
        watch::Receiver<SocketAddr>,
        watch::Receiver<bool>,
    ),
    producer: u64,
    mut chance: Seeded,
) {
    let mut pace = interval(Duration::from_millis(2));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut api = Api::new(*addresses.borrow_and_update());
    while !*stop.borrow() {
        pace.tick().await;
        let mut chosen: Vec<String> = (0..=chance.below(3)).map(|_| chance.pick(&tokens).clone()).collect();
        chosen.sort();
        chosen.dedup();
        let data = recorder.unique_data();
        let key = chance.percent(40).then(|| format!("key-{data}"));
        loop {
            let outcome = recorder.post(&api, producer, key.as_deref(), &chosen, &data).await;
            if matches!(outcome, Outcome::Ok { .. }) || *stop.borrow() {
                break;
            }
            if addresses.has_changed().unwrap_or(false) {
                api = Api::new(*addresses.borrow_and_update());
            }
            if key.is_none() {
                break;
            }
            pace.tick().await;
        }
    }
}

async fn read(
    (recorder, token, addresses, mut stop): (Recorder, String, watch::Receiver<SocketAddr>, watch::Receiver<bool>),
    mut chance: Seeded,
) {
    let mut pace = interval(Duration::from_millis(10));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        pace.tick().await;
        let address = *addresses.borrow();
        let mut reader = Reader::new(&recorder, &token, address, chance.percent(30));
        if reader.connect_and_login().await.is_err() {
            continue;
        }
        let stays = 20 + chance.below(200);
        for _ in 0..stays {
            let heard = tokio::select! {
                heard = reader.hear_one() => heard.map(drop),
                _ = stop.wait_for(|stop| *stop) => return,
            };
            if heard.is_err() || reader.react(&mut chance).await.is_err() {
                break;
            }
        }
    }
}
