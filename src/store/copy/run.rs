//! The copy itself, which needs both databases.

use sqlx::ConnectOptions;

use crate::store::postgres::{self, import};
use crate::store::sqlite::{self, export};
use crate::store::{OpenError, Settings};

/// How many rows of each table were copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Rows of `inbox`.
    pub inboxes: u64,
    /// Rows of `notification`.
    pub notifications: u64,
    /// Rows of `inbox_change`.
    pub changes: u64,
    /// Rows of `idempotency`.
    pub keys: u64,
    /// Rows of `notification_key`.
    pub slots: u64,
    /// Rows of `notification_actor`.
    pub actors: u64,
    /// Rows of `scheduled`.
    pub scheduled: u64,
    /// Rows of `notification_payload`.
    pub payloads: u64,
    /// Rows of `api_key`.
    pub api_keys: u64,
}

impl Copied {
    /// All rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.inboxes
            + self.notifications
            + self.changes
            + self.keys
            + self.slots
            + self.actors
            + self.scheduled
            + self.payloads
    }
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Only this way is there.
    #[error("can copy from sqlite://FILE to postgres://... only")]
    Direction,
    /// One of the databases cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is there would be mixed with what comes.
    #[error("the database to copy to is not empty: it has {0} inboxes, scheduled pushes or keys")]
    NotEmpty(i64),
    /// A statement failed.
    #[error("cannot copy: {0}")]
    Sql(#[from] sqlx::Error),
    /// The copy is not what was copied.
    #[error("the copy does not agree with its source, so it was rolled back: {source_sums} there, {copy_sums} here")]
    Disagrees {
        /// Counts and sums of the source.
        source_sums: String,
        /// Those of the copy.
        copy_sums: String,
    },
}

/// Copies everything, and calls `progress` with the rows done and the rows there are.
///
/// # Errors
/// Nothing was written then. The source must not be in use, or what it gets meanwhile would stay behind.
pub async fn copy(
    from: &str,
    to: &str,
    settings: &Settings,
    mut progress: impl FnMut(u64, u64) + Send,
) -> Result<Copied, CopyError> {
    if !from.starts_with("sqlite:") || !to.starts_with("postgres") {
        return Err(CopyError::Direction);
    }
    let sqlite::Connected { connection: mut source, lock: _lock, .. } = sqlite::connect_current(from, settings).await?;
    let mut target = postgres::options(to)?.connect().await?;
    postgres::prepare(&mut target, settings).await?;
    let there = import::begin(&mut target).await?;
    if there > 0 {
        return Err(CopyError::NotEmpty(there));
    }
    let (epoch, erasures) = export::meta(&mut source).await?;
    import::meta(&mut target, &epoch, erasures).await?;
    let total = export::total(&mut source).await?;
    let mut copied = Copied::default();

    /// Copies one table, page by page.
    macro_rules! table {
        ($table:ident) => {
            let mut rows = export::$table(&mut source, None).await?;
            while !rows.is_empty() {
                import::$table(&mut target, &rows).await?;
                copied.$table += rows.len() as u64;
                progress(copied.rows(), total);
                rows = export::$table(&mut source, rows.last()).await?;
            }
        };
    }
    table!(inboxes);
    table!(notifications);
    table!(changes);
    table!(keys);
    table!(slots);
    table!(actors);
    table!(scheduled);
    table!(payloads);

    let api_keys = sqlite::keys::list(&mut source).await.map_err(|error| sqlx::Error::Protocol(error.to_string()))?;
    postgres::keys::import(&mut target, &api_keys).await?;
    copied.api_keys = api_keys.len() as u64;

    let (source_sums, copy_sums) = (export::sums(&mut source).await?, import::sums(&mut target).await?);
    if source_sums != copy_sums {
        return Err(CopyError::Disagrees { source_sums, copy_sums });
    }
    import::commit(&mut target).await?;
    Ok(copied)
}
