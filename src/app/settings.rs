//! The parts of the configuration as the modules below take them: they know their bounds, not the command line.

use std::path::PathBuf;
use std::time::Duration;

use chrono::TimeDelta;

use crate::access::Unsigned;
use crate::config::{Config, Logins, Unacked};
use crate::{access, bus, http, inbox, realtime, store};

/// What a socket gets beyond ping interval and timeout until its rows count as delivered: the answer to a ping that was
/// queued behind them has then come.
const HEARTBEAT_GRACE: Duration = Duration::from_secs(5);

impl From<&Config> for inbox::Settings {
    fn from(config: &Config) -> Self {
        Self {
            write_queue: config.write_queue,
            commit_rows: config.commit_rows,
            commit_bytes: config.commit_kib.saturating_mul(1024),
            store_timeout: Duration::from_secs(config.store_timeout_secs),
            step: Duration::from_millis(config.step_ms),
            window: config.window,
            page: config.replay_rows,
            page_bytes: config.page_kib.saturating_mul(1024),
            ring: inbox::Ring { events: config.ring, bytes: config.ring_kib.saturating_mul(1024) },
            max_sockets_per_token: config.max_sockets_per_token,
            replays: config.replays,
            stuck_timeout: Duration::from_secs(config.stuck_timeout_secs),
            retention: inbox::Retention {
                interval: Duration::from_secs(config.retention_interval_secs),
                read: days(config.keep_read_days),
                unread: days(config.keep_unread_days),
                history: days(config.keep_history_days),
                rows: Some(config.keep_rows).filter(|rows| *rows > 0),
            },
            sweep_interval: Duration::from_secs(config.sweep_interval_secs),
            heartbeat: (config.unacked == Unacked::Heartbeat).then_some(HEARTBEAT_GRACE),
        }
    }
}

impl From<&Config> for bus::Settings {
    fn from(config: &Config) -> Self {
        Self {
            name: config.bus.clone(),
            database_url: config.database_url.clone(),
            ca_file: bus_ca_file(config),
            prefix: config.bus_prefix.clone(),
            silence: Duration::from_secs(config.bus_silence_secs),
        }
    }
}

/// Without a flag of its own the variable that OpenSSL has its clients obey: images with a private CA set it for all programs.
fn bus_ca_file(config: &Config) -> PathBuf {
    let variable = || std::env::var_os("SSL_CERT_FILE").filter(|_| config.bus.starts_with("rediss://"));
    Some(config.bus_ca_file.clone())
        .filter(|path| !path.as_os_str().is_empty())
        .or_else(|| variable().map(PathBuf::from))
        .unwrap_or_default()
}

/// Days of which 0 means for ever.
fn days(days: u32) -> Option<TimeDelta> {
    (days > 0).then(|| TimeDelta::days(i64::from(days)))
}

impl From<&Config> for access::Rules {
    fn from(config: &Config) -> Self {
        Self {
            audience: config.audience.clone(),
            unsigned: match config.logins {
                Logins::Required => Unsigned::Refused,
                Logins::Warn => Unsigned::Warned,
                Logins::Open => Unsigned::Welcome,
            },
            insecure_open: config.insecure_open,
            origins: config.origins.0.clone(),
            trusted_proxies: config.trusted_proxies.0.clone(),
            max_login: days(config.max_login_days),
        }
    }
}

impl From<&Config> for store::Settings {
    fn from(config: &Config) -> Self {
        Self {
            readers: config.readers,
            writers: config.writers,
            page_bytes: config.page_kib.saturating_mul(1024),
            timeout: Duration::from_secs(config.store_timeout_secs),
            idempotency_ttl: Duration::from_secs(config.idempotency_ttl_secs),
            allow_fsync_off: config.allow_fsync_off,
            sqlite_cache_kib: u64::from(config.sqlite_cache_mib) * 1024,
            startup_check_bytes: config.startup_check_mib.saturating_mul(1024 * 1024),
        }
    }
}

impl From<&Config> for realtime::Settings {
    fn from(config: &Config) -> Self {
        Self {
            path: config.socket_path.clone(),
            ping_interval: Duration::from_secs(config.ping_interval_secs),
            ping_timeout: Duration::from_secs(config.ping_timeout_secs),
            ping_timeout_2x: Duration::from_secs(config.ping_timeout_2x_secs),
            connect_timeout: connect_timeout(config),
            login_timeout: Some(Duration::from_secs(config.login_timeout_secs)).filter(|timeout| !timeout.is_zero()),
            announce: config.announce_new_user.then(|| Duration::from_secs(config.announce_interval_secs)),
            event_queue: config.event_queue,
            event_rate: config.socket_rate,
            body_timeout: Duration::from_secs(config.body_timeout_secs),
            max_message_bytes: config.max_message_bytes,
            max_token_bytes: config.max_token_bytes,
            max_receipt_ids: config.max_receipt_ids,
        }
    }
}

/// A client joins the namespace with its first packet, which may take as long as the headers before it.
fn connect_timeout(config: &Config) -> Duration {
    match config.login_timeout_secs {
        0 => Duration::from_secs(config.header_timeout_secs),
        login => Duration::from_secs(config.header_timeout_secs.min(login)),
    }
}

impl From<&Config> for http::Limits {
    fn from(config: &Config) -> Self {
        Self {
            body_bytes: config.max_body_bytes,
            tokens: config.max_tokens,
            token_bytes: config.max_token_bytes,
            entity_type_bytes: config.max_entity_type_bytes,
            key_bytes: config.max_key_bytes,
            receipt_ids: config.max_receipt_ids,
            delay: Duration::from_secs(config.max_delay_days * 86_400),
            page: config.page,
            body_timeout: Duration::from_secs(config.body_timeout_secs),
            data_bytes: config.max_data_bytes,
            depth: config.max_depth,
        }
    }
}
