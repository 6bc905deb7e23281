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
                    || cast(group_count as text) || ', but ' || cast(count(actor) as text) || ' act'
                    as "violation!: String"
                from notification join notification_actor as known
                    on known.token = notification.token and known.seq = notification.seq
                group by notification.token, notification.seq, group_count having count(actor) > group_count
                limit $1 "# + $dialect,
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
