//! API keys of producers: only their hashes are known, each with what its holder may do.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What a key lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Push, take back, and mark read or unread.
    Push = 1,
    /// Look at inboxes and at what became of pushes.
    Read = 2,
    /// Everything, also erase users and cut their sockets.
    Admin = 4,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Push, Self::Read, Self::Admin];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.name() == text);
        found.ok_or_else(|| "must be push, read or admin".to_owned())
    }
}

/// A set of scopes; its text is their names with commas in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// What a key has that was given without any: those of a backend.
    pub const BACKEND: Self = Self(Scope::Push as u8 | Scope::Read as u8);

    /// Whether it holds this one; admin holds all.
    #[must_use]
    pub fn hold(self, scope: Scope) -> bool {
        self.0 & (scope as u8 | Scope::Admin as u8) != 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | scope as u8))
    }
}

impl FromStr for Scopes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse::<Scope>).collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Scope::ALL.into_iter().filter(|scope| self.0 & *scope as u8 != 0).map(Scope::name).collect();
        f.write_str(&names.join(","))
    }
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Whose: idempotency keys of different names never meet.
    pub name: String,
    /// Of the key's text.
    pub sha256: [u8; 32],
    /// What it is good for.
    pub scopes: Scopes,
    /// Until when it is good; without one for ever.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it was taken back. Such a key opens nothing, but shows that keys are in use.
    pub revoked: bool,
    /// Whether it stands in the table, where its last use is noted. One of a flag or file may have the same name.
    pub stored: bool,
}

/// The hash by which a key is known.
#[must_use]
pub fn key_sha256(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Who a request is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody needs a key.
    Anyone,
    /// Somebody with a key.
    Producer {
        /// Of the key.
        name: Arc<str>,
        /// Of the key.
        scopes: Scopes,
    },
    /// A key is needed, and none that is good was shown.
    Unknown,
}

impl Caller {
    /// The name of the producer, if it may do this; empty while nobody needs a key.
    #[must_use]
    pub fn may(&self, scope: Scope) -> Option<&str> {
        match self {
            Self::Anyone => Some(""),
            Self::Producer { name, scopes } => Some(&**name).filter(|_| scopes.hold(scope)),
            Self::Unknown => None,
        }
    }

    /// Who holds the keys of both: what either may do. The name is that of the key that may push, or the lesser one, whichever
    /// is shown first: it owns the idempotency keys of a push, and a retry must find them.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Producer { name, scopes }, Self::Producer { name: other, scopes: others }) => {
                let rank = |name: Arc<str>, scopes: Scopes| (!scopes.hold(Scope::Push), name);
                let (_, name) = rank(name, scopes).min(rank(other, others));
                Self::Producer { name, scopes: Scopes(scopes.0 | others.0) }
            }
            (one, _) => one,
        }
    }
}

/// The keys of all producers.
#[derive(Debug, Default)]
pub(super) struct Producers {
    keys: Vec<(ApiKey, Arc<str>, Used)>,
    needed: bool,
}

/// When a key was last used, in milliseconds, if that was not told yet; else 0.
#[derive(Debug, Default, Clone)]
struct Used(Arc<AtomicI64>);

impl Producers {
    pub(super) fn needed(&self) -> bool {
        self.needed
    }

    /// These keys instead, with what is known of their use.
    pub(super) fn replaced(&self, keys: Vec<ApiKey>) -> Self {
        let used = |key: &ApiKey| {
            let known = self.keys.iter().find(|(known, ..)| known.sha256 == key.sha256);
            known.map(|(_, _, used)| used.clone()).unwrap_or_default()
        };
        let needed = self.needed || !keys.is_empty();
        let keys = keys.into_iter().map(|key| (key.clone(), Arc::from(&*key.name), used(&key))).collect();
        Self { keys, needed }
    }

    /// The producer whose key this is. All are compared, so that the time says nothing about which came close.
    pub(super) fn find(&self, shown: &str, now: DateTime<Utc>) -> Option<Caller> {
        let shown = key_sha256(shown);
        let found = self.keys.iter().fold(None, |found, entry| {
            let same: bool = entry.0.sha256.ct_eq(&shown).into();
            if same { Some(entry) } else { found }
        });
        let (key, name, used) = found?;
        if key.revoked || key.expires_at.is_some_and(|end| end <= now) {
            return None;
        }
        used.0.store(now.timestamp_millis(), Ordering::Relaxed);
        Some(Caller::Producer { name: Arc::clone(name), scopes: key.scopes })
    }

    pub(super) fn take_used(&self) -> Vec<(String, DateTime<Utc>)> {
        let used = self.keys.iter().filter_map(|(key, _, used)| {
            let at = DateTime::from_timestamp_millis(used.0.swap(0, Ordering::Relaxed))?;
            (key.stored && at > DateTime::UNIX_EPOCH).then(|| (key.name.clone(), at))
        });
        used.collect()
    }
}
