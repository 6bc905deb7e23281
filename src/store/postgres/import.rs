//! What a copy writes: everything in one transaction, into tables that must be empty.

use sqlx::PgConnection;

use crate::store::copy::{ActorRow, ChangeRow, InboxRow, KeyRow, NotificationRow, PayloadRow, ScheduledRow, SlotRow};

/// Begins, keeps everybody else from writing, and says how much there is already that would be mixed with what comes.
pub(in crate::store) async fn begin(copy: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query!("begin -- postgres").execute(&mut *copy).await?;
    sqlx::query!("lock table inbox in exclusive mode").execute(&mut *copy).await?;
    sqlx::query_scalar!(
        r#"select (select count(*) from inbox) + (select count(*) from scheduled) + (select count(*) from idempotency)
            + (select count(*) from api_key) as "count!" -- postgres"#
    )
    .fetch_one(copy)
    .await
}

pub(in crate::store) async fn commit(copy: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("commit -- postgres").execute(copy).await?;
    Ok(())
}

pub(in crate::store) async fn meta(copy: &mut PgConnection, epoch: &str, erasures: i64) -> Result<(), sqlx::Error> {
    sqlx::query!("update meta set epoch = $1, erasures = $2", epoch, erasures).execute(copy).await?;
    Ok(())
}

pub(in crate::store) async fn inboxes(copy: &mut PgConnection, rows: &[InboxRow]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into inbox (token, rev, unread, delivered_upto, purged_rev, created_at, life)
        select token, rev, unread, delivered_upto, purged_rev, created_at::timestamptz, life
        from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::bigint[])
            as row (token, rev, unread, delivered_upto, purged_rev, created_at, life)",
        &rows.iter().map(|row| &*row.token).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.rev).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.unread).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.delivered_upto).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.purged_rev).collect::<Vec<_>>(),
        &rows.iter().map(|row| &*row.created_at).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.life).collect::<Vec<_>>()
    )
    .execute(copy)
    .await?;
    Ok(())
}

pub(in crate::store) async fn notifications(
    copy: &mut PgConnection,
    rows: &[NotificationRow],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into notification (token, seq, id, entity_type, collapse_key, group_key, created_at, expires_at,
            delivered_at, read_at, retracted_at, data, group_count, group_actors)
        select token, seq, id::uuid, entity_type, collapse_key, group_key, created_at::timestamptz,
            expires_at::timestamptz, delivered_at::timestamptz, read_at::timestamptz, retracted_at::timestamptz,
            data::json, group_count, group_actors::json
        from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bigint[], $14::text[])
            as row (token, seq, id, entity_type, collapse_key, group_key, created_at, expires_at, delivered_at,
                read_at, retracted_at, data, group_count, group_actors)",
        &rows.iter().map(|row| &*row.token).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.seq).collect::<Vec<_>>(),
        &rows.iter().map(|row| &*row.id).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.entity_type).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.collapse_key.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| row.group_key.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| &*row.created_at).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.expires_at.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| row.delivered_at.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| row.read_at.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| row.retracted_at.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| &*row.data).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.group_count).collect::<Vec<_>>() as &[Option<i64>],
        &rows.iter().map(|row| row.group_actors.as_deref()).collect::<Vec<_>>() as &[Option<&str>]
    )
    .execute(copy)
    .await?;
    Ok(())
}

pub(in crate::store) async fn changes(copy: &mut PgConnection, rows: &[ChangeRow]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into inbox_change (token, rev, change, at) select token, rev, change::json, at::timestamptz
        from unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) as row (token, rev, change, at)",
        &rows.iter().map(|row| &*row.token).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.rev).collect::<Vec<_>>(),
        &rows.iter().map(|row| &*row.change).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.at).collect::<Vec<_>>() as &[&str]
    )
    .execute(copy)
    .await?;
    Ok(())
}

pub(in crate::store) async fn keys(copy: &mut PgConnection, rows: &[KeyRow]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into idempotency (key_owner, key, body_sha256, response, expires_at)
        select key_owner, key, body_sha256, response::json, expires_at::timestamptz
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
            as row (key_owner, key, body_sha256, response, expires_at)",
        &rows.iter().map(|row| &*row.key_owner).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.key).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.body_sha256).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.response).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.expires_at).collect::<Vec<_>>() as &[&str]
    )
    .execute(copy)
    .await?;
    Ok(())
}

pub(in crate::store) async fn slots(copy: &mut PgConnection, rows: &[SlotRow]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into notification_key (token, kind, key, seq)
        select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])",
        &rows.iter().map(|row| &*row.token).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.kind).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.key).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.seq).collect::<Vec<_>>()
    )
    .execute(copy)
    .await?;
    Ok(())
}

pub(in crate::store) async fn actors(copy: &mut PgConnection, rows: &[ActorRow]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into notification_actor (token, seq, actor, rev)
        select * from unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[])",
        &rows.iter().map(|row| &*row.token).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.seq).collect::<Vec<_>>(),
        &rows.iter().map(|row| &*row.actor).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.rev).collect::<Vec<_>>()
    )
    .execute(copy)
    .await?;
    Ok(())
}

pub(in crate::store) async fn scheduled(copy: &mut PgConnection, rows: &[ScheduledRow]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into scheduled (id, token, due_at, entity_type, ttl_secs, collapse_key, group_key, actor, created_at, data)
        select id::uuid, token, due_at::timestamptz, entity_type, ttl_secs, collapse_key, group_key, actor,
            created_at::timestamptz, data::json
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[])
            as row (id, token, due_at, entity_type, ttl_secs, collapse_key, group_key, actor, created_at, data)",
        &rows.iter().map(|row| &*row.id).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.token).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.due_at).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.entity_type).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| row.ttl_secs).collect::<Vec<_>>() as &[Option<i64>],
        &rows.iter().map(|row| row.collapse_key.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| row.group_key.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| row.actor.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rows.iter().map(|row| &*row.created_at).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.data).collect::<Vec<_>>() as &[&str]
    )
    .execute(copy)
    .await?;
    Ok(())
}

pub(in crate::store) async fn payloads(copy: &mut PgConnection, rows: &[PayloadRow]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into notification_payload (id, data) select id::uuid, data::json from unnest($1::text[], $2::text[]) as row (id, data)",
        &rows.iter().map(|row| &*row.id).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|row| &*row.data).collect::<Vec<_>>() as &[&str]
    )
    .execute(copy)
    .await?;
    Ok(())
}

/// What must be the same on both sides, as one line.
pub(in crate::store) async fn sums(copy: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select 'inboxes ' || (select count(*) || ', revs ' || coalesce(sum(rev), 0) || ', unread ' || coalesce(sum(unread), 0)
                || ', delivered up to ' || coalesce(sum(delivered_upto), 0) from inbox)
            || ', notifications ' || (select count(*) || ', delivered ' || count(delivered_at) || ', read ' || count(read_at)
                || ', bytes ' || coalesce(sum(octet_length(data::text)), 0) from notification)
            || ', changes ' || (select count(*) from inbox_change)
            || ', keys ' || (select count(*) from idempotency)
            || ', groups ' || (select count(*) from notification_key) || ' of ' || (select count(*) from notification_actor)
            || ', scheduled ' || (select count(*) from scheduled)
            || ', payloads ' || (select count(*) || ', bytes ' || coalesce(sum(octet_length(data::text)), 0) from notification_payload)
            || ', api keys ' || (select count(*) from api_key) as "sums!" -- postgres"#
    )
    .fetch_one(copy)
    .await
}
