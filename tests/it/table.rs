//! The database as an admin sees it: through the `sqlite3` or `psql` command, read-only, beside the running server.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::server::{PATIENCE, Place};

/// A handle on one database.
#[derive(Clone)]
pub(crate) struct Table {
    place: Place,
    /// The command that runs `sqlite3` where the file is visible, if that is elsewhere.
    inside: Vec<String>,
}

/// All of it at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) inboxes: Vec<Inbox>,
    pub(crate) notifications: Vec<Row>,
    pub(crate) changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Inbox {
    pub(crate) token: String,
    pub(crate) rev: i64,
    pub(crate) unread: i64,
    pub(crate) delivered_upto: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Row {
    pub(crate) token: String,
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) entity_type: String,
    pub(crate) created_at: String,
    pub(crate) delivered_at: Option<String>,
    pub(crate) read_at: Option<String>,
    pub(crate) data: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Change {
    pub(crate) token: String,
    pub(crate) rev: i64,
    /// JSON text.
    pub(crate) change: String,
}

impl Table {
    pub(crate) fn new(place: Place, inside: Vec<String>) -> Self {
        Self { place, inside }
    }

    /// The rows of one query as JSON objects. Both databases must understand it.
    pub(crate) async fn query(&self, sql: &str) -> Vec<Value> {
        let json = match &self.place {
            Place::File(path) => {
                let output = self.sqlite(&["-readonly", "-json"], path, sql).await;
                assert!(output.status.success(), "{}\n{sql}", String::from_utf8_lossy(&output.stderr));
                output.stdout
            }
            Place::Postgres(database) => {
                // In hexadecimal digits: psql leaves out what it takes for unprintable.
                let json = format!("select json_agg(found)::text from ({sql}) as found");
                let digits = database.sql(&format!("select encode(convert_to(({json}), 'UTF8'), 'hex')"));
                let byte =
                    |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                digits.trim_end().as_bytes().chunks(2).map(|pair| byte(pair).expect("hexadecimal digits")).collect()
            }
        };
        if json.trim_ascii().is_empty() {
            return Vec::new();
        }
        serde_json::from_slice(&json).expect("the command writes JSON")
    }

    /// Changes something, as an admin with a hand of his own would.
    pub(crate) async fn change(&self, sql: &str) {
        match &self.place {
            Place::File(path) => {
                let output = self.sqlite(&[], path, sql).await;
                assert!(output.status.success(), "{}\n{sql}", String::from_utf8_lossy(&output.stderr));
            }
            Place::Postgres(database) => drop(database.sql(sql)),
        }
    }

    /// The one value of a query that has one.
    pub(crate) async fn value(&self, sql: &str) -> Value {
        let rows = self.query(sql).await;
        assert_eq!(rows.len(), 1, "one row was expected from {sql}");
        rows[0].as_object().and_then(|row| row.values().next().cloned()).expect("a row has a column")
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.value(sql).await.as_i64().unwrap_or_else(|| panic!("a number was expected from {sql}"))
    }

    /// The rows of one token in `seq` order.
    pub(crate) async fn rows(&self, token: &str) -> Vec<Row> {
        self.snapshot().await.notifications.into_iter().filter(|row| row.token == token).collect()
    }

    pub(crate) async fn inbox(&self, token: &str) -> Option<Inbox> {
        self.snapshot().await.inboxes.into_iter().find(|inbox| inbox.token == token)
    }

    /// Everything at one moment: a single statement sees a single state.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        let sql = match &self.place {
            Place::File(_) => {
                "select
                   (select json_group_array(json_object('token', token, 'rev', rev, 'unread', unread,
                      'delivered_upto', delivered_upto)) from (select * from inbox order by token)) as inboxes,
                   (select json_group_array(json_object('token', token, 'seq', seq, 'id', id, 'entity_type', entity_type,
                      'created_at', created_at, 'delivered_at', delivered_at, 'read_at', read_at, 'data', data))
                      from (select * from notification order by token, seq)) as notifications,
                   (select json_group_array(json_object('token', token, 'rev', rev, 'change', change))
                      from (select * from inbox_change order by token, rev)) as changes"
            }
            // In the form that SQLite has them.
            Place::Postgres(_) => {
                r#"select
                   (select coalesce(json_agg(json_build_object('token', token, 'rev', rev, 'unread', unread,
                      'delivered_upto', delivered_upto) order by token), '[]')::text from inbox) as inboxes,
                   (select coalesce(json_agg(json_build_object('token', token, 'seq', seq, 'id', id,
                      'entity_type', entity_type,
                      'created_at', to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                      'delivered_at', to_char(delivered_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                      'read_at', to_char(read_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                      'data', data::text) order by token, seq), '[]')::text from notification) as notifications,
                   (select coalesce(json_agg(json_build_object('token', token, 'rev', rev, 'change', change::text)
                      order by token, rev), '[]')::text from inbox_change) as changes"#
            }
        };
        let rows = self.query(sql).await;
        let text = |name: &str| rows[0][name].as_str().expect("an array as text").to_owned();
        Snapshot {
            inboxes: serde_json::from_str(&text("inboxes")).expect("rows of inbox"),
            notifications: serde_json::from_str(&text("notifications")).expect("rows of notification"),
            changes: serde_json::from_str(&text("changes")).expect("rows of inbox_change"),
        }
    }

    /// What `pragma integrity_check` says; `ok` when all is well. Postgres checks nothing of its own.
    pub(crate) async fn integrity(&self) -> String {
        if let Place::Postgres(_) = self.place {
            return "ok".to_owned();
        }
        self.value("pragma integrity_check").await.as_str().unwrap_or_default().to_owned()
    }

    /// What `tidings check` finds, while the service runs: nothing.
    pub(crate) async fn expect_sound(&self) {
        let binary = env!("CARGO_BIN_EXE_tidings");
        let mut words = self.inside.iter().map(String::as_str).chain([binary]);
        let mut command = Command::new(words.next().expect("at least the binary"));
        command
            .args(words)
            .args(["check", "--database-url", &self.place.url()])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await.expect("it ends in time").expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    async fn sqlite(&self, options: &[&str], path: &Path, sql: &str) -> std::process::Output {
        let mut words = self.inside.iter().map(String::as_str).chain(["sqlite3"]);
        let mut command = Command::new(words.next().expect("at least sqlite3"));
        command.args(words).args(options).args(["-cmd", ".timeout 10000"]).arg(path).arg(sql);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await.expect("sqlite3 answers in time");
        output.expect("the sqlite3 command is installed (Debian package sqlite3)")
    }
}

/// Runs SQL that ends with the word `held`, in a session that stays open.
async fn held(mut command: Command, sql: &str) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("sqlite3 and psql are installed (Debian: sqlite3, postgresql-client)");
    child.stdin.as_mut().expect("stdin is piped").write_all(sql.as_bytes()).await.expect("it listens");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let held = async { while lines.next_line().await.expect("text").expect("more text") != "held" {} };
    timeout(PATIENCE, held).await.expect("the database answers in time");
    child
}

/// A foreign connection that lets nobody write until it is dropped or released.
pub(crate) struct WriteLock {
    child: Child,
}

impl WriteLock {
    /// Takes the lock as an admin would and waits until it is held.
    pub(crate) async fn take(place: &Place) -> Self {
        let (command, sql) = match place {
            Place::File(path) => {
                let mut command = Command::new("sqlite3");
                command.arg("-bail").arg(path);
                (command, ".timeout 10000\nbegin immediate;\nselect 'held';\n")
            }
            Place::Postgres(database) => {
                let mut command = Command::new("psql");
                command.args(["-qXAt", &database.url()]);
                (command, "begin;\nlock table inbox in exclusive mode;\nselect 'held';\n")
            }
        };
        Self { child: held(command, sql).await }
    }

    /// Lets go of it without a change.
    pub(crate) async fn release(mut self) {
        drop(self.child.stdin.take());
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("can be waited for");
    }
}

/// An admin's session that read something in a transaction and then went to lunch.
pub(crate) struct OpenTransaction {
    _child: Child,
}

impl OpenTransaction {
    pub(crate) async fn holding(place: &Place, statement: &str) -> Self {
        let (mut command, begin) = match place {
            Place::File(_) => (Command::new("sqlite3"), "begin"),
            Place::Postgres(_) => (Command::new("psql"), "begin isolation level repeatable read"),
        };
        match place {
            Place::File(path) => command.args(["-bail", "-readonly"]).arg(path),
            Place::Postgres(database) => command.args(["-qXAt", &database.url()]),
        };
        let sql = format!("{begin};\n{statement};\nselect 'held';\n");
        Self { _child: held(command, &sql).await }
    }
}
