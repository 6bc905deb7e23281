//! What is checked before a SQLite file is used: that nobody else uses it, that it is not another program's, that its
//! pages are sound, and that its write-ahead log still holds every commit that was made.
//!
//! SQLite takes a log that was cut short for a crash in mid-write and starts without the missing commits. The shared
//! memory file beside the log outlives a killed process and says how many frames were committed, so the two are
//! compared. It is trusted only if it belongs to the same log (equal salts): after a power cut it may be older.
//! Source of the offsets: <https://sqlite.org/walformat.html>.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection};
use tracing::info;

use super::{OpenError, damaged_or, log_opened};
use crate::store::schema::{self, Owner};

/// Bytes of the shared memory file up to and including `nBackfill`.
const SHM_HEADER: usize = 100;

/// Comparing the indexes as well takes about ten times as long as looking at every page (measured: 3.6 s and 0.35 s for
/// 360 MB), so it is done for files smaller by this factor.
const FULL_CHECK_SHARE: u64 = 4;

/// Bytes of the log's own header.
const WAL_HEADER: usize = 32;

/// Takes the file for this process until the returned handle is dropped, creating it if it is missing.
///
/// The lock is on the file itself, so it holds by whatever name another process calls it. SQLite's own locks are of
/// another kind, which do not meet these; but closing the handle would drop them, so it must outlive the connections.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let file = File::options().create(true).write(true).truncate(false).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// How many frames of the log the last process committed and had not copied into the file yet; 0 when there is nothing
/// to go by. To be asked before SQLite opens the file, because that rewrites the answer.
pub(super) fn promised_frames(path: &Path) -> i64 {
    let Some(shm) = head_of::<SHM_HEADER>(&beside(path, "-shm")) else { return 0 };
    let word = |at: usize| u32::from_ne_bytes([shm[at], shm[at + 1], shm[at + 2], shm[at + 3]]);
    let (initialised, frames, checkpointed) = (shm[12] == 1, word(16), word(96));
    if !initialised || checkpointed >= frames {
        return 0;
    }
    match head_of::<WAL_HEADER>(&beside(path, "-wal")) {
        Some(wal) if wal[16..24] != shm[32..40] => 0,
        _ => i64::from(frames),
    }
}

/// Refuses a file with tables of another program, before anything is written to it or beside it.
///
/// A reader of a file in WAL mode makes files beside it unless it takes the file for immutable, so the first look does.
/// That look does not see what is only in the log; a file that seems empty is looked at once more.
pub(super) async fn refuse_foreign(options: &SqliteConnectOptions, path: &Path) -> Result<(), OpenError> {
    let migrator = sqlx::migrate!("migrations/sqlite");
    for immutable in [true, false] {
        let options = options.clone().filename(path).create_if_missing(false).read_only(true).immutable(immutable);
        // Why a file cannot be read is told when it is opened for use.
        let Ok(mut connection) = options.disable_statement_logging().connect().await else { continue };
        let object = match schema::owner(&mut connection, &migrator).await {
            Owner::Tidings => return Ok(()),
            Owner::Other => Some(schema::MIGRATIONS.to_owned()),
            Owner::Unknown => any_object(&mut connection).await,
        };
        connection.close().await.ok();
        if let Some(object) = object {
            return Err(OpenError::Foreign { place: path.display().to_string(), object });
        }
    }
    Ok(())
}

/// The name of a table, view, index or trigger, if there is one that is neither SQLite's own nor the list of migrations,
/// which is made before anything else.
async fn any_object(connection: &mut SqliteConnection) -> Option<String> {
    let objects = sqlx::query_scalar!(
        r#"select name as "name!: String" from sqlite_schema where name not like 'sqlite\_%' escape '\' and name <> ?1
        and tbl_name <> ?1 order by rowid limit 1"#,
        schema::MIGRATIONS
    );
    objects.fetch_optional(connection).await.ok().flatten()
}

/// Refuses a file whose log lost commits or, up to `check_bytes` of size, whose pages are not sound. Up to a quarter of
/// that its indexes are compared with their rows as well.
pub(super) async fn check(
    connection: &mut SqliteConnection,
    path: &Path,
    promised: i64,
    check_bytes: u64,
) -> Result<(), OpenError> {
    let damaged = |problem: String| OpenError::Damaged { path: path.to_owned(), problem };
    let log = log_state(connection).await.map_err(|error| damaged_or(error, path))?;
    if log.frames < promised {
        let found = log.frames.max(0);
        return Err(damaged(format!(
            "its write-ahead log ends after {found} of {promised} committed pages, so commits are missing"
        )));
    }
    log_opened(path, log.frames);

    let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
    if size > check_bytes {
        info!(file.bytes = size, "Skipped the page check: the file is larger than --startup-check-mib");
        return Ok(());
    }
    let check =
        if size <= check_bytes / FULL_CHECK_SHARE { "pragma integrity_check(3)" } else { "pragma quick_check(3)" };
    // A pragma is not a query that the macros could describe.
    let found: Vec<String> =
        sqlx::query_scalar(check).fetch_all(connection).await.map_err(|error| damaged_or(error, path))?;
    if found != ["ok"] {
        return Err(damaged(found.join("; ")));
    }
    Ok(())
}

/// Pages in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogState {
    /// All of them.
    pub(super) frames: i64,
    /// Those that are in the file already.
    pub(super) checkpointed: i64,
}

impl LogState {
    /// Pages that are not in the file yet.
    pub(super) fn pending(self) -> i64 {
        self.frames - self.checkpointed
    }
}

/// Looks at the log without copying anything.
pub(super) async fn log_state(connection: &mut SqliteConnection) -> Result<LogState, sqlx::Error> {
    run_checkpoint(connection, "noop").await
}

/// Copies pages into the file as `mode` says; what is in the log then. If another one is at it, both numbers are -1.
pub(super) async fn run_checkpoint(
    connection: &mut SqliteConnection,
    mode: &'static str,
) -> Result<LogState, sqlx::Error> {
    // A pragma is not a query that the macros could describe.
    let pragma = format!("pragma wal_checkpoint({mode})");
    let row = sqlx::query(AssertSqlSafe(pragma)).fetch_one(connection).await?;
    Ok(LogState { frames: row.try_get(1)?, checkpointed: row.try_get(2)? })
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn head_of<const N: usize>(path: &Path) -> Option<[u8; N]> {
    let mut head = [0; N];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    Some(head)
}
