//! What every database must do, as functions over a freshly opened one.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::fake::FakeDatabase;
use super::{Batch, Error, IdempotencyKey, KeyedPush, OpenError, Opened, PushOutcome, Receipt, Settings, Undelivered};
use crate::notification::{Event, NewPush, Payload, Pushed, ReceiptKind, Rev, Selection, Token};

fn settings() -> Settings {
    Settings {
        readers: 1,
        page_bytes: 1000,
        timeout: Duration::from_secs(5),
        idempotency_ttl: Duration::from_secs(60),
        startup_check_bytes: u64::MAX,
    }
}

async fn open(folder: &Path) -> Result<Opened, OpenError> {
    super::open(&format!("sqlite://{}", folder.join("tidings.db").display()), &settings()).await
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
    let committed = opened.committer.commit(&Batch { pushes, receipts: vec![] }, now()).await.unwrap();
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
        let committed = opened.committer.commit(&real, now()).await.unwrap();
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_batches_leave_what_the_reference_says(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        runtime.block_on(async { agrees_with_the_reference(open(folder.path()).await.unwrap(), steps).await })?;
    }
}

#[tokio::test]
async fn receipts_of_several_sessions_in_one_batch_are_one_change_each_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path()).await.unwrap();
    let pushed = commit_pushes(&mut opened, (0..4).map(|_| push(&["1"], "{}")).collect()).await;
    let ids = |at: usize| Selection::Ids(vec![pushed[at].id]);
    let receipts = vec![
        receipt("1", ReceiptKind::Read, ids(3)),
        receipt("1", ReceiptKind::Read, ids(2)),
        Receipt { origin: Some(8), ..receipt("1", ReceiptKind::Read, Selection::UpTo(1)) },
        receipt("2", ReceiptKind::Read, Selection::All),
    ];
    let committed = opened.committer.commit(&Batch { pushes: vec![], receipts }, now()).await.unwrap();
    let shapes: Vec<_> = committed.events.iter().map(|(_, event)| shape(event)).collect();
    assert_eq!(shapes, ["5 read 2 leaves 2", "6 read to 1 leaves 1"]);
    let origins = committed.events.iter().map(|(_, event)| match event {
        Event::Changed { origin, .. } => *origin,
        Event::New(_) => panic!("nothing was pushed"),
    });
    assert!(origins.eq([None, None]), "two sessions asked, so both must hear");
    assert_eq!(committed.receipts[3].unwrap().rev, 0, "a token that never got anything stays unknown");
}

#[tokio::test]
async fn a_key_gives_the_first_answer_until_it_expires() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path()).await.unwrap();
    let first = commit_pushes(&mut opened, vec![keyed(&["1", "2"], "k", "body")]).await;
    let again = commit_pushes(&mut opened, vec![push(&["1"], "{}"), keyed(&["1", "2"], "k", "body")]).await;
    assert_eq!(again[1], first[0]);
    assert_eq!(history(&opened, &token("1")).await.len(), 2);

    let other = Batch { pushes: vec![keyed(&["1"], "k", "another body")], receipts: vec![] };
    let committed = opened.committer.commit(&other, now()).await.unwrap();
    assert_eq!(committed.pushes, [PushOutcome::KeyMismatch]);
    assert!(committed.events.is_empty());

    let later = now() + TimeDelta::seconds(61);
    let committed = opened.committer.commit(&other, later).await.unwrap();
    assert!(matches!(&committed.pushes[..], [PushOutcome::Pushed(pushed)] if pushed.id != first[0].id));
}

#[tokio::test]
async fn a_page_ends_at_its_bytes_whatever_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path()).await.unwrap();
    let big = format!("\"{}\"", "x".repeat(settings().page_bytes / 2));
    commit_pushes(&mut opened, (0..5).map(|_| push(&["1"], &big)).collect()).await;
    let page = opened.store.events(&token("1"), 0, 1000).await.unwrap();
    assert_eq!((page.rows.len(), page.more), (2, true));
    let page = Undelivered { token: &token("1"), after: 2, upto: 5, limit: 1000, now: now() };
    assert_eq!(opened.store.undelivered(&page).await.unwrap().rows.len(), 2);
}

#[tokio::test]
async fn a_failed_batch_leaves_nothing_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path()).await.unwrap();
    let admin = folder.path().join("tidings.db");
    let sabotage = |sql: &'static str| {
        let status = std::process::Command::new("sqlite3").arg(&admin).arg(sql).status().unwrap();
        assert!(status.success());
    };
    sabotage("create trigger fail before insert on notification begin select raise(abort, 'told to fail'); end");
    let batch = Batch { pushes: vec![push(&["1"], "{}")], receipts: vec![] };
    let error = opened.committer.commit(&batch, now()).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable(why) if why.contains("told to fail")), "{error}");
    sabotage("drop trigger fail");
    let pushed = commit_pushes(&mut opened, vec![push(&["1"], "{}")]).await;
    assert_eq!(pushed[0].results, [(token("1"), 1)], "the failed batch took no rev");
}

#[tokio::test]
async fn the_epoch_stays_and_a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path()).await.unwrap();
    let epoch = opened.epoch.clone();
    assert_eq!(epoch.len(), 32);
    assert!(matches!(open(folder.path()).await, Err(OpenError::Locked(_))));
    opened.committer.close().await;
    drop(opened);
    assert_eq!(open(folder.path()).await.unwrap().epoch, epoch);
}

#[tokio::test]
async fn urls_of_other_databases_are_refused() {
    for url in ["", "tidings.db", "mysql://localhost/tidings", "sqlite::memory:", "sqlite://x?mode=memory"] {
        assert!(matches!(super::open(url, &settings()).await, Err(OpenError::Url(_))), "{url}");
    }
}
