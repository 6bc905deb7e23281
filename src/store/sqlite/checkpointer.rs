//! Copies the write-ahead log back into the file beside the writer, and keeps its size in bounds and in sight.
//!
//! A transaction that stays open (`begin` in an admin's `sqlite3`, a long backup) keeps everything that was committed
//! since in the log. Nothing can end it from here: the log grows until the transaction ends, so that is said. The log
//! does not shrink by itself afterwards. Two things shrink it:
//!
//! - The checkpointer, while nobody writes: it truncates a large log when all of it is in the file and was at the last
//!   look. It gives up at once if a lock is taken. A commit that comes just then waits for the system to free the file's
//!   pages (measured: 0.3 ms per MiB).
//! - The writer, where there is never such a pause: SQLite cuts the log at [`MAX_IDLE_BYTES`] when it begins to overwrite
//!   it from the start (`journal_size_limit`). Its usual size is below that, so it happens once after each incident.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::SqliteConnection;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::recovery::{LogState, beside, log_state, run_checkpoint};
use super::{PAGE_SIZE, WRITER_CHECKPOINT_PAGES};
use crate::metrics;

/// It starts to copy when this many pages (8 MiB) are not in the file yet.
const CHECKPOINT_PAGES: i64 = 2_000;

const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// A log of this size (64 MiB) is truncated when nobody writes; and if so much of it cannot be copied, that is said.
const LARGE_PAGES: i64 = 16_384;

/// What the writer leaves of a log that it begins to overwrite: twice what it lets it grow to (160 MiB).
pub(super) const MAX_IDLE_BYTES: u64 = 2 * WRITER_CHECKPOINT_PAGES as u64 * PAGE_SIZE as u64;

/// The same warning comes at most this often.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Checkpointer {
    connection: SqliteConnection,
    database: PathBuf,
    log: PathBuf,
    /// At the last look.
    seen: Option<LogState>,
    blocked: Warning,
    failed: Warning,
}

/// When a warning was logged last, while what it says lasts.
#[derive(Default)]
struct Warning(Option<Instant>);

impl Warning {
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.0.is_none_or(|last| now - last >= WARNING_INTERVAL);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

impl Checkpointer {
    pub(super) fn new(connection: SqliteConnection, database: PathBuf) -> Self {
        let log = beside(&database, "-wal");
        Self { connection, database, log, seen: None, blocked: Warning::default(), failed: Warning::default() }
    }

    pub(super) async fn run(mut self) {
        // Else a truncation would wait for readers while the writer waits for it.
        let no_waiting = sqlx::query("pragma busy_timeout = 0").execute(&mut self.connection).await;
        let mut ticks = interval(CHECKPOINT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let may_truncate = no_waiting.is_ok();
        loop {
            ticks.tick().await;
            match self.tick(may_truncate).await {
                Ok(()) => self.failed = Warning::default(),
                Err(error) if self.failed.is_due() => {
                    warn!(%error, "Cannot checkpoint, the write-ahead log grows until it works");
                }
                Err(_) => {}
            }
            metrics::wal_size(self.log_bytes());
        }
    }

    fn log_bytes(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    async fn tick(&mut self, may_truncate: bool) -> Result<(), sqlx::Error> {
        let mut state = log_state(&mut self.connection).await?;
        let is_unchanged = self.seen == Some(state);
        let is_large = self.log_bytes() >= LARGE_PAGES.unsigned_abs() * u64::from(PAGE_SIZE);
        if state.pending() >= CHECKPOINT_PAGES || (is_large && is_unchanged && state.pending() > 0) {
            debug!(wal.pages = state.pending(), "Checkpointing");
            state = run_checkpoint(&mut self.connection, "passive").await?;
        }
        if state.frames < 0 {
            // The writer copies just now.
            return Ok(());
        }
        self.seen = Some(state);
        if state.pending() >= LARGE_PAGES {
            self.warn_blocked(state.pending());
            return Ok(());
        }
        if std::mem::take(&mut self.blocked).0.is_some() {
            info!("The write-ahead log {} can be emptied again: that transaction has ended", self.log.display());
        }
        if is_large && is_unchanged && may_truncate && state.pending() == 0 {
            // If somebody reads or writes just now, the next look tries again.
            let state = run_checkpoint(&mut self.connection, "truncate").await?;
            debug!(wal.bytes = self.log_bytes(), wal.pages = state.frames, "Truncated the write-ahead log");
        }
        Ok(())
    }

    /// The pages were not copied though there was nothing else to do than to copy them.
    fn warn_blocked(&mut self, pages: i64) {
        if !self.blocked.is_due() {
            return;
        }
        let (log, database) = (self.log.display(), self.database.display());
        warn!(
            wal.bytes = self.log_bytes(),
            wal.pages = pages,
            "The write-ahead log {log} cannot be emptied and grows with every push, because a transaction that reads the \
            database stays open: end it. It is most likely a sqlite3 shell after begin, or a backup; fuser -v {database} \
            lists the processes"
        );
    }
}
