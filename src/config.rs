//! The configuration: one struct, in which a flag, its environment variable and its help are one field.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::access::OriginRule;

/// A persistent notification service with an offline inbox.
///
/// Backends POST to /api; pages log in over Socket.IO, get what they missed, then everything live. Every flag can also be
/// set by the environment variable beside it.
#[derive(Debug, Parser)]
#[command(name = "tidings", version, max_term_width = 120, after_help = EXAMPLES)]
pub struct Cli {
    /// The command; `serve` by default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings of every command.
    #[command(flatten)]
    pub config: Config,
}

const EXAMPLES: &str = "\
Examples:
  tidings                                     serve this machine, with the data in ./tidings.db
  tidings --database-url postgres://user@host/db --listen 0.0.0.0:4001 \\
    --api-keys-file api-keys --login-keys-file login-keys --origins https://app.example.com
  tidings key add --name backend --scope push";

/// Flags that `-h` shows; `--help` shows all.
const EVERYDAY: [&str; 12] = [
    "listen",
    "admin_listen",
    "database_url",
    "bus",
    "api_keys_file",
    "login_keys_file",
    "jwks_file",
    "origins",
    "trusted_proxies",
    "tls_cert",
    "tls_key",
    "log",
];

/// Flags that each command needs besides its own. All flags are accepted everywhere, so that one environment fits all.
fn needed_by(command: &str) -> &'static [&'static str] {
    match command {
        "sign" => &["login_keys", "login_keys_file", "audience", "max_login_days", "log", "log_format"],
        "copy" => &["allow_fsync_off", "log", "log_format"],
        "completions" | "man" => &[],
        _ => &["database_url", "allow_fsync_off", "log", "log_format"],
    }
}

impl Cli {
    /// The command line as the help shows it: with `short` in a form that fits a screen.
    #[must_use]
    pub fn interface(short: bool) -> clap::Command {
        let mut interface = Self::command();
        // Before it, no command has the flags that are for all.
        interface.build();
        let show = |arg: Arg| {
            let is_everyday = EVERYDAY.contains(&arg.get_id().as_str()) || arg.get_env().is_none();
            arg.hide_short_help(!is_everyday).hide_env(short).hide_default_value(short)
        };
        show_needed(interface.mut_args(show), None, short)
    }

    /// Reads the command line and the environment; ends the process after help, or if they are wrong.
    #[must_use]
    pub fn read() -> Self {
        let is_short = std::env::args_os().any(|arg| arg == "-h");
        let mut interface = Self::interface(is_short);
        let matches: ArgMatches = interface.clone().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut interface).exit())
    }
}

/// Shows in the help of each command only the flags that it needs.
fn show_needed(command: clap::Command, parent: Option<&str>, short: bool) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let others = names.iter().filter(|name| !["serve", "help"].contains(&name.as_str()));
    others.fold(command, |command, name| {
        let needed = needed_by(parent.unwrap_or(name));
        let show = |arg: Arg| {
            let is_needed = arg.get_env().is_none() || needed.contains(&arg.get_id().as_str());
            arg.hide(!is_needed).hide_env(short)
        };
        command.mut_subcommand(name, |sub| show_needed(sub.mut_args(show), Some(parent.unwrap_or(name)), short))
    })
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run the service until SIGTERM or SIGINT (the default).
    Serve,
    /// Bring the schema of the database up to date. Starting the service does that too.
    Migrate {
        /// Change nothing; exit with 1 if migrations are missing.
        #[arg(long)]
        check: bool,
    },
    /// Print a signed login for tests: what a page sends with `user_login`.
    Sign {
        /// The token to log in.
        #[arg(long)]
        token: String,
        /// Time until it expires: seconds, or a number with s, m, h or d.
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: std::time::Duration,
        /// Which of --login-keys signs; by default the first by its id.
        #[arg(long)]
        kid: Option<String>,
    },
    /// Add, list or revoke API keys in the database. A running service notices within --reload-interval-secs.
    Key {
        /// What to do.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Check the invariants of a database that may be in use; exit with 1 if one is violated.
    Check,
    /// Print the random id of the data set, which tells clients whether what they know belongs to it.
    Epoch {
        /// Replace it first: the last step after restoring a backup.
        #[arg(long)]
        renew: bool,
    },
    /// Print a completion script for a shell: `tidings completions bash > /etc/bash_completion.d/tidings`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page: `tidings man > /usr/local/share/man/man1/tidings.1`.
    Man,
    /// Copy a SQLite file that is not in use to an empty Postgres database: same ids, revs, receipts and epoch.
    Copy {
        /// sqlite://FILE.
        #[arg(long)]
        from: String,
        /// postgres://USER:PASSWORD@HOST/DATABASE.
        #[arg(long)]
        to: String,
    },
}

/// What to do with API keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeyCommand {
    /// Create a key and print it. It cannot be shown again.
    Add {
        /// Name of the key: 1 to 64 letters, digits, dots, dashes and underscores. Names are never reused.
        #[arg(long, value_parser = key_name)]
        name: String,
        /// What it allows: push, read, or admin (everything, also erase and disconnect). May be repeated.
        #[arg(long, required = true, value_delimiter = ',')]
        scope: Vec<crate::access::Scope>,
        /// Time until it expires: seconds, or a number with s, m, h or d; by default never.
        #[arg(long, value_parser = duration)]
        expires: Option<std::time::Duration>,
    },
    /// Print all keys: names, scopes, and when they were created, last used, revoked or expire.
    List,
    /// Revoke a key.
    Revoke {
        /// Name of the key.
        name: String,
    },
}

/// What becomes of rows that a client was sent and never acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unacked {
    /// Send them again at every login.
    Replay,
    /// Count them as delivered once the socket has answered a ping that was sent after them.
    Heartbeat,
}

/// What becomes of logins without a signature when there are login keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Logins {
    /// Refuse them.
    Required,
    /// Let them in, log and count them, to find the pages that must still be changed.
    Warn,
    /// Let them in and count them. It needs a loopback address, or --insecure-open.
    Open,
}

/// Names with what is secret about them, which is never shown.
#[derive(Clone, Default)]
pub struct NamedKeys(pub Vec<(String, String)>);

impl std::fmt::Debug for NamedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Origins of pages.
#[derive(Debug, Clone, Default)]
pub struct Origins(pub Vec<OriginRule>);

/// Networks of trusted machines.
#[derive(Debug, Clone, Default)]
pub struct Networks(pub Vec<ipnet::IpNet>);

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text, for people.
    Text,
    /// JSON, one object a line.
    Json,
}

/// Everything that can be configured.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Service")]
pub struct Config {
    /// Address to listen on: HOST:PORT, :PORT for all addresses, or PORT for the loopback address. Port 0 takes any free one.
    #[arg(long, env = "TIDINGS_LISTEN", default_value = "127.0.0.1:4001", value_parser = address, value_name = "ADDRESS", global = true)]
    pub listen: SocketAddr,
    /// Address and port of `/metrics`, for Prometheus; `off` for none.
    #[arg(long, env = "TIDINGS_ADMIN_LISTEN", default_value = "127.0.0.1:4002", value_parser = admin_listen, value_name = "ADDRESS", global = true)]
    pub admin_listen: AdminListen,
    /// The database: sqlite://FILE, created if missing, or postgres://USER:PASSWORD@HOST/DATABASE.
    #[arg(
        long,
        env = "DATABASE_URL",
        default_value = "sqlite://tidings.db",
        global = true,
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database_url: String,
    /// How nodes tell each other what is new: local (there is one node), postgres, redis://HOST, or rediss://HOST for TLS.
    #[arg(
        long,
        env = "TIDINGS_BUS",
        default_value = "local",
        global = true,
        hide_env_values = true,
        value_name = "URL"
    )]
    pub bus: String,
    /// PEM file with the private CA of a bus at rediss://HOST. It is read at start and replaces the public CAs. Without it
    /// SSL_CERT_FILE is used, if that is set.
    #[arg(long, env = "TIDINGS_BUS_CA_FILE", default_value = "", value_parser = path, global = true, value_name = "FILE")]
    pub bus_ca_file: PathBuf,
    /// Prefix of the names of the bus's channels. Installations that share a Redis need different ones.
    #[arg(long, env = "TIDINGS_BUS_PREFIX", default_value = "tidings", value_parser = bus_prefix, global = true, value_name = "PREFIX")]
    pub bus_prefix: String,
    /// Seconds without traffic after which the connection to the bus is replaced.
    #[arg(long, env = "TIDINGS_BUS_SILENCE_SECS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..), global = true, value_name = "SECONDS")]
    pub bus_silence_secs: u64,
    /// API keys of backends, `name=key,...`. If there are any, every push needs one.
    #[arg(long, env = "TIDINGS_API_KEYS", default_value = "", value_parser = NamedKeysParser, hide_env_values = true, global = true, value_name = "KEYS")]
    pub api_keys: NamedKeys,
    /// File with more API keys, one name=key a line. It is read again when it changes.
    #[arg(long, env = "TIDINGS_API_KEYS_FILE", default_value = "", value_parser = path, global = true, value_name = "FILE")]
    pub api_keys_file: PathBuf,
    /// Secrets that sign logins of users, `kid=secret,...`. If there are any, every login needs a signature.
    #[arg(long, env = "TIDINGS_LOGIN_KEYS", default_value = "", value_parser = NamedKeysParser, hide_env_values = true, global = true, value_name = "KEYS")]
    pub login_keys: NamedKeys,
    /// File with more login secrets, one kid=secret a line. It is read again when it changes.
    #[arg(long, env = "TIDINGS_LOGIN_KEYS_FILE", default_value = "", value_parser = path, global = true, value_name = "FILE")]
    pub login_keys_file: PathBuf,
    /// File with a JSON Web Key Set whose keys sign logins that are JWTs. It is read again when it changes.
    #[arg(long, env = "TIDINGS_JWKS_FILE", default_value = "", value_parser = path, global = true, value_name = "FILE")]
    pub jwks_file: PathBuf,
    /// Seconds between two checks whether keys or certificates have changed.
    #[arg(long, env = "TIDINGS_RELOAD_INTERVAL_SECS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..), global = true, value_name = "SECONDS")]
    pub reload_interval_secs: u64,
    /// Audience of signed logins, so that a login for one service is not valid for another.
    #[arg(long, env = "TIDINGS_AUDIENCE", default_value = "tidings", global = true)]
    pub audience: String,
    /// What happens to logins without a signature while there are login keys.
    #[arg(long, env = "TIDINGS_LOGINS", value_enum, default_value = "required", global = true)]
    pub logins: Logins,
    /// Largest distance of a login's exp from now, in days; 0 for no limit. An exp in milliseconds by mistake would never
    /// expire.
    #[arg(long, env = "TIDINGS_MAX_LOGIN_DAYS", default_value_t = 366, value_parser = clap::value_parser!(u32).range(..=36_500), global = true, value_name = "DAYS")]
    pub max_login_days: u32,
    /// Origins of pages and apps that may connect, besides those of this machine: https://app.example.com,
    /// https://*.example.com for its subdomains, capacitor://localhost, null; * for all.
    #[arg(long, env = "TIDINGS_ORIGINS", default_value = "", value_parser = origins, global = true)]
    pub origins: Origins,
    /// Networks of proxies whose X-Forwarded-For is believed, such as 127.0.0.1/32,10.0.0.0/8.
    #[arg(long, env = "TIDINGS_TRUSTED_PROXIES", default_value = "", value_parser = networks, global = true, value_name = "NETWORKS")]
    pub trusted_proxies: Networks,
    /// Connections from --trusted-proxies begin with a PROXY protocol header, version 1 or 2, that names the client. Other
    /// connections have none.
    #[arg(long, env = "TIDINGS_PROXY_PROTOCOL", default_value_t = false, global = true)]
    pub proxy_protocol: bool,
    /// PEM file with the certificate and its intermediates: serve TLS. It is read again when it changes.
    #[arg(long, env = "TIDINGS_TLS_CERT", default_value = "", value_parser = path, global = true, value_name = "FILE")]
    pub tls_cert: PathBuf,
    /// PEM file with the private key of the certificate.
    #[arg(long, env = "TIDINGS_TLS_KEY", default_value = "", value_parser = path, global = true, value_name = "FILE")]
    pub tls_key: PathBuf,
    /// Serve requests from anywhere without authentication. Pages of other origins are let in if --origins is empty or has
    /// them.
    #[arg(long, env = "TIDINGS_INSECURE_OPEN", default_value_t = false, global = true)]
    pub insecure_open: bool,
    /// Path of the Socket.IO endpoint.
    #[arg(long, env = "TIDINGS_SOCKET_PATH", default_value = "/socket.io", value_parser = socket_path, global = true, value_name = "PATH")]
    pub socket_path: String,
    /// What happens to notifications that a client was sent and never acked.
    #[arg(long, env = "TIDINGS_UNACKED", value_enum, default_value = "replay", global = true)]
    pub unacked: Unacked,
    /// Format of the log lines on standard error.
    #[arg(long, env = "TIDINGS_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// Which log lines are written, for example `info` or `tidings=debug`. Libraries that see payloads stay at info.
    #[arg(long, env = "TIDINGS_LOG", default_value = "info", global = true, value_name = "FILTER")]
    pub log: String,
    /// Seconds that a stop may take before what is still open is closed.
    #[arg(long, env = "TIDINGS_DRAIN_TIMEOUT_SECS", default_value_t = 10, global = true, value_name = "SECONDS")]
    pub drain_timeout_secs: u64,

    /// Largest body of a POST, in bytes; else 413 `body_too_large`.
    #[arg(long, env = "TIDINGS_MAX_BODY_BYTES", default_value_t = 1024 * 1024, value_parser = positive, global = true, help_heading = "Limits of a push", value_name = "BYTES")]
    pub max_body_bytes: usize,
    /// Most tokens of a push; else 413 `too_many_tokens`.
    #[arg(
        long,
        env = "TIDINGS_MAX_TOKENS",
        default_value_t = 10_000,
        value_parser = positive, global = true,
        help_heading = "Limits of a push", value_name = "N")]
    pub max_tokens: usize,
    /// Longest token, in bytes; else 413 `token_too_long`.
    #[arg(
        long,
        env = "TIDINGS_MAX_TOKEN_BYTES",
        default_value_t = 256,
        value_parser = positive, global = true,
        help_heading = "Limits of a push", value_name = "BYTES")]
    pub max_token_bytes: usize,
    /// Longest entityType, in bytes; else 413 `entity_type_too_long`.
    #[arg(
        long,
        env = "TIDINGS_MAX_ENTITY_TYPE_BYTES",
        default_value_t = 128,
        value_parser = positive, global = true,
        help_heading = "Limits of a push", value_name = "BYTES")]
    pub max_entity_type_bytes: usize,
    /// Longest collapseKey, groupKey and actor, in bytes; else 413 `key_too_long`.
    #[arg(
        long,
        env = "TIDINGS_MAX_KEY_BYTES",
        default_value_t = 256,
        value_parser = positive, global = true,
        help_heading = "Limits of a push", value_name = "BYTES")]
    pub max_key_bytes: usize,
    /// How far ahead deliverAt may be, in days; else 400 `invalid_body`.
    #[arg(long, env = "TIDINGS_MAX_DELAY_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=3650), global = true, help_heading = "Limits of a push", value_name = "DAYS")]
    pub max_delay_days: u64,
    /// Largest data, in bytes; else 413 `data_too_large`.
    // The server that this one follows took bodies of 100 KiB.
    #[arg(long, env = "TIDINGS_MAX_DATA_BYTES", default_value_t = 100 * 1024, value_parser = positive, global = true, help_heading = "Limits of a push", value_name = "BYTES")]
    pub max_data_bytes: usize,
    /// Deepest nesting of arrays and objects in data; else 400 `invalid_data`.
    #[arg(long, env = "TIDINGS_MAX_DEPTH", default_value_t = 64, value_parser = positive, global = true, help_heading = "Limits of a push", value_name = "N")]
    pub max_depth: usize,
    /// Largest headers of a request, in bytes; else 431.
    #[arg(long, env = "TIDINGS_MAX_HEADER_BYTES", default_value_t = 16 * 1024, value_parser = at_least_8192, global = true, help_heading = "Limits of a push", value_name = "BYTES")]
    pub max_header_bytes: usize,
    /// Seconds that the headers of a request may take to arrive from their first byte on, the first byte of a new
    /// connection, and the first packet of a new socket; else the connection is closed.
    #[arg(
        long,
        env = "TIDINGS_HEADER_TIMEOUT_SECS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..), global = true,
        help_heading = "Limits of a push", value_name = "SECONDS")]
    pub header_timeout_secs: u64,
    /// Seconds that a connection may be idle between two requests; then it is closed. It must be more than that of a load
    /// balancer in front.
    #[arg(long, env = "TIDINGS_IDLE_TIMEOUT_SECS", default_value_t = 75, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Limits of a push", value_name = "SECONDS")]
    pub idle_timeout_secs: u64,
    /// Seconds that the body of a request may take to arrive; else 408 `body_timeout`.
    #[arg(long, env = "TIDINGS_BODY_TIMEOUT_SECS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Limits of a push", value_name = "SECONDS")]
    pub body_timeout_secs: u64,
    /// Requests a second with one API key, with bursts of twice as many; 0 for no limit. Beyond it 429 `rate_limited`.
    #[arg(
        long,
        env = "TIDINGS_KEY_RATE",
        default_value_t = 0,
        global = true,
        help_heading = "Limits of a push",
        value_name = "N"
    )]
    pub key_rate: u32,
    /// Requests and new sockets a second from one address without an API key, with bursts of twice as many; 0 for no
    /// limit. It does not apply while no keys are needed. Beyond it 429 `rate_limited`.
    #[arg(
        long,
        env = "TIDINGS_ADDRESS_RATE",
        default_value_t = 200,
        global = true,
        help_heading = "Limits of a push",
        value_name = "N"
    )]
    pub address_rate: u32,
    /// TCP connections from one address, except trusted proxies; 0 for no limit. Further ones are closed at once.
    #[arg(
        long,
        env = "TIDINGS_MAX_CONNECTIONS_PER_ADDRESS",
        default_value_t = 1000,
        global = true,
        help_heading = "Limits of a push",
        value_name = "N"
    )]
    pub max_connections_per_address: usize,

    /// Pushes and receipts that may wait to be stored; beyond it they are answered 503 `busy`.
    #[arg(long, env = "TIDINGS_WRITE_QUEUE", default_value_t = 4096, value_parser = positive, global = true, help_heading = "Storage", value_name = "N")]
    pub write_queue: usize,
    /// Most rows of one transaction.
    #[arg(long, env = "TIDINGS_COMMIT_ROWS", default_value_t = 10_000, value_parser = positive, global = true, help_heading = "Storage", value_name = "N")]
    pub commit_rows: usize,
    /// Most data of one transaction, in KiB. A push that has more for all its tokens has its data stored once instead of in
    /// each row.
    #[arg(long, env = "TIDINGS_COMMIT_KIB", default_value_t = 8192, value_parser = positive, global = true, help_heading = "Storage", value_name = "KIB")]
    pub commit_kib: usize,
    /// Milliseconds that one step of a large change may keep the pushes of others waiting. Reading, acking, retracting,
    /// erasing or releasing many rows is done in steps.
    #[arg(long, env = "TIDINGS_STEP_MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000), global = true, help_heading = "Storage", value_name = "MS")]
    pub step_ms: u64,
    /// Seconds that a push waits for the database; then 503.
    #[arg(long, env = "TIDINGS_STORE_TIMEOUT_SECS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Storage", value_name = "SECONDS")]
    pub store_timeout_secs: u64,
    /// Database connections for reading.
    #[arg(long, env = "TIDINGS_READERS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..), global = true, help_heading = "Storage", value_name = "N")]
    pub readers: u32,
    /// Database connections for writing. SQLite always has one.
    #[arg(long, env = "TIDINGS_WRITERS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..), global = true, help_heading = "Storage", value_name = "N")]
    pub writers: u32,
    /// Use a Postgres server that has fsync=off because it keeps commits safe by other means, as Neon does. On any other
    /// server a power cut loses what was answered 200.
    #[arg(long, env = "TIDINGS_ALLOW_FSYNC_OFF", default_value_t = false, global = true, help_heading = "Storage")]
    pub allow_fsync_off: bool,
    /// Seconds that an Idempotency-Key is kept.
    #[arg(long, env = "TIDINGS_IDEMPOTENCY_TTL_SECS", default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(..=10 * 365 * 24 * 60 * 60), global = true, help_heading = "Storage", value_name = "SECONDS")]
    pub idempotency_ttl_secs: u64,
    /// Days that notifications are kept after they were read; 0 for ever.
    #[arg(long, env = "TIDINGS_KEEP_READ_DAYS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=36_500), global = true, help_heading = "Storage", value_name = "DAYS")]
    pub keep_read_days: u32,
    /// Days that unread notifications are kept; 0 for ever.
    #[arg(long, env = "TIDINGS_KEEP_UNREAD_DAYS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=36_500), global = true, help_heading = "Storage", value_name = "DAYS")]
    pub keep_unread_days: u32,
    /// Notifications that an inbox keeps, the newest; 0 for all.
    #[arg(
        long,
        env = "TIDINGS_KEEP_ROWS",
        default_value_t = 0,
        global = true,
        help_heading = "Storage",
        value_name = "N"
    )]
    pub keep_rows: u32,
    /// Days that changes and retracted notifications are kept; 0 for ever. A client that was away for longer lists its
    /// inbox again.
    #[arg(long, env = "TIDINGS_KEEP_HISTORY_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=36_500), global = true, help_heading = "Storage", value_name = "DAYS")]
    pub keep_history_days: u32,
    /// Seconds between two runs of retention.
    #[arg(long, env = "TIDINGS_RETENTION_INTERVAL_SECS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Storage", value_name = "SECONDS")]
    pub retention_interval_secs: u64,
    /// Size in MiB up to which a database file is checked page by page at start.
    #[arg(
        long,
        env = "TIDINGS_STARTUP_CHECK_MIB",
        default_value_t = 1024,
        global = true,
        help_heading = "Storage",
        value_name = "MIB"
    )]
    pub startup_check_mib: u64,
    /// Page cache of the writing connection to SQLite, in MiB. Each reading connection has a quarter of it.
    #[arg(long, env = "TIDINGS_SQLITE_CACHE_MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536), global = true, help_heading = "Storage", value_name = "MIB")]
    pub sqlite_cache_mib: u32,

    /// Seconds that a socket may take to log in; 0 for no limit. Then its connection is closed and its client reconnects;
    /// a login in progress gets as long again.
    #[arg(
        long,
        env = "TIDINGS_LOGIN_TIMEOUT_SECS",
        default_value_t = 3600,
        global = true,
        help_heading = "Sockets",
        value_name = "SECONDS"
    )]
    pub login_timeout_secs: u64,
    /// Sockets that one token may have. A further one is refused at its login, `too_many_sockets`.
    #[arg(long, env = "TIDINGS_MAX_SOCKETS_PER_TOKEN", default_value_t = 50, value_parser = positive, global = true, help_heading = "Sockets", value_name = "N")]
    pub max_sockets_per_token: usize,
    /// Sockets that one address may have; 0 for no limit. A further one gets 429 `too_many_sockets`.
    #[arg(
        long,
        env = "TIDINGS_MAX_SOCKETS_PER_ADDRESS",
        default_value_t = 200,
        global = true,
        help_heading = "Sockets",
        value_name = "N"
    )]
    pub max_sockets_per_address: usize,
    /// Events a second that are processed for one connection, with bursts of --event-queue; 0 for no limit. Writes of
    /// receipts count, once for all receipts that were merged; acks of messages that were sent do not; unknown events do.
    #[arg(
        long,
        env = "TIDINGS_SOCKET_RATE",
        default_value_t = 20,
        global = true,
        help_heading = "Sockets",
        value_name = "N"
    )]
    pub socket_rate: u32,
    /// Most ids of one receipt, over a socket or HTTP; else `invalid_payload`, 413 `too_many_ids`.
    #[arg(long, env = "TIDINGS_MAX_RECEIPT_IDS", default_value_t = 1000, value_parser = positive, global = true, help_heading = "Sockets", value_name = "N")]
    pub max_receipt_ids: usize,
    /// Unacked messages that a client which acks may have; it gets more as it acks.
    #[arg(long, env = "TIDINGS_WINDOW", default_value_t = 64, value_parser = positive, global = true, help_heading = "Sockets", value_name = "N")]
    pub window: usize,
    /// Largest page of a list, in notifications.
    #[arg(long, env = "TIDINGS_PAGE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..), global = true, help_heading = "Sockets", value_name = "N")]
    pub page: u32,
    /// Rows that are read at a time for a session that catches up.
    #[arg(long, env = "TIDINGS_REPLAY_ROWS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..), global = true, help_heading = "Sockets", value_name = "N")]
    pub replay_rows: u32,
    /// Data that is read at a time, in KiB, whatever the number of rows.
    #[arg(long, env = "TIDINGS_PAGE_KIB", default_value_t = 256, value_parser = positive, global = true, help_heading = "Sockets", value_name = "KIB")]
    pub page_kib: usize,
    /// Newest events that are kept in memory for each token with sockets.
    #[arg(long, env = "TIDINGS_RING", default_value_t = 64, value_parser = positive, global = true, help_heading = "Sockets", value_name = "N")]
    pub ring: usize,
    /// Data of these events, in KiB, whatever their number.
    #[arg(long, env = "TIDINGS_RING_KIB", default_value_t = 256, value_parser = positive, global = true, help_heading = "Sockets", value_name = "KIB")]
    pub ring_kib: usize,
    /// Pages that are read at the same time. Further sessions that catch up wait for their turn.
    #[arg(long, env = "TIDINGS_REPLAYS", default_value_t = 8, value_parser = positive, global = true, help_heading = "Sockets", value_name = "N")]
    pub replays: usize,
    /// Events of one client that may wait, without receipts; further ones are refused, `too_many_events`.
    #[arg(long, env = "TIDINGS_EVENT_QUEUE", default_value_t = 64, value_parser = positive, global = true, help_heading = "Sockets", value_name = "N")]
    pub event_queue: usize,
    /// Seconds between two pings of a socket.
    #[arg(long, env = "TIDINGS_PING_INTERVAL_SECS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Sockets", value_name = "SECONDS")]
    pub ping_interval_secs: u64,
    /// Seconds that the answer to a ping may take.
    #[arg(long, env = "TIDINGS_PING_TIMEOUT_SECS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Sockets", value_name = "SECONDS")]
    pub ping_timeout_secs: u64,
    /// The same for clients 2.x, which expect more.
    #[arg(long, env = "TIDINGS_PING_TIMEOUT_2X_SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Sockets", value_name = "SECONDS")]
    pub ping_timeout_2x_secs: u64,
    /// Send `new_user` to every other socket of this node when one connects. It shows everybody who is connected, logged
    /// in or not, when somebody comes.
    #[arg(long, env = "TIDINGS_ANNOUNCE_NEW_USER", default_value_t = false, global = true, help_heading = "Sockets")]
    pub announce_new_user: bool,
    /// Least seconds between two `new_user`; one announces all that connected meanwhile.
    #[arg(long, env = "TIDINGS_ANNOUNCE_INTERVAL_SECS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Sockets", value_name = "SECONDS")]
    pub announce_interval_secs: u64,
    /// Seconds after which a socket that accepts no data is closed.
    #[arg(long, env = "TIDINGS_STUCK_TIMEOUT_SECS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Sockets", value_name = "SECONDS")]
    pub stuck_timeout_secs: u64,
    /// Largest message of a client, in bytes; a larger one closes its socket. A POST of polling may hold 16 times as much,
    /// which clients learn as `maxPayload`, and 64 times from clients 2.x, which do not; a larger one gets 413 and closes
    /// the socket.
    #[arg(long, env = "TIDINGS_MAX_MESSAGE_BYTES", default_value_t = 64 * 1024, value_parser = positive, global = true, help_heading = "Sockets", value_name = "BYTES")]
    pub max_message_bytes: usize,
    /// Seconds between two sweeps, which compare the newest rev of every connected token with the table.
    #[arg(long, env = "TIDINGS_SWEEP_INTERVAL_SECS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..), global = true, help_heading = "Sockets", value_name = "SECONDS")]
    pub sweep_interval_secs: u64,
}

/// Where the metrics are, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminListen(pub Option<SocketAddr>);

/// Postgres takes names of channels of up to 63 bytes.
fn bus_prefix(text: &str) -> Result<String, String> {
    if (1..=63).contains(&text.len()) { Ok(text.to_owned()) } else { Err("must have 1 to 63 bytes".to_owned()) }
}

fn admin_listen(text: &str) -> Result<AdminListen, String> {
    if text == "off" {
        return Ok(AdminListen(None));
    }
    address(text).map(|address| AdminListen(Some(address))).map_err(|problem| format!("{problem}, or off"))
}

/// `HOST:PORT`, `:PORT` for all addresses of this machine, or `PORT` for the loopback address.
fn address(text: &str) -> Result<SocketAddr, String> {
    let problem = || "must be an address and a port such as 127.0.0.1:4001, localhost:4001, :4001 or 4001".to_owned();
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    match text.rsplit_once(':').ok_or_else(problem)? {
        ("", port) => port.parse().map(|port| (Ipv4Addr::UNSPECIFIED, port).into()).map_err(|_| problem()),
        ("localhost", port) => port.parse().map(|port| (Ipv4Addr::LOCALHOST, port).into()).map_err(|_| problem()),
        _ => text.parse().map_err(|_| problem()),
    }
}

/// Shorter ones could be guessed.
const MIN_KEY_LEN: usize = 16;

/// Says which entry is wrong and no more: clap by itself shows all of a value that it refuses.
#[derive(Clone)]
struct NamedKeysParser;

impl TypedValueParser for NamedKeysParser {
    type Value = NamedKeys;

    fn parse_ref(&self, cli: &clap::Command, arg: Option<&Arg>, value: &OsStr) -> Result<NamedKeys, clap::Error> {
        let keys = value.to_str().ok_or_else(|| "must be valid UTF-8".to_owned()).and_then(named_keys);
        keys.map_err(|problem| {
            let flag = arg.map(ToString::to_string).unwrap_or_default();
            clap::Error::raw(ErrorKind::ValueValidation, format!("{flag}: {problem}\n")).with_cmd(cli)
        })
    }
}

fn named_keys(text: &str) -> Result<NamedKeys, String> {
    named(text.split(',').filter(|entry| !entry.is_empty()))
}

/// The keys of a file: a line of `name=key` each; empty lines and those that begin with # are skipped.
///
/// # Errors
/// Says which entry is wrong, and shows nothing of it.
pub fn keys_of_lines(text: &str) -> Result<NamedKeys, String> {
    named(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')))
}

/// The text is secret, so an error says which entry it is about and no more: not even its name, which may be a key that
/// stands in the wrong place.
fn named<'t>(entries: impl Iterator<Item = &'t str>) -> Result<NamedKeys, String> {
    let mut keys: Vec<(String, String)> = Vec::new();
    for (at, entry) in (1..).zip(entries) {
        let (name, key) = entry.split_once('=').ok_or(format!("entry {at} must be name=key"))?;
        if name.is_empty() || keys.iter().any(|(other, _)| other == name) {
            return Err(format!("entry {at} needs a name that no other entry has"));
        }
        if key.len() < MIN_KEY_LEN {
            return Err(format!(
                "the key of entry {at} must have {MIN_KEY_LEN} characters or more: try openssl rand -hex 32"
            ));
        }
        keys.push((name.to_owned(), key.to_owned()));
    }
    Ok(NamedKeys(keys))
}

fn origins(text: &str) -> Result<Origins, String> {
    let entries = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let rule =
        |entry: &str| OriginRule::parse(entry).map_err(|problem| format!("{entry:?} cannot match any page: {problem}"));
    entries.map(rule).collect::<Result<_, _>>().map(Origins)
}

fn networks(text: &str) -> Result<Networks, String> {
    let entries = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let network = |entry: &str| {
        let alone = entry.parse().map(|address: std::net::IpAddr| address.to_canonical().into());
        entry.parse().or(alone).map_err(|_| format!("{entry:?} is neither an address nor a network such as 10.0.0.0/8"))
    };
    entries.map(network).collect::<Result<_, _>>().map(Networks)
}

/// An empty one is none.
fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

fn key_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
        return Err("must be 1 to 64 letters, digits, dots, dashes and underscores".to_owned());
    }
    Ok(text.to_owned())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    let wanted = || "must be seconds, or a number with s, m, h or d".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wanted()),
    };
    let number: u32 = digits.parse().map_err(|_| wanted())?;
    Ok(std::time::Duration::from_secs(u64::from(number) * unit))
}

fn socket_path(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~".contains(c);
    if path.len() < 2 || !path.starts_with('/') || path.contains("//") || !path.chars().all(plain) {
        return Err("must be an absolute path of letters, digits, / . _ - ~, such as /ws/socket.io".to_owned());
    }
    Ok(path.to_owned())
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be an integer, 1 or more".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// The least that the HTTP library can work with.
fn at_least_8192(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|bytes| *bytes >= 8192).ok_or_else(|| "must be an integer, 8192 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable_named_after_it() {
        for argument in Cli::command().get_arguments() {
            let id = argument.get_id().as_str();
            if !["help", "version"].contains(&id) {
                let wanted =
                    if id == "database_url" { "DATABASE_URL" } else { &format!("TIDINGS_{}", id.to_uppercase()) };
                assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(wanted));
            }
        }
    }

    /// Run with `UPDATE_DOCS=1` to write the page.
    #[test]
    fn the_configuration_page_is_current() {
        let mut page = String::from(
            "# Configuration\n\nEach setting is a flag and an environment variable; the flag takes precedence. `tidings --help` explains them too.\n",
        );
        // Of a sentence alone clap drops the period.
        let sentence = |text: &str| text.trim_end_matches('.').replace('\n', " ").replace('*', "\\*") + ".";
        let mut section = None;
        for argument in Cli::command().get_arguments().filter(|argument| argument.get_env().is_some()) {
            let heading = argument.get_help_heading().unwrap();
            if section != Some(heading.to_owned()) {
                page += &format!("\n## {heading}\n\n| flag | environment variable | default | |\n|---|---|---|---|\n");
                section = Some(heading.to_owned());
            }
            let flag = argument.get_long().unwrap();
            let variable = argument.get_env().unwrap().to_str().unwrap();
            let default = match argument.get_default_values()[0].to_str().unwrap() {
                "" => "none".to_owned(),
                default => format!("`{default}`"),
            };
            let mut help = sentence(&argument.get_help().unwrap().to_string());
            for value in argument.get_possible_values().iter().filter(|value| value.get_help().is_some()) {
                help += &format!(" `{}`: {}", value.get_name(), sentence(&value.get_help().unwrap().to_string()));
            }
            page += &format!("| `--{flag}` | `{variable}` | {default} | {help} |\n");
        }
        crate::docs::assert_current("docs/reference/configuration.md", &page);
    }

    /// Run with `UPDATE_DOCS=1` to write the page.
    #[test]
    fn the_command_line_page_is_current() {
        fn describe(page: &mut String, command: &mut clap::Command, path: &str) {
            let own = |arg: &&Arg| arg.get_env().is_none() && !["help", "version"].contains(&arg.get_id().as_str());
            *page += &format!("\n## {path}\n\n{}.\n", command.get_about().unwrap().to_string().trim_end_matches('.'));
            let arguments: Vec<&Arg> = command.get_arguments().filter(own).collect();
            if !arguments.is_empty() {
                *page += "\n| argument | default | |\n|---|---|---|\n";
            }
            for argument in arguments {
                let default = argument.get_default_values().first().and_then(|value| value.to_str()).unwrap_or("none");
                let help = argument.get_help().unwrap().to_string();
                *page += &format!("| `{argument}` | {default} | {}. |\n", help.trim_end_matches('.'));
            }
            let needed: Vec<String> = command
                .get_arguments()
                .filter(|arg| arg.get_env().is_some() && !arg.is_hide_set())
                .map(|arg| format!("`--{}`", arg.get_long().unwrap()))
                .collect();
            if !needed.is_empty() && path != "tidings serve" {
                *page += &format!("\nIt also reads {}.\n", needed.join(", "));
            }
            for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                describe(page, sub, &path);
            }
        }
        let mut page = String::from(
            "# Command line\n\n`tidings` without a command is `tidings serve`. The flags of the service are in \
             [configuration](configuration.md); commands accept all of them, so that one environment fits all. Results go to \
             standard output, errors to standard error as `error: ...` with exit code 1, or 2 for a wrong command line.\n",
        );
        for command in Cli::interface(false).get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let path = format!("tidings {}", command.get_name());
            describe(&mut page, command, &path);
        }
        crate::docs::assert_current("docs/reference/cli.md", &page);
    }

    #[test]
    fn short_help_fits_a_screen_and_commands_show_the_flags_that_they_need() {
        let help = Cli::interface(true).term_width(100).render_help().to_string();
        assert!(help.lines().count() <= 60, "{help}");
        assert!(help.contains("--listen <ADDRESS>") && !help.contains("--sweep-interval-secs"), "{help}");
        let mut interface = Cli::interface(false);
        let sign = interface.find_subcommand_mut("sign").unwrap().render_long_help().to_string();
        assert!(sign.contains("--login-keys-file") && !sign.contains("--listen"), "{sign}");
        let add = interface.find_subcommand_mut("key").unwrap().find_subcommand_mut("add").unwrap();
        let add = add.render_long_help().to_string();
        assert!(add.contains("--scope") && add.contains("--database-url") && !add.contains("--login-keys"), "{add}");
    }

    #[test]
    fn addresses_are_written_as_people_write_them() {
        for (text, address) in [
            ("127.0.0.1:5299", "127.0.0.1:5299"),
            ("localhost:5299", "127.0.0.1:5299"),
            (":5299", "0.0.0.0:5299"),
            ("5299", "127.0.0.1:5299"),
            ("[::1]:5299", "[::1]:5299"),
            ("0", "127.0.0.1:0"),
        ] {
            assert_eq!(super::address(text).unwrap().to_string(), address, "{text}");
        }
        for bad in ["", ":", "70000", ":70000", "localhost", "localhost:", "example.com:80", "::1", "1.2.3.4"] {
            let problem = super::address(bad).unwrap_err();
            assert!(problem.contains("localhost:4001"), "{bad}: {problem}");
        }
        assert_eq!(admin_listen("off").unwrap().0, None);
        assert!(admin_listen("of").unwrap_err().ends_with(", or off"));
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        for flag in
            ["max-tokens", "max-body-bytes", "max-data-bytes", "max-depth", "window", "ring", "store-timeout-secs"]
        {
            let error = Cli::try_parse_from(["tidings", &format!("--{flag}=0")]).unwrap_err().to_string();
            assert!(error.contains(&format!("--{flag}")), "{error}");
        }
    }

    #[test]
    fn keys_are_named_long_enough_and_never_shown() {
        let keys = named_keys("backend=0123456789abcdef,other=fedcba9876543210").unwrap();
        assert_eq!(keys.0.len(), 2);
        assert_eq!(format!("{keys:?}"), r#"["backend", "other"]"#);
        assert!(named_keys("").unwrap().0.is_empty());
        for bad in [
            "0123456789abcdef",
            "a=short",
            "a=0123456789abcdef,a=fedcba9876543210",
            "=0123456789abcdef",
            "0123456789abcdef==",
        ] {
            let error = named_keys(bad).unwrap_err();
            assert!(!error.contains("0123456789abcdef"), "{error}");
        }
    }

    #[test]
    fn origins_and_durations_are_what_they_say() {
        assert_eq!(origins("https://a.example, null,http://b:8080,*,capacitor://localhost,").unwrap().0.len(), 5);
        for bad in ["a.example", "https://", "https://a/b"] {
            let problem = origins(&format!("https://a.example,{bad}")).unwrap_err();
            assert!(problem.contains(&format!("{bad:?}")), "{problem}");
        }
        for (text, secs) in [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(duration(text), Ok(std::time::Duration::from_secs(secs)));
        }
        for bad in ["", "h", "1w", "-1", "1.5h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn socket_paths_are_absolute_and_plain() {
        assert_eq!(socket_path("/ws/socket.io/"), Ok("/ws/socket.io".to_owned()));
        for bad in ["", "/", "ws", "/a b", "/a?b", "//a", "/{a}"] {
            assert!(socket_path(bad).is_err(), "{bad}");
        }
    }
}
