//! What must always hold, asked of the tables themselves. Only reads, each rule in one statement and so in one snapshot:
//! the service may run meanwhile.

use super::OpenError;

/// So many violations of one rule are shown.
const SHOWN: i64 = 20;

/// Rules as statements that return a sentence for each violation. The databases understand the same SQL here, but every
/// statement needs a text of its own for each, which the comment at its end makes it.
macro_rules! violations {
    ($connection:expr, $dialect:tt) => {{
        let mut violations: Vec<String> = Vec::new();
        violations.extend(
            sqlx::query_scalar!(
                r#"with event as (
                    select token, seq as rev from notification union all select token, rev from inbox_change
                ), counted as (
                    select inbox.token, count(event.rev) as events, count(distinct event.rev) as revs,
                        coalesce(max(event.rev), 0) as newest
                    from inbox left join event on event.token = inbox.token and event.rev > inbox.purged_rev
                    group by inbox.token
                )
                select 'inbox ' || inbox.token || ': rev ' || cast(rev as text) || ', purged up to '
                    || cast(purged_rev as text) || ', but ' || cast(events as text) || ' events at '
                    || cast(revs as text) || ' revs, the newest ' || cast(newest as text) as "violation!: String"
                from inbox join counted on counted.token = inbox.token
                where events <> rev - purged_rev or revs <> events or newest > rev limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || inbox.token || ': unread is ' || cast(inbox.unread as text) || ', but '
                    || cast(count(notification.seq) as text) || ' rows are' as "violation!: String"
                from inbox left join notification on notification.token = inbox.token and read_at is null
                    and retracted_at is null
                group by inbox.token, inbox.unread having count(notification.seq) <> inbox.unread limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || token || ', seq ' || cast(seq as text) || ': read but not delivered'
                    as "violation!: String"
                from notification where read_at is not null and delivered_at is null limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || inbox.token || ', seq ' || cast(seq as text)
                    || ': not delivered, though everything up to ' || cast(delivered_upto as text) || ' should be'
                    as "violation!: String"
                from inbox join notification on notification.token = inbox.token and seq <= delivered_upto
                where delivered_at is null and retracted_at is null limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || inbox.token || ', seq ' || cast(seq as text)
                    || ': not read, though everything up to ' || cast(read_upto as text) || ' should be'
                    as "violation!: String"
                from inbox join notification on notification.token = inbox.token and seq <= read_upto
                where read_at is null and retracted_at is null limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || token || ': rev ' || cast(rev as text) || ', but delivered up to '
                    || cast(delivered_upto as text) || ', read up to ' || cast(read_upto as text) || ', purged up to '
                    || cast(purged_rev as text) as "violation!: String"
                from inbox where delivered_upto > rev or read_upto > rev or purged_rev > rev limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || inbox.token || ': unread is ' || cast(unread as text) || ', but its last change left '
                    || (newest.change ->> 'unread') as "violation!: String"
                from inbox join inbox_change as newest on newest.token = inbox.token and newest.rev = inbox.rev
                where cast(newest.change ->> 'unread' as bigint) <> unread limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'token ' || token || ': has events but no inbox' as "violation!: String" from (
                    select token from notification union select token from inbox_change
                    except select token from inbox
                ) as lost limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || notification.token || ', seq ' || cast(notification.seq as text) || ': stands for '
                    || cast(max(group_count) as text) || ' and names ' || cast(max(json_array_length(group_actors)) as text)
                    || ', but ' || cast(count(actor) as text) || ' act' as "violation!: String"
                from notification left join notification_actor as known
                    on known.token = notification.token and known.seq = notification.seq
                where group_count is not null and retracted_at is null
                group by notification.token, notification.seq
                having count(actor) > max(group_count)
                    or max(json_array_length(group_actors)) <> case when count(actor) < 3 then count(actor) else 3 end
                limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || held.token || ', ' || held.kind || ' key ' || held.key || ': stands for row '
                    || cast(held.seq as text) || ', which is another''s or gone' as "violation!: String"
                from notification_key as held
                left join notification as holder on holder.token = held.token and holder.seq = held.seq
                where holder.seq is null or held.key <> coalesce(holder.group_key, holder.collapse_key, '')
                limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || known.token || ', actor ' || actor || ': acts in row ' || cast(known.seq as text)
                    || ', which is no group or gone' as "violation!: String"
                from notification_actor as known
                left join notification as row on row.token = known.token and row.seq = known.seq
                where row.group_key is null limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'inbox ' || token || ', seq ' || cast(seq as text) || ': its data should be in notification_payload, but is not'
                    as "violation!: String"
                from notification_with_payload where data is null limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'payload ' || cast(payload.id as text) || ': no row has it' as "violation!: String"
                from notification_payload as payload
                where not exists (select 1 from notification where notification.id = payload.id)
                    and not exists (select 1 from scheduled where scheduled.id = payload.id) limit $1 "# + $dialect,
                SHOWN
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        violations.extend(
            sqlx::query_scalar!(
                r#"select 'meta: ' || cast(count(*) as text) || ' epochs instead of one' as "violation!: String"
                from meta having count(*) <> 1 "# + $dialect
            )
            .fetch_all(&mut $connection)
            .await?,
        );
        let counts = sqlx::query_scalar!(
            r#"select cast((select count(*) from inbox) as text) || ' inboxes and '
                || cast((select count(*) from notification) as text) || ' notifications' as "counts!: String" "# + $dialect
        )
        .fetch_one(&mut $connection)
        .await?;
        Ok(Audit { violations, counts })
    }};
}

/// What a check found.
#[derive(Debug)]
pub struct Audit {
    /// A sentence each; at most 20 of a kind.
    pub violations: Vec<String>,
    /// What was looked at, for people.
    pub counts: String,
}

#[cfg(feature = "sqlite")]
pub(super) async fn sqlite(mut connection: sqlx::SqliteConnection) -> Result<Audit, OpenError> {
    violations!(connection, "-- sqlite")
}

#[cfg(feature = "postgres")]
pub(super) async fn postgres(mut connection: sqlx::PgConnection) -> Result<Audit, OpenError> {
    violations!(connection, "-- postgres")
}
