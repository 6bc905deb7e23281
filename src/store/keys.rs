//! API keys as they stand in the table, and the commands that change them beside a service that may be running.

use chrono::{DateTime, Utc};

use super::{OpenError, Settings, unknown};

/// A row of `api_key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Unique for ever.
    pub name: String,
    /// Lower-case hex, of the key's text.
    pub sha256: String,
    /// Names with commas in between.
    pub scopes: String,
    /// When it was added.
    pub created_at: DateTime<Utc>,
    /// From when on it is no longer good.
    pub expires_at: Option<DateTime<Utc>>,
    /// About when it was last used.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was taken back.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A change of the keys.
#[derive(Debug)]
pub enum KeyChange<'a> {
    /// Adds one, unless there is or was one of that name.
    Add(&'a StoredKey),
    /// Takes the one of this name back, if there is one that was not.
    Revoke(&'a str, DateTime<Utc>),
}

/// All keys, those that are not revoked first, by their names; at most [`MAX_KEYS`].
///
/// # Errors
/// Says why the database cannot be read.
pub async fn keys(url: &str, settings: &Settings) -> Result<Vec<StoredKey>, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "sqlite")]
        Some("sqlite") => super::sqlite::keys::open_and_list(url, settings).await,
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => super::postgres::keys::open_and_list(url, settings).await,
        scheme => Err(unknown(scheme)),
    }
}

/// Changes the keys; returns whether there was something to change.
///
/// # Errors
/// Says why the database cannot be written.
pub async fn change_keys(url: &str, settings: &Settings, change: KeyChange<'_>) -> Result<bool, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "sqlite")]
        Some("sqlite") => super::sqlite::keys::open_and_change(url, settings, change).await,
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => super::postgres::keys::open_and_change(url, settings, change).await,
        scheme => Err(unknown(scheme)),
    }
}

/// So many keys are looked at, revoked ones last; every request compares its key with all of them. No more are added.
pub const MAX_KEYS: i64 = 1_000;
