//! Where keys come from: flags, files and the table. All are looked at again and again, so a key that was added or taken
//! back counts within a moment, without a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::tls::{Certificate, TlsError};
use crate::access::{Access, ApiKey, KeySetError, LoginKeys, Scopes, key_sha256};
use crate::config::{Config, keys_of_lines};
use crate::inbox::Inbox;
use crate::metrics;
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
    #[error("the row {0:?} of api_key cannot be read, so the key is not accepted")]
    Row(String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What each place of keys held when it was last read and could be used.
#[derive(Default, Clone, PartialEq)]
struct Held {
    stored: Vec<ApiKey>,
    api_keys: Vec<(String, String)>,
    login_keys: String,
    key_set: String,
}

/// Keeps the keys and the certificate as they are in their places.
pub(super) struct Credentials {
    config: Config,
    access: Arc<Access>,
    certificate: Option<Arc<Certificate>>,
    held: Held,
    /// Of [`Held::login_keys`] and [`Held::key_set`].
    logins: LoginKeys,
    /// What was wrong at the last look, so that it is told once.
    problems: Vec<String>,
}

impl Credentials {
    /// Reads everything for the first time.
    pub(super) async fn load(
        config: &Config,
        access: Arc<Access>,
        certificate: Option<Arc<Certificate>>,
        store: &dyn store::Store,
    ) -> Result<Self, CredentialsError> {
        let (config, held, logins) = (config.clone(), Held::default(), LoginKeys::default());
        let mut loaded = Self { config, access, certificate, held, logins, problems: Vec::new() };
        if let Some(problem) = loaded.look(store.api_keys().await).await.into_iter().next() {
            return Err(problem);
        }
        loaded.take_over();
        Ok(loaded)
    }

    /// Looks for changes until `stop`, and at once at each `reload`. What cannot be read leaves its own keys as they were, and no others.
    pub(super) async fn keep(mut self, inbox: Arc<Inbox>, reload: Arc<Notify>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(Duration::from_secs(self.config.reload_interval_secs));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = reload.notified() => info!("Reloading keys and certificate"),
                _ = ticks.tick() => {}
            }
            let before = self.held.clone();
            let problems = self.look(inbox.api_keys().await).await;
            if self.held != before {
                self.take_over();
                info!("The keys were replaced");
            }
            self.tell(&problems);
            inbox.note_used_keys(self.access.used_keys()).await;
        }
        inbox.note_used_keys(self.access.used_keys()).await;
    }

    fn tell(&mut self, problems: &[CredentialsError]) {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        for problem in &problems {
            metrics::reload_failed();
            if !self.problems.contains(problem) {
                warn!(%problem, "Cannot reload keys or certificate, keeping those before");
            }
        }
        self.problems = problems;
    }

    /// Looks at each place by itself: what is broken in one stops no key of another from being taken back. The table comes
    /// first, because that is where it is done in a hurry.
    async fn look(&mut self, stored: Result<Vec<StoredKey>, store::Error>) -> Vec<CredentialsError> {
        let looked = [
            stored.map_err(CredentialsError::from).and_then(|rows| self.take_stored(&rows)),
            self.look_at_api_keys().await,
            self.look_at_login_keys().await,
            self.look_at_key_set().await,
            self.look_at_certificate().await,
        ];
        looked.into_iter().filter_map(Result::err).collect()
    }

    fn take_stored(&mut self, rows: &[StoredKey]) -> Result<(), CredentialsError> {
        self.held.stored = rows.iter().filter_map(stored).collect();
        match rows.iter().find(|row| stored(row).is_none()) {
            Some(row) => Err(CredentialsError::Row(row.name.clone())),
            None => Ok(()),
        }
    }

    async fn look_at_api_keys(&mut self) -> Result<(), CredentialsError> {
        let path = &self.config.api_keys_file;
        self.held.api_keys = lines(path, &read(path).await?)?;
        Ok(())
    }

    async fn look_at_login_keys(&mut self) -> Result<(), CredentialsError> {
        let text = read(&self.config.login_keys_file).await?;
        self.logins = logins(&self.config, &text, &self.held.key_set)?;
        self.held.login_keys = text;
        Ok(())
    }

    async fn look_at_key_set(&mut self) -> Result<(), CredentialsError> {
        let text = read(&self.config.jwks_file).await?;
        self.logins = logins(&self.config, &self.held.login_keys, &text)?;
        if text != self.held.key_set && !self.logins.skipped().is_empty() {
            let skipped = self.logins.skipped().join("; ");
            info!(path = ?self.config.jwks_file, %skipped, "Skipped keys of the key set that cannot sign logins");
        }
        self.held.key_set = text;
        Ok(())
    }

    async fn look_at_certificate(&self) -> Result<(), CredentialsError> {
        if let Some(certificate) = &self.certificate
            && certificate.refresh().await?
        {
            info!("The certificate was replaced");
        }
        Ok(())
    }

    /// Has what is held count, beside what flags say.
    fn take_over(&self) {
        let backend = |(name, key): &(String, String)| ApiKey {
            name: name.clone(),
            sha256: key_sha256(key),
            scopes: Scopes::BACKEND,
            expires_at: None,
            revoked: false,
            stored: false,
        };
        let given = self.config.api_keys.0.iter().chain(&self.held.api_keys).map(backend);
        let api_keys = given.chain(self.held.stored.iter().cloned()).collect();
        self.access.replace_keys(api_keys, self.logins.clone());
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
    let mut text = text.map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    // Editors of Windows begin a file with a byte order mark, which is no part of what stands in it.
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

fn stored(key: &StoredKey) -> Option<ApiKey> {
    let mut sha256 = [0; 32];
    hex::decode_to_slice(&key.sha256, &mut sha256).ok()?;
    Some(ApiKey {
        name: key.name.clone(),
        sha256,
        scopes: key.scopes.parse().ok()?,
        expires_at: key.expires_at,
        // Whatever time that is: it was set by another machine, whose clock may be ahead.
        revoked: key.revoked_at.is_some(),
        stored: true,
    })
}
