//! The `tidings` binary: reads the configuration, sets up logs and signals, and runs the service.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use tidings::app;
use tidings::config::{Cli, Command, Config, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Level, Metadata, error};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Libraries that would write what passes through them into the log, with the most that they may say whatever --log says:
/// most of them know payloads and headers, one the parameters of a database's URL. The pool of connections would write a line
/// a request while the database is slow or down, which the service says itself.
const DISCREET: [(&str, Level); 12] = [
    ("engineioxide", Level::INFO),
    ("engineioxide_core", Level::INFO),
    ("h2", Level::INFO),
    ("hyper", Level::INFO),
    ("hyper_util", Level::INFO),
    ("redis", Level::INFO),
    ("socketioxide", Level::INFO),
    ("socketioxide_core", Level::INFO),
    ("tokio_tungstenite", Level::INFO),
    ("tungstenite", Level::INFO),
    ("sqlx_core::pool", Level::ERROR),
    ("sqlx_postgres::options", Level::ERROR),
];

/// A filter of its own: among the directives of --log a longer target would win.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    let within = |library| {
        metadata.target().strip_prefix(library).is_some_and(|rest: &str| rest.is_empty() || rest.starts_with("::"))
    };
    DISCREET.iter().all(|(library, most)| metadata.level() <= most || !within(*library))
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, config } = Cli::read();
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: --log {:?}: {error}", config.log);
            return ExitCode::from(2);
        }
    };
    let logs = tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet));
    let lines = fmt::layer().with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => logs.with(lines.with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => logs.with(lines.json().flatten_event(true)).init(),
    }

    let is_service = matches!(command, None | Some(Command::Serve));
    let result = match command {
        None | Some(Command::Serve) => serve(config).await,
        Some(Command::Completions { shell }) => app::completions(shell),
        Some(Command::Man) => app::manual(),
        Some(Command::Migrate { check }) => app::migrate(&config, check).await,
        Some(Command::Epoch { renew }) => app::epoch(&config, renew).await,
        Some(Command::Sign { token, ttl, kid }) => app::sign(&config, &token, ttl, kid.as_deref()).await,
        Some(Command::Key { command }) => app::key(&config, command).await,
        Some(Command::Check) => app::check(&config).await,
        Some(Command::Copy { from, to }) => app::copy(&config, &from, &to).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_service => {
            error!("{error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), app::Error> {
    let shutdown = CancellationToken::new();
    let reload = Arc::new(Notify::new());
    obey_signals(shutdown.clone(), Arc::clone(&reload)).map_err(app::Error::Signals)?;
    let listener = app::listen("--listen", config.listen)?;
    app::run(listener, config, shutdown, reload).await
}

/// Cancels `shutdown` at the first SIGTERM or SIGINT, and notifies `reload` at each SIGHUP.
///
/// SIGHUP asks a service to read its files again: `systemctl reload`, logrotate and scripts expect that, and that it goes on
/// as before. A terminal that is closed sends it too; a service that was started there ends in order then, or it would go on
/// unseen. One that should not is started with nohup, whose standard input is no terminal.
fn obey_signals(shutdown: CancellationToken, reload: Arc<Notify>) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let in_terminal = std::io::stdin().is_terminal();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => if in_terminal { break } else { reload.notify_one() },
            }
        }
        shutdown.cancel();
    });
    Ok(())
}
