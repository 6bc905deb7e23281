//! The pump against a fake database and fake sockets, on a paused clock: whatever happens to hints, reads and buffers,
//! a session gets everything once and in order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use proptest::prelude::*;
use serde_json::value::RawValue;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Cursor, Inbox, Retention, Ring, Session, Settings};
use crate::bus::LocalBus;
use crate::notification::{NewPush, Options, Payload, ReceiptKind, Rev, Selection, Token};
use crate::store::fake::{FakeCommitter, FakeDatabase};
use crate::store::{Batch, Committer, Edit, KeyedPush, ListQuery};

mod socket;

use socket::{FakeSocket, Received};

const SWEEP: Duration = Duration::from_secs(3);
const WINDOW: usize = 4;

fn settings() -> Settings {
    Settings {
        write_queue: 64,
        commit_rows: 64,
        commit_bytes: 1000,
        store_timeout: Duration::from_secs(5),
        step: Duration::from_millis(100),
        window: WINDOW,
        page: 3,
        page_bytes: 1000,
        ring: Ring { events: 4, bytes: 1000 },
        max_sockets_per_token: 8,
        replays: 2,
        stuck_timeout: Duration::from_secs(30),
        retention: Retention {
            interval: Duration::from_secs(3600),
            read: None,
            unread: None,
            history: None,
            rows: None,
        },
        sweep_interval: SWEEP,
        heartbeat: None,
    }
}

fn token(text: &str) -> Token {
    Token::parse(text, 256).unwrap()
}

fn push_to(token: &Token) -> NewPush {
    let data = Payload::parse(RawValue::from_string("{}".into()).unwrap(), 64, 4).unwrap();
    NewPush { tokens: vec![token.clone()], entity_type: "like".into(), data, options: Options::default() }
}

/// A node over a fake database.
struct Node {
    database: Arc<FakeDatabase>,
    inbox: Arc<Inbox>,
    token: Token,
    sessions: Vec<TestSession>,
}

struct TestSession {
    session: Arc<Session>,
    socket: Arc<FakeSocket>,
    acks: bool,
    /// The head it logged in at, the rev that it knew already, and what was undelivered then.
    head: Rev,
    since: Option<Rev>,
    undelivered: HashSet<Rev>,
}

impl Node {
    fn start(settings: Settings) -> Self {
        let database = Arc::new(FakeDatabase::default());
        let committers: Vec<Box<dyn Committer>> = vec![Box::new(FakeCommitter(Arc::clone(&database)))];
        let store = Arc::clone(&database);
        let (inbox, tasks) = Inbox::new(store, committers, Arc::new(LocalBus), database.epoch_now(), settings);
        for writer in tasks.writers {
            tokio::spawn(writer.run(CancellationToken::new()));
        }
        tokio::spawn(tasks.heads.run());
        tokio::spawn({
            let inbox = Arc::clone(&inbox);
            async move { inbox.sweep(CancellationToken::new()).await }
        });
        Self { database, inbox, token: token("alice"), sessions: Vec::new() }
    }

    async fn push(&self) {
        self.inbox.push(push_to(&self.token), None).await.unwrap();
    }

    /// Another node commits; this one hears of it only by a hint or the sweep.
    fn push_elsewhere(&self) -> Rev {
        let batch = Batch { pushes: vec![KeyedPush { push: push_to(&self.token), key: None }], ..Batch::default() };
        self.database.apply(&batch, Utc::now());
        self.database.head(&self.token).rev
    }

    /// Returns whether the login worked: a failing read refuses it.
    async fn login(&mut self, batch: bool, buffer: usize) -> bool {
        self.login_since(None, batch, buffer).await
    }

    /// With what a client that was here before knows: everything up to a rev.
    async fn login_since(&mut self, since: Option<Rev>, batch: bool, buffer: usize) -> bool {
        let undelivered = self.database.undelivered(&self.token, Utc::now());
        let socket = FakeSocket::new(buffer);
        let outlet: Arc<FakeSocket> = Arc::clone(&socket);
        let cursor = since.map(|rev| Cursor { rev, epoch: self.database.epoch_now() });
        let Ok(login) = self.inbox.login(&self.token, batch, cursor, outlet).await else { return false };
        let (session, head) = (Arc::clone(&login.session), login.greeting.head.rev);
        // Acks that nobody waits for may have been stored meanwhile.
        let still = self.database.undelivered(&self.token, Utc::now()).len() as u64;
        assert!((still..=undelivered.len() as u64).contains(&login.greeting.undelivered));
        login.start();
        self.sessions.push(TestSession { session, socket, acks: batch, head, since, undelivered });
        true
    }

    async fn receipt(&mut self, at: usize, kind: ReceiptKind, every: usize) {
        let Some(session) = self.sessions.get_mut(at) else { return };
        let ids = message_ids(&session.socket).into_iter().step_by(every).collect();
        session.acks |= kind == ReceiptKind::Ack;
        let session = Arc::clone(&session.session);
        let selection = Selection::Ids(ids);
        self.inbox.received(&session, kind, &selection);
        match (kind, &selection) {
            // Every other session wants no answer.
            (ReceiptKind::Ack, Selection::Ids(ids)) if at % 2 == 1 => assert!(self.inbox.ack(&session, ids)),
            _ => drop(self.inbox.receipt(&session, kind, selection).await.unwrap()),
        }
    }

    /// Flushes, acks and sweeps until nothing more comes.
    async fn settle(&mut self) {
        self.database.failing_reads.store(0, Ordering::Relaxed);
        let mut quiet = 0;
        while quiet < 3 {
            let before = self.received();
            for _ in 0..80 {
                self.sessions.iter().for_each(|session| session.socket.flush());
                sleep(SWEEP / 60).await;
            }
            for at in 0..self.sessions.len() {
                if self.sessions[at].acks {
                    self.receipt(at, ReceiptKind::Ack, 1).await;
                }
            }
            quiet = if self.received() == before { quiet + 1 } else { 0 };
        }
    }

    fn received(&self) -> usize {
        self.sessions.iter().map(|session| session.socket.received().len()).sum()
    }

    /// The promises, session by session.
    fn check(&self) -> Result<(), TestCaseError> {
        let history = self.database.history(&self.token, Utc::now());
        let head = self.database.head(&self.token).rev;
        for TestSession { session, socket, head: login_head, since, undelivered, .. } in &self.sessions {
            let received = socket.received();
            let revs: Vec<Rev> = received.iter().filter_map(rev_of).collect();
            prop_assert!(revs.is_sorted_by(|a, b| a < b), "revs must strictly rise: {revs:?}");

            let known = since.unwrap_or(*login_head);
            let (replays, live): (Vec<_>, Vec<_>) = received.iter().partition(|item| is_replay(item));
            let replays: HashSet<Rev> = replays.into_iter().filter_map(rev_of).collect();
            let old: HashSet<Rev> = replays.iter().copied().filter(|rev| *rev <= known).collect();
            prop_assert!(old.is_subset(undelivered), "replayed {old:?}, undelivered were {undelivered:?}");
            let still = self.database.undelivered(&self.token, Utc::now());
            let missed: Vec<_> =
                undelivered.intersection(&still).filter(|rev| **rev <= known && !old.contains(rev)).collect();
            prop_assert!(missed.is_empty(), "undelivered at login and never replayed: {missed:?}");
            prop_assert!(replays.iter().all(|rev| rev <= login_head), "what is newer than the login is live");
            let live_messages = live.iter().filter(|item| matches!(item, Received::Message { .. }));
            prop_assert!(live_messages.filter_map(|item| rev_of(item)).all(|rev| rev > *login_head), "the rest is not");
            let completed: Vec<_> =
                received.iter().filter(|item| matches!(item, Received::ReplayComplete { .. })).cloned().collect();
            prop_assert_eq!(completed, vec![Received::ReplayComplete { count: replays.len() as u64 }]);

            // A row that was taken back may have been sent before, or not.
            let told: Vec<Rev> = revs.into_iter().filter(|rev| *rev > known && !is_gone(&history[rev])).collect();
            let expected: Vec<Rev> =
                (known + 1..=head).filter(|rev| !is_own(&history[rev], session) && !is_gone(&history[rev])).collect();
            prop_assert_eq!(told, expected, "everything newer than {}", known);
        }
        Ok(())
    }
}

fn is_gone(event: &crate::notification::Event) -> bool {
    matches!(event, crate::notification::Event::Gone { .. })
}

fn is_own(event: &crate::notification::Event, session: &Session) -> bool {
    matches!(event, crate::notification::Event::Changed { origin, .. } if *origin == Some(session.id()))
}

fn is_replay(received: &Received) -> bool {
    matches!(received, Received::Message { replay: true, .. })
}

fn rev_of(received: &Received) -> Option<Rev> {
    match received {
        Received::Message { rev, .. } | Received::Changed { rev } => Some(*rev),
        Received::ReplayComplete { .. } | Received::Resync { .. } => None,
    }
}

fn message_ids(socket: &FakeSocket) -> Vec<Uuid> {
    let ids = socket.received().into_iter().filter_map(|item| match item {
        Received::Message { id, .. } => Some(id),
        _ => None,
    });
    ids.collect()
}

/// What can happen to a node.
#[derive(Debug, Clone)]
enum Step {
    Push,
    /// Another node commits and its hint comes so many times; 0 is a lost one.
    PushElsewhere {
        hints: u8,
    },
    /// An old hint comes late.
    OldHint {
        age: i64,
    },
    /// Somebody says what is not so.
    ForgedHint {
        ahead: i64,
        foreign: bool,
    },
    Login {
        batch: bool,
        buffer: usize,
        /// It knows everything but so many of the newest events.
        behind: Option<i64>,
    },
    /// The n-th newest notification is taken back.
    Retract {
        nth: usize,
    },
    Ack {
        session: usize,
        every: usize,
    },
    Read {
        session: usize,
        every: usize,
    },
    Flush {
        session: usize,
    },
    FailReads {
        reads: u32,
    },
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Push),
        4 => (0..3_u8).prop_map(|hints| Step::PushElsewhere { hints }),
        1 => (0..6_i64).prop_map(|age| Step::OldHint { age }),
        1 => (prop_oneof![1..4_i64, Just(1 << 60)], any::<bool>())
            .prop_map(|(ahead, foreign)| Step::ForgedHint { ahead, foreign }),
        3 => (any::<bool>(), 1..12_usize, prop::option::of(0..8_i64))
            .prop_map(|(batch, buffer, behind)| Step::Login { batch, buffer, behind }),
        1 => (0..5_usize).prop_map(|nth| Step::Retract { nth }),
        3 => (0..4_usize, 1..3_usize).prop_map(|(session, every)| Step::Ack { session, every }),
        2 => (0..4_usize, 1..3_usize).prop_map(|(session, every)| Step::Read { session, every }),
        3 => (0..4_usize).prop_map(|session| Step::Flush { session }),
        1 => (1..3_u32).prop_map(|reads| Step::FailReads { reads }),
        4 => (0..40_u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut node = Node::start(settings());
    for step in steps {
        let head = node.database.head(&node.token).rev;
        match step {
            Step::Push => node.push().await,
            Step::PushElsewhere { hints } => {
                let rev = node.push_elsewhere();
                (0..hints).for_each(|_| node.inbox.hub.hint(&node.token, rev));
            }
            Step::OldHint { age } => node.inbox.hub.hint(&node.token, head - age),
            Step::ForgedHint { ahead, foreign } => {
                let token = if foreign { token("mallory") } else { node.token.clone() };
                node.inbox.hub.hint(&token, head + ahead);
            }
            Step::Login { batch, buffer, behind } => {
                if node.sessions.len() < 4 {
                    let since = behind.map(|behind| (head - behind).max(0));
                    node.login_since(since, batch, buffer).await;
                }
            }
            Step::Retract { nth } => {
                let history = node.database.history(&node.token, Utc::now());
                let ids = history.values().rev().filter_map(|event| match event {
                    crate::notification::Event::New(new) => Some(new.content.id),
                    _ => None,
                });
                if let Some(id) = ids.into_iter().nth(nth) {
                    node.inbox.retract(id).await.unwrap();
                }
            }
            Step::Ack { session, every } => node.receipt(session, ReceiptKind::Ack, every).await,
            Step::Read { session, every } => node.receipt(session, ReceiptKind::Read, every).await,
            Step::Flush { session } => {
                if let Some(session) = node.sessions.get(session) {
                    session.socket.flush();
                }
            }
            Step::FailReads { reads } => node.database.failing_reads.store(reads, Ordering::Relaxed),
            Step::Wait { ms } => sleep(Duration::from_millis(ms)).await,
        }
    }
    node.settle().await;
    node.check()
}

/// Runs a test on a clock that jumps to the next timer whenever nothing else is to do.
fn on_paused_clock<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_session_gets_everything_once_and_in_order_whatever_happens(steps in prop::collection::vec(step(), 1..60)) {
        on_paused_clock(run(steps))?;
    }
}

/// Publishers, acks and hints send from whatever thread they are on: there is still one sender at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn from_many_threads_at_once_a_session_gets_everything_once_and_in_order() {
    const PUSHERS: usize = 4;
    const PUSHES: usize = 300;
    let mut node = Node::start(Settings { window: 16, ..settings() });
    for batch in [false, true] {
        assert!(node.login(batch, usize::MAX).await);
    }
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    for TestSession { session, socket, .. } in &node.sessions {
        let (inbox, session, socket, stop) =
            (Arc::clone(&node.inbox), Arc::clone(session), Arc::clone(socket), stop.clone());
        tasks.spawn(async move {
            let mut acked = 0;
            while !stop.is_cancelled() {
                let ids = message_ids(&socket);
                for id in &ids[acked..] {
                    inbox.received(&session, ReceiptKind::Ack, &Selection::Ids(vec![*id]));
                    assert!(inbox.ack(&session, &[*id]));
                }
                acked = ids.len();
                inbox.hub.hint(session.token(), acked as Rev + 3);
                tokio::task::yield_now().await;
            }
        });
    }
    let mut pushers = tokio::task::JoinSet::new();
    for _ in 0..PUSHERS {
        let (inbox, token) = (Arc::clone(&node.inbox), node.token.clone());
        pushers.spawn(async move {
            for _ in 0..PUSHES {
                inbox.push(push_to(&token), None).await.unwrap();
            }
        });
    }
    pushers.join_all().await;
    let all: Vec<Rev> = (1..=(PUSHERS * PUSHES) as Rev).collect();
    for TestSession { socket, .. } in &node.sessions {
        let done = async {
            while message_ids(socket).len() < all.len() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), done).await.expect("everything comes");
        assert_eq!(socket.received().iter().filter_map(rev_of).collect::<Vec<_>>(), all);
    }
    stop.cancel();
    tasks.join_all().await;
}

#[test]
fn without_hints_the_sweep_delivers() {
    on_paused_clock(async {
        let mut node = Node::start(settings());
        node.login(false, 100).await;
        for _ in 0..10 {
            node.push_elsewhere();
        }
        sleep(SWEEP / 2).await;
        assert_eq!(node.sessions[0].socket.received(), [Received::ReplayComplete { count: 0 }]);
        sleep(SWEEP).await;
        node.check().unwrap();
    });
}

#[test]
fn a_client_that_stops_acking_gets_no_more_than_the_window() {
    on_paused_clock(async {
        let mut node = Node::start(settings());
        for _ in 0..20 {
            node.push().await;
        }
        node.login(true, 100).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(message_ids(&node.sessions[0].socket).len(), WINDOW);
        node.receipt(0, ReceiptKind::Ack, 2).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(message_ids(&node.sessions[0].socket).len(), WINDOW + WINDOW / 2);
        node.settle().await;
        node.check().unwrap();
        assert!(node.sessions[0].socket.batches.lock().unwrap().iter().all(|size| *size <= WINDOW));
    });
}

#[test]
fn a_client_that_never_acks_is_not_limited_by_the_window() {
    on_paused_clock(async {
        let mut node = Node::start(settings());
        for _ in 0..20 {
            node.push().await;
        }
        node.login(false, 100).await;
        node.receipt(0, ReceiptKind::Read, 5).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(message_ids(&node.sessions[0].socket).len(), 20);
    });
}

#[test]
fn a_socket_that_takes_nothing_is_closed_and_its_session_detached() {
    on_paused_clock(async {
        let mut node = Node::start(settings());
        for _ in 0..5 {
            node.push().await;
        }
        node.login(false, 2).await;
        sleep(Duration::from_secs(29)).await;
        let socket = &node.sessions[0].socket;
        assert!(!socket.closed.load(Ordering::Relaxed));
        sleep(Duration::from_secs(3)).await;
        assert!(socket.closed.load(Ordering::Relaxed));
        assert!(node.inbox.hub.tokens().is_empty());
        assert_eq!(node.database.undelivered(&node.token, Utc::now()).len(), 5);
    });
}

#[test]
fn in_heartbeat_mode_a_silent_client_counts_as_delivered_after_a_heartbeat() {
    on_paused_clock(async {
        let heartbeat = Some(Duration::from_secs(50));
        let mut node = Node::start(Settings { heartbeat, ..settings() });
        node.push().await;
        node.login(false, 100).await;
        sleep(Duration::from_secs(10)).await;
        node.push().await;
        sleep(Duration::from_secs(39)).await;
        assert_eq!(node.database.undelivered(&node.token, Utc::now()).len(), 2);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(node.database.undelivered(&node.token, Utc::now()), HashSet::from([2]));
        node.sessions[0].session.end();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(node.database.undelivered(&node.token, Utc::now()), HashSet::from([2]), "its socket died before");
    });
}

#[test]
fn an_ended_session_leaves_nothing_in_the_hub() {
    on_paused_clock(async {
        let mut node = Node::start(settings());
        for _ in 0..3 {
            node.login(false, 100).await;
        }
        assert_eq!(node.inbox.hub.tokens().len(), 1);
        node.sessions.iter().for_each(|session| session.session.end());
        sleep(Duration::from_millis(1)).await;
        assert!(node.inbox.hub.tokens().is_empty());
    });
}

#[test]
fn a_cursor_of_elsewhere_is_told_to_start_over_and_gets_what_is_undelivered() {
    for (rev, epoch) in [(2, "another epoch"), (9, "epoch 0")] {
        on_paused_clock(async {
            let mut node = Node::start(settings());
            for _ in 0..3 {
                node.push().await;
            }
            let socket = FakeSocket::new(100);
            let cursor = Cursor { rev, epoch: epoch.into() };
            let login = node.inbox.login(&node.token, true, Some(cursor), Arc::clone(&socket) as _).await.unwrap();
            assert_eq!(login.greeting.undelivered, 3);
            login.start();
            node.settle().await;
            let resync = Received::Resync { rev: 3, epoch: "epoch 0".into() };
            assert_eq!(socket.received()[0], resync, "{rev} of {epoch}");
            assert_eq!(message_ids(&socket).len(), 3);
            assert_eq!(socket.received().last(), Some(&Received::ReplayComplete { count: 3 }));
        });
    }
}

#[test]
fn what_is_sent_live_only_reaches_who_is_there_and_takes_no_rev() {
    on_paused_clock(async {
        let mut node = Node::start(settings());
        node.login(true, 100).await;
        let mut push = push_to(&node.token);
        push.options.ttl_secs = Some(0);
        let pushed = node.inbox.push(push, None).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(message_ids(&node.sessions[0].socket), [pushed.id]);
        assert_eq!(node.database.head(&node.token).rev, 0);
        node.push().await;
        node.settle().await;
        assert_eq!(node.sessions[0].socket.received().iter().filter_map(rev_of).collect::<Vec<_>>(), [0, 1]);
        node.login(false, 100).await;
        sleep(Duration::from_millis(1)).await;
        assert!(!message_ids(&node.sessions[1].socket).contains(&pushed.id), "it is not replayed");
    });
}

#[tokio::test(start_paused = true)]
async fn a_table_that_was_taken_back_is_told_and_life_goes_on_from_there() {
    let mut node = Node::start(settings());
    for _ in 0..3 {
        node.push_elsewhere();
    }
    assert!(node.login(true, 100).await);
    for _ in 0..2 {
        node.push().await;
    }
    node.settle().await;
    node.database.take_back(&node.token, 2);
    sleep(SWEEP * 2).await;
    for _ in 0..4 {
        node.push().await;
    }
    node.settle().await;
    let received = node.sessions[0].socket.received();
    let resync = received.iter().position(|item| matches!(item, Received::Resync { .. })).expect("a resync");
    assert_eq!(received[resync], Received::Resync { rev: 2, epoch: "epoch 0".to_owned() });
    assert_eq!(received[resync + 1..].iter().filter_map(rev_of).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(received.iter().filter(|item| matches!(item, Received::Resync { .. })).count(), 1, "it is told once");
    // The settling acked by id; by rev, it must not matter what was acked of the table as it was.
    node.push().await;
    node.push().await;
    let session = Arc::clone(&node.sessions[0].session);
    let head = node.database.head(&node.token).rev;
    session.stored_ack_upto(head);
    node.database.take_back(&node.token, 1);
    sleep(SWEEP * 2).await;
    node.push().await;
    let head = node.database.head(&node.token).rev;
    node.inbox.receipt(&session, ReceiptKind::Ack, Selection::UpTo(head)).await.unwrap();
    assert!(!node.database.undelivered(&node.token, Utc::now()).contains(&head), "the new row is marked");
}

#[tokio::test(start_paused = true)]
async fn what_is_pushed_while_a_session_looks_where_a_table_was_taken_back_to_is_sent() {
    let mut node = Node::start(settings());
    for _ in 0..3 {
        node.push_elsewhere();
    }
    assert!(node.login(true, 100).await);
    sleep(Duration::from_millis(1)).await;
    node.database.take_back(&node.token, 2);
    node.database.heads_take_ms.store(100, Ordering::Relaxed);
    // The sweep has its answer, the session's own is on its way.
    sleep(SWEEP + Duration::from_millis(150)).await;
    node.push().await;
    sleep(Duration::from_secs(1)).await;
    let received = node.sessions[0].socket.received();
    let resync = received.iter().position(|item| matches!(item, Received::Resync { .. })).expect("a resync");
    let told = received[resync..].iter().filter_map(|item| match item {
        Received::Resync { rev, .. } => Some(*rev),
        item => rev_of(item),
    });
    assert_eq!(told.max(), Some(3), "{received:?}");
}

#[tokio::test(start_paused = true)]
async fn a_table_of_another_epoch_is_told_even_if_it_is_as_long() {
    let mut node = Node::start(settings());
    for _ in 0..3 {
        node.push().await;
    }
    assert!(node.login_since(Some(3), true, 100).await);
    node.database.renewals.store(1, Ordering::Relaxed);
    // A cursor of before is worth nothing from that moment on, a session is told with the next sweep.
    let cursor = Cursor { rev: 3, epoch: "epoch 0".into() };
    let late = FakeSocket::new(100);
    let login = node.inbox.login(&node.token, true, Some(cursor), Arc::clone(&late) as _).await.unwrap();
    assert_eq!(&*login.greeting.epoch, "epoch 1");
    login.start();
    sleep(SWEEP * 2).await;
    let resync = Received::Resync { rev: 3, epoch: "epoch 1".to_owned() };
    for socket in [&node.sessions[0].socket, &late] {
        let told = socket.received().into_iter().filter(|item| *item == resync).count();
        assert_eq!(told, 1, "{:?}", socket.received());
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_was_taken_back_before_the_first_sweep_is_told_too() {
    let mut node = Node::start(settings());
    for _ in 0..5 {
        node.push_elsewhere();
    }
    assert!(node.login(false, 100).await);
    node.database.take_back(&node.token, 2);
    sleep(SWEEP * 2).await;
    node.push().await;
    node.settle().await;
    let received = node.sessions[0].socket.received();
    let resync = received.iter().position(|item| matches!(item, Received::Resync { rev: 2, .. })).expect("a resync");
    assert_eq!(received[resync + 1..].iter().filter_map(rev_of).collect::<Vec<_>>(), [3]);
}

#[tokio::test(start_paused = true)]
async fn events_of_a_table_that_is_no_more_are_neither_sent_nor_waited_for() {
    let mut node = Node::start(settings());
    assert!(node.login(false, 100).await);
    // The ring holds revs that the table no longer reaches, and not the next one.
    node.inbox.hub.hint(&node.token, 9);
    for _ in 0..6 {
        node.push().await;
    }
    node.settle().await;
    node.database.take_back(&node.token, 1);
    assert!(node.login(false, 100).await);
    sleep(SWEEP * 3).await;
    let reads = node.database.reads.load(Ordering::Relaxed);
    sleep(Duration::from_secs(1)).await;
    assert!(node.database.reads.load(Ordering::Relaxed) - reads < 10, "nobody asks without end");
    node.push().await;
    node.settle().await;
    for session in &node.sessions {
        let received = session.socket.received();
        assert_eq!(received.last().and_then(rev_of), Some(2), "{received:?}");
    }
}

/// An inbox with its first row and its last undelivered, and much in between that is not.
async fn inbox_with_a_gap(node: &mut Node, rows: usize) {
    for _ in 0..rows {
        node.push_elsewhere();
    }
    let history = node.database.history(&node.token, Utc::now());
    let ids = history.values().filter_map(|event| match event {
        crate::notification::Event::New(new) => Some((node.token.clone(), new.content.id)),
        _ => None,
    });
    let mut ids: Vec<_> = ids.collect();
    ids.pop();
    node.database.apply(&Batch { acked: ids.split_off(1), ..Batch::default() }, Utc::now());
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_is_passed_in_steps_once_and_then_skipped() {
    let mut node = Node::start(settings());
    inbox_with_a_gap(&mut node, 800).await;
    let mut reads = Vec::new();
    for _ in 0..2 {
        let before = node.database.reads.load(Ordering::Relaxed);
        assert!(node.login(true, 1000).await);
        sleep(SWEEP / 60).await;
        reads.push(node.database.reads.load(Ordering::Relaxed) - before);
        let socket = &node.sessions.last().unwrap().socket;
        let revs: Vec<Rev> = socket.received().iter().filter(|item| is_replay(item)).filter_map(rev_of).collect();
        assert_eq!(revs, [1, 800]);
    }
    assert!(reads[0] > 100, "it looks at a step at a time: {reads:?}");
    assert!(reads[1] < 12, "it seeks: {reads:?}");
    node.check().unwrap();
}

#[tokio::test(start_paused = true)]
async fn rows_in_the_place_of_a_gap_are_replayed_after_the_table_went_back() {
    let mut node = Node::start(settings());
    inbox_with_a_gap(&mut node, 100).await;
    assert!(node.login(true, 1000).await);
    sleep(SWEEP / 60).await;
    node.sessions.pop().unwrap().session.end();
    node.database.take_back(&node.token, 50);
    for _ in 0..80 {
        node.push_elsewhere();
    }
    assert!(node.login(true, 1000).await);
    node.settle().await;
    let received = node.sessions[0].socket.received();
    let revs: Vec<Rev> = received.iter().filter(|item| is_replay(item)).filter_map(rev_of).collect();
    assert_eq!(revs, [1].into_iter().chain(51..=130).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_list_passes_what_is_gone_in_steps_and_says_where_to_go_on() {
    let node = Node::start(settings());
    for _ in 0..60 {
        node.push_elsewhere();
    }
    let history = node.database.history(&node.token, Utc::now());
    for event in history.into_values().skip(1) {
        if let crate::notification::Event::New(new) = event {
            node.database.edit(&Edit::retract(new.content.id), Utc::now());
        }
    }
    // Nothing is in the newest revs but changes and retracted rows, in which nothing is remembered that holds no row.
    let query = |before| ListQuery {
        token: &node.token,
        before,
        above: 0,
        unread: None,
        entity_type: None,
        limit: 10,
        now: Utc::now(),
    };
    for expected_pages in [2.., 1..] {
        let (mut seqs, mut before, mut pages) = (Vec::new(), Some(Rev::MAX), 0);
        while let Some(at) = before {
            let page = node.inbox.list(&query(at)).await.unwrap();
            seqs.extend(page.rows.iter().map(|entry| entry.notification.seq));
            assert!(page.next.is_none_or(|next| next < at), "it goes on");
            before = page.next;
            pages += 1;
        }
        assert_eq!(seqs, [1]);
        assert!(expected_pages.contains(&pages), "{pages}");
    }
    let counts = node.inbox.counts(&node.token).await.unwrap();
    assert_eq!(counts.iter().map(|count| (&*count.entity_type, count.unread)).collect::<Vec<_>>(), [("like", 1)]);
}
