//! Moves a data set from a SQLite file to an empty Postgres database: the same ids, revs, receipts, keys and epoch, so
//! that no client and no backend notices. One transaction: at the end everything is there, or nothing.

#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod run;

#[cfg(all(feature = "postgres", feature = "sqlite"))]
pub use run::{Copied, CopyError, copy};

/// A row of `inbox`. Times are texts as SQLite has them.
pub(super) struct InboxRow {
    pub(super) token: String,
    pub(super) rev: i64,
    pub(super) unread: i64,
    pub(super) delivered_upto: i64,
    pub(super) purged_rev: i64,
    pub(super) created_at: String,
    pub(super) life: i64,
}

/// A row of `notification`.
pub(super) struct NotificationRow {
    pub(super) token: String,
    pub(super) seq: i64,
    pub(super) id: String,
    pub(super) entity_type: String,
    pub(super) collapse_key: Option<String>,
    pub(super) group_key: Option<String>,
    pub(super) created_at: String,
    pub(super) expires_at: Option<String>,
    pub(super) delivered_at: Option<String>,
    pub(super) read_at: Option<String>,
    pub(super) retracted_at: Option<String>,
    pub(super) data: String,
    pub(super) group_count: Option<i64>,
    pub(super) group_actors: Option<String>,
}

/// A row of `notification_key`.
pub(super) struct SlotRow {
    pub(super) token: String,
    pub(super) kind: String,
    pub(super) key: String,
    pub(super) seq: i64,
}

/// A row of `notification_actor`.
pub(super) struct ActorRow {
    pub(super) token: String,
    pub(super) seq: i64,
    pub(super) actor: String,
    pub(super) rev: i64,
}

/// A row of `scheduled`.
pub(super) struct ScheduledRow {
    pub(super) id: String,
    pub(super) token: String,
    pub(super) due_at: String,
    pub(super) entity_type: String,
    pub(super) ttl_secs: Option<i64>,
    pub(super) collapse_key: Option<String>,
    pub(super) group_key: Option<String>,
    pub(super) actor: Option<String>,
    pub(super) created_at: String,
    pub(super) data: String,
}

/// A row of `notification_payload`.
pub(super) struct PayloadRow {
    pub(super) id: String,
    pub(super) data: String,
}

/// A row of `inbox_change`.
pub(super) struct ChangeRow {
    pub(super) token: String,
    pub(super) rev: i64,
    pub(super) change: String,
    pub(super) at: String,
}

/// A row of `idempotency`.
pub(super) struct KeyRow {
    pub(super) key_owner: String,
    pub(super) key: String,
    pub(super) body_sha256: String,
    pub(super) response: String,
    pub(super) expires_at: String,
}
