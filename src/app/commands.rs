//! The commands besides `serve`: each does one thing to a database and says what it did.

use std::io::Write;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::Error;
use super::credentials::login_keys;
use crate::access::{Access, key_sha256};
use crate::config::{Cli, Config, KeyCommand};
use crate::notification::timestamp;
use crate::store::{self, KeyChange, StoredKey};

/// Brings the database up to date, or with `check` only says whether it is.
///
/// # Errors
/// [`Error::Pending`] if a check found something missing.
pub async fn migrate(config: &Config, check: bool) -> Result<(), Error> {
    let pending = store::migrate(&config.database_url, &config.into(), check).await?;
    if check && !pending.is_empty() {
        return Err(Error::Pending(pending));
    }
    match &pending[..] {
        [] => println!("The database is up to date."),
        applied => println!("Applied {}.", applied.join(", ")),
    }
    Ok(())
}

/// Prints the id of the data set, a new one with `renew`.
///
/// # Errors
/// The database cannot be opened, or is in use.
pub async fn epoch(config: &Config, renew: bool) -> Result<(), Error> {
    println!("{}", store::epoch(&config.database_url, &config.into(), renew).await?);
    Ok(())
}

/// Prints a signed login as JSON, to be sent with `user_login`.
///
/// # Errors
/// [`Error::NoLoginKey`] if there is nothing to sign with, [`Error::LoginTooLong`] if no service would take it.
pub async fn sign(config: &Config, token: &str, ttl: Duration, kid: Option<&str>) -> Result<(), Error> {
    let max = u64::from(config.max_login_days);
    if max > 0 && ttl > Duration::from_secs(max * 86_400) {
        return Err(Error::LoginTooLong(max));
    }
    let exp = Utc::now().timestamp().saturating_add_unsigned(ttl.as_secs());
    let access = Access::new(config.into());
    access.replace_keys(Vec::new(), login_keys(config).await?);
    let (exp, kid, sig) = access.sign(token, exp, kid).ok_or(Error::NoLoginKey)?;
    println!("{}", json!({"tokenId": token, "exp": exp, "kid": kid, "sig": sig}));
    Ok(())
}

/// Adds, lists or revokes API keys.
///
/// # Errors
/// [`Error::KeyName`] if there is nothing to do for that name.
pub async fn key(config: &Config, command: KeyCommand) -> Result<(), Error> {
    let (url, now) = (&config.database_url, store::now_millis());
    match command {
        KeyCommand::Add { name, scope, expires } => {
            let active = store::keys(url, &config.into()).await?.iter().filter(|key| key.revoked_at.is_none()).count();
            if i64::try_from(active).is_ok_and(|active| active >= store::MAX_KEYS) {
                let problem = format!("there are {active} API keys, and no more count: revoke one first");
                return Err(Error::KeyName(problem));
            }
            let key = fresh_key()?;
            let stored = StoredKey {
                name: name.clone(),
                sha256: hex::encode(key_sha256(&key)),
                scopes: scope.into_iter().collect::<crate::access::Scopes>().to_string(),
                created_at: now,
                expires_at: expires.and_then(|ttl| now.checked_add_signed(chrono::TimeDelta::from_std(ttl).ok()?)),
                last_used_at: None,
                revoked_at: None,
            };
            if !store::change_keys(url, &config.into(), KeyChange::Add(&stored)).await? {
                return Err(Error::KeyName(format!("there is or was an API key {name:?} already: use another name")));
            }
            println!("{key}");
            eprintln!("This is the only time that the key of {name:?} ({}) is shown.", stored.scopes);
        }
        KeyCommand::List => {
            let time = |at: Option<DateTime<Utc>>| at.map_or_else(|| "-".to_owned(), timestamp);
            println!(
                "{:<20} {:<16} {:<8} {:<24} {:<24} {:<24}",
                "name", "scopes", "state", "created", "expires", "last used"
            );
            for key in store::keys(url, &config.into()).await? {
                let ended = key.expires_at.is_some_and(|end| end <= now);
                let state = if key.revoked_at.is_some() {
                    "revoked"
                } else if ended {
                    "expired"
                } else {
                    "active"
                };
                let times = [Some(key.created_at), key.expires_at, key.last_used_at].map(time);
                println!(
                    "{:<20} {:<16} {state:<8} {:<24} {:<24} {:<24}",
                    key.name, key.scopes, times[0], times[1], times[2]
                );
            }
        }
        KeyCommand::Revoke { name } => {
            if !store::change_keys(url, &config.into(), KeyChange::Revoke(&name, now)).await? {
                return Err(Error::KeyName(format!(
                    "there is no API key {name:?} in the database that is not revoked"
                )));
            }
            println!("Revoked {name:?}.");
        }
    }
    Ok(())
}

/// Prints the completion script of a shell.
///
/// # Errors
/// [`Error::Output`] if nobody reads it.
pub fn completions(shell: clap_complete::Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::interface(false), "tidings", &mut script);
    std::io::stdout().write_all(&script).map_err(Error::Output)
}

/// Prints the manual page.
///
/// # Errors
/// [`Error::Output`] if nobody reads it.
pub fn manual() -> Result<(), Error> {
    clap_mangen::Man::new(Cli::interface(false)).render(&mut std::io::stdout()).map_err(Error::Output)
}

/// A key that nobody can guess. What it begins with lets tools that look for leaked secrets find it.
fn fresh_key() -> Result<String, Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| Error::Random(error.to_string()))?;
    Ok(format!("tidings_{}", hex::encode(random)))
}

/// Looks for violations of what must always hold and prints each.
///
/// # Errors
/// [`Error::Violated`] if there are any.
pub async fn check(config: &Config) -> Result<(), Error> {
    let audit = store::check(&config.database_url).await?;
    audit.violations.iter().for_each(|violation| println!("{violation}"));
    if !audit.violations.is_empty() {
        return Err(Error::Violated(audit.violations.len()));
    }
    println!("Everything holds for {}.", audit.counts);
    Ok(())
}

/// Copies one database to another.
///
/// # Errors
/// Nothing was written then.
#[cfg(all(feature = "postgres", feature = "sqlite"))]
pub async fn copy(config: &Config, from: &str, to: &str) -> Result<(), Error> {
    let bar = indicatif::ProgressBar::new(0).with_style(
        indicatif::ProgressStyle::with_template("{wide_bar} {pos}/{len} rows, {eta} left").expect("a template"),
    );
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let copied = store::copy(from, to, &config.into(), progress).await.inspect_err(|_| bar.abandon())?;
    bar.finish_and_clear();
    println!(
        "Copied {} inboxes, {} notifications, {} changes, {} scheduled rows, {} idempotency keys and {} API keys; counts and sums agree.",
        copied.inboxes, copied.notifications, copied.changes, copied.scheduled, copied.keys, copied.api_keys
    );
    Ok(())
}

/// Needs both databases.
///
/// # Errors
/// Always [`Error::Copy`].
#[cfg(not(all(feature = "postgres", feature = "sqlite")))]
pub async fn copy(_config: &Config, _from: &str, _to: &str) -> Result<(), Error> {
    Err(Error::Copy)
}
