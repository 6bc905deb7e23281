//! What every database must do. Each test runs on each of them, see the list at the end.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::value::RawValue;
use uuid::Uuid;

#[cfg(feature = "postgres")]
#[path = "../../tests/support/postgres.rs"]
#[expect(dead_code, reason = "only the integration tests mistreat a server")]
mod postgres;

use super::fake::FakeDatabase;
use super::{
    Batch, Due, Edit, Edited, Error, IdempotencyKey, Keep, KeyedPush, ListQuery, OpenError, Opened, Place, PushOutcome,
    Receipt, Settings, Stale, Store, Undelivered, Writer,
};
use crate::notification::{
    ChangeKind, Event, Group, GroupKey, Head, NewPush, Options, Payload, Pushed, ReceiptKind, Rev, Selection, Token,
    timestamp,
};

fn settings() -> Settings {
    Settings {
        readers: 1,
        writers: 2,
        page_bytes: 1000,
        timeout: Duration::from_secs(5),
        idempotency_ttl: Duration::from_secs(60),
        sqlite_cache_kib: 1024,
        allow_fsync_off: false,
        startup_check_bytes: u64::MAX,
    }
}

/// A database that exists for one test.
enum Database {
    #[cfg(feature = "sqlite")]
    Sqlite(tempfile::TempDir),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Database),
}

impl Database {
    fn url(&self) -> String {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(folder) => format!("sqlite://{}", folder.path().join("tidings.db").display()),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database.url(),
        }
    }

    async fn open(&self) -> Opened {
        super::open(&self.url(), &settings()).await.unwrap()
    }

    /// Makes every insert of a notification fail.
    fn sabotage(&self) {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => self.sqlite(
                "create trigger fail before insert on notification begin select raise(abort, 'told to fail'); end",
            ),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => drop(database.sql(
                "create function fail() returns trigger language plpgsql as 'begin raise ''told to fail''; end';
                create trigger fail before insert on notification for each row execute function fail()",
            )),
        }
    }

    fn repair(&self) {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => self.sqlite("drop trigger fail"),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => drop(database.sql("drop trigger fail on notification")),
        }
    }

    /// The lines that SQL finds for an admin.
    fn found(&self, sql: &str) -> String {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => {
                let file = self.url().replacen("sqlite://", "", 1);
                let output = std::process::Command::new("sqlite3").arg(file).arg(sql).output().unwrap();
                assert!(output.status.success(), "{sql}: {output:?}");
                String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database.sql(sql).trim_end_matches('\n').to_owned(),
        }
    }

    /// Makes every receipt of an inbox fail.
    fn refuse_receipts_of(&self, token: &str) {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => self.sqlite(&format!(
                "create trigger fail before update of delivered_at on notification when new.token = '{token}'
                begin select raise(abort, 'told to fail'); end"
            )),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => drop(database.sql(&format!(
                "create function fail() returns trigger language plpgsql as 'begin raise ''told to fail''; end';
                create trigger fail before update of delivered_at on notification for each row
                when (new.token = '{token}') execute function fail()"
            ))),
        }
    }

    /// Runs SQL as an admin.
    fn sql(&self, sql: &str) {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => self.sqlite(sql),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => drop(database.sql(sql)),
        }
    }

    #[cfg(feature = "sqlite")]
    fn sqlite(&self, sql: &str) {
        let file = self.url().replacen("sqlite://", "", 1);
        let status = std::process::Command::new("sqlite3").arg(file).arg(sql).status().unwrap();
        assert!(status.success());
    }
}

fn now() -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-01-02T03:04:05.678Z").unwrap().to_utc()
}

fn token(text: &str) -> Token {
    Token::parse(text, 256).unwrap()
}

fn push(tokens: &[&str], data: &str) -> KeyedPush {
    let data = Payload::parse(RawValue::from_string(data.to_owned()).unwrap(), 1 << 20, 64).unwrap();
    let tokens = tokens.iter().map(|text| token(text)).collect();
    let push = NewPush { tokens, entity_type: "like".into(), data, options: Options::default() };
    KeyedPush { push, key: None }
}

fn keyed(tokens: &[&str], key: &str, body: &str) -> KeyedPush {
    let key = IdempotencyKey { owner: "backend".into(), key: key.into(), body_sha256: body.into() };
    KeyedPush { key: Some(key), ..push(tokens, "{}") }
}

fn push_with(tokens: &[&str], options: Options) -> KeyedPush {
    let mut keyed = push(tokens, "{}");
    keyed.push.options = options;
    keyed
}

/// Has the data of a push stored once for all its rows.
fn shared(mut keyed: KeyedPush) -> KeyedPush {
    keyed.push.data = keyed.push.data.shared();
    keyed
}

fn grouped(key: &str, actor: Option<&str>) -> Options {
    let actor = actor.map(str::to_owned);
    Options { group: Some(GroupKey { key: key.into(), actor }), ..Options::default() }
}

fn receipt(to: &str, kind: ReceiptKind, selection: Selection) -> Receipt {
    Receipt { token: token(to), kind, selection, after: 0, origin: Some(7), life: None }
}

async fn commit_pushes(opened: &mut Opened, pushes: Vec<KeyedPush>) -> Vec<Pushed> {
    let committed = opened.committers[0].commit(&Batch { pushes, ..Batch::default() }, now()).await.unwrap();
    let pushed = committed.pushes.into_iter().map(|outcome| match outcome {
        PushOutcome::Pushed(pushed) => pushed,
        PushOutcome::KeyMismatch => panic!("the key came with another body"),
    });
    pushed.collect()
}

async fn history(opened: &Opened, token: &Token) -> Vec<Event> {
    history_at(opened, token, now()).await
}

async fn history_at(opened: &Opened, token: &Token, now: DateTime<Utc>) -> Vec<Event> {
    let (mut events, mut after) = (Vec::new(), 0);
    loop {
        let page = opened.store.events(token, after, 3, now).await.unwrap();
        events.extend(page.rows);
        after = events.last().map_or(0, Event::rev);
        if !page.more {
            return events;
        }
    }
}

async fn undelivered(opened: &Opened, token: &Token, upto: Rev, now: DateTime<Utc>) -> Vec<Rev> {
    let page = Undelivered { token, after: 0, upto, limit: 1000, now };
    let rows = opened.store.undelivered(&page).await.unwrap().rows;
    assert_eq!(opened.store.count_undelivered(&page).await.unwrap(), rows.len() as u64);
    rows.iter().map(|row| row.seq).collect()
}

/// Every row that a list with these filters shows, page by page.
async fn list(store: &dyn Store, token: &Token, unread: Option<bool>, now: DateTime<Utc>) -> Vec<String> {
    let (mut rows, mut before) = (Vec::new(), Rev::MAX);
    loop {
        let query = ListQuery { token, before, above: 0, unread, entity_type: Some("like"), limit: 2, now };
        let page = store.list(&query).await.unwrap();
        before = page.rows.last().map_or(0, |entry| entry.notification.seq);
        rows.extend(page.rows.into_iter().map(|entry| {
            let expires_at = entry.expires_at.map(timestamp);
            format!("{} expires {expires_at:?}", shape(&Event::New(entry.notification)))
        }));
        if !page.more {
            return rows;
        }
    }
}

/// The unread rows by type.
async fn counts(store: &dyn Store, token: &Token, now: DateTime<Utc>) -> Vec<(String, i64)> {
    let Some((after, upto)) = store.unread_span(token).await.unwrap() else { return Vec::new() };
    let counts = store.counts(token, after, upto, now).await.unwrap();
    let mut counts: Vec<_> = counts.into_iter().map(|count| (count.entity_type, count.unread)).collect();
    counts.sort();
    counts
}

/// An event without the parts that differ from database to database.
fn shape(event: &Event) -> String {
    let group = |group: &Group| format!("{} {} {:?}", group.key, group.count, group.actors);
    match event {
        Event::New(new) => {
            let group = new.group.as_deref().map(group);
            format!("{} new {:?} read {} {group:?}", new.seq, new.content.data.get(), new.read)
        }
        Event::Gone { rev } => format!("{rev} gone"),
        Event::Changed { rev, change, .. } => {
            let what = match &change.kind {
                ChangeKind::Read(ids) => format!("read {}", ids.len()),
                ChangeKind::ReadUpTo(upto) => format!("read to {upto}"),
                ChangeKind::Unread(ids) => format!("unread {}", ids.len()),
                ChangeKind::Retracted(ids) => format!("retracted {}", ids.len()),
                ChangeKind::Expired(ids) => format!("expired {}", ids.len()),
                ChangeKind::Group(regrouped) => format!("group {}", group(&regrouped.group)),
            };
            format!("{rev} {what} leaves {}", change.unread)
        }
    }
}

const TOKENS: u8 = 6;

#[derive(Debug, Clone)]
enum Step {
    Push {
        tokens: Vec<u8>,
        copies: Vec<Wish>,
    },
    Receipt {
        token: u8,
        kind: ReceiptKind,
        choice: Choice,
    },
    /// The n-th push of all, from the newest.
    Retract(usize),
    Ungroup {
        token: u8,
        key: u8,
        actor: u8,
    },
    Erase(u8),
    /// Acks that nobody waits for: every n-th push.
    Acked {
        token: u8,
        every: usize,
    },
    /// A watermark may move up to a rev that the inbox had so many revs ago.
    Advance {
        token: u8,
        ago: Rev,
    },
    Expire,
    Release,
}

/// What one push asks for; times are in steps from now.
#[derive(Debug, Clone)]
struct Wish {
    ttl: Option<u32>,
    collapse: Option<u8>,
    group: Option<(u8, Option<u8>)>,
    later: Option<i64>,
    /// Its data is stored apart from its rows.
    shared: bool,
}

impl Wish {
    fn options(&self, now: DateTime<Utc>) -> Options {
        Options {
            ttl_secs: self.ttl,
            collapse_key: self.collapse.filter(|_| self.group.is_none()).map(|key| key.to_string()),
            group: self.group.map(|(key, actor)| GroupKey {
                key: key.to_string(),
                actor: actor.map(|actor| format!("actor {actor}")),
            }),
            deliver_at: self.later.map(|steps| now + TimeDelta::seconds(steps)),
        }
    }
}

#[derive(Debug, Clone)]
enum Choice {
    /// Every n-th row that there is, of any inbox.
    Every(usize),
    UpTo(Rev),
    All,
}

fn wish() -> impl Strategy<Value = Wish> {
    let ttl = prop_oneof![4 => Just(None), 1 => (1..6_u32).prop_map(Some)];
    let collapse = prop_oneof![3 => Just(None), 1 => (0..2_u8).prop_map(Some)];
    let group = prop_oneof![1 => Just(None), 1 => (0..2_u8, prop::option::of(0..6_u8)).prop_map(Some)];
    let later = prop_oneof![6 => Just(None), 1 => (-1..6_i64).prop_map(Some)];
    (ttl, collapse, group, later, any::<bool>()).prop_map(|(ttl, collapse, group, later, shared)| Wish {
        ttl,
        collapse,
        group,
        later,
        shared,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(ReceiptKind::Ack), Just(ReceiptKind::Read)];
    let choice =
        prop_oneof![(1..4_usize).prop_map(Choice::Every), (0..12_i64).prop_map(Choice::UpTo), Just(Choice::All)];
    let some_tokens = || prop::collection::vec(0..TOKENS, 1..6);
    let plain = Wish { ttl: None, collapse: None, group: None, later: None, shared: false };
    prop_oneof![
        3 => (some_tokens(), 1..4_usize)
            .prop_map(move |(tokens, copies)| Step::Push { tokens, copies: vec![plain.clone(); copies] }),
        5 => (some_tokens(), prop::collection::vec(wish(), 1..4))
            .prop_map(|(tokens, copies)| Step::Push { tokens, copies }),
        3 => (0..TOKENS, kind, choice).prop_map(|(token, kind, choice)| Step::Receipt { token, kind, choice }),
        2 => (0..TOKENS, 1..4_usize).prop_map(|(token, every)| {
            Step::Receipt { token, kind: ReceiptKind::Unread, choice: Choice::Every(every) }
        }),
        1 => (0..5_usize).prop_map(Step::Retract),
        2 => (0..TOKENS, 0..2_u8, 0..6_u8).prop_map(|(token, key, actor)| Step::Ungroup { token, key, actor }),
        1 => (0..TOKENS).prop_map(Step::Erase),
        3 => (0..TOKENS, 1..4_usize).prop_map(|(token, every)| Step::Acked { token, every }),
        3 => (0..TOKENS, 0..3_i64).prop_map(|(token, ago)| Step::Advance { token, ago }),
        2 => Just(Step::Expire),
        2 => Just(Step::Release),
    ]
}

/// Runs the steps, a second apart, on a real database and on the reference and compares everything a caller can see.
/// Large changes are done in steps of so many `rows`, after each of which everything must hold.
async fn agrees_with_the_reference(
    database: &Database,
    steps: Vec<Step>,
    rows: Option<u32>,
) -> Result<(), TestCaseError> {
    let mut opened = database.open().await;
    let reference = FakeDatabase::default();
    let (mut real_ids, mut reference_ids): (Vec<Uuid>, Vec<Uuid>) = Default::default();
    let shapes = |events: &[(Token, Event)]| {
        let mut shapes: Vec<_> = events.iter().map(|(token, event)| (token.clone(), shape(event))).collect();
        shapes.sort();
        shapes
    };
    let mut time = now();
    for step in steps {
        time += TimeDelta::seconds(1);
        let (mut real, mut expected) = (Batch::default(), Batch::default());
        let nth = |ids: &[Uuid], n: usize| ids.iter().rev().nth(n).copied().unwrap_or_default();
        let edits = match step {
            Step::Push { mut tokens, copies } => {
                tokens.sort_unstable();
                tokens.dedup();
                let tokens: Vec<_> = tokens.iter().map(u8::to_string).collect();
                let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
                for batch in [&mut real, &mut expected] {
                    let push = |wish: &Wish| {
                        let push = push_with(&tokens, wish.options(time));
                        if wish.shared { shared(push) } else { push }
                    };
                    batch.pushes = copies.iter().map(push).collect();
                }
                None
            }
            Step::Receipt { token, kind, choice } => {
                let select = |ids: &[Uuid]| match choice {
                    Choice::Every(n) => Selection::Ids(ids.iter().copied().step_by(n).collect()),
                    Choice::UpTo(rev) => Selection::UpTo(rev),
                    Choice::All => Selection::All,
                };
                real.receipts.push(receipt(&token.to_string(), kind, select(&real_ids)));
                expected.receipts.push(receipt(&token.to_string(), kind, select(&reference_ids)));
                None
            }
            Step::Acked { token, every } => {
                let token = super::tests::token(&token.to_string());
                let acked = |ids: &[Uuid]| ids.iter().step_by(every).map(|id| (token.clone(), *id)).collect();
                (real.acked, expected.acked) = (acked(&real_ids), acked(&reference_ids));
                None
            }
            Step::Advance { token, ago } => {
                let token = super::tests::token(&token.to_string());
                let rev = reference.head(&token).rev - ago;
                real.advances = vec![(token, rev)];
                None
            }
            Step::Retract(n) => Some((Edit::retract(nth(&real_ids, n)), Edit::retract(nth(&reference_ids, n)))),
            Step::Ungroup { token, key, actor } => {
                let token = super::tests::token(&token.to_string());
                let edit = Edit::Ungroup { token, key: key.to_string(), actor: format!("actor {actor}") };
                Some((edit.clone(), edit))
            }
            Step::Erase(token) => {
                let edit = Edit::erase(super::tests::token(&token.to_string()));
                Some((edit.clone(), edit))
            }
            Step::Expire => Some((Edit::Expire { limit: 1000 }, Edit::Expire { limit: 1000 })),
            Step::Release => Some((Edit::Release { limit: 1000 }, Edit::Release { limit: 1000 })),
        };
        if let Some((edit, same)) = edits {
            let wanted = reference.edit(&same, time);
            let (mut edited, mut next, mut steps) = (Edited::default(), Some(edit.clone()), 0);
            while let Some(edit) = next {
                let step = opened.committers[0].edit(&edit, rows.unwrap_or(1_000), time).await.unwrap();
                edited.rows += step.rows;
                edited.events.extend(step.events);
                (next, steps) = (step.next, steps + 1);
                if next.is_some() {
                    let audit = super::check(&database.url()).await.unwrap();
                    prop_assert!(audit.violations.is_empty(), "after a step: {:?}", audit.violations);
                }
            }
            prop_assert_eq!(edited.rows, wanted.rows, "{:?}", &edit);
            // Of an inbox that is erased in steps is told what became unread before it is gone.
            if steps == 1 || !matches!(edit, Edit::Erase { .. }) {
                prop_assert_eq!(shapes(&edited.events), shapes(&wanted.events), "{:?}", &edit);
            }
            continue;
        }
        (real.mark_rows, expected.mark_rows) = (rows, rows);
        let committed = opened.committers[0].commit(&real, time).await.unwrap();
        let wanted = reference.apply(&expected, time);
        for ((ids, other), outcomes) in [
            ((&mut real_ids, &wanted.pushes), &committed.pushes),
            ((&mut reference_ids, &committed.pushes), &wanted.pushes),
        ] {
            for (outcome, same) in outcomes.iter().zip(other) {
                let (PushOutcome::Pushed(pushed), PushOutcome::Pushed(same)) = (outcome, same) else { continue };
                let placed = |pushed: &Pushed| -> Vec<_> {
                    let placed = pushed.results.iter();
                    placed.map(|placed| (placed.token.clone(), placed.seq, placed.grouped_into.is_some())).collect()
                };
                prop_assert_eq!(placed(pushed), placed(same));
                ids.push(pushed.id);
            }
        }
        let counters = |head: &Option<Head>| head.map(|head| (head.rev, head.unread));
        prop_assert_eq!(
            committed.receipts.iter().map(counters).collect::<Vec<_>>(),
            wanted.receipts.iter().map(counters).collect::<Vec<_>>()
        );
        prop_assert_eq!(shapes(&committed.events), shapes(&wanted.events));
        let (mut left, mut expected) = (committed.unfinished, wanted.unfinished);
        while let Some((_, receipt)) = left.pop() {
            let is_ack = receipt.kind == ReceiptKind::Ack;
            let batch = Batch { receipts: vec![receipt], mark_rows: rows, ..Batch::default() };
            let committed = opened.committers[0].commit(&batch, time).await.unwrap();
            left = committed.unfinished;
            let audit = super::check(&database.url()).await.unwrap();
            prop_assert!(audit.violations.is_empty(), "after a step: {:?}", audit.violations);
            // The reference marks all that is acked at once, which nobody is told.
            if !is_ack {
                let receipts = expected.drain(..).map(|(_, receipt)| receipt).collect();
                let wanted = reference.apply(&Batch { receipts, mark_rows: rows, ..Batch::default() }, time);
                prop_assert_eq!(shapes(&committed.events), shapes(&wanted.events));
                expected = wanted.unfinished;
            }
        }
        prop_assert!(expected.is_empty());
    }
    for token in (0..TOKENS).map(|token| super::tests::token(&token.to_string())) {
        let events = history_at(&opened, &token, time).await;
        let wanted: Vec<_> = reference.history(&token, time).into_values().collect();
        prop_assert_eq!(events.iter().map(shape).collect::<Vec<_>>(), wanted.iter().map(shape).collect::<Vec<_>>());
        let head = opened.store.heads(std::slice::from_ref(&token)).await.unwrap().get(&token).0;
        let expected = reference.head(&token);
        prop_assert_eq!((head.rev, head.unread), (expected.rev, expected.unread));
        let mut missing: Vec<_> = reference.undelivered(&token, time).into_iter().collect();
        missing.sort_unstable();
        prop_assert!(missing.iter().all(|rev| *rev > head.delivered_upto), "the watermark passed an undelivered row");
        prop_assert_eq!(undelivered(&opened, &token, Rev::MAX, time).await, missing);
        for unread in [None, Some(true), Some(false)] {
            prop_assert_eq!(
                list(&*opened.store, &token, unread, time).await,
                list(&reference, &token, unread, time).await
            );
        }
        prop_assert_eq!(counts(&*opened.store, &token, time).await, counts(&reference, &token, time).await);
        let mut rows = wanted.iter().filter(|event| matches!(event, Event::New(_))).map(Event::rev);
        if let Some(live) = rows.next_back() {
            let newest = opened.store.newest_row(&token, live).await.unwrap();
            prop_assert_eq!(newest.map(|(seq, _)| seq), Some(live));
        }
    }
    let audit = super::check(&database.url()).await.unwrap();
    prop_assert!(audit.violations.is_empty(), "{:?}", audit.violations);
    Ok(())
}

async fn random_batches_leave_what_the_reference_says(make: fn() -> Database) {
    random_batches(make, None).await;
}

async fn random_batches_in_small_steps_leave_what_the_reference_says(make: fn() -> Database) {
    random_batches(make, Some(2)).await;
}

async fn random_batches(make: fn() -> Database, rows: Option<u32>) {
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let result = tokio::task::spawn_blocking(move || {
        TestRunner::new(config).run(&prop::collection::vec(step(), 1..40), |steps| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let database = make();
            runtime.block_on(agrees_with_the_reference(&database, steps, rows))
        })
    });
    result.await.unwrap().unwrap();
}

async fn receipts_of_several_sessions_in_one_batch_are_one_change_each_way(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let pushed = commit_pushes(&mut opened, (0..4).map(|_| push(&["1"], "{}")).collect()).await;
    let ids = |at: usize| Selection::Ids(vec![pushed[at].id]);
    let receipts = vec![
        receipt("1", ReceiptKind::Read, ids(3)),
        receipt("1", ReceiptKind::Read, ids(2)),
        Receipt { origin: Some(8), ..receipt("1", ReceiptKind::Read, Selection::UpTo(1)) },
        receipt("2", ReceiptKind::Read, Selection::All),
    ];
    let committed = opened.committers[0].commit(&Batch { receipts, ..Batch::default() }, now()).await.unwrap();
    let shapes: Vec<_> = committed.events.iter().map(|(_, event)| shape(event)).collect();
    assert_eq!(shapes, ["5 read 2 leaves 2", "6 read to 1 leaves 1"]);
    let origins = committed.events.iter().map(|(_, event)| match event {
        Event::Changed { origin, .. } => *origin,
        Event::New(_) | Event::Gone { .. } => panic!("nothing was pushed"),
    });
    assert!(origins.eq([None, None]), "two sessions asked, so both must hear");
    assert_eq!(committed.receipts[3].unwrap().rev, 0, "a token that never got anything stays unknown");
}

async fn a_watermark_follows_acks_only_when_it_is_moved_and_never_passes_an_undelivered_row(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let pushed = commit_pushes(&mut opened, (0..5).map(|_| push(&["1"], "{}")).collect()).await;
    let acked = [0, 1, 3].map(|at| (token("1"), pushed[at].id)).to_vec();
    let strangers = (token("2"), pushed[4].id);
    let batch = Batch { acked: acked.into_iter().chain([strangers]).collect(), ..Batch::default() };
    let committed = opened.committers[0].commit(&batch, now()).await.unwrap();
    assert!(committed.events.is_empty(), "nobody is told");
    assert_eq!(undelivered(&opened, &token("1"), Rev::MAX, now()).await, [3, 5]);
    let watermark =
        async |opened: &Opened| opened.store.heads(&[token("1")]).await.unwrap().get(&token("1")).0.delivered_upto;
    assert_eq!(watermark(&opened).await, 0);
    for (upto, expected) in [(1, 1), (9, 1), (5, 2), (4, 2)] {
        let batch = Batch { advances: vec![(token("1"), upto), (token("nobody"), 3)], ..Batch::default() };
        opened.committers[0].commit(&batch, now()).await.unwrap();
        assert_eq!(watermark(&opened).await, expected, "up to {upto}");
    }
    let upto = Receipt { after: 3, ..receipt("1", ReceiptKind::Ack, Selection::UpTo(5)) };
    opened.committers[0].commit(&Batch { receipts: vec![upto], ..Batch::default() }, now()).await.unwrap();
    assert_eq!(undelivered(&opened, &token("1"), Rev::MAX, now()).await, [3], "the rows before are not looked at");
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());
}

async fn a_key_gives_the_first_answer_until_it_expires(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let first = commit_pushes(&mut opened, vec![keyed(&["1", "2"], "k", "body")]).await;
    let again = commit_pushes(&mut opened, vec![push(&["1"], "{}"), keyed(&["1", "2"], "k", "body")]).await;
    assert_eq!(again[1], first[0]);
    assert_eq!(history(&opened, &token("1")).await.len(), 2);

    let other = Batch { pushes: vec![keyed(&["1"], "k", "another body")], ..Batch::default() };
    let committed = opened.committers[0].commit(&other, now()).await.unwrap();
    assert_eq!(committed.pushes, [PushOutcome::KeyMismatch]);
    assert!(committed.events.is_empty());

    let later = now() + TimeDelta::seconds(61);
    let committed = opened.committers[0].commit(&other, later).await.unwrap();
    assert!(matches!(&committed.pushes[..], [PushOutcome::Pushed(pushed)] if pushed.id != first[0].id));

    let nobody = commit_pushes(&mut opened, vec![keyed(&[], "to nobody", "body")]).await;
    assert_eq!(nobody[0].results, []);
    assert_eq!(commit_pushes(&mut opened, vec![keyed(&[], "to nobody", "body")]).await, nobody);
}

async fn a_page_ends_at_its_bytes_whatever_its_rows(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let big = format!("\"{}\"", "x".repeat(settings().page_bytes / 2));
    commit_pushes(&mut opened, (0..5).map(|_| push(&["1"], &big)).collect()).await;
    let page = opened.store.events(&token("1"), 0, 1000, now()).await.unwrap();
    assert_eq!((page.rows.len(), page.more), (2, true));
    let page = Undelivered { token: &token("1"), after: 2, upto: 5, limit: 1000, now: now() };
    assert_eq!(opened.store.undelivered(&page).await.unwrap().rows.len(), 2);

    let many = commit_pushes(&mut opened, (0..40).map(|_| push(&["2"], "{}")).collect()).await;
    let ids: Vec<_> = many.iter().map(|pushed| pushed.id).collect();
    for kind in [ReceiptKind::Read, ReceiptKind::Unread] {
        let receipts = vec![receipt("2", kind, Selection::Ids(ids.clone()))];
        opened.committers[0].commit(&Batch { receipts, ..Batch::default() }, now()).await.unwrap();
    }
    let page = opened.store.events(&token("2"), 40, 1000, now()).await.unwrap();
    assert_eq!((page.rows.len(), page.more), (1, true), "a change of many rows fills it too");
}

async fn data_that_is_stored_once_is_read_as_if_each_row_had_it(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let data = format!(r#"{{ "text":"{}" }}"#, "x".repeat(settings().page_bytes / 2));
    let pushes = || (0..3).map(|_| shared(push(&["1", "2", "3"], &data))).chain([push(&["1"], "1")]).collect();
    let pushed = commit_pushes(&mut opened, pushes()).await;
    let key = IdempotencyKey { owner: "backend".into(), key: "k".into(), body_sha256: "body".into() };
    commit_pushes(&mut opened, vec![KeyedPush { key: Some(key), ..shared(push(&["1"], &data)) }]).await;
    assert_eq!(database.found("select count(*) from notification_payload"), "4");
    assert_eq!(database.found("select count(*) from notification where cast(data as text) = 'null '"), "10");
    let whole = "select distinct cast(data as text) from notification_with_payload where token = '2'";
    assert_eq!(database.found(whole), data);
    // Whatever reads it: a page ends at its bytes, as if they stood in the rows.
    let one = token("1");
    let (mut after, mut pages) = (0, Vec::new());
    loop {
        let page = Undelivered { token: &one, after, upto: 9, limit: 100, now: now() };
        let page = opened.store.undelivered(&page).await.unwrap();
        // That it was full is known before that it was the last.
        let Some(last) = page.rows.last() else { break };
        after = last.seq;
        pages.push(page.rows.iter().map(|row| row.content.data.get().to_owned()).collect::<Vec<_>>());
    }
    let text = data.clone();
    assert_eq!(pages, [vec![text.clone(), text.clone()], vec![text.clone(), "1".to_owned(), text.clone()]]);
    let events = history(&opened, &one).await;
    let of_event = |event: &Event| match event {
        Event::New(new) => new.content.data.get().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(events.iter().map(of_event).collect::<Vec<_>>(), pages.concat());
    let query =
        |before| ListQuery { token: &one, before, above: 0, unread: None, entity_type: None, limit: 100, now: now() };
    let page = opened.store.list(&query(9)).await.unwrap();
    let texts = page.rows.iter().map(|entry| entry.notification.content.data.get());
    assert_eq!((texts.collect::<Vec<_>>(), page.more), (vec![&*data, "1", &*data], true));
    let sent = opened.store.sent(pushed[0].id, "", 10).await.unwrap().unwrap();
    assert_eq!((sent.content.data.get(), sent.totals.sent), (&*data, 3));
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());
}

async fn data_that_is_stored_once_goes_with_the_last_of_its_rows(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let payloads = |expected: &str, why: &str| {
        assert_eq!(database.found("select count(*) from notification_payload"), expected, "{why}");
    };
    let later = |seconds| now() + TimeDelta::seconds(seconds);
    let edit =
        async |opened: &mut Opened, edit: Edit, at| opened.committers[0].edit(&edit, 1_000, at).await.unwrap().rows;
    let erase = |name: &str| Edit::erase(token(name));
    commit_pushes(&mut opened, vec![shared(push(&["1", "2"], r#"{"a":1}"#))]).await;
    edit(&mut opened, erase("1"), now()).await;
    payloads("1", "another has it");
    edit(&mut opened, erase("2"), now()).await;
    payloads("0", "nobody has it");

    let expiring = Options { ttl_secs: Some(5), ..Options::default() };
    commit_pushes(&mut opened, vec![shared(push_with(&["1", "2"], expiring))]).await;
    assert_eq!(edit(&mut opened, Edit::Expire { limit: 1 }, later(6)).await, 1);
    payloads("1", "one is left");
    assert_eq!(edit(&mut opened, Edit::Expire { limit: 1 }, later(6)).await, 1);
    payloads("0", "all expired");

    // What is for later takes it along, however few rows are released at a time.
    let scheduled = Options { deliver_at: Some(later(10)), ..Options::default() };
    let [pushed, retracted] = &commit_pushes(
        &mut opened,
        vec![shared(push_with(&["1", "2", "3"], scheduled.clone())), shared(push_with(&["1"], scheduled))],
    )
    .await[..] else {
        panic!("two pushes")
    };
    payloads("2", "it waits");
    let sent = opened.store.sent(pushed.id, "", 10).await.unwrap().unwrap();
    assert_eq!((sent.content.data.get(), sent.deliver_at), ("{}", Some(later(10))));
    assert_eq!(edit(&mut opened, Edit::retract(retracted.id), now()).await, 1);
    payloads("1", "one was cancelled");
    for limit in [2, 2] {
        edit(&mut opened, Edit::Release { limit }, later(11)).await;
        payloads("1", "it is there");
    }
    for name in ["1", "2", "3"] {
        let rows = history_at(&opened, &token(name), later(12)).await;
        let Some(Event::New(row)) = rows.last() else { panic!("{rows:?}") };
        assert_eq!((row.content.id, row.content.data.get()), (pushed.id, "{}"));
    }
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());
    // A push that becomes part of others leaves nothing.
    commit_pushes(&mut opened, vec![push_with(&["4"], grouped("g", Some("a")))]).await;
    commit_pushes(&mut opened, vec![shared(push_with(&["4"], grouped("g", Some("b"))))]).await;
    payloads("1", "it made no row");
    let collapsing = || Options { collapse_key: Some("k".into()), ..Options::default() };
    commit_pushes(&mut opened, vec![shared(push_with(&["5", "6"], collapsing())), push_with(&["5"], collapsing())])
        .await;
    payloads("2", "what was replaced is kept with its row");
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());

    // By hand.
    database.sql("delete from notification_payload");
    let violations = super::check(&database.url()).await.unwrap().violations;
    assert!(violations[0].contains("its data should be in notification_payload"), "{violations:?}");
    let page = Undelivered { token: &token("6"), after: 0, upto: 9, limit: 9, now: now() };
    assert!(opened.store.undelivered(&page).await.is_err(), "it is said, not passed over");
    let id = "01900000-0000-7000-8000-000000000001";
    database.sql(&format!("insert into notification_payload (id, data) values ('{id}', '1')"));
    let violations = super::check(&database.url()).await.unwrap().violations;
    assert!(violations.iter().any(|found| found.contains(id) && found.contains("no row has it")), "{violations:?}");
}

/// Those who remove the last two rows of a push at once may each think that there is another.
async fn two_who_remove_the_last_rows_leave_no_payload(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let mut committers: Vec<_> = opened.committers.drain(..).collect();
    for round in 0..20 {
        let names: Vec<String> = (0..committers.len()).map(|n| format!("{round} {n}")).collect();
        let tokens: Vec<&str> = names.iter().map(String::as_str).collect();
        let batch = Batch { pushes: vec![shared(push(&tokens, "1"))], ..Batch::default() };
        committers[0].commit(&batch, now()).await.unwrap();
        let edits: Vec<Edit> = tokens.iter().map(|name| Edit::erase(token(name))).collect();
        let erased = committers.iter_mut().zip(&edits).map(|(committer, edit)| committer.edit(edit, 1_000, now()));
        assert!(futures_util::future::join_all(erased).await.iter().all(Result::is_ok));
        assert_eq!(database.found("select count(*) from notification_payload"), "0");
    }
}

async fn a_failed_batch_leaves_nothing_and_the_next_one_works(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    database.sabotage();
    for receipts in [vec![], vec![receipt("1", ReceiptKind::Read, Selection::All)]] {
        let batch = Batch { pushes: vec![push(&["1"], "{}")], receipts, ..Batch::default() };
        let error = opened.committers[0].commit(&batch, now()).await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(why) if why.contains("told to fail")), "{error}");
    }
    database.repair();
    let pushed = commit_pushes(&mut opened, vec![push(&["1"], "{}")]).await;
    assert_eq!(pushed[0].results[0].seq, Some(1), "the failed batch took no rev");
}

async fn what_is_not_to_be_kept_goes_and_the_rest_still_holds(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let day = |n| now() + TimeDelta::days(n);
    for n in 0..6 {
        let batch = Batch { pushes: vec![push(&["1", "2"], &n.to_string())], ..Batch::default() };
        opened.committers[0].commit(&batch, day(n)).await.unwrap();
    }
    let reads = Batch { receipts: vec![receipt("1", ReceiptKind::Read, Selection::UpTo(2))], ..Batch::default() };
    opened.committers[0].commit(&reads, day(6)).await.unwrap();
    let keep = |read, unread, history, rows| {
        let before = |days: Option<i64>| days.map(day);
        Keep { read_before: before(read), unread_before: before(unread), history_before: before(history), rows }
    };
    let stale = async |opened: &Opened, keep| opened.store.stale(&Place::default(), 10, 100, &keep).await.unwrap();
    let row = |token: &str, seq| (super::tests::token(token), seq);
    assert_eq!(stale(&opened, keep(None, None, None, None)).await, Stale::default());
    assert_eq!(stale(&opened, keep(Some(6), None, Some(6), None)).await, Stale::default(), "all is young enough");
    assert_eq!(stale(&opened, keep(Some(7), None, None, None)).await.rows, [row("1", 1), row("1", 2)]);
    assert_eq!(stale(&opened, keep(None, Some(1), None, None)).await.rows, [row("2", 1)], "read ones are not unread");
    let excess = [row("1", 1), row("1", 2), row("2", 1), row("2", 2)];
    assert_eq!(stale(&opened, keep(None, None, None, Some(4))).await.rows, excess);
    // However few rows and inboxes it looks at a time.
    for (inboxes, rows) in [(1, 100), (10, 1), (1, 2), (3, 5)] {
        for (keep, expected) in [
            (keep(None, None, None, Some(4)), &excess[..]),
            (keep(Some(7), None, None, None), &excess[..2]),
            (keep(None, Some(1), None, None), &excess[2..3]),
            (keep(None, None, Some(6), None), &[]),
        ] {
            let (mut found, mut after, mut reads) = (Vec::new(), Some(Place::default()), 0);
            while let Some(place) = after {
                let page = opened.store.stale(&place, inboxes, rows, &keep).await.unwrap();
                assert!(page.rows.len() <= 2 * rows as usize, "no more than it looks at");
                found.extend(page.rows);
                after = page.next;
                reads += 1;
                assert!(reads < 30, "it gets to the end");
            }
            found.dedup();
            assert_eq!(found, expected, "{inboxes} inboxes, {rows} rows at a time");
        }
    }
    assert_eq!(stale(&opened, keep(None, None, Some(7), None)).await.history, [(token("1"), 0, 7)]);

    let rows = excess.to_vec();
    let purge = Edit::Purge { rows, history: vec![], seen: day(8) };
    let edited = opened.committers[0].edit(&purge, 1_000, day(8)).await.unwrap();
    assert_eq!(edited.rows, 4);
    let shapes: Vec<_> = edited.events.iter().map(|(token, event)| (token.as_str(), shape(event))).collect();
    let expected = [("1", "8 expired 2 leaves 4".to_owned()), ("2", "7 expired 2 leaves 4".to_owned())];
    assert_eq!(shapes, expected);
    assert_eq!(opened.committers[0].edit(&purge, 1_000, day(8)).await.unwrap().rows, 0, "they are gone");
    let revs = |events: Vec<Event>| events.iter().map(shape).take(3).collect::<Vec<_>>();
    assert_eq!(revs(history(&opened, &token("1")).await)[..2], ["1 gone", "2 gone"]);
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());

    let history_of = stale(&opened, keep(None, None, Some(7), None)).await.history;
    assert_eq!(history_of, [(token("1"), 0, 7)]);
    for upto in [3, 7] {
        let history = vec![row("1", upto), row("nobody", upto)];
        opened.committers[0].edit(&Edit::Purge { rows: vec![], history, seen: day(9) }, 1_000, day(9)).await.unwrap();
        assert!(super::check(&database.url()).await.unwrap().violations.is_empty());
    }
    let head = opened.store.heads(&[token("1")]).await.unwrap().get(&token("1")).0;
    assert_eq!((head.rev, head.unread, head.purged_rev), (8, 4, 7));
    assert_eq!(
        list(&*opened.store, &token("1"), None, day(9)).await.len(),
        4,
        "rows stay though their history is gone"
    );
    // Somebody erased the inbox after it was looked at, and it lives again.
    opened.committers[0].edit(&Edit::erase(token("1")), 1_000, day(9)).await.unwrap();
    let batch = Batch { pushes: vec![push(&["1"], "{}")], ..Batch::default() };
    opened.committers[0].commit(&batch, day(9)).await.unwrap();
    opened.committers[0]
        .edit(&Edit::Purge { rows: vec![row("1", 1)], history: vec![row("1", 7)], seen: day(8) }, 1_000, day(9))
        .await
        .unwrap();
    let head = opened.store.heads(&[token("1")]).await.unwrap().get(&token("1")).0;
    assert_eq!((head.rev, head.unread, head.purged_rev), (1, 1, 1), "its new row stays");
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());

    let retract = Edit::retract(commit_pushes(&mut opened, vec![push(&["3"], "{}")]).await[0].id);
    opened.committers[0].edit(&retract, 1_000, day(9)).await.unwrap();
    assert_eq!(stale(&opened, keep(None, None, Some(9), None)).await.rows, []);
    assert_eq!(stale(&opened, keep(None, None, Some(10), None)).await.rows, [row("3", 1)]);
    assert_eq!(stale(&opened, keep(Some(9), Some(0), Some(10), None)).await.rows, [row("3", 1)], "once");
}

/// The rows of an inbox go, and with each its key and its actors, however many others there are.
async fn with_a_row_goes_its_key(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let collapsing = |key: &str| Options { collapse_key: Some(key.into()), ..Options::default() };
    let pushes = ["a", "b", "a", "c"]
        .map(|key| push_with(&["1"], collapsing(key)))
        .into_iter()
        .chain(["a", "d"].map(|key| push_with(&["1"], grouped(key, Some("actor")))));
    let pushed = commit_pushes(&mut opened, pushes.collect()).await;
    let rows: Vec<_> = pushed[..4].iter().map(|pushed| (token("1"), pushed.results[0].seq.unwrap())).collect();
    opened.committers[0].edit(&Edit::Purge { rows, history: vec![], seen: now() }, 1_000, now()).await.unwrap();
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());
    let joined = commit_pushes(&mut opened, vec![push_with(&["1"], grouped("a", Some("other")))]).await;
    assert_eq!(joined[0].results[0].grouped_into, Some(pushed[4].id), "a group of the same name stays");
    database.sql("delete from notification where seq = 7");
    let violations = super::check(&database.url()).await.unwrap().violations;
    assert!(
        violations.iter().any(|found| found.starts_with("inbox 1, group key d: stands for row 7")),
        "{violations:?}"
    );
}

async fn what_is_unread_is_found_behind_the_mark(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let pushed = commit_pushes(&mut opened, (0..5).map(|_| push(&["1"], "{}")).collect()).await;
    let mark = async |opened: &mut Opened, kind, selection| {
        let batch = Batch { receipts: vec![receipt("1", kind, selection)], ..Batch::default() };
        opened.committers[0].commit(&batch, now()).await.unwrap().receipts[0].unwrap().unread
    };
    let unread = async |opened: &Opened| {
        let span = opened.store.unread_span(&token("1")).await.unwrap();
        let rows = list(&*opened.store, &token("1"), Some(true), now()).await;
        let seqs = rows.iter().map(|row| row.split(' ').next().unwrap().parse::<Rev>().unwrap());
        assert!(seqs.min().is_none_or(|first| span.unwrap().0 < first), "the mark is below what is unread");
        let rows = rows.len() as i64;
        let counts = counts(&*opened.store, &token("1"), now()).await;
        assert_eq!(counts.iter().map(|(_, unread)| unread).sum::<i64>(), rows);
        rows
    };
    let ids = |at: usize| Selection::Ids(vec![pushed[at].id]);
    assert_eq!(mark(&mut opened, ReceiptKind::Read, Selection::UpTo(3)).await, 2);
    assert_eq!(unread(&opened).await, 2);
    assert_eq!(mark(&mut opened, ReceiptKind::Unread, ids(1)).await, 3, "it lowers the mark");
    assert_eq!(unread(&opened).await, 3);
    assert_eq!(mark(&mut opened, ReceiptKind::Read, Selection::All).await, 0);
    assert_eq!(unread(&opened).await, 0);
    assert_eq!(mark(&mut opened, ReceiptKind::Unread, ids(4)).await, 1);
    commit_pushes(&mut opened, vec![push(&["1"], "{}")]).await;
    assert_eq!(unread(&opened).await, 2);
    // A node of the version before knows no mark.
    let again = "update notification set read_at = null where seq = 1; update inbox set unread = 3";
    database.sql(again);
    assert_eq!(unread(&opened).await, 3);
    assert_eq!(mark(&mut opened, ReceiptKind::Read, Selection::All).await, 0);
    database.sql("update inbox set read_upto = 0");
    assert_eq!(mark(&mut opened, ReceiptKind::Read, Selection::UpTo(Rev::MAX)).await, 0, "nothing is unread");
}

async fn a_violation_is_found_and_named(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    commit_pushes(&mut opened, (0..3).map(|_| push(&["1", "2"], "{}")).collect()).await;
    let change =
        vec![receipt("1", ReceiptKind::Read, Selection::UpTo(1)), receipt("3", ReceiptKind::Read, Selection::All)];
    commit_pushes(&mut opened, vec![push_with(&["3"], grouped("post", Some("a")))]).await;
    opened.committers[0].commit(&Batch { receipts: change, ..Batch::default() }, now()).await.unwrap();
    assert!(super::check(&database.url()).await.unwrap().violations.is_empty());
    for (sql, named) in [
        (
            "update inbox_change set change = '{\"readUpTo\":1,\"unread\":1}' where token = '3'",
            "inbox 3: unread is 0, but its last change left 1",
        ),
        ("update inbox set read_upto = 9 where token = '3'", "inbox 3: rev 2, but delivered up to 0, read up to 9"),
        ("update inbox set read_upto = 2 where token = '2'", "inbox 2, seq 1: not read, though everything up to 2"),
        (
            "update notification set group_actors = '[]' where token = '3'",
            "inbox 3, seq 1: stands for 1 and names 0, but 1 act",
        ),
        (
            "update notification set group_key = 'other' where token = '3'",
            "inbox 3, group key post: stands for row 1, which is another's or gone",
        ),
        (
            "update notification_actor set seq = 9 where token = '3'",
            "inbox 3, actor a: acts in row 9, which is no group or gone",
        ),
        (
            "delete from inbox_change where token = '1'; update inbox set rev = 3 where token = '1';
            update notification set read_at = null, delivered_at = null where token = '1';
            update inbox set delivered_upto = 0 where token = '1'",
            "inbox 1: unread is 2, but 3 rows are",
        ),
        ("update inbox set unread = 7 where token = '1'", "inbox 1: unread is 7, but 3 rows are"),
        ("update inbox set unread = 3, rev = 4 where token = '1'", "inbox 1: rev 4, purged up to 0, but 3 events"),
        (
            "update inbox set rev = 2 where token = '1'",
            "inbox 1: rev 2, purged up to 0, but 3 events at 3 revs, the newest 3",
        ),
        ("update inbox set rev = 3, delivered_upto = 1 where token = '1'", "inbox 1, seq 1: not delivered"),
        (
            "update inbox set delivered_upto = 0; update notification set read_at = created_at where token = '2' and seq = 2",
            "inbox 2, seq 2: read but not delivered",
        ),
        ("delete from inbox where token = '2'", "token 2: has events but no inbox"),
        ("delete from meta", "meta: 0 epochs instead of one"),
    ] {
        database.sql(sql);
        let violations = super::check(&database.url()).await.unwrap().violations;
        assert!(violations.iter().any(|violation| violation.starts_with(named)), "{sql}: {violations:?}");
    }
}

async fn the_last_three_of_a_group_are_named_and_everybody_counts(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    for actor in ["a", "b", "c", "d", "b"] {
        commit_pushes(&mut opened, vec![push_with(&["1"], grouped("post", Some(actor)))]).await;
    }
    commit_pushes(&mut opened, vec![push_with(&["1"], grouped("post", None))]).await;
    let group = async |opened: &Opened| match &history(opened, &token("1")).await[0] {
        Event::New(new) => Group::clone(new.group.as_ref().unwrap()),
        other => panic!("{other:?}"),
    };
    let actors = |names: [&str; 3]| names.map(str::to_owned).to_vec();
    assert_eq!(group(&opened).await, Group { key: "post".into(), count: 5, actors: actors(["b", "d", "c"]) });
    let unlike = Edit::Ungroup { token: token("1"), key: "post".into(), actor: "d".into() };
    assert_eq!(opened.committers[0].edit(&unlike, 1_000, now()).await.unwrap().rows, 1);
    assert_eq!(opened.committers[0].edit(&unlike, 1_000, now()).await.unwrap().rows, 0);
    assert_eq!(group(&opened).await, Group { key: "post".into(), count: 4, actors: actors(["b", "c", "a"]) });
}

async fn the_epoch_stays(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let epoch = opened.epoch.clone();
    assert_eq!(epoch.len(), 32);
    for committer in &mut opened.committers {
        committer.close().await;
    }
    drop(opened);
    assert_eq!(database.open().await.epoch, epoch);
}

/// Every committer at once, over token sets that overlap, with receipts and keys among them.
async fn committers_at_once_neither_fail_nor_leave_a_gap(make: fn() -> Database) {
    const BATCHES: usize = 60;
    let database = make();
    let mut opened = database.open().await;
    let tasks: Vec<_> = (0..)
        .zip(opened.committers.drain(..))
        .map(|(who, mut committer)| {
            tokio::spawn(async move {
                for round in 0..BATCHES {
                    let tokens: Vec<_> = (0..6).map(|n| ((round * 7 + who * 5 + n * 3) % 10).to_string()).collect();
                    let mut tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
                    tokens.sort_unstable_by(|a, b| if who % 2 == 0 { a.cmp(b) } else { b.cmp(a) });
                    tokens.dedup();
                    let mut batch = Batch { pushes: vec![push(&tokens, "{}")], ..Batch::default() };
                    if round % 3 == 1 {
                        batch.receipts.push(receipt(tokens[0], ReceiptKind::Ack, Selection::UpTo(round as Rev)));
                        batch.receipts.push(receipt("9", ReceiptKind::Read, Selection::All));
                    }
                    if round % 2 == 1 {
                        batch.advances.push((token(tokens[0]), round as Rev));
                    }
                    if round % 4 == 2 {
                        batch.pushes.push(keyed(&["0", "5"], &format!("key {round}"), "body"));
                    }
                    if round % 5 == 1 {
                        batch.pushes.push(push_with(&tokens, grouped("all", Some(&who.to_string()))));
                        let soon = Some(now() + TimeDelta::seconds(1));
                        batch.pushes.push(push_with(&tokens, Options { deliver_at: soon, ..Options::default() }));
                    }
                    let committed = committer.commit(&batch, now()).await.unwrap();
                    let later = now() + TimeDelta::seconds(2);
                    let edit = match (round % 6, committed.pushes.last()) {
                        (0, _) => Edit::Release { limit: 20 },
                        (1, Some(PushOutcome::Pushed(pushed))) => Edit::retract(pushed.id),
                        (2, _) => Edit::erase(token(tokens[0])),
                        (3, _) => {
                            let rows = tokens.iter().rev().map(|name| (token(name), 1)).collect();
                            Edit::Purge { rows, history: vec![], seen: later }
                        }
                        (4, _) => Edit::Ungroup { token: token(tokens[0]), key: "all".into(), actor: who.to_string() },
                        _ => Edit::Expire { limit: 20 },
                    };
                    let mut edit = Some(edit);
                    while let Some(step) = edit {
                        edit = committer.edit(&step, 3, later).await.unwrap().next;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for token in (0..10).map(|n| token(&n.to_string())) {
        let events = history(&opened, &token).await;
        let revs: Vec<_> = events.iter().map(Event::rev).collect();
        let head = opened.store.heads(std::slice::from_ref(&token)).await.unwrap().get(&token).0;
        // An inbox that got something while it was erased counts on.
        assert_eq!(revs, (head.purged_rev + 1..=head.rev).collect::<Vec<_>>(), "revs without a gap");
        let unread = events.iter().filter(|event| matches!(event, Event::New(new) if !new.read)).count();
        assert_eq!(head.unread, unread as i64);
        assert!(undelivered(&opened, &token, Rev::MAX, now()).await.iter().all(|rev| *rev > head.delivered_upto));
    }
    let audit = super::check(&database.url()).await.unwrap();
    assert!(audit.violations.is_empty(), "{:?}", audit.violations);
}

async fn assert_all_holds(database: &Database) {
    let audit = super::check(&database.url()).await.unwrap();
    assert!(audit.violations.is_empty(), "{:?}", audit.violations);
}

async fn head_of(opened: &Opened, token: &Token) -> (Head, String) {
    let (head, epoch) = opened.store.heads(std::slice::from_ref(token)).await.unwrap().get(token);
    (head, epoch.to_string())
}

/// Rows that come while a large read goes on stay unread, and the counts are exact after each step.
async fn a_read_in_steps_is_about_what_was_there_when_it_began(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let inbox = token("1");
    commit_pushes(&mut opened, (0..10).map(|_| push(&["1"], "{}")).collect()).await;
    let mut receipts = vec![receipt("1", ReceiptKind::Read, Selection::All)];
    let mut told = Vec::new();
    while !receipts.is_empty() {
        let batch = Batch { receipts, mark_rows: Some(4), ..Batch::default() };
        let committed = opened.committers[0].commit(&batch, now()).await.unwrap();
        told.extend(committed.events.iter().map(|(_, event)| shape(event)));
        receipts = committed.unfinished.into_iter().map(|(_, receipt)| receipt).collect();
        assert_all_holds(&database).await;
        commit_pushes(&mut opened, vec![push(&["1"], "{}"), push(&["2"], "{}")]).await;
        assert_all_holds(&database).await;
    }
    assert_eq!(told, ["11 read to 4 leaves 6", "13 read to 8 leaves 3", "15 read to 10 leaves 2"]);
    assert_eq!(head_of(&opened, &inbox).await.0.unread, 3);
    assert_eq!(list(&*opened.store, &inbox, Some(true), now()).await.len(), 3);

    // What is left of it is not about an inbox that came in the place of the one it was about.
    for kind in [ReceiptKind::Read, ReceiptKind::Ack] {
        commit_pushes(&mut opened, (0..10).map(|_| push(&["1"], "{}")).collect()).await;
        let receipts = vec![receipt("1", kind, Selection::UpTo(Rev::MAX))];
        let batch = Batch { receipts, mark_rows: Some(4), ..Batch::default() };
        let left = opened.committers[0].commit(&batch, now()).await.unwrap().unfinished;
        assert_eq!(left.len(), 1);
        opened.committers[0].edit(&Edit::erase(inbox.clone()), 1_000, now()).await.unwrap();
        commit_pushes(&mut opened, (0..10).map(|_| push(&["1"], "{}")).collect()).await;
        let receipts = left.into_iter().map(|(_, receipt)| receipt).collect();
        let batch = Batch { receipts, mark_rows: Some(4), ..Batch::default() };
        let committed = opened.committers[0].commit(&batch, now()).await.unwrap();
        assert!(committed.unfinished.is_empty() && committed.events.is_empty());
        assert_eq!(head_of(&opened, &inbox).await.0.unread, 10);
        assert_eq!(undelivered(&opened, &inbox, Rev::MAX, now()).await.len(), 10);
        opened.committers[0].edit(&Edit::erase(inbox.clone()), 1_000, now()).await.unwrap();
    }
}

/// Fills an inbox with all that one can hold.
async fn fill(opened: &mut Opened, token: &str) {
    let later = Some(now() + TimeDelta::days(1));
    let collapsing = |key: String| Options { collapse_key: Some(key), ..Options::default() };
    for n in 0..4 {
        let grouped = (0..7).map(|actor| push_with(&[token], grouped(&n.to_string(), Some(&actor.to_string()))));
        let others = [
            push(&[token], "{}"),
            push_with(&[token], collapsing(n.to_string())),
            push_with(&[token], collapsing("same".into())),
            push_with(&[token], Options { deliver_at: later, ..Options::default() }),
        ];
        commit_pushes(opened, grouped.chain(others).collect()).await;
        let read = receipt(token, ReceiptKind::Read, Selection::UpTo(n * 5));
        opened.committers[0].commit(&Batch { receipts: vec![read], ..Batch::default() }, now()).await.unwrap();
    }
}

async fn an_erasure_in_steps_is_about_what_was_there_when_it_began(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let inbox = token("1");
    for others_come in [false, true] {
        fill(&mut opened, "1").await;
        let (before, epoch) = head_of(&opened, &inbox).await;
        let (mut next, mut rows, mut steps, mut came) = (Some(Edit::erase(inbox.clone())), 0, 0, Vec::new());
        while let Some(edit) = next {
            let edited = opened.committers[0].edit(&edit, 3, now()).await.unwrap();
            (next, rows, steps) = (edited.next, rows + edited.rows, steps + 1);
            assert_all_holds(&database).await;
            if others_come && next.is_some() {
                let later = Options { deliver_at: Some(now() + TimeDelta::days(1)), ..Options::default() };
                let pushes = vec![push(&["1"], "{}"), push(&["2"], "{}"), push_with(&["1"], later)];
                let pushed = commit_pushes(&mut opened, pushes).await;
                came.push((pushed[0].results[0].seq.unwrap(), pushed[2].id));
                assert_all_holds(&database).await;
            }
            // Half way through it begins again, as after a restart.
            if !others_come && steps == 4 {
                next = Some(Edit::erase(inbox.clone()));
            }
        }
        assert!(steps > 8, "{steps}");
        // Four groups, four rows without a key, four and four with one; and four for later.
        assert_eq!(rows, 20, "others come: {others_come}");
        let (head, epoch_after) = head_of(&opened, &inbox).await;
        assert_ne!(epoch, epoch_after, "whoever kept something of it begins anew");
        let left: Vec<_> = undelivered(&opened, &inbox, Rev::MAX, now()).await;
        assert_eq!(left, came.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        assert_eq!(head.unread, came.len() as i64);
        if !others_come {
            assert_eq!(head, Head::default());
            assert_eq!(commit_pushes(&mut opened, vec![push(&["1"], "{}")]).await[0].results[0].seq, Some(1));
            opened.committers[0].edit(&Edit::erase(inbox.clone()), 1_000, now()).await.unwrap();
        } else {
            assert!(head.purged_rev >= before.rev);
        }
        for (_, id) in came {
            assert!(opened.store.sent(id, "", 1).await.unwrap().is_some(), "what was scheduled meanwhile stays");
        }
    }
}

/// A push to many inboxes goes from all of them, and one that is released meanwhile too.
async fn a_retraction_in_steps_finds_every_row(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let names: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let later = Options { deliver_at: Some(now() + TimeDelta::seconds(1)), ..Options::default() };
    let pushed = commit_pushes(&mut opened, vec![push(&names, "{}"), push_with(&names, later)]).await;
    let due = now() + TimeDelta::seconds(2);
    for (at, pushed) in pushed.iter().enumerate() {
        let (mut next, mut rows, mut told) = (Some(Edit::retract(pushed.id)), 0, Vec::new());
        while let Some(edit) = next {
            let edited = opened.committers[0].edit(&edit, 3, due).await.unwrap();
            (next, rows) = (edited.next, rows + edited.rows);
            told.extend(edited.events.into_iter().map(|(token, _)| token));
            assert_all_holds(&database).await;
            if at == 1 {
                opened.committers[0].edit(&Edit::Release { limit: 2 }, 3, due).await.unwrap();
            }
            commit_pushes(&mut opened, vec![push(&["0", "99"], "{}")]).await;
        }
        assert_eq!(rows, 10);
        told.sort();
        told.dedup();
        assert!(at > 0 || told.len() == 10, "{told:?}");
        assert_eq!(
            opened
                .store
                .sent(pushed.id, "", 1)
                .await
                .unwrap()
                .map_or(0, |sent| sent.totals.sent - sent.totals.retracted),
            0
        );
    }
    assert_all_holds(&database).await;
}

/// The row of a group goes with its actors, a part of them at a time.
async fn a_group_of_many_goes_in_steps(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let options = |actor: usize| Options { ttl_secs: Some(1), ..grouped("post", Some(&actor.to_string())) };
    let actors = usize::try_from(super::ACTORS_PER_STEP).unwrap() + 500;
    for name in ["1", "2", "3"] {
        let pushes = (0..actors).map(|actor| push_with(&[name], options(actor)));
        commit_pushes(&mut opened, pushes.chain([push(&[name], "{}")]).collect()).await;
    }
    let late = now() + TimeDelta::seconds(2);
    let purge =
        Edit::Purge { rows: vec![(token("2"), 1), (token("2"), 1), (token("nobody"), 3)], history: vec![], seen: late };
    for (edit, name, told) in [
        (Edit::erase(token("3")), "3", vec!["retracted 1 leaves 1"]),
        (purge, "2", vec!["expired 1 leaves 1"]),
        (Edit::Expire { limit: 100 }, "1", vec!["expired 1 leaves 1"]),
    ] {
        let (mut next, mut steps, mut events) = (Some(edit), 0, Vec::new());
        while let Some(edit) = next {
            let edited = opened.committers[0].edit(&edit, 1_000, late).await.unwrap();
            (next, steps) = (edited.next, steps + 1);
            events.extend(edited.events.iter().map(|(token, event)| (token.clone(), shape(event))));
            assert_all_holds(&database).await;
        }
        assert!(steps > 1, "{name}: {steps}");
        let events: Vec<_> = events
            .iter()
            .map(|(token, text)| {
                assert_eq!(token.as_str(), name);
                text.split_once(' ').unwrap().1
            })
            .collect();
        assert_eq!(events, told, "{name}");
        let unread = head_of(&opened, &token(name)).await.0.unread;
        assert_eq!(unread, if name == "3" { 0 } else { 1 });
    }
}

async fn what_is_due_at_one_instant_is_released_in_its_order_and_a_few_bytes_at_a_time(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let big = |n: usize| {
        let mut push = push(&["1", "2", "3"], &format!("\"{n} {}\"", "x".repeat(900_000)));
        push.push.options.deliver_at = Some(now() + TimeDelta::seconds(1));
        push
    };
    let pushed = commit_pushes(&mut opened, (0..4).map(big).collect()).await;
    let due = now() + TimeDelta::seconds(2);
    let (mut next, mut order) = (Some(Edit::Release { limit: 100 }), Vec::new());
    while let Some(edit) = next {
        let edited = opened.committers[0].edit(&edit, 1_000, due).await.unwrap();
        assert!(edited.rows <= 5, "{} rows", edited.rows);
        order.extend(edited.events.iter().map(|(token, event)| match event {
            Event::New(new) => (new.content.id, token.as_str().to_owned(), new.content.data.get().len()),
            other => panic!("{other:?}"),
        }));
        next = edited.next;
        assert_all_holds(&database).await;
    }
    let tokens = ["1", "2", "3"];
    let expected: Vec<_> =
        pushed.iter().flat_map(|pushed| tokens.map(|token| (pushed.id, token.to_owned(), 900_004))).collect();
    assert_eq!(order, expected);
    assert_eq!(opened.store.due(due).await.unwrap(), Due::default());
}

/// The writer over a database, with steps of so many rows.
fn writer(opened: &mut Opened, rows: u32) -> (Writer, tokio_util::sync::CancellationToken) {
    let (step, timeout) = (Duration::from_millis(100), Duration::from_secs(5));
    let committers = opened.committers.drain(..1).collect();
    let (writer, tasks) = Writer::new(committers, 4_096, 50_000, usize::MAX, timeout, step, |_| {});
    let stop = tokio_util::sync::CancellationToken::new();
    for mut task in tasks {
        task.limit_steps(rows);
        tokio::spawn(task.run(stop.clone()));
    }
    (writer, stop)
}

/// However large a change is, pushes to others are stored between its steps, and it is complete when its caller hears of it.
async fn others_have_their_turn_between_the_steps_of_a_large_change(make: fn() -> Database) {
    const ROWS: usize = 60;
    let database = make();
    let mut opened = database.open().await;
    let names: Vec<_> = (0..ROWS).map(|n| format!("user {n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    commit_pushes(&mut opened, (0..ROWS).map(|_| push(&["1"], "{}")).collect()).await;
    let wide = commit_pushes(&mut opened, vec![push(&names, "{}")]).await[0].id;
    let (writer, stop) = writer(&mut opened, 3);
    let inbox = token("1");
    let receipt = |kind| receipt("1", kind, Selection::UpTo(Rev::MAX));
    for change in ["ack", "read", "retract", "erase"] {
        let done = async {
            match change {
                "ack" => assert_eq!(writer.receipt(receipt(ReceiptKind::Ack)).await.unwrap(), None),
                "read" => assert_eq!(writer.receipt(receipt(ReceiptKind::Read)).await.unwrap().unwrap().unread, 0),
                "retract" => assert_eq!(writer.edit(Edit::retract(wide), None).await.unwrap(), ROWS as u64),
                _ => assert_eq!(writer.edit(Edit::erase(inbox.clone()), Some(&inbox)).await.unwrap(), ROWS as u64),
            }
        };
        tokio::pin!(done);
        let mut pushes = 0;
        loop {
            tokio::select! {
                () = &mut done => break,
                pushed = writer.push(push(&["2"], "{}")) => drop(pushed.unwrap()),
            }
            pushes += 1;
        }
        assert!(pushes >= 10, "{change}: {pushes} pushes in between");
        assert_all_holds(&database).await;
        if change == "ack" {
            assert!(undelivered(&opened, &inbox, Rev::MAX, now()).await.is_empty());
        }
    }
    assert_eq!(head_of(&opened, &inbox).await.0, Head::default());
    stop.cancel();
}

async fn a_row_that_is_marked_unread_after_all_were_read_stays_unread(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let pushed = commit_pushes(&mut opened, (0..20).map(|_| push(&["1"], "{}")).collect()).await;
    let (writer, stop) = writer(&mut opened, 3);
    let ids = || Selection::Ids(vec![pushed[1].id, pushed[19].id]);
    let (read, unread, again) = tokio::join!(
        biased;
        writer.receipt(receipt("1", ReceiptKind::Read, Selection::All)),
        async {
            writer.push(push(&["2"], "{}")).await.unwrap();
            writer.receipt(receipt("1", ReceiptKind::Unread, ids())).await
        },
        async {
            writer.push(push(&["2"], "{}")).await.unwrap();
            tokio::task::yield_now().await;
            writer.receipt(receipt("1", ReceiptKind::Read, Selection::Ids(vec![pushed[19].id]))).await
        }
    );
    assert_eq!(read.unwrap().unwrap().unread, 0);
    assert_eq!((unread.unwrap().unwrap().unread, again.unwrap().unwrap().unread), (2, 1));
    let left = list(&*opened.store, &token("1"), Some(true), now()).await;
    assert!(left.len() == 1 && left[0].starts_with("2 new"), "{left:?}");
    assert_all_holds(&database).await;
    stop.cancel();
}

/// Queued together they could share a transaction, and the later steps of the read would undo it.
async fn an_unread_right_behind_a_read_of_all_is_the_last_word(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let pushed = commit_pushes(&mut opened, (0..20).map(|_| push(&["1"], "{}")).collect()).await;
    let (writer, stop) = writer(&mut opened, 3);
    let ids = Selection::Ids(vec![pushed[1].id, pushed[19].id]);
    let (read, unread) = tokio::join!(
        biased;
        writer.receipt(receipt("1", ReceiptKind::Read, Selection::All)),
        writer.receipt(receipt("1", ReceiptKind::Unread, ids)),
    );
    assert_eq!((read.unwrap().unwrap().unread, unread.unwrap().unwrap().unread), (0, 2));
    assert_eq!(list(&*opened.store, &token("1"), Some(true), now()).await.len(), 2);
    assert_all_holds(&database).await;
    stop.cancel();
}

/// Not for its own fault, and not while others' pushes share its transaction.
async fn a_receipt_that_fails_fails_no_push(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    commit_pushes(&mut opened, vec![push(&["bad", "good"], "{}")]).await;
    database.refuse_receipts_of("bad");
    let (writer, stop) = writer(&mut opened, 1_000);
    for kind in [ReceiptKind::Read, ReceiptKind::Ack] {
        for _ in 0..3 {
            // What comes while one is stored shares a transaction.
            let (first, receipt, second) = tokio::join!(
                biased;
                writer.push(push(&["1"], "{}")),
                async {
                    tokio::task::yield_now().await;
                    writer.receipt(receipt("bad", kind, Selection::UpTo(1))).await
                },
                async {
                    tokio::task::yield_now().await;
                    futures_util::future::join_all((0..5).map(|_| writer.push(push(&["2"], "{}")))).await
                }
            );
            assert!(receipt.is_err());
            assert!(first.is_ok() && second.iter().all(Result::is_ok), "{first:?} {second:?}");
        }
    }
    writer.push(push(&["1"], "{}")).await.unwrap();
    assert!(!writer.is_failing());
    assert_all_holds(&database).await;
    stop.cancel();
}

macro_rules! on_each_database {
    ($($test:ident),* $(,)?) => {
        #[cfg(feature = "sqlite")]
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(|| super::Database::Sqlite(tempfile::tempdir().unwrap())).await;
            })*
        }

        #[cfg(feature = "postgres")]
        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                super::$test(|| super::Database::Postgres(super::postgres::Database::create())).await;
            })*
        }
    };
}

on_each_database!(
    random_batches_leave_what_the_reference_says,
    receipts_of_several_sessions_in_one_batch_are_one_change_each_way,
    a_watermark_follows_acks_only_when_it_is_moved_and_never_passes_an_undelivered_row,
    a_key_gives_the_first_answer_until_it_expires,
    a_page_ends_at_its_bytes_whatever_its_rows,
    data_that_is_stored_once_is_read_as_if_each_row_had_it,
    data_that_is_stored_once_goes_with_the_last_of_its_rows,
    two_who_remove_the_last_rows_leave_no_payload,
    a_failed_batch_leaves_nothing_and_the_next_one_works,
    what_is_not_to_be_kept_goes_and_the_rest_still_holds,
    with_a_row_goes_its_key,
    what_is_unread_is_found_behind_the_mark,
    a_violation_is_found_and_named,
    the_last_three_of_a_group_are_named_and_everybody_counts,
    the_epoch_stays,
    committers_at_once_neither_fail_nor_leave_a_gap,
    random_batches_in_small_steps_leave_what_the_reference_says,
    a_read_in_steps_is_about_what_was_there_when_it_began,
    an_erasure_in_steps_is_about_what_was_there_when_it_began,
    a_retraction_in_steps_finds_every_row,
    a_group_of_many_goes_in_steps,
    what_is_due_at_one_instant_is_released_in_its_order_and_a_few_bytes_at_a_time,
    others_have_their_turn_between_the_steps_of_a_large_change,
    a_row_that_is_marked_unread_after_all_were_read_stays_unread,
    an_unread_right_behind_a_read_of_all_is_the_last_word,
    a_receipt_that_fails_fails_no_push,
);

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_second_process_on_one_file_is_refused() {
    let database = Database::Sqlite(tempfile::tempdir().unwrap());
    let _opened = database.open().await;
    assert!(matches!(super::open(&database.url(), &settings()).await, Err(OpenError::Locked(_))));
}

/// What another program that uses the same library to migrate has.
const OTHER_MIGRATIONS: &str = "create table _sqlx_migrations (version bigint primary key, description text not null,
        installed_on timestamp not null default current_timestamp, success boolean not null, checksum bytea not null,
        execution_time bigint not null);
    insert into _sqlx_migrations (version, description, success, checksum, execution_time)
    values (1, 'init', true, 'abc', 1)";

/// What a database is opened for, each of which would write.
async fn refusals(url: &str) -> Vec<OpenError> {
    let settings = settings();
    vec![
        super::migrate(url, &settings, true).await.expect_err("migrate --check refuses it"),
        super::migrate(url, &settings, false).await.expect_err("migrate refuses it"),
        super::keys(url, &settings).await.expect_err("key refuses it"),
        super::epoch(url, &settings, true).await.expect_err("epoch refuses it"),
        super::open(url, &settings).await.err().expect("the service refuses it"),
    ]
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_file_of_another_program_is_refused_and_left_as_it_is() {
    /// The files of a folder, but for shared memory, which readers write to as well.
    fn files(folder: &std::path::Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> =
            entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect();
        files.retain(|(name, _)| !name.to_string_lossy().ends_with("-shm"));
        files.sort();
        files
    }

    for (sql, object) in [
        ("create table notification (a); insert into notification values (1)", "notification"),
        ("create table posts (a)", "posts"),
        ("create view everything as select 1 as one", "everything"),
        (OTHER_MIGRATIONS, "_sqlx_migrations"),
        ("pragma journal_mode = wal; create table posts (a)", "posts"),
    ] {
        // With the other program gone, and with it still there: in WAL mode the file itself is then empty.
        for stays in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("other.db");
            let other = rusqlite::Connection::open(&path).unwrap();
            other.execute_batch(sql).unwrap();
            let _other = stays.then_some(other);
            let before = files(folder.path());
            for refusal in refusals(&format!("sqlite://{}", path.display())).await {
                let text = refusal.to_string();
                assert!(matches!(refusal, OpenError::Foreign { .. }) && text.contains(object), "{sql}: {text}");
            }
            assert!(files(folder.path()) == before, "{sql}: the files were changed");
        }
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_file_without_tables_is_taken() {
    for sql in ["", "pragma user_version = 7", "pragma journal_mode = wal; create table a (a); drop table a"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.db");
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let url = format!("sqlite://{}", path.display());
        super::open(&url, &settings()).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    // A first start that ended before its first migration.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("begun.db");
    let list = OTHER_MIGRATIONS.split(';').next().unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch(list).unwrap();
    super::open(&format!("sqlite://{}", path.display()), &settings()).await.unwrap();
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_database_with_tables_of_another_program_is_refused_and_left_as_it_is() {
    const RELATIONS: &str = "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1";
    for (sql, object) in [
        ("create table notification (a int)", "notification"),
        // In the last migration's place: the ones before it must not be applied either.
        ("create table api_key (a int)", "api_key"),
        ("create view push as select 1 as one", "push"),
        ("create table a (a int); create index scheduled_due on a (a)", "scheduled_due"),
        (OTHER_MIGRATIONS, "_sqlx_migrations"),
    ] {
        let database = postgres::Database::create();
        database.sql(sql);
        let before = database.sql(RELATIONS);
        for refusal in refusals(&database.url()).await {
            let text = refusal.to_string();
            assert!(matches!(refusal, OpenError::Foreign { .. }) && text.contains(object), "{sql}: {text}");
        }
        assert_eq!(database.sql(RELATIONS), before, "{sql}");
    }
    // Tables of other names may stand beside, and so may the same names in another schema.
    let shared = postgres::Database::create();
    shared.sql("create table posts (a int); create schema other; create table other.notification (a int)");
    super::open(&shared.url(), &settings()).await.unwrap();
}

#[cfg(all(feature = "postgres", feature = "sqlite"))]
#[test]
fn migrations_are_paired_by_number_and_name() {
    let names =
        |migrator: sqlx::migrate::Migrator| -> Vec<String> { migrator.iter().map(super::schema::name).collect() };
    assert_eq!(names(sqlx::migrate!("migrations/sqlite")), names(sqlx::migrate!("migrations/postgres")));
}

/// The statements of `.sqlx` for one database that only read an inbox, each with the number of its parameters.
fn reading_statements(database: &str) -> Vec<(String, usize)> {
    #[derive(serde::Deserialize)]
    struct Query {
        db_name: String,
        query: String,
        describe: Describe,
    }
    #[derive(serde::Deserialize)]
    struct Describe {
        parameters: serde_json::Value,
    }

    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).unwrap();
    let queries =
        files.map(|file| serde_json::from_str(&std::fs::read_to_string(file.unwrap().path()).unwrap()).unwrap());
    let reading = queries.filter_map(|Query { db_name, query, describe }| {
        // What the checks and the copy read is all there is.
        let everything = ["violation", "counts!", "total!", "sums!", "(token, seq) > (?1, ?2)"];
        // A write's own reads are planned with the writes.
        let everything = everything.into_iter().chain(["from notification_key", "from notification_actor"]);
        let reads = !["insert", "update ", "delete", "begin"].iter().any(|word| query.contains(word))
            && query.contains("from notification")
            && query.contains("token = ")
            && !everything.clone().any(|word| query.contains(word));
        let parameters = &describe.parameters;
        let count = parameters["Right"].as_u64().and_then(|count| usize::try_from(count).ok());
        let count = count.or_else(|| parameters["Left"].as_array().map(Vec::len)).unwrap_or_default();
        (db_name == database && reads).then_some((query, count))
    });
    reading.collect()
}

/// Whatever an inbox holds, a read seeks to its first row and looks at none beyond its last.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn what_reads_an_inbox_in_sqlite_seeks() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder);
    drop(database.open().await);
    let connection = rusqlite::Connection::open(database.url().replacen("sqlite://", "", 1)).unwrap();
    let statements = reading_statements("SQLite");
    for (query, parameters) in &statements {
        let mut explained = connection.prepare(&format!("explain query plan {query}")).unwrap();
        let nothing = vec![rusqlite::types::Null; *parameters];
        let lines = explained.query_map(rusqlite::params_from_iter(nothing), |row| row.get::<_, String>(3)).unwrap();
        let lines: Vec<String> = lines.map(Result::unwrap).collect();
        let whole = lines.iter().find(|line| line.starts_with("SCAN notification") || line.starts_with("SCAN inbox"));
        assert_eq!(whole, None, "{query}: {lines:#?}");
        let bounded = lines.iter().filter(|line| line.starts_with("SEARCH notification") && line.contains("(token=?"));
        for line in bounded {
            // How many rows an inbox keeps is counted.
            let counts = query.contains("offset ?7") && line.contains("COVERING INDEX");
            assert!(line.contains("seq") || counts, "{query}: {line}");
        }
    }
    assert!(statements.len() >= 6, "{}", statements.len());
}

/// The same in Postgres, with a plan for any inbox.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn what_reads_an_inbox_in_postgres_seeks() {
    use sqlx::{AssertSqlSafe, Connection, Row};

    /// The scans of a plan without a bound on the rev.
    fn unbounded(node: &serde_json::Value, found: &mut Vec<String>) {
        let condition = node["Index Cond"].as_str().unwrap_or_default();
        let bounded = ["seq", "rev", "id = "].iter().any(|column| condition.contains(column));
        // How many rows an inbox keeps is counted.
        let counts = node["Node Type"] == "Index Only Scan" && node["Scan Direction"] == "Backward";
        if let Some(table @ ("notification" | "inbox_change")) = node["Relation Name"].as_str()
            && !bounded
            && !counts
            && !node["Recheck Cond"].as_str().unwrap_or_default().contains("id = ")
        {
            found.push(format!("{} on {table} where {condition}", node["Node Type"]));
        }
        node["Plans"].as_array().into_iter().flatten().for_each(|plan| unbounded(plan, found));
    }

    let database = postgres::Database::create();
    drop(super::open(&database.url(), &settings()).await.unwrap());
    let mut connection = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    super::postgres::prepare_to_write(&mut connection, Duration::from_secs(5), false).await.unwrap();
    let statements = reading_statements("PostgreSQL");
    for (query, parameters) in &statements {
        let prepare = AssertSqlSafe(format!("prepare checked as {query}"));
        sqlx::raw_sql(prepare).execute(&mut connection).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        let explain =
            AssertSqlSafe(format!("explain (format json) execute checked ({})", vec!["null"; *parameters].join(", ")));
        let row = sqlx::query(explain).persistent(false).fetch_one(&mut connection).await.unwrap();
        let plan: String = row.try_get_unchecked(0).unwrap();
        sqlx::raw_sql("deallocate checked").execute(&mut connection).await.unwrap();
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let mut found = Vec::new();
        unbounded(&plan[0]["Plan"], &mut found);
        assert!(found.is_empty(), "{query}: {found:?}");
    }
    assert!(statements.len() >= 5, "{}", statements.len());
}

/// A plan that is made before anything is known about a table is kept for long.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn what_writes_to_a_new_postgres_database_finds_each_row_by_a_key() {
    use sqlx::{AssertSqlSafe, Connection, Row};

    #[derive(serde::Deserialize)]
    struct Query {
        db_name: String,
        query: String,
        describe: Describe,
    }
    #[derive(serde::Deserialize)]
    struct Describe {
        parameters: serde_json::Value,
    }

    /// The nodes of a plan that go through all of a table.
    fn whole_tables(node: &serde_json::Value, found: &mut Vec<String>) {
        let by_key = ["Index Cond", "Recheck Cond", "TID Cond"].iter().any(|key| node.get(key).is_some());
        if let Some(table) = node["Relation Name"].as_str()
            && node["Node Type"].as_str().is_some_and(|scan| scan.ends_with("Scan"))
            && !by_key
            && table != "meta"
        {
            found.push(format!("{} on {table}", node["Node Type"]));
        }
        node["Plans"].as_array().into_iter().flatten().for_each(|plan| whole_tables(plan, found));
    }

    let database = postgres::Database::create();
    drop(super::open(&database.url(), &settings()).await.unwrap());
    let mut connection = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    super::postgres::prepare_to_write(&mut connection, Duration::from_secs(5), false).await.unwrap();
    let mut checked = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).unwrap() {
        let Query { db_name, query, describe } =
            serde_json::from_str(&std::fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        let writes = ["insert into", "update", "delete from", "unnest("].iter().any(|word| query.contains(word));
        // A statement of several, or one of the copy into a database, is not planned here.
        if db_name != "PostgreSQL" || !writes || query.contains("set_config") || query.contains("create ") {
            continue;
        }
        let parameters = describe.parameters["Left"].as_array().map_or(0, Vec::len);
        let nothing = vec!["null"; parameters].join(", ");
        let values = if parameters == 0 { String::new() } else { format!("({nothing})") };
        let prepare = AssertSqlSafe(format!("prepare checked as {query}"));
        sqlx::raw_sql(prepare).execute(&mut connection).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        let explain = AssertSqlSafe(format!("explain (format json) execute checked {values}"));
        let row = sqlx::query(explain).persistent(false).fetch_one(&mut connection).await.unwrap();
        // JSON, which is text to who does not ask.
        let plan: String = row.try_get_unchecked(0).unwrap();
        sqlx::raw_sql("deallocate checked").execute(&mut connection).await.unwrap();
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let mut found = Vec::new();
        whole_tables(&plan[0]["Plan"], &mut found);
        assert!(found.is_empty(), "{query}: {found:?}");
        checked += 1;
    }
    assert!(checked > 30, "{checked}");
}

#[tokio::test]
async fn urls_of_other_databases_are_refused() {
    for url in ["", "tidings.db", "mysql://localhost/tidings", "sqlite::memory:", "sqlite://x?mode=memory"] {
        assert!(matches!(super::open(url, &settings()).await, Err(OpenError::Url(_))), "{url}");
    }
    // Options that would not count, or that would have the file opened in another way.
    for option in ["mode=ro", "immutable=1", "cache=shared", "vfs=unix-none", "mode=rwc&immutable=1", "timeout=5"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidings.db");
        let url = format!("sqlite://{}?{option}", path.display());
        assert!(matches!(super::open(&url, &settings()).await, Err(OpenError::Url(_))), "{option}");
        assert!(!path.exists(), "{option}: nothing was made");
    }
}
