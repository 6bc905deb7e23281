//! The only place with SQL: reads behind [`Store`], and one path for all writes, the group-committing [`Writer`].
//!
//! A database is a pair: a [`Store`] that many tasks read through, and a [`Committer`] that owns one writing connection
//! and runs one transaction at a time. The logic stays above this seam; a second database adds a file here and nothing
//! elsewhere.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
#[cfg(feature = "postgres")]
use sqlx::ConnectOptions;
use tracing::warn;
use uuid::Uuid;

use crate::limits::log_due;
use crate::notification::{
    Content, Event, Group, Head, NewPush, Notification, Pushed, ReceiptKind, Rev, Selection, SessionId, Token,
};

mod check;
mod commit;
#[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "there is nothing to copy to"))]
mod copy;
#[cfg(test)]
pub(crate) mod fake;
mod keys;
mod pending;
mod plan;
#[cfg(feature = "postgres")]
mod postgres;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(test)]
mod tests;
mod writer;

pub use check::Audit;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
pub use copy::{Copied, CopyError, copy};
pub use keys::{KeyChange, MAX_KEYS, StoredKey, change_keys, keys};
pub use writer::{Writer, WriterError, WriterTask, now_millis};

/// Reads. Every list has a limit in rows and stops early at [`Settings::page_bytes`].
#[async_trait]
pub trait Store: Send + Sync {
    /// The heads of these inboxes in one query; a token that never got anything is missing from the answer.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn heads(&self, tokens: &[Token]) -> Result<Heads, Error>;

    /// The undelivered notifications with `after < seq <= upto`, in `seq` order.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn undelivered(&self, page: &Undelivered<'_>) -> Result<Page<Notification>, Error>;

    /// How many notifications [`Store::undelivered`] would return without its limits. It looks at all of them.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn count_undelivered(&self, page: &Undelivered<'_>) -> Result<u64, Error>;

    /// Every event with `rev > after`, in `rev` order. Rows that are retracted or expired at `now` are [`Event::Gone`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn events(&self, token: &Token, after: Rev, limit: u32, now: DateTime<Utc>) -> Result<Page<Event>, Error>;

    /// Rows of an inbox with `above < seq < before`, newest first, without those that are retracted or expired.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn list(&self, query: &ListQuery<'_>) -> Result<Page<Entry>, Error>;

    /// The unread rows of an inbox with `after < seq <= upto` by `entityType`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn counts(&self, token: &Token, after: Rev, upto: Rev, now: DateTime<Utc>) -> Result<Vec<TypeCount>, Error>;

    /// Behind which rev an inbox has unread rows, and its newest; nothing if it has none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn unread_span(&self, token: &Token) -> Result<Option<(Rev, Rev)>, Error>;

    /// The newest row with `seq <= upto`, whatever became of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn newest_row(&self, token: &Token, upto: Rev) -> Result<Option<(Rev, Uuid)>, Error>;

    /// A push with the rows that it made, in token order from `after` on; nothing if there are none of that id.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn sent(&self, id: Uuid, after: &str, limit: u32) -> Result<Option<Sent>, Error>;

    /// Whether rows wait to be expired, or scheduled ones to enter their inboxes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn due(&self, now: DateTime<Utc>) -> Result<Due, Error>;

    /// What is not to be kept behind a token and a rev of it: it looks at the next `rows` rows of that inbox and of up to
    /// `inboxes` behind it, in token order, and at as many changes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn stale(&self, after: &Place, inboxes: u32, rows: u32, keep: &Keep) -> Result<Stale, Error>;

    /// All API keys, revoked ones last, by their names; at most [`MAX_KEYS`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn api_keys(&self) -> Result<Vec<StoredKey>, Error>;

    /// The random id of the data set, as it is now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the database does not answer.
    async fn epoch(&self) -> Result<String, Error>;
}

/// Heads of inboxes, as of one moment.
#[derive(Debug, Clone)]
pub struct Heads {
    /// Of the data set that they belong to.
    pub epoch: Arc<str>,
    /// How many inboxes were ever erased.
    pub erasures: i64,
    /// By token, each with how many had been erased when the inbox was made.
    pub of: HashMap<Token, (Head, i64)>,
}

impl Heads {
    /// The head of an inbox, and the epoch that its clients are told: an inbox that takes the place of an erased one, and
    /// counts from 1 as that did, has another.
    #[must_use]
    pub fn get(&self, token: &Token) -> (Head, Arc<str>) {
        let (head, life) = self.of.get(token).copied().unwrap_or((Head::default(), self.erasures));
        let epoch = if life == 0 { Arc::clone(&self.epoch) } else { format!("{}.{life}", self.epoch).into() };
        (head, epoch)
    }
}

/// What is kept for how long. A time is the latest that is too old; nothing is too old without one.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// For rows by when they were read.
    pub read_before: Option<DateTime<Utc>>,
    /// For unread rows by when they were created.
    pub unread_before: Option<DateTime<Utc>>,
    /// For changes by when they happened, and for retracted rows by when they were.
    pub history_before: Option<DateTime<Utc>>,
    /// Rows of one inbox, the newest.
    pub rows: Option<u32>,
}

/// A rev of an inbox, in the order of the tables.
pub type Place = (String, Rev);

/// What is not to be kept of some inboxes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Rows that go.
    pub rows: Vec<(Token, Rev)>,
    /// Inboxes with the rev up to which their history is gone, and the one up to which it goes.
    pub history: Vec<(Token, Rev, Rev)>,
    /// Where to go on; nothing if there is no more.
    pub next: Option<Place>,
}

/// What a statement found of [`Stale`].
#[derive(serde::Deserialize)]
struct StaleRows {
    rows: Vec<(Token, Rev)>,
    history: Vec<(Token, Rev, Rev)>,
    /// Of each table that it did not look at to the end: up to where.
    ends: Vec<Place>,
}

impl Stale {
    /// `last` is the last inbox that was looked at, if there are more behind it.
    fn new(found: StaleRows, last: Option<String>) -> Self {
        let StaleRows { mut rows, history, ends } = found;
        rows.sort_unstable();
        Self { rows, history, next: ends.into_iter().min().or_else(|| last.map(|token| (token, Rev::MAX))) }
    }
}

/// So many types of notifications are counted apart in one inbox.
pub const MAX_TYPES: i64 = 1_000;

/// Which rows of an inbox to list.
#[derive(Debug, Clone, Copy)]
pub struct ListQuery<'a> {
    /// Whose.
    pub token: &'a Token,
    /// Only rows below this one.
    pub before: Rev,
    /// Only rows above this one.
    pub above: Rev,
    /// Only rows that are unread, or only those that are read.
    pub unread: Option<bool>,
    /// Only rows of this type.
    pub entity_type: Option<&'a str>,
    /// At most this many rows.
    pub limit: u32,
    /// Rows that expired by then are left out.
    pub now: DateTime<Utc>,
}

/// A row of an inbox with what became of it.
#[derive(Debug)]
pub struct Entry {
    /// The row.
    pub notification: Notification,
    /// When a client had it.
    pub delivered_at: Option<DateTime<Utc>>,
    /// When its user saw it.
    pub read_at: Option<DateTime<Utc>>,
    /// When it will be gone.
    pub expires_at: Option<DateTime<Utc>>,
}

/// How many unread rows of one type there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeCount {
    /// Their `entityType`.
    pub entity_type: String,
    /// How many.
    pub unread: i64,
}

/// A push with some of the rows it made.
#[derive(Debug)]
pub struct Sent {
    /// What it said. If it is for later, `created_at` is when it was posted.
    pub content: Content,
    /// When it enters the inboxes, if it has not yet.
    pub deliver_at: Option<DateTime<Utc>>,
    /// The counts over all its rows.
    pub totals: Totals,
    /// In token order.
    pub recipients: Page<Recipient>,
}

/// How far the rows of a push got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// All of them.
    pub sent: i64,
    /// Those that a client had.
    pub delivered: i64,
    /// Those that a user saw.
    pub read: i64,
    /// Those that were taken back.
    pub retracted: i64,
}

/// What became of a push in one inbox.
#[derive(Debug)]
pub struct Recipient {
    /// Whose.
    pub token: Token,
    /// Where it stands, once it is there.
    pub seq: Option<Rev>,
    /// When a client had it.
    pub delivered_at: Option<DateTime<Utc>>,
    /// When its user saw it.
    pub read_at: Option<DateTime<Utc>>,
    /// When it was taken back.
    pub retracted_at: Option<DateTime<Utc>>,
}

/// What waits for [`Edit::Expire`] and [`Edit::Release`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// Rows whose time is over.
    pub expired: bool,
    /// Pushes whose time has come.
    pub scheduled: bool,
}

/// Which undelivered notifications to read.
#[derive(Debug, Clone, Copy)]
pub struct Undelivered<'a> {
    /// Whose.
    pub token: &'a Token,
    /// Only rows above this one.
    pub after: Rev,
    /// Only rows up to and including this one.
    pub upto: Rev,
    /// At most this many rows.
    pub limit: u32,
    /// Rows that expired by then are left out.
    pub now: DateTime<Utc>,
}

/// Rows in order; `more` says that a limit ended the page, not the data.
#[derive(Debug)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Whether to ask again from the last row on.
    pub more: bool,
}

/// Collects rows until a page is full.
pub(crate) struct PageBuilder<T> {
    pub(crate) page: Page<T>,
    bytes: usize,
    max_rows: usize,
    max_bytes: usize,
}

impl<T> PageBuilder<T> {
    pub(crate) fn new(max_rows: u32, max_bytes: usize) -> Self {
        Self { page: Page { rows: Vec::new(), more: false }, bytes: 0, max_rows: max_rows as usize, max_bytes }
    }

    /// Adds a row of `weight` bytes, or notes that there are more when the page already has as many as it may. So one row
    /// beyond the limit tells a page that is just full from one with more to come.
    pub(crate) fn add(&mut self, row: T, weight: usize) {
        if self.page.rows.len() >= self.max_rows || self.bytes >= self.max_bytes {
            self.page.more = true;
            return;
        }
        self.page.rows.push(row);
        self.bytes += weight;
        self.page.more = self.bytes >= self.max_bytes;
    }
}

/// The pushes of those rows whose `data` is stored elsewhere; `slot` has the id of such a row and where its `data` belongs.
fn shared_ids<R>(rows: &mut [R], slot: impl Fn(&mut R) -> Option<(Uuid, &mut String)>) -> Vec<Uuid> {
    rows.iter_mut().filter_map(|row| slot(row).map(|(id, _)| id)).collect()
}

/// Fills in the `data` of rows whose push has it stored once. Rows from the first on that would go beyond the bytes of a page
/// are left out: those before it fill the page. Returns false if something is not there: the last row of a push went since
/// the rows were read, and its payload with it.
fn fill_in<R>(
    rows: &mut Vec<R>,
    mut payloads: HashMap<Uuid, String>,
    page_bytes: usize,
    slot: impl Fn(&mut R) -> Option<(Uuid, &mut String)>,
) -> bool {
    let is_cut = payloads.values().map(String::len).sum::<usize>() >= page_bytes;
    let mut missing = None;
    for (at, row) in rows.iter_mut().enumerate() {
        if let Some((id, data)) = slot(row) {
            match payloads.remove(&id) {
                Some(payload) => *data = payload,
                None => {
                    missing = Some(at);
                    break;
                }
            }
        }
    }
    if let Some(at) = missing.filter(|_| is_cut) {
        rows.truncate(at);
    }
    missing.is_none() || is_cut
}

/// So often rows are read whose payloads went meanwhile.
const READS: u32 = 3;

/// A payload is still missing then: somebody removed it by hand.
fn lost_payload(token: &Token) -> Error {
    unreadable("notification without its payload in the inbox of", &token.short_sha256())
}

/// The writing connection of one database. It is used by one task at a time.
#[async_trait]
pub trait Committer: Send {
    /// Runs the whole batch in one transaction and returns after it is durable.
    ///
    /// Receipts come before pushes, so a receipt for all rows never touches a row of its own batch.
    ///
    /// # Errors
    /// Nothing of the batch was written, unless it is [`Error::OutcomeUnknown`].
    async fn commit(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error>;

    /// Runs one step of an edit, of about so many `rows`, in a transaction of its own and returns after it is durable. An
    /// edit of fewer rows is done in one.
    ///
    /// # Errors
    /// Nothing was written, unless it is [`Error::OutcomeUnknown`].
    async fn edit(&mut self, edit: &Edit, rows: u32, now: DateTime<Utc>) -> Result<Edited, Error>;

    /// Closes the database, readers included, after the last commit.
    async fn close(&mut self);
}

/// What one transaction is to do.
#[derive(Debug, Default)]
pub struct Batch {
    /// Pushes in the order they came.
    pub pushes: Vec<KeyedPush>,
    /// Receipts in the order they came.
    pub receipts: Vec<Receipt>,
    /// Rows that clients have, and nobody waits to hear that it is stored.
    pub acked: Vec<(Token, Uuid)>,
    /// Inboxes whose watermark of what is delivered may move, each with a rev that it had.
    pub advances: Vec<(Token, Rev)>,
    /// So many rows of an inbox are looked at for a receipt up to a rev, from where the ones before it ended. What is left
    /// comes back as [`Committed::unfinished`].
    pub mark_rows: Option<u32>,
}

impl Batch {
    /// The rows that one receipt up to a rev may look at.
    fn mark_limit(&self) -> i64 {
        self.mark_rows.map_or(i64::MAX, i64::from)
    }

    /// Whether pushes share it with what others do, which may fail for reasons of its own.
    fn is_mixed(&self) -> bool {
        let pushes_only = self.receipts.is_empty() && self.acked.is_empty() && self.advances.is_empty();
        !pushes_only && !self.pushes.is_empty()
    }

    /// The receipts that are about all rows up to a rev.
    fn marks(&self) -> usize {
        self.receipts.iter().filter(|receipt| receipt.is_mark()).count()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pushes.is_empty() && self.receipts.is_empty() && self.acked.is_empty() && self.advances.is_empty()
    }
}

/// A push and, if the producer sent one, its idempotency key.
#[derive(Debug)]
pub struct KeyedPush {
    /// What to store.
    pub push: NewPush,
    /// No two pushes of one batch have the same.
    pub key: Option<IdempotencyKey>,
}

/// An `Idempotency-Key` with what it was sent with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// The producer; keys of different producers never meet.
    pub owner: String,
    /// 1..=255 visible characters.
    pub key: String,
    /// Lower-case hex SHA-256 of the body.
    pub body_sha256: String,
}

/// What makes a key unique: its producer and its text.
pub type KeyName = (String, String);

impl IdempotencyKey {
    /// The key without what it was sent with.
    #[must_use]
    pub fn name(&self) -> KeyName {
        (self.owner.clone(), self.key.clone())
    }
}

/// A client's word about rows of its own inbox.
#[derive(Debug)]
pub struct Receipt {
    /// Whose inbox.
    pub token: Token,
    /// Delivered or read.
    pub kind: ReceiptKind,
    /// Which rows.
    pub selection: Selection,
    /// Of an ack by rev: the rows up to here are delivered, as the same session has said before.
    pub after: Rev,
    /// The session that says so, if one does; comes back in the event.
    pub origin: Option<SessionId>,
    /// Of one that goes on: the generation of the inbox that it is about. One that came in its place is left alone.
    pub life: Option<i64>,
}

impl Receipt {
    /// The rev up to which it is about rows, if it is about such.
    fn upto(&self) -> Rev {
        match self.selection {
            Selection::Ids(_) => 0,
            Selection::UpTo(upto) => upto,
            Selection::All => Rev::MAX,
        }
    }

    /// Whether it is about all rows up to a rev, however many these are.
    fn is_mark(&self) -> bool {
        matches!(self.selection, Selection::UpTo(_) | Selection::All)
    }
}

/// A change that is not a client's word about its own inbox.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Takes a push back from every inbox, and from the schedule.
    Retract {
        /// Of the push.
        id: Uuid,
        /// Tokens up to this one were looked at.
        after: String,
    },
    /// Takes one actor out of the newest row of a group; the last one takes the row with it.
    Ungroup {
        /// Whose inbox.
        token: Token,
        /// Of the group.
        key: String,
        /// Who no longer acts.
        actor: String,
    },
    /// Forgets an inbox and everything in it.
    Erase {
        /// Whose inbox.
        token: Token,
        /// What is to be erased, if that is not all there is: an earlier step saw it.
        begun: Option<Erasing>,
    },
    /// Removes rows whose time is over, the oldest first.
    Expire {
        /// At most this many.
        limit: u32,
    },
    /// Moves pushes whose time has come into their inboxes, the oldest first.
    Release {
        /// At most this many rows.
        limit: u32,
    },
    /// Removes what is not to be kept, of what was there when somebody looked: an inbox may have been erased and live again.
    Purge {
        /// Rows.
        rows: Vec<(Token, Rev)>,
        /// Inboxes with the rev up to which their history goes.
        history: Vec<(Token, Rev)>,
        /// When that was; newer rows stay.
        seen: DateTime<Utc>,
    },
    /// Notes when API keys were last used.
    NoteUse {
        /// Their names, with the time.
        keys: Vec<(String, DateTime<Utc>)>,
    },
}

impl Edit {
    /// Takes back all of a push.
    #[must_use]
    pub fn retract(id: Uuid) -> Self {
        Self::Retract { id, after: String::new() }
    }

    /// Forgets all that there is of an inbox.
    #[must_use]
    pub fn erase(token: Token) -> Self {
        Self::Erase { token, begun: None }
    }
}

/// What of an inbox was there when its erasure began. What comes meanwhile stays.
#[derive(Debug, Clone)]
pub struct Erasing {
    /// Scheduled pushes up to this id go, unless all have gone.
    pub scheduled_upto: Option<Uuid>,
    /// Everything up to this rev goes; 0 if there was no inbox.
    pub upto: Rev,
    /// The generation of the inbox that had it.
    pub life: i64,
}

/// What a step of an edit did.
#[derive(Debug, Default)]
pub struct Edited {
    /// Rows that it changed, moved or removed.
    pub rows: u64,
    /// What live sessions must hear, in `rev` order per token.
    pub events: Vec<(Token, Event)>,
    /// What is left to be done.
    pub next: Option<Edit>,
}

/// What one transaction did; `pushes` and `receipts` are in the batch's order.
#[derive(Debug)]
pub struct Committed {
    /// One outcome a push.
    pub pushes: Vec<PushOutcome>,
    /// For each read or unread, its inbox after the transaction's receipts and before its pushes. Nothing for an ack: it
    /// changes no counter.
    pub receipts: Vec<Option<Head>>,
    /// What live sessions must hear, in `rev` order per token.
    pub events: Vec<(Token, Event)>,
    /// The receipts that had more rows than they may look at, by their place in the batch, each as what is left of it.
    pub unfinished: Vec<(usize, Receipt)>,
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushOutcome {
    /// Its rows are durable, by this transaction or by an earlier one with the same idempotency key.
    Pushed(Pushed),
    /// The key came before with another body; nothing was written.
    KeyMismatch,
}

/// Why the database did not do it, by what the caller can do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No space: try again when some was freed. Nothing was written.
    #[error("the disk that holds the database is full")]
    StorageFull,
    /// It does not answer or refuses: try again later. Nothing was written.
    #[error("the database is not available: {0}")]
    Unavailable(Arc<str>),
    /// The commit failed or timed out half way: the rows may be there or not. A retry with the same key settles it.
    #[error("the outcome of the commit is unknown: {0}")]
    OutcomeUnknown(Arc<str>),
}

/// How to open a database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections for reading.
    pub readers: u32,
    /// Connections for writing, where the database allows several.
    pub writers: u32,
    /// A page ends after this many bytes of `data`, whatever its limit in rows: it bounds the memory of one reader.
    pub page_bytes: usize,
    /// How long one statement may wait for the database.
    pub timeout: Duration,
    /// How long an idempotency key is kept.
    pub idempotency_ttl: Duration,
    /// KiB of a database file that the writing connection keeps in memory; each reading one keeps a quarter.
    pub sqlite_cache_kib: u64,
    /// Whether a Postgres server may have `fsync=off`: something else than its own disk keeps its commits.
    pub allow_fsync_off: bool,
    /// A database file up to this size is checked page by page at start; 0 never.
    pub startup_check_bytes: u64,
}

/// An open database.
pub struct Opened {
    /// For reading.
    pub store: Arc<dyn Store>,
    /// For writing, one or several at a time; they belong to the [`Writer`].
    pub committers: Vec<Box<dyn Committer>>,
    /// The random id of the data set.
    pub epoch: String,
    /// Where the data is, for people.
    pub place: String,
}

/// Why a database cannot be opened; says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no database this binary can open.
    #[error("not a database URL: {0}; use sqlite://FILE or postgres://USER:PASSWORD@HOST/DATABASE")]
    Url(String),
    /// The server is too old.
    #[error("PostgreSQL {0} is too old: 14 or newer is needed")]
    PostgresVersion(String),
    /// The server says that a commit is durable before it is.
    #[error(
        "the database has {setting}={value}, so what it says is committed can be lost: switch it on{}",
        if *setting == "fsync" { ", or if this service keeps commits safe without it, as Neon does, set --allow-fsync-off" } else { "" }
    )]
    NotDurable {
        /// Which setting.
        setting: &'static str,
        /// What it is.
        value: String,
    },
    /// The server cannot store every text, nor orders all of them as we do.
    #[error("the database has the encoding {0}, which cannot store every string: create it with encoding 'UTF8'")]
    Encoding(String),
    /// The server follows another one.
    #[error("the database is a standby and takes no writes: use the address of the primary")]
    Standby,
    /// Another program made it.
    #[error(
        "{place} belongs to another program: it has {object:?}, which Tidings did not make. Nothing was changed; use \
        another --database-url"
    )]
    Foreign {
        /// The file or database.
        place: String,
        /// One of its tables, views or indexes.
        object: String,
    },
    /// Another process has it.
    #[error("another process is using {0:?}: one process per SQLite file")]
    Locked(PathBuf),
    /// The file or its log is damaged.
    #[error("{path:?} is damaged: {problem}. Restore a backup; nothing was changed")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// It was made by an older version, and cannot be brought up to date while that uses it.
    #[error("the database lacks {0}: stop the service and run tidings migrate first")]
    Behind(String),
    /// No space for it.
    #[error("no space for {0:?}: the disk is full")]
    Full(PathBuf),
    /// The library linked in is too old to be safe.
    #[error("SQLite {0} can corrupt a write-ahead log: 3.51.3 or newer is needed")]
    Version(String),
    /// The operating system refuses.
    #[error("cannot open {path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database refuses.
    #[error("cannot open the database: {0}")]
    Sql(#[from] sqlx::Error),
    /// The migrations cannot be applied.
    #[error("cannot migrate the database: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

/// Opens and migrates the database that `url` names, creating it if it is missing.
///
/// # Errors
/// Says why it cannot be opened and what to do.
pub async fn open(url: &str, settings: &Settings) -> Result<Opened, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "sqlite")]
        Some("sqlite") => sqlite::open(url, settings).await,
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => postgres::open(url, settings).await,
        scheme => Err(unknown(scheme)),
    }
}

/// Applies the migrations that the database does not have yet, or with `check_only` leaves it as it is; returns their
/// names.
///
/// # Errors
/// Says why the database cannot be opened or migrated.
pub async fn migrate(url: &str, settings: &Settings, check_only: bool) -> Result<Vec<String>, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "sqlite")]
        Some("sqlite") => sqlite::migrate(url, settings, check_only).await,
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => postgres::migrate(url, settings, check_only).await,
        scheme => Err(unknown(scheme)),
    }
}

/// The random id of the data set; with `renew` it gets another one first, because it was restored from a backup.
///
/// # Errors
/// Says why the database cannot be opened; a SQLite file that is in use cannot be.
#[cfg_attr(not(feature = "sqlite"), expect(unused_variables, reason = "the settings are for SQLite's checks"))]
pub async fn epoch(url: &str, settings: &Settings, renew: bool) -> Result<String, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "sqlite")]
        Some("sqlite") => sqlite::renew_epoch(url, settings, renew).await,
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => postgres::renew_epoch(url, renew).await,
        scheme => Err(unknown(scheme)),
    }
}

/// Looks for violations of what must always hold. Only reads; the service may run on the database meanwhile.
///
/// # Errors
/// Says why the database cannot be read.
pub async fn check(url: &str) -> Result<Audit, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "sqlite")]
        Some("sqlite") => check::sqlite(sqlite::connect_to_read(url).await?).await,
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => check::postgres(postgres::options(url)?.connect().await?).await,
        scheme => Err(unknown(scheme)),
    }
}

fn unknown(scheme: Option<&str>) -> OpenError {
    OpenError::Url(
        scheme.map_or("it has no scheme".to_owned(), |scheme| format!("this build knows no {scheme} database")),
    )
}

/// Actors that go with the rows that one step of expiry or retention removes: a group may have any number of them.
const ACTORS_PER_STEP: i64 = 2_000;

/// So many bytes of scheduled data are moved into inboxes in one step.
const RELEASED_BYTES: i64 = 4 << 20;

/// What stands in `inbox_change` at the rev of a row that is no longer in the table.
const PURGED: &str = r#"{"purged":true}"#;

/// The event that a row of `inbox_change` is. A newer version may run beside this one, and write what it does not know.
fn change_event(rev: Rev, text: &str, at: DateTime<Utc>) -> Event {
    if text == PURGED {
        return Event::Gone { rev };
    }
    let Ok(change) = serde_json::from_str(text) else {
        if let Some(left_out) = log_due("unknown_change") {
            warn!(
                inbox.rev = rev,
                left_out,
                "Skipped a change of a kind that this version does not know; clients of the inbox are not told"
            );
        }
        return Event::Gone { rev };
    };
    Event::Changed { rev, change, at, origin: None }
}

/// A row of `inbox`, as the macros fill it.
struct HeadRow {
    token: String,
    rev: Rev,
    unread: i64,
    delivered_upto: Rev,
    purged_rev: Rev,
}

impl HeadRow {
    fn named(self) -> (String, Head) {
        let Self { token, rev, unread, delivered_upto, purged_rev } = self;
        (token, Head { rev, unread, delivered_upto, purged_rev })
    }
}

/// The group that the columns of a row hold.
fn group(key: Option<&str>, count: Option<i64>, actors: Option<&str>) -> Result<Option<Arc<Group>>, Error> {
    let Some((key, count)) = key.zip(count) else { return Ok(None) };
    let actors = actors.unwrap_or("[]");
    let actors = serde_json::from_str(actors).map_err(|_| unreadable("notification.group_actors", actors))?;
    Ok(Some(Arc::new(Group { key: key.to_owned(), count, actors })))
}

/// A value that the service did not write, so somebody edited the table.
fn unreadable(what: &str, value: &str) -> Error {
    Error::Unavailable(format!("the table holds a {what} that cannot be read: {value:?}").into())
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("texts and numbers always serialise")
}
