//! The table of API keys.

use chrono::{DateTime, Utc};
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::{options, unavailable};
use crate::store::keys::{KeyChange, MAX_KEYS, StoredKey};
use crate::store::{Error, OpenError, Settings};

pub(in crate::store) async fn open_and_list(url: &str, settings: &Settings) -> Result<Vec<StoredKey>, OpenError> {
    let mut connection = open(url, settings).await?;
    let keys = list(&mut connection).await;
    connection.close().await?;
    keys.map_err(|error| sqlx::Error::Protocol(error.to_string()).into())
}

pub(in crate::store) async fn open_and_change(
    url: &str,
    settings: &Settings,
    change: KeyChange<'_>,
) -> Result<bool, OpenError> {
    let mut connection = open(url, settings).await?;
    let changed = match change {
        KeyChange::Add(key) => {
            sqlx::query!(
                "insert into api_key (name, sha256, scopes, created_at, expires_at) values ($1, $2, $3, $4, $5)
                on conflict do nothing",
                key.name,
                key.sha256,
                key.scopes,
                key.created_at,
                key.expires_at
            )
            .execute(&mut connection)
            .await?
        }
        KeyChange::Revoke(name, now) => {
            sqlx::query!("update api_key set revoked_at = $2 where name = $1 and revoked_at is null", name, now)
                .execute(&mut connection)
                .await?
        }
    };
    connection.close().await?;
    Ok(changed.rows_affected() > 0)
}

/// A connection to a database that has all migrations: the first command may come before the first start.
async fn open(url: &str, settings: &Settings) -> Result<PgConnection, OpenError> {
    super::migrate(url, settings, false).await?;
    Ok(options(url)?.connect().await?)
}

pub(super) async fn list(executor: impl sqlx::PgExecutor<'_>) -> Result<Vec<StoredKey>, Error> {
    sqlx::query_as!(
        StoredKey,
        "select name, sha256, scopes, created_at, expires_at, last_used_at, revoked_at
        from api_key order by revoked_at is not null, name limit $1",
        MAX_KEYS
    )
    .fetch_all(executor)
    .await
    .map_err(unavailable)
}

pub(super) async fn note_use(
    executor: impl sqlx::PgExecutor<'_>,
    used: &[(String, DateTime<Utc>)],
) -> Result<u64, sqlx::Error> {
    let (names, times): (Vec<_>, Vec<_>) = used.iter().cloned().unzip();
    let done = sqlx::query!(
        "update api_key set last_used_at = used.at from unnest($1::text[], $2::timestamptz[]) as used (name, at)
        where api_key.name = used.name",
        &names,
        &times
    )
    .execute(executor)
    .await?;
    Ok(done.rows_affected())
}

/// Copies keys that stand in another database.
#[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "there is nothing to copy from"))]
pub(in crate::store) async fn import(connection: &mut PgConnection, keys: &[StoredKey]) -> Result<(), sqlx::Error> {
    for key in keys {
        sqlx::query!(
            "insert into api_key (name, sha256, scopes, created_at, expires_at, last_used_at, revoked_at)
            values ($1, $2, $3, $4, $5, $6, $7)",
            key.name,
            key.sha256,
            key.scopes,
            key.created_at,
            key.expires_at,
            key.last_used_at,
            key.revoked_at
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
