//! The table of API keys.

use std::fs::File;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::{connect, damaged_or, locate, time};
use crate::notification::timestamp;
use crate::store::keys::{KeyChange, MAX_KEYS, StoredKey};
use crate::store::{Error, OpenError, Settings, json, schema};

pub(in crate::store) async fn open_and_list(url: &str, settings: &Settings) -> Result<Vec<StoredKey>, OpenError> {
    let (mut connection, _lock) = open_beside(url, settings).await?;
    let keys = list(&mut connection).await;
    connection.close().await?;
    keys.map_err(|error| sqlx::Error::Protocol(error.to_string()).into())
}

pub(in crate::store) async fn open_and_change(
    url: &str,
    settings: &Settings,
    change: KeyChange<'_>,
) -> Result<bool, OpenError> {
    let (mut connection, _lock) = open_beside(url, settings).await?;
    let changed = match change {
        KeyChange::Add(key) => {
            let (created_at, expires_at) = (timestamp(key.created_at), key.expires_at.map(timestamp));
            sqlx::query!(
                "insert into api_key (name, sha256, scopes, created_at, expires_at) values (?1, ?2, ?3, ?4, ?5)
                on conflict do nothing",
                key.name,
                key.sha256,
                key.scopes,
                created_at,
                expires_at
            )
            .execute(&mut connection)
            .await?
        }
        KeyChange::Revoke(name, now) => {
            let now = timestamp(now);
            sqlx::query!("update api_key set revoked_at = ?2 where name = ?1 and revoked_at is null", name, now)
                .execute(&mut connection)
                .await?
        }
    };
    connection.close().await?;
    Ok(changed.rows_affected() > 0)
}

/// A writing connection, with the file's lock if nobody has it: a service that does and this one take turns, as SQLite
/// has it.
async fn open_beside(url: &str, settings: &Settings) -> Result<(SqliteConnection, Option<File>), OpenError> {
    let path: PathBuf = match connect(url, settings).await {
        Ok(connected) => return Ok((connected.connection, Some(connected.lock))),
        Err(OpenError::Locked(path)) => path,
        Err(error) => return Err(error),
    };
    let (options, _) = locate(url)?;
    let options = options.filename(&path).busy_timeout(settings.timeout).disable_statement_logging();
    let mut connection = options.connect().await.map_err(|error| damaged_or(error, &path))?;
    let pending = schema::pending(&mut connection, &sqlx::migrate!("migrations/sqlite")).await;
    match pending.is_empty() {
        true => Ok((connection, None)),
        false => Err(OpenError::Behind(pending.join(", "))),
    }
}

pub(in crate::store) async fn list(connection: &mut SqliteConnection) -> Result<Vec<StoredKey>, Error> {
    let rows = sqlx::query!(
        "select name, sha256, scopes, created_at, expires_at, last_used_at, revoked_at
        from api_key order by revoked_at is not null, name limit ?1",
        MAX_KEYS
    )
    .fetch_all(connection)
    .await
    .map_err(super::unavailable)?;
    let optional = |text: Option<String>| text.as_deref().map(time).transpose();
    let keys = rows.into_iter().map(|row| {
        Ok(StoredKey {
            name: row.name,
            sha256: row.sha256,
            scopes: row.scopes,
            created_at: time(&row.created_at)?,
            expires_at: optional(row.expires_at)?,
            last_used_at: optional(row.last_used_at)?,
            // Some time, whatever an admin wrote: it was taken back.
            revoked_at: row.revoked_at.map(|text| time(&text).or_else(|_| time(&row.created_at))).transpose()?,
        })
    });
    keys.collect()
}

pub(super) async fn note_use(
    connection: &mut SqliteConnection,
    used: &[(String, DateTime<Utc>)],
) -> Result<u64, sqlx::Error> {
    let used = json(&used.iter().map(|(name, at)| (name, timestamp(*at))).collect::<Vec<_>>());
    let done = sqlx::query!(
        "update api_key set last_used_at = value ->> 1 from json_each(?1) as used where name = used.value ->> 0",
        used
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
