//! The commands besides `serve`: each does one thing to a database and says what it did.

use std::time::Duration;

use chrono::Utc;
use serde_json::json;

use super::Error;
use crate::access::{Access, Credential};
use crate::config::Config;
use crate::store;

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
/// [`Error::NoLoginKey`] if there is nothing to sign with.
pub fn sign(config: &Config, token: &str, ttl: Duration, kid: Option<&str>) -> Result<(), Error> {
    let exp = Utc::now().timestamp().saturating_add_unsigned(ttl.as_secs());
    let access = Access::new(config.into());
    let Credential { exp, kid, sig } = access.sign(token, exp, kid).ok_or(Error::NoLoginKey)?;
    println!("{}", json!({"tokenId": token, "exp": exp, "kid": kid, "sig": sig}));
    Ok(())
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
        "Copied {} inboxes, {} notifications, {} changes, {} scheduled rows and {} idempotency keys; counts and sums agree.",
        copied.inboxes, copied.notifications, copied.changes, copied.scheduled, copied.keys
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
