//! What a copy reads: pages of each table, in the order of its key.

use sqlx::SqliteConnection;

use crate::store::copy::{ActorRow, ChangeRow, InboxRow, KeyRow, NotificationRow, PayloadRow, ScheduledRow, SlotRow};

/// Rows that are read at a time.
const PAGE: i64 = 1_000;

/// They are large.
const PAYLOAD_PAGE: i64 = 20;

pub(in crate::store) async fn meta(source: &mut SqliteConnection) -> Result<(String, i64), sqlx::Error> {
    let meta = sqlx::query!("select epoch, erasures from meta limit 1 -- sqlite").fetch_one(source).await?;
    Ok((meta.epoch, meta.erasures))
}

/// How many rows there are.
pub(in crate::store) async fn total(source: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let total = sqlx::query_scalar!(
        r#"select (select count(*) from inbox) + (select count(*) from notification) + (select count(*) from inbox_change)
            + (select count(*) from idempotency) + (select count(*) from notification_key)
            + (select count(*) from notification_actor) + (select count(*) from scheduled) + (select count(*) from notification_payload)
                as "total!: i64""#
    );
    Ok(total.fetch_one(source).await?.unsigned_abs())
}

pub(in crate::store) async fn inboxes(
    source: &mut SqliteConnection,
    after: Option<&InboxRow>,
) -> Result<Vec<InboxRow>, sqlx::Error> {
    let after = after.map_or("", |row| &row.token);
    sqlx::query_as!(
        InboxRow,
        "select token, rev, unread, delivered_upto, purged_rev, created_at, life from inbox
        where token > ?1 order by token limit ?2",
        after,
        PAGE
    )
    .fetch_all(source)
    .await
}

pub(in crate::store) async fn notifications(
    source: &mut SqliteConnection,
    after: Option<&NotificationRow>,
) -> Result<Vec<NotificationRow>, sqlx::Error> {
    let (token, seq) = after.map_or(("", 0), |row| (&row.token, row.seq));
    sqlx::query_as!(
        NotificationRow,
        "select token, seq, id, entity_type, collapse_key, group_key, created_at, expires_at, delivered_at, read_at,
            retracted_at, data, group_count, group_actors
        from notification where (token, seq) > (?1, ?2) order by token, seq limit ?3",
        token,
        seq,
        PAGE
    )
    .fetch_all(source)
    .await
}

pub(in crate::store) async fn changes(
    source: &mut SqliteConnection,
    after: Option<&ChangeRow>,
) -> Result<Vec<ChangeRow>, sqlx::Error> {
    let (token, rev) = after.map_or(("", 0), |row| (&row.token, row.rev));
    sqlx::query_as!(
        ChangeRow,
        "select token, rev, change, at from inbox_change where (token, rev) > (?1, ?2) order by token, rev limit ?3",
        token,
        rev,
        PAGE
    )
    .fetch_all(source)
    .await
}

pub(in crate::store) async fn keys(
    source: &mut SqliteConnection,
    after: Option<&KeyRow>,
) -> Result<Vec<KeyRow>, sqlx::Error> {
    let (owner, key) = after.map_or(("", ""), |row| (&row.key_owner, &row.key));
    sqlx::query_as!(
        KeyRow,
        "select key_owner, key, body_sha256, response, expires_at from idempotency
        where (key_owner, key) > (?1, ?2) order by key_owner, key limit ?3",
        owner,
        key,
        PAGE
    )
    .fetch_all(source)
    .await
}

pub(in crate::store) async fn slots(
    source: &mut SqliteConnection,
    after: Option<&SlotRow>,
) -> Result<Vec<SlotRow>, sqlx::Error> {
    let (token, kind, key) = after.map_or(("", "", ""), |row| (&row.token, &row.kind, &row.key));
    sqlx::query_as!(
        SlotRow,
        "select token, kind, key, seq from notification_key where (token, kind, key) > (?1, ?2, ?3)
        order by token, kind, key limit ?4",
        token,
        kind,
        key,
        PAGE
    )
    .fetch_all(source)
    .await
}

pub(in crate::store) async fn actors(
    source: &mut SqliteConnection,
    after: Option<&ActorRow>,
) -> Result<Vec<ActorRow>, sqlx::Error> {
    let (token, seq, actor) = after.map_or(("", 0, ""), |row| (&row.token, row.seq, &row.actor));
    sqlx::query_as!(
        ActorRow,
        "select token, seq, actor, rev from notification_actor where (token, seq, actor) > (?1, ?2, ?3)
        order by token, seq, actor limit ?4",
        token,
        seq,
        actor,
        PAGE
    )
    .fetch_all(source)
    .await
}

pub(in crate::store) async fn scheduled(
    source: &mut SqliteConnection,
    after: Option<&ScheduledRow>,
) -> Result<Vec<ScheduledRow>, sqlx::Error> {
    let (id, token) = after.map_or(("", ""), |row| (&row.id, &row.token));
    sqlx::query_as!(
        ScheduledRow,
        "select id, token, due_at, entity_type, ttl_secs, collapse_key, group_key, actor, created_at, data
        from scheduled where (id, token) > (?1, ?2) order by id, token limit ?3",
        id,
        token,
        PAGE
    )
    .fetch_all(source)
    .await
}

pub(in crate::store) async fn payloads(
    source: &mut SqliteConnection,
    after: Option<&PayloadRow>,
) -> Result<Vec<PayloadRow>, sqlx::Error> {
    let id = after.map_or("", |row| &row.id);
    sqlx::query_as!(
        PayloadRow,
        "select id, data from notification_payload where id > ?1 order by id limit ?2",
        id,
        PAYLOAD_PAGE
    )
    .fetch_all(source)
    .await
}

/// What must be the same on both sides, as one line.
pub(in crate::store) async fn sums(source: &mut SqliteConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select 'inboxes ' || (select count(*) || ', revs ' || coalesce(sum(rev), 0) || ', unread ' || coalesce(sum(unread), 0)
                || ', delivered up to ' || coalesce(sum(delivered_upto), 0) from inbox)
            || ', notifications ' || (select count(*) || ', delivered ' || count(delivered_at) || ', read ' || count(read_at)
                || ', bytes ' || coalesce(sum(octet_length(data)), 0) from notification)
            || ', changes ' || (select count(*) from inbox_change)
            || ', keys ' || (select count(*) from idempotency)
            || ', groups ' || (select count(*) from notification_key) || ' of ' || (select count(*) from notification_actor)
            || ', scheduled ' || (select count(*) from scheduled)
            || ', payloads ' || (select count(*) || ', bytes ' || coalesce(sum(octet_length(data)), 0) from notification_payload)
            || ', api keys ' || (select count(*) from api_key) as "sums!: String" -- sqlite"#
    )
    .fetch_one(source)
    .await
}
