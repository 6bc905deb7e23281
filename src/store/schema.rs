//! The schema's versions. A database may be ahead of this build: migrations only add, so nodes of the old and the new
//! version can serve it side by side while they are replaced one by one.

use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};

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
