//! The oracle on the witness stand: a sound history passes, and for each rule one doctored history or table is caught.

use super::*;
use crate::table::{Change, Inbox};

const EARLIER: &str = "2026-01-02T03:04:05.678Z";

fn row(token: &str, seq: i64, n: u32) -> Row {
    Row {
        token: token.to_owned(),
        seq,
        id: format!("id{n}"),
        entity_type: "like".to_owned(),
        created_at: EARLIER.to_owned(),
        delivered_at: None,
        read_at: None,
        data: format!(r#"{{"n":{n}}}"#),
    }
}

fn post(n: u32, outcome: Outcome, tokens: &[&str]) -> Post {
    Post {
        producer: 1,
        tokens: tokens.iter().map(ToString::to_string).collect(),
        entity_type: "like".to_owned(),
        data: format!(r#"{{"n":{n}}}"#),
        outcome,
    }
}

fn accepted(n: u32, results: &[(&str, i64)]) -> Post {
    let tokens: Vec<&str> = results.iter().map(|(token, _)| *token).collect();
    let results = results.iter().map(|(token, seq)| ((*token).to_owned(), *seq)).collect();
    post(n, Outcome::Ok { id: format!("id{n}"), results }, &tokens)
}

fn received(at: Tick, row: &Row, replay: bool) -> Received {
    Received {
        at,
        id: row.id.clone(),
        seq: row.seq,
        rev: row.seq,
        entity_type: row.entity_type.clone(),
        data: row.data.clone(),
        created_at: row.created_at.clone(),
        replay,
    }
}

fn receipt(read: bool, rows: Rows, sent: Tick, confirmed: Option<Tick>) -> Receipt {
    Receipt { read, rows, sent, confirmed }
}

/// Inbox `a`: rows 1, 2, 4 and a read of the first at 3. Inbox `b`: one row that came with the second of `a`. One post of
/// unknown outcome was stored, one not, one was refused. The first session got 1 and 2 live and read and acked them; the
/// second logged in after that and got 4 by replay.
fn sound() -> (History, Snapshot) {
    let mut rows = vec![row("a", 1, 1), row("a", 2, 2), row("a", 4, 3), row("b", 1, 2)];
    for row in &mut rows[..2] {
        row.delivered_at = Some(EARLIER.to_owned());
    }
    rows[0].read_at = Some(EARLIER.to_owned());
    let posts = vec![
        accepted(1, &[("a", 1)]),
        accepted(2, &[("a", 2), ("b", 1)]),
        post(3, Outcome::Unknown, &["a"]),
        post(4, Outcome::Unknown, &["a", "b"]),
        post(5, Outcome::Failed, &["b"]),
    ];
    let first = Session {
        token: "a".to_owned(),
        login_sent: 1,
        head: Some(0),
        replay_completed: Some(2),
        received: vec![received(3, &rows[0], false), received(4, &rows[1], false)],
        receipts: vec![
            receipt(true, Rows::Ids(vec!["id1".to_owned()]), 5, Some(6)),
            receipt(false, Rows::UpTo(2), 7, Some(8)),
        ],
        counts: vec![(0, 0), (3, 1)],
    };
    let second = Session {
        token: "a".to_owned(),
        login_sent: 20,
        head: Some(4),
        replay_completed: Some(22),
        received: vec![received(21, &rows[2], true)],
        receipts: vec![receipt(false, Rows::UpTo(4), 23, None)],
        counts: vec![(4, 2)],
    };
    let inbox =
        |token: &str, rev, unread, delivered_upto| Inbox { token: token.to_owned(), rev, unread, delivered_upto };
    let read = Change { token: "a".to_owned(), rev: 3, change: r#"{"read":["id1"],"unread":1}"#.to_owned() };
    let table =
        Snapshot { inboxes: vec![inbox("a", 4, 2, 2), inbox("b", 1, 1, 0)], notifications: rows, changes: vec![read] };
    (History { posts, sessions: vec![first, second] }, table)
}

/// The sound case with one thing changed breaks at least this rule.
fn catches(rule: Rule, doctor: impl FnOnce(&mut History, &mut Snapshot)) {
    let (mut history, mut table) = sound();
    doctor(&mut history, &mut table);
    let found = check(&history, &table);
    assert!(found.iter().any(|violation| violation.rule == rule), "{rule:?} was not caught: {found:#?}");
}

#[test]
fn the_oracle_passes_a_sound_history() {
    let (history, table) = sound();
    assert_sound(&history, &table);
    assert_sound(&History::default(), &Snapshot::default());
}

#[test]
#[should_panic(expected = "AcceptedNotStored: {\"n\":1}")]
fn the_oracle_fails_the_test_with_the_details() {
    let (history, mut table) = sound();
    table.notifications.remove(0);
    assert_sound(&history, &table);
}

#[test]
fn the_oracle_catches_what_is_wrong_with_pushes() {
    catches(Rule::AcceptedNotStored, |_, table| drop(table.notifications.remove(1)));
    catches(Rule::AcceptedNotStored, |_, table| table.notifications[1].id = "id9".to_owned());
    catches(Rule::AcceptedNotStored, |history, _| history.posts[0].tokens.push("c".to_owned()));
    catches(Rule::FailedButStored, |history, _| history.posts[2].outcome = Outcome::Failed);
    catches(Rule::NeverPosted, |history, _| drop(history.posts.remove(2)));
    catches(Rule::NeverPosted, |_, table| table.notifications[2].token = "c".to_owned());
    catches(Rule::StoredTwice, |_, table| table.notifications.push(row("a", 5, 3)));
    catches(Rule::StoredInPart, |history, _| history.posts[2].tokens.push("b".to_owned()));
    catches(Rule::RetryDiffers, |history, table| {
        history.posts.push(accepted(3, &[("a", 4)]));
        history.posts.push(accepted(3, &[("a", 5)]));
        table.notifications.push(row("a", 5, 3));
    });
    catches(Rule::StoredDifferently, |_, table| table.notifications[2].entity_type = "follow".to_owned());
    catches(Rule::ProducerOrder, |history, _| history.posts.swap(0, 1));
}

#[test]
fn the_oracle_catches_what_is_wrong_with_the_table() {
    catches(Rule::RevNotGapless, |_, table| table.changes[0].rev = 5);
    catches(Rule::RevNotGapless, |_, table| table.inboxes[0].rev = 5);
    catches(Rule::RevNotGapless, |_, table| drop(table.inboxes.remove(1)));
    catches(Rule::UnreadWrong, |_, table| table.inboxes[1].unread = 0);
    catches(Rule::UndeliveredBelowMark, |_, table| table.inboxes[0].delivered_upto = 4);
    catches(Rule::ReadNotDelivered, |_, table| table.notifications[0].delivered_at = None);
    catches(Rule::ReadWithoutChange, |_, table| table.notifications[1].read_at = Some(EARLIER.to_owned()));
    catches(Rule::ReadWithoutChange, |_, table| table.changes[0].change = r#"{"readUpTo":2}"#.to_owned());
    catches(Rule::CountWrong, |_, table| table.changes[0].change = r#"{"read":["id1"],"unread":0}"#.to_owned());
}

#[test]
fn the_oracle_catches_what_is_wrong_with_a_session() {
    catches(Rule::CountWrong, |history, _| history.sessions[1].counts.push((2, 1)));
    catches(Rule::DeliveredNotStored, |history, _| history.sessions[0].received[1].seq = 3);
    catches(Rule::DeliveredNotStored, |history, _| history.sessions[0].received[1].id = "id3".to_owned());
    catches(Rule::DeliveredNotStored, |history, _| history.sessions[1].token = "b".to_owned());
    catches(Rule::DeliveredDifferently, |history, _| history.sessions[0].received[1].data = r#"{"n":2.0}"#.to_owned());
    catches(Rule::DeliveredDifferently, |history, _| history.sessions[0].received[1].created_at.clear());
    catches(Rule::DeliveredDifferently, |history, _| history.sessions[0].received[1].rev = 3);
    catches(Rule::RevNotRising, |history, _| history.sessions[0].received.swap(0, 1));
    catches(Rule::DuplicateInSession, |history, _| {
        let again = history.sessions[0].received[1].clone();
        history.sessions[0].received.push(again);
    });
    catches(Rule::ReplayFlagWrong, |history, _| history.sessions[1].received[0].replay = false);
    catches(Rule::ReplayFlagWrong, |history, _| history.sessions[0].received[0].replay = true);
}

#[test]
fn the_oracle_catches_loss_and_needless_repetition() {
    // Live, in the middle.
    catches(Rule::Skipped, |history, _| drop(history.sessions[0].received.remove(0)));
    // In the replay, at its end.
    catches(Rule::Skipped, |history, _| history.sessions[1].received.clear());
    // In the replay, and acked only after it was over.
    catches(Rule::Skipped, |history, table| {
        history.sessions[1].received.clear();
        history.sessions[1].receipts[0].confirmed = Some(24);
        table.notifications[2].delivered_at = Some(EARLIER.to_owned());
    });
    catches(Rule::RedeliveredAfterAck, |history, table| {
        let again = received(20, &table.notifications[1], true);
        history.sessions[1].received.insert(0, again);
    });
}

#[test]
fn the_oracle_catches_lost_and_invented_receipts() {
    catches(Rule::ReceiptLost, |_, table| table.notifications[1].delivered_at = None);
    catches(Rule::ReceiptLost, |_, table| table.notifications[0].read_at = None);
    catches(Rule::ReceiptLost, |history, _| history.sessions[1].receipts[0].confirmed = Some(24));
    catches(Rule::DeliveredWithoutReceipt, |_, table| table.notifications[3].delivered_at = Some(EARLIER.to_owned()));
    catches(Rule::DeliveredWithoutReceipt, |_, table| table.notifications[1].read_at = Some(EARLIER.to_owned()));
    catches(Rule::DeliveredUnseen, |history, _| history.sessions[0].received.clear());
}

#[test]
fn the_oracle_excuses_what_an_ack_in_flight_explains() {
    let (mut history, mut table) = sound();
    // Acked by another tab while the second session replayed: it may or may not have got the row.
    history.sessions[0].receipts.push(receipt(false, Rows::Ids(vec!["id3".to_owned()]), 19, Some(21)));
    table.notifications[2].delivered_at = Some(EARLIER.to_owned());
    assert_sound(&history, &table);
    history.sessions[1].received.clear();
    history.sessions[0].received.push(received(18, &table.notifications[2], false));
    assert_sound(&history, &table);
}
