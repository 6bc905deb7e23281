//! The schema's versions. A database may be ahead of this build: migrations only add, so nodes of the old and the new
//! version can serve it side by side while they are replaced one by one.

use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};

/// The table in which the migrations that were applied are listed. Other programs that use the same library have it too.
pub(super) const MIGRATIONS: &str = "_sqlx_migrations";

/// Whose a database is, as far as its list of migrations says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A migration of this service was applied.
    Tidings,
    /// Only others were.
    Other,
    /// There is no list, or an empty one.
    Unknown,
}

pub(super) async fn owner(connection: &mut impl Migrate, migrator: &Migrator) -> Owner {
    let applied = connection.list_applied_migrations(&migrator.table_name).await.unwrap_or_default();
    let is_ours = migrator.iter().any(|migration| {
        applied.iter().any(|applied| applied.version == migration.version && applied.checksum == migration.checksum)
    });
    match (is_ours, applied.is_empty()) {
        (true, _) => Owner::Tidings,
        (false, false) => Owner::Other,
        (false, true) => Owner::Unknown,
    }
}

/// The migrations that the database does not have yet, oldest first, by their names.
pub(super) async fn pending(connection: &mut impl Migrate, migrator: &Migrator) -> Vec<String> {
    // A database without any has no list of them either.
    let applied = connection.list_applied_migrations(&migrator.table_name).await.unwrap_or_default();
    let is_pending = |version: i64| applied.iter().all(|applied| applied.version != version);
    let names = migrator.iter().filter(|migration| is_pending(migration.version));
    names.map(name).collect()
}

/// The name of the migration's file, without its ending.
pub(super) fn name(migration: &Migration) -> String {
    format!("{:04}_{}", migration.version, migration.description.replace(' ', "_"))
}

/// The names of all tables, views and indexes that the migrations make.
#[cfg(feature = "postgres")]
pub(super) fn creates(migrator: &Migrator) -> Vec<String> {
    let mut names = Vec::new();
    for migration in migrator.iter() {
        let mut words = migration.sql.as_str().split_whitespace();
        while let Some(word) = words.next() {
            // "create table x (", "create unique index x on", "create or replace view x as": the name follows the kind.
            if word == "create"
                && words.by_ref().take(3).any(|word| ["table", "view", "index"].contains(&word))
                && let Some(name) = words.next()
            {
                names.push(name.to_owned());
            }
        }
    }
    names
}

/// Applies what is pending. A database that has everything is not written to, so the service needs no right to create
/// tables when somebody else migrates.
pub(super) async fn apply(connection: &mut impl Migrate, mut migrator: Migrator) -> Result<Vec<String>, MigrateError> {
    let pending = pending(connection, &migrator).await;
    if !pending.is_empty() {
        migrator.set_ignore_missing(true);
        migrator.run_direct(None, connection, false).await?;
    }
    Ok(pending)
}
