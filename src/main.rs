//! The `tidings` binary: reads the configuration, sets up logs and signals, and runs the service.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tidings::app;
use tidings::config::{Cli, Command, Config, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// Libraries that would write what passes through them into the log: payloads and headers. They stay at info,
/// whatever --log says.
const DISCREET: [&str; 10] = [
    "engineioxide",
    "engineioxide_core",
    "h2",
    "hyper",
    "hyper_util",
    "redis",
    "socketioxide",
    "socketioxide_core",
    "tokio_tungstenite",
    "tungstenite",
];

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, config } = Cli::parse();
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: --log {:?}: {error}", config.log);
            return ExitCode::from(2);
        }
    };
    let filter = DISCREET
        .iter()
        .fold(filter, |filter, library| filter.add_directive(format!("{library}=info").parse().expect("a directive")));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }

    let result = match command {
        None | Some(Command::Serve) => serve(config).await,
        Some(Command::Migrate { check }) => app::migrate(&config, check).await,
        Some(Command::Epoch { renew }) => app::epoch(&config, renew).await,
        Some(Command::Sign { token, ttl, kid }) => app::sign(&config, &token, ttl, kid.as_deref()).await,
        Some(Command::Key { command }) => app::key(&config, command).await,
        Some(Command::Check) => app::check(&config).await,
        Some(Command::Copy { from, to }) => app::copy(&config, &from, &to).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), app::Error> {
    let shutdown = CancellationToken::new();
    stop_on_signal(shutdown.clone()).map_err(app::Error::Signals)?;
    let listener = app::listen(config.listen)?;
    app::run(listener, config, shutdown).await
}

/// Cancels `shutdown` at the first SIGTERM or SIGINT.
fn stop_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}
