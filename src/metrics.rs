//! Every metric of the service: its name, its unit and its help stand here and nowhere else.
//!
//! Counting never fails and never waits. Nothing here holds a token or any text of a client.

use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Pushes by `outcome`: `stored`, or the code of the refusal.
const PUSHES: &str = "tidings_pushes_total";
/// Notifications that were stored, one a token.
const ROWS: &str = "tidings_notifications_stored_total";
/// Transactions of the writers, in seconds.
const COMMIT: &str = "tidings_commit_duration_seconds";
/// Transactions that failed.
const COMMIT_FAILURES: &str = "tidings_commit_failures_total";
/// Jobs that one transaction took.
const BATCH: &str = "tidings_commit_jobs";
/// Logged-in sockets.
const SESSIONS: &str = "tidings_sessions";
/// Inboxes that have logged-in sockets on this node.
const INBOXES: &str = "tidings_connected_inboxes";
/// Messages sent, by `delivery`: `live` or `replay`.
const MESSAGES: &str = "tidings_messages_sent_total";
/// Hints heard from other nodes.
const HINTS: &str = "tidings_bus_hints_received_total";
/// What the bus could not do, by `operation`: `publish` or `listen`.
const BUS_FAILURES: &str = "tidings_bus_failures_total";
/// Hints that were not sent because too many waited; the other nodes are told of a gap.
const BUS_DROPPED: &str = "tidings_bus_hints_dropped_total";
/// Messages sent live only that a session could not take.
const LIVE_ONLY_DROPPED: &str = "tidings_live_only_dropped_total";
/// Logins over a socket by `outcome`: `accepted`, or the code of the refusal.
const LOGINS: &str = "tidings_logins_total";
/// Logins without a signature that were let in.
const UNSIGNED_LOGINS: &str = "tidings_unsigned_logins_total";
/// Looks at keys or a certificate that failed, which leaves what was read before.
const RELOAD_FAILURES: &str = "tidings_reload_failures_total";
/// Requests that were refused, by `reason`: the code of the answer.
const REFUSED: &str = "tidings_requests_refused_total";
/// What was refused because a limit was reached, by `limit`: `key`, `address`, `sockets` or `connections`.
const LIMITED: &str = "tidings_limited_total";
/// Inboxes that a sweep found ahead of what the hints had said.
const SWEPT: &str = "tidings_sweep_repairs_total";
/// Sessions that were told that the table was taken back.
const RESYNCS: &str = "tidings_resyncs_total";
/// Size of the write-ahead log's file; SQLite only.
#[cfg(feature = "sqlite")]
const WAL_BYTES: &str = "tidings_wal_bytes";

/// From a commit on a fast disk to the time a push waits for one, in seconds.
const COMMIT_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
const BATCH_BUCKETS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];

static RENDERER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts to count, unless that was started before; what happened earlier is not counted.
pub fn install() {
    RENDERER.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(COMMIT.to_owned()), &COMMIT_BUCKETS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(BATCH.to_owned()), &BATCH_BUCKETS))
            .expect("the buckets are not empty")
            .build_recorder();
        let handle = recorder.handle();
        // Fails only if the program that embeds this one has a recorder of its own, which then gets it all.
        metrics::set_global_recorder(recorder).ok();
        describe();
        handle
    });
}

fn describe() {
    describe_counter!(PUSHES, Unit::Count, "Pushes, by outcome: stored, or the code of the refusal");
    describe_counter!(ROWS, Unit::Count, "Notifications stored, one per token");
    describe_histogram!(COMMIT, Unit::Seconds, "Duration of the transactions that write");
    describe_counter!(COMMIT_FAILURES, Unit::Count, "Transactions that failed");
    describe_histogram!(BATCH, Unit::Count, "Pushes and receipts in one transaction");
    describe_gauge!(SESSIONS, Unit::Count, "Logged-in sockets");
    describe_gauge!(INBOXES, Unit::Count, "Inboxes with logged-in sockets on this node");
    describe_counter!(MESSAGES, Unit::Count, "Messages sent, by delivery: live or replay");
    describe_counter!(HINTS, Unit::Count, "Hints received from other nodes");
    describe_counter!(BUS_FAILURES, Unit::Count, "Failures of the bus, by operation: publish or listen");
    describe_counter!(BUS_DROPPED, Unit::Count, "Hints not sent because too many were waiting");
    describe_counter!(LIVE_ONLY_DROPPED, Unit::Count, "Ephemeral messages that a session could not take in time");
    describe_counter!(LOGINS, Unit::Count, "Logins over a socket, by outcome: accepted, or the code of the refusal");
    describe_counter!(UNSIGNED_LOGINS, Unit::Count, "Logins without a signature that were let in");
    describe_counter!(RELOAD_FAILURES, Unit::Count, "Reloads of keys or certificates that failed");
    describe_counter!(REFUSED, Unit::Count, "Requests refused, by reason: the code of the answer");
    describe_counter!(LIMITED, Unit::Count, "Refused by a limit, by limit: key, address, sockets or connections");
    describe_counter!(SWEPT, Unit::Count, "Inboxes that a sweep found ahead of the hints");
    describe_counter!(
        RESYNCS,
        Unit::Count,
        "Sessions that were told to list their inbox again, because the database went back to an earlier state"
    );
    #[cfg(feature = "sqlite")]
    describe_gauge!(WAL_BYTES, Unit::Bytes, "Size of the write-ahead log, SQLite only");
    // What has not happened yet is 0, not absent, so that an alert on it works from the start.
    for operation in ["publish", "listen"] {
        counter!(BUS_FAILURES, "operation" => operation).increment(0);
    }
    for reason in [
        "unauthorized",
        "invalid_body",
        "foreign_origin",
        "foreign_host",
        "proxied",
        "rate_limited",
        "too_many_sockets",
    ] {
        counter!(REFUSED, "reason" => reason).increment(0);
    }
    for limit in ["key", "address", "sockets", "connections"] {
        counter!(LIMITED, "limit" => limit).increment(0);
    }
    for outcome in ["accepted", "unauthorized", "invalid_payload", "too_many_sockets", "too_many_events", "unavailable"]
    {
        counter!(LOGINS, "outcome" => outcome).increment(0);
    }
    for outcome in
        ["stored", "unauthorized", "busy", "storage_full", "storage_unavailable", "outcome_unknown", "draining"]
    {
        counter!(PUSHES, "outcome" => outcome).increment(0);
    }
    for name in
        [UNSIGNED_LOGINS, RELOAD_FAILURES, LIVE_ONLY_DROPPED, COMMIT_FAILURES, BUS_DROPPED, HINTS, SWEPT, RESYNCS, ROWS]
    {
        counter!(name).increment(0);
    }
    gauge!(SESSIONS).set(0);
    gauge!(INBOXES).set(0);
}

/// All metrics in the text format of Prometheus.
#[must_use]
pub fn render() -> String {
    RENDERER.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// To be called now and then: samples are kept until they are summed up.
pub fn tidy() {
    if let Some(renderer) = RENDERER.get() {
        renderer.run_upkeep();
    }
}

pub(crate) fn pushed(outcome: &'static str) {
    counter!(PUSHES, "outcome" => outcome).increment(1);
}

pub(crate) fn committed(jobs: usize, rows: usize, took: Duration) {
    counter!(ROWS).increment(rows as u64);
    histogram!(COMMIT).record(took);
    histogram!(BATCH).record(u32::try_from(jobs).unwrap_or(u32::MAX));
}

pub(crate) fn commit_failed() {
    counter!(COMMIT_FAILURES).increment(1);
}

pub(crate) fn reload_failed() {
    counter!(RELOAD_FAILURES).increment(1);
}

pub(crate) fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

pub(crate) fn limited(limit: &'static str) {
    counter!(LIMITED, "limit" => limit).increment(1);
}

pub(crate) fn session_began(inboxes: usize) {
    gauge!(SESSIONS).increment(1);
    connected(inboxes);
}

pub(crate) fn session_ended(inboxes: usize) {
    gauge!(SESSIONS).decrement(1);
    connected(inboxes);
}

fn connected(inboxes: usize) {
    gauge!(INBOXES).set(u32::try_from(inboxes).unwrap_or(u32::MAX));
}

pub(crate) fn sent_live(messages: usize) {
    static SENT: LazyLock<Counter> = LazyLock::new(|| counter!(MESSAGES, "delivery" => "live"));
    SENT.increment(messages as u64);
}

pub(crate) fn sent_replay(messages: usize) {
    static SENT: LazyLock<Counter> = LazyLock::new(|| counter!(MESSAGES, "delivery" => "replay"));
    SENT.increment(messages as u64);
}

pub(crate) fn hint_heard() {
    counter!(HINTS).increment(1);
}

#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) fn bus_failed(operation: &'static str) {
    counter!(BUS_FAILURES, "operation" => operation).increment(1);
}

#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) fn hints_dropped(hints: u64) {
    counter!(BUS_DROPPED).increment(hints);
}

pub(crate) fn live_only_dropped() {
    counter!(LIVE_ONLY_DROPPED).increment(1);
}

pub(crate) fn login(outcome: &'static str) {
    counter!(LOGINS, "outcome" => outcome).increment(1);
}

pub(crate) fn unsigned_login() {
    counter!(UNSIGNED_LOGINS).increment(1);
}

pub(crate) fn swept() {
    counter!(SWEPT).increment(1);
}

pub(crate) fn resynced() {
    counter!(RESYNCS).increment(1);
}

#[cfg(feature = "sqlite")]
pub(crate) fn wal_size(bytes: u64) {
    gauge!(WAL_BYTES).set(bytes as f64);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use metrics::{Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString};

    use super::*;

    /// Collects what is described.
    #[derive(Default)]
    struct Descriptions(Mutex<Vec<String>>);

    impl Descriptions {
        fn add(&self, kind: &str, name: &KeyName, unit: Option<Unit>, text: &SharedString) {
            let unit = unit.filter(|unit| *unit != Unit::Count).map_or("", |unit| unit.as_str());
            self.0.lock().unwrap().push(format!("| `{}` | {kind} | {unit} | {text} |\n", name.as_str()));
        }
    }

    impl Recorder for Descriptions {
        fn describe_counter(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
            self.add("counter", &name, unit, &text);
        }

        fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
            self.add("gauge", &name, unit, &text);
        }

        fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
            self.add("histogram", &name, unit, &text);
        }

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    /// Run with `UPDATE_DOCS=1` to write the page.
    #[test]
    #[cfg(feature = "sqlite")]
    fn the_metrics_page_is_current() {
        let descriptions = Descriptions::default();
        metrics::with_local_recorder(&descriptions, describe);
        let rows = descriptions.0.into_inner().unwrap().concat();
        let page = format!(
            "# Metrics\n\n`GET /metrics` on `--admin-listen` serves them to Prometheus. They hold no token and no text of a client.\n\
             [Alerts](../operate/alerts.md) has the expressions worth an alert.\n\n\
             | metric | type | unit | |\n|---|---|---|---|\n{rows}"
        );
        crate::docs::assert_current("docs/reference/metrics.md", &page);
    }
}
