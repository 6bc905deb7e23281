//! What every database must do. Each test runs on each of them, see the list at the end.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::value::RawValue;

#[cfg(feature = "postgres")]
#[path = "../../tests/support/postgres.rs"]
#[expect(dead_code, reason = "only the integration tests mistreat a server")]
mod postgres;

use super::fake::FakeDatabase;
use super::{Batch, Error, IdempotencyKey, KeyedPush, OpenError, Opened, PushOutcome, Receipt, Settings, Undelivered};
use crate::notification::{Event, NewPush, Payload, Pushed, ReceiptKind, Rev, Selection, Token};

fn settings() -> Settings {
    Settings {
        readers: 1,
        writers: 2,
        page_bytes: 1000,
        timeout: Duration::from_secs(5),
        idempotency_ttl: Duration::from_secs(60),
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
    KeyedPush { push: NewPush { tokens, entity_type: "like".into(), data }, key: None }
}

fn keyed(tokens: &[&str], key: &str, body: &str) -> KeyedPush {
    let key = IdempotencyKey { owner: "backend".into(), key: key.into(), body_sha256: body.into() };
    KeyedPush { key: Some(key), ..push(tokens, "{}") }
}

fn receipt(to: &str, kind: ReceiptKind, selection: Selection) -> Receipt {
    Receipt { token: token(to), kind, selection, origin: Some(7) }
}

async fn commit_pushes(opened: &mut Opened, pushes: Vec<KeyedPush>) -> Vec<Pushed> {
    let committed = opened.committers[0].commit(&Batch { pushes, receipts: vec![] }, now()).await.unwrap();
    let pushed = committed.pushes.into_iter().map(|outcome| match outcome {
        PushOutcome::Pushed(pushed) => pushed,
        PushOutcome::KeyMismatch => panic!("the key came with another body"),
    });
    pushed.collect()
}

async fn history(opened: &Opened, token: &Token) -> Vec<Event> {
    let (mut events, mut after) = (Vec::new(), 0);
    loop {
        let page = opened.store.events(token, after, 3).await.unwrap();
        events.extend(page.rows);
        after = events.last().map_or(0, Event::rev);
        if !page.more {
            return events;
        }
    }
}

async fn undelivered(opened: &Opened, token: &Token, upto: Rev) -> Vec<Rev> {
    let page = Undelivered { token, after: 0, upto, limit: 1000, now: now() };
    let rows = opened.store.undelivered(&page).await.unwrap().rows;
    assert_eq!(opened.store.count_undelivered(&page).await.unwrap(), rows.len() as u64);
    rows.iter().map(|row| row.seq).collect()
}

/// An event without the parts that differ from database to database.
fn shape(event: &Event) -> String {
    match event {
        Event::New(new) => format!("{} new {:?} read {}", new.seq, new.content.data.get(), new.read),
        Event::Changed { rev, change, .. } => match &change.kind {
            crate::notification::ChangeKind::Read(ids) => format!("{rev} read {} leaves {}", ids.len(), change.unread),
            crate::notification::ChangeKind::ReadUpTo(upto) => format!("{rev} read to {upto} leaves {}", change.unread),
        },
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push { tokens: Vec<u8>, copies: usize },
    Receipt { token: u8, kind: ReceiptKind, choice: Choice },
}

#[derive(Debug, Clone)]
enum Choice {
    /// Every n-th row that there is, of any inbox.
    Every(usize),
    UpTo(Rev),
    All,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(ReceiptKind::Ack), Just(ReceiptKind::Read)];
    let choice =
        prop_oneof![(1..4_usize).prop_map(Choice::Every), (0..12_i64).prop_map(Choice::UpTo), Just(Choice::All)];
    prop_oneof![
        (prop::collection::vec(0..12_u8, 1..12), 1..4_usize).prop_map(|(tokens, copies)| Step::Push { tokens, copies }),
        (0..12_u8, kind, choice).prop_map(|(token, kind, choice)| Step::Receipt { token, kind, choice }),
    ]
}

/// Runs the steps on a real database and on the reference and compares everything a caller can see.
async fn agrees_with_the_reference(mut opened: Opened, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let reference = FakeDatabase::default();
    let (mut real_ids, mut reference_ids) = (Vec::new(), Vec::new());
    for step in steps {
        let (mut real, mut expected) = (Batch::default(), Batch::default());
        match step {
            Step::Push { mut tokens, copies } => {
                tokens.sort_unstable();
                tokens.dedup();
                let tokens: Vec<_> = tokens.iter().map(u8::to_string).collect();
                let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
                for batch in [&mut real, &mut expected] {
                    batch.pushes = (0..copies).map(|copy| push(&tokens, &format!("{{ \"n\":{copy} }}"))).collect();
                }
            }
            Step::Receipt { token, kind, choice } => {
                let select = |ids: &[uuid::Uuid]| match choice {
                    Choice::Every(n) => Selection::Ids(ids.iter().copied().step_by(n).collect()),
                    Choice::UpTo(rev) => Selection::UpTo(rev),
                    Choice::All => Selection::All,
                };
                real.receipts.push(receipt(&token.to_string(), kind, select(&real_ids)));
                expected.receipts.push(receipt(&token.to_string(), kind, select(&reference_ids)));
            }
        }
        let committed = opened.committers[0].commit(&real, now()).await.unwrap();
        let wanted = reference.apply(&expected, now());
        for (ids, outcomes) in [(&mut real_ids, &committed.pushes), (&mut reference_ids, &wanted.pushes)] {
            ids.extend(outcomes.iter().filter_map(|outcome| match outcome {
                PushOutcome::Pushed(pushed) => Some(pushed.id),
                PushOutcome::KeyMismatch => None,
            }));
        }
        let counters = |head: &Option<crate::notification::Head>| head.map(|head| (head.rev, head.unread));
        prop_assert_eq!(
            committed.receipts.iter().map(counters).collect::<Vec<_>>(),
            wanted.receipts.iter().map(counters).collect::<Vec<_>>()
        );
        let shapes = |events: &[(Token, Event)]| {
            let mut shapes: Vec<_> = events.iter().map(|(token, event)| (token.clone(), shape(event))).collect();
            shapes.sort();
            shapes
        };
        prop_assert_eq!(shapes(&committed.events), shapes(&wanted.events));
    }
    for token in (0..12_u8).map(|token| super::tests::token(&token.to_string())) {
        let events = history(&opened, &token).await;
        let wanted: Vec<_> = reference.history(&token).into_values().collect();
        prop_assert_eq!(events.iter().map(shape).collect::<Vec<_>>(), wanted.iter().map(shape).collect::<Vec<_>>());
        let head = opened.store.heads(std::slice::from_ref(&token)).await.unwrap().remove(&token).unwrap_or_default();
        let expected = reference.head(&token);
        prop_assert_eq!((head.rev, head.unread), (expected.rev, expected.unread));
        let mut missing: Vec<_> = reference.undelivered(&token).into_iter().collect();
        missing.sort_unstable();
        prop_assert!(
            missing.iter().all(|rev| *rev > head.delivered_upto),
            "the low-water mark passed an undelivered row"
        );
        prop_assert_eq!(undelivered(&opened, &token, Rev::MAX).await, missing);
    }
    Ok(())
}

async fn random_batches_leave_what_the_reference_says(make: fn() -> Database) {
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let result = tokio::task::spawn_blocking(move || {
        TestRunner::new(config).run(&prop::collection::vec(step(), 1..25), |steps| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let database = make();
            runtime.block_on(async { agrees_with_the_reference(database.open().await, steps).await })
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
    let committed = opened.committers[0].commit(&Batch { pushes: vec![], receipts }, now()).await.unwrap();
    let shapes: Vec<_> = committed.events.iter().map(|(_, event)| shape(event)).collect();
    assert_eq!(shapes, ["5 read 2 leaves 2", "6 read to 1 leaves 1"]);
    let origins = committed.events.iter().map(|(_, event)| match event {
        Event::Changed { origin, .. } => *origin,
        Event::New(_) => panic!("nothing was pushed"),
    });
    assert!(origins.eq([None, None]), "two sessions asked, so both must hear");
    assert_eq!(committed.receipts[3].unwrap().rev, 0, "a token that never got anything stays unknown");
}

async fn a_key_gives_the_first_answer_until_it_expires(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let first = commit_pushes(&mut opened, vec![keyed(&["1", "2"], "k", "body")]).await;
    let again = commit_pushes(&mut opened, vec![push(&["1"], "{}"), keyed(&["1", "2"], "k", "body")]).await;
    assert_eq!(again[1], first[0]);
    assert_eq!(history(&opened, &token("1")).await.len(), 2);

    let other = Batch { pushes: vec![keyed(&["1"], "k", "another body")], receipts: vec![] };
    let committed = opened.committers[0].commit(&other, now()).await.unwrap();
    assert_eq!(committed.pushes, [PushOutcome::KeyMismatch]);
    assert!(committed.events.is_empty());

    let later = now() + TimeDelta::seconds(61);
    let committed = opened.committers[0].commit(&other, later).await.unwrap();
    assert!(matches!(&committed.pushes[..], [PushOutcome::Pushed(pushed)] if pushed.id != first[0].id));
}

async fn a_page_ends_at_its_bytes_whatever_its_rows(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    let big = format!("\"{}\"", "x".repeat(settings().page_bytes / 2));
    commit_pushes(&mut opened, (0..5).map(|_| push(&["1"], &big)).collect()).await;
    let page = opened.store.events(&token("1"), 0, 1000).await.unwrap();
    assert_eq!((page.rows.len(), page.more), (2, true));
    let page = Undelivered { token: &token("1"), after: 2, upto: 5, limit: 1000, now: now() };
    assert_eq!(opened.store.undelivered(&page).await.unwrap().rows.len(), 2);
}

async fn a_failed_batch_leaves_nothing_and_the_next_one_works(make: fn() -> Database) {
    let database = make();
    let mut opened = database.open().await;
    database.sabotage();
    for receipts in [vec![], vec![receipt("1", ReceiptKind::Read, Selection::All)]] {
        let batch = Batch { pushes: vec![push(&["1"], "{}")], receipts };
        let error = opened.committers[0].commit(&batch, now()).await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(why) if why.contains("told to fail")), "{error}");
    }
    database.repair();
    let pushed = commit_pushes(&mut opened, vec![push(&["1"], "{}")]).await;
    assert_eq!(pushed[0].results, [(token("1"), 1)], "the failed batch took no rev");
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
                    let mut batch = Batch { pushes: vec![push(&tokens, "{}")], receipts: vec![] };
                    if round % 3 == 1 {
                        batch.receipts.push(receipt(tokens[0], ReceiptKind::Ack, Selection::UpTo(round as Rev)));
                        batch.receipts.push(receipt("9", ReceiptKind::Read, Selection::All));
                    }
                    if round % 4 == 2 {
                        batch.pushes.push(keyed(&["0", "5"], &format!("key {round}"), "body"));
                    }
                    committer.commit(&batch, now()).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for token in (0..10).map(|token| token.to_string()).map(|text| token(&text)) {
        let events = history(&opened, &token).await;
        let revs: Vec<_> = events.iter().map(Event::rev).collect();
        assert_eq!(revs, (1..=revs.len() as Rev).collect::<Vec<_>>(), "revs without a gap");
        let head = opened.store.heads(std::slice::from_ref(&token)).await.unwrap()[&token];
        let unread = events.iter().filter(|event| matches!(event, Event::New(new) if !new.read)).count();
        assert_eq!((head.rev, head.unread), (revs.len() as Rev, unread as i64));
        assert!(undelivered(&opened, &token, Rev::MAX).await.iter().all(|rev| *rev > head.delivered_upto));
    }
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
    a_key_gives_the_first_answer_until_it_expires,
    a_page_ends_at_its_bytes_whatever_its_rows,
    a_failed_batch_leaves_nothing_and_the_next_one_works,
    the_epoch_stays,
    committers_at_once_neither_fail_nor_leave_a_gap,
);

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_second_process_on_one_file_is_refused() {
    let database = Database::Sqlite(tempfile::tempdir().unwrap());
    let _opened = database.open().await;
    assert!(matches!(super::open(&database.url(), &settings()).await, Err(OpenError::Locked(_))));
}

#[cfg(all(feature = "postgres", feature = "sqlite"))]
#[test]
fn migrations_are_paired_by_number_and_name() {
    let names =
        |migrator: sqlx::migrate::Migrator| -> Vec<String> { migrator.iter().map(super::schema::name).collect() };
    assert_eq!(names(sqlx::migrate!("migrations/sqlite")), names(sqlx::migrate!("migrations/postgres")));
}

#[tokio::test]
async fn urls_of_other_databases_are_refused() {
    for url in ["", "tidings.db", "mysql://localhost/tidings", "sqlite::memory:", "sqlite://x?mode=memory"] {
        assert!(matches!(super::open(url, &settings()).await, Err(OpenError::Url(_))), "{url}");
    }
}
