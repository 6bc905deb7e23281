//! Hints between nodes: "inbox T is now at rev N", never the truth.
//!
//! A hint that is lost, doubled, late or forged costs latency at most: whoever gets one reads the table. A bus must not
//! fail or slow down a push or a login, so [`Bus::publish`] neither waits nor returns an error, and [`Bus::subscribe`]
//! waits no longer than a moment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::notification::{Content, Event, Rev, Token};

#[cfg(all(any(test, fuzzing), feature = "postgres", feature = "redis"))]
pub mod fuzz;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod outbox;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod retry;

/// Hints that wait for the inbox; when it is full the bus stops reading, and its server keeps or drops what comes.
const HINTS: usize = 1024;

/// What a node hears from the others.
#[derive(Debug, Clone)]
pub enum Hint {
    /// Somebody says that the inbox is at this rev now.
    Moved(Token, Rev),
    /// A message that is sent live only. Nothing can tell it from one that somebody made up on the bus.
    Passing(Token, Content),
    /// Every session of this token is to be ended.
    Cut(Token),
    /// Hints may have been lost: every inbox with sessions here should be compared with the table.
    Gap,
}

/// Carries hints from the node that committed to the nodes that have sessions of the token.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Tells the other nodes that these inboxes moved. Never waits: a bus that cannot keep up drops hints.
    fn publish(&self, events: &[(Token, Event)]);

    /// Sends a message that is not stored to the other nodes, if it fits. Never waits; what is not sent is counted.
    fn pass(&self, tokens: &[Token], content: &Content);

    /// Has the sessions of this token ended on the other nodes. Never waits.
    fn cut(&self, token: &Token);

    /// Returns when hints for this token reach this node, or when the bus is down. The caller reads the inbox's head only
    /// afterwards, so a commit is either seen by that read or hinted; what a bus that is down did not hint follows as a
    /// [`Hint::Gap`] when it is up again.
    async fn subscribe(&self, token: &Token);

    /// The last session of this token is gone.
    fn unsubscribe(&self, token: &Token);
}

/// A bus, what it hears, and the work behind it, which ends when this is dropped.
pub struct Connected {
    /// For the writer and the logins.
    pub bus: Arc<dyn Bus>,
    /// For the hub.
    pub hints: mpsc::Receiver<Hint>,
    /// They never end by themselves.
    pub tasks: JoinSet<()>,
}

/// Why a bus cannot be used; one that is merely down can.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The name or URL is of no bus that this build has. Only how it begins is shown: there may be a password behind.
    #[error("{0:?} is not a bus: use local, postgres, redis://HOST or rediss://HOST")]
    Unknown(String),
    /// The Postgres bus goes through the database, which has to be Postgres.
    #[error("the postgres bus needs a postgres:// database")]
    NoPostgres,
    /// The URL is not one, or asks for what cannot be done.
    #[error("not the URL of a bus: {0}")]
    Url(String),
    /// There is no TLS that the file could be for.
    #[error(
        "--bus-ca-file is for a bus at rediss://HOST; for the postgres bus, sslrootcert=FILE in --database-url names the CA"
    )]
    NoTls,
    /// The file cannot be used.
    #[error("--bus-ca-file {path:?}: {problem}")]
    CaFile {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// Which bus, and how it is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `local`, `postgres` (over the database), or the URL of a Redis.
    pub name: String,
    /// The database's.
    pub database_url: String,
    /// Certificates in PEM that the server's must come from, instead of those of the public CAs; empty for none.
    pub ca_file: PathBuf,
    /// What the names of channels begin with.
    pub prefix: String,
    /// A connection that was not heard for this long is made anew.
    pub silence: Duration,
}

/// Starts the bus that the settings name.
///
/// # Errors
/// Only for what no time will mend; a bus that cannot be reached yet is tried again and again.
pub fn connect(settings: &Settings) -> Result<Connected, BusError> {
    let (sender, hints) = mpsc::channel(HINTS);
    let mut tasks = JoinSet::new();
    let scheme = settings.name.split_once(':').map(|(scheme, _)| scheme);
    if scheme != Some("rediss") && !settings.ca_file.as_os_str().is_empty() {
        return Err(BusError::NoTls);
    }
    let bus: Arc<dyn Bus> = match (settings.name.as_str(), scheme) {
        ("local", _) => {
            // Nobody ever sends, but the receiver should not see the end of a bus.
            tasks.spawn(async move { sender.closed().await });
            Arc::new(LocalBus)
        }
        #[cfg(feature = "postgres")]
        ("postgres", _) => postgres::start(settings, sender, &mut tasks)?,
        #[cfg(feature = "redis")]
        (_, Some("redis" | "rediss")) => redis::start(settings, sender, &mut tasks)?,
        _ => {
            let is_scheme = |c: &char| c.is_ascii_alphanumeric() || "+.-".contains(*c);
            return Err(BusError::Unknown(settings.name.chars().take_while(is_scheme).collect()));
        }
    };
    Ok(Connected { bus, hints, tasks })
}

/// The bus of a single node: there is nobody to tell, the writer feeds the only hub itself.
#[derive(Debug, Default)]
pub struct LocalBus;

#[async_trait]
impl Bus for LocalBus {
    fn publish(&self, _events: &[(Token, Event)]) {}

    fn pass(&self, _tokens: &[Token], _content: &Content) {}

    fn cut(&self, _token: &Token) {}

    async fn subscribe(&self, _token: &Token) {}

    fn unsubscribe(&self, _token: &Token) {}
}
