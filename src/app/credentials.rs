//! Where keys come from: flags, files and the table. All are looked at again and again, so a key that was added or taken
//! back counts within a moment, without a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::tls::{Certificate, TlsError};
use crate::access::{Access, ApiKey, KeySetError, LoginKeys, Scopes, key_sha256};
use crate::config::{Config, keys_of_lines};
use crate::inbox::Inbox;
use crate::store::{self, StoredKey};

/// Why keys cannot be used. Shows nothing of them.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of keys is not as it should be.
    #[error("{path:?}: {problem}")]
    Lines {
        /// Which.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
    /// The login keys do not go together.
    #[error("login keys: {0}")]
    KeySet(#[from] KeySetError),
    /// The table cannot be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A row of the table is not as it should be.
    #[error("the row {0:?} of api_key cannot be read")]
    Row(String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What keys are made of, to see whether it changed.
#[derive(Default, PartialEq)]
struct Raw {
    api_keys: String,
    login_keys: String,
    key_set: String,
    stored: Vec<StoredKey>,
}

/// Keeps the keys and the certificate as they are in their places.
pub(super) struct Credentials {
    config: Config,
    access: Arc<Access>,
    certificate: Option<Arc<Certificate>>,
    raw: Raw,
    /// The last problem, so that it is told once.
    problem: String,
}

impl Credentials {
    /// Reads everything for the first time.
    pub(super) async fn load(
        config: &Config,
        access: Arc<Access>,
        certificate: Option<Arc<Certificate>>,
        store: &dyn store::Store,
    ) -> Result<Self, CredentialsError> {
        let raw = Raw::default();
        let mut loaded = Self { config: config.clone(), access, certificate, raw, problem: String::new() };
        let raw = loaded.read(store.api_keys().await?).await?;
        loaded.take(raw)?;
        Ok(loaded)
    }

    /// Looks for changes until `stop`. What cannot be read leaves the keys as they were.
    pub(super) async fn keep(mut self, inbox: Arc<Inbox>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(Duration::from_secs(self.config.reload_interval_secs));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let problem = self.refresh(&inbox).await.err().map(|error| error.to_string()).unwrap_or_default();
            if !problem.is_empty() && problem != self.problem {
                warn!(%problem, "Cannot read keys or certificate again, the ones before stay");
            }
            self.problem = problem;
        }
        inbox.note_used_keys(self.access.used_keys()).await;
    }

    async fn refresh(&mut self, inbox: &Inbox) -> Result<(), CredentialsError> {
        inbox.note_used_keys(self.access.used_keys()).await;
        if let Some(certificate) = &self.certificate
            && certificate.refresh().await?
        {
            info!("The certificate was replaced");
        }
        let raw = self.read(inbox.api_keys().await?).await?;
        if raw != self.raw {
            self.take(raw)?;
            info!("The keys were replaced");
        }
        Ok(())
    }

    async fn read(&self, stored: Vec<StoredKey>) -> Result<Raw, CredentialsError> {
        // Using a key changes its row, but not the key.
        let stored = stored.into_iter().map(|key| StoredKey { last_used_at: None, ..key }).collect();
        let Config { api_keys_file, login_keys_file, jwks_file, .. } = &self.config;
        Ok(Raw {
            api_keys: read(api_keys_file).await?,
            login_keys: read(login_keys_file).await?,
            key_set: read(jwks_file).await?,
            stored,
        })
    }

    fn take(&mut self, raw: Raw) -> Result<(), CredentialsError> {
        let logins = logins(&self.config, &raw.login_keys, &raw.key_set)?;
        let mut keys = self.config.api_keys.0.clone();
        keys.extend(lines(&self.config.api_keys_file, &raw.api_keys)?);
        let backend = |(name, key): (String, String)| ApiKey {
            name,
            sha256: key_sha256(&key),
            scopes: Scopes::BACKEND,
            expires_at: None,
            revoked: false,
        };
        let mut api_keys: Vec<_> = keys.into_iter().map(backend).collect();
        for key in &raw.stored {
            api_keys.push(stored(key).ok_or_else(|| CredentialsError::Row(key.name.clone()))?);
        }
        self.access.replace_keys(api_keys, logins);
        self.raw = raw;
        Ok(())
    }
}

/// The login keys of flags and files, for a command that signs.
pub(super) async fn login_keys(config: &Config) -> Result<LoginKeys, CredentialsError> {
    logins(config, &read(&config.login_keys_file).await?, &read(&config.jwks_file).await?)
}

fn logins(config: &Config, of_file: &str, key_set: &str) -> Result<LoginKeys, CredentialsError> {
    let keys = LoginKeys::default()
        .with_secrets(&config.login_keys.0)?
        .with_secrets(&lines(&config.login_keys_file, of_file)?)?;
    Ok(if key_set.is_empty() { keys } else { keys.with_key_set(key_set)? })
}

fn lines(path: &Path, text: &str) -> Result<Vec<(String, String)>, CredentialsError> {
    let keys = keys_of_lines(text);
    keys.map(|keys| keys.0).map_err(|problem| CredentialsError::Lines { path: path.to_owned(), problem })
}

/// Nothing, if there is no such file to be.
async fn read(path: &Path) -> Result<String, CredentialsError> {
    if path.as_os_str().is_empty() {
        return Ok(String::new());
    }
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|source| CredentialsError::Read { path: path.to_owned(), source })
}

fn stored(key: &StoredKey) -> Option<ApiKey> {
    let mut sha256 = [0; 32];
    if key.sha256.len() != 64 || !key.sha256.is_ascii() {
        return None;
    }
    for (at, byte) in sha256.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&key.sha256[2 * at..2 * at + 2], 16).ok()?;
    }
    let revoked = key.revoked_at.is_some_and(|at| at <= Utc::now());
    Some(ApiKey {
        name: key.name.clone(),
        sha256,
        scopes: key.scopes.parse().ok()?,
        expires_at: key.expires_at,
        revoked,
    })
}
