//! The composition root: puts the parts together, serves connections, and takes everything down in order.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use axum::{Extension, Router};
use http::Method;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::{debug, error, info, warn};

use crate::access::Access;
use crate::bus::{self, BusError};
use crate::config::Config;
use crate::http::{self as web, App};
use crate::inbox::Inbox;
use crate::metrics;
use crate::realtime::{Line, Realtime};
use crate::store::{self, OpenError};

mod commands;
mod settings;

pub use commands::{check, copy, epoch, migrate, sign};

/// Pending connections the kernel holds: with 1,024 a herd of reconnecting sockets loses some to one-second retries.
const BACKLOG: u32 = 4096;

/// After a failed accept: long enough for some descriptor to come free, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the service could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The operating system takes no wish for signals.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// `tidings migrate --check` found migrations that the database does not have.
    #[error("the database lacks {}: run tidings migrate", .0.join(", "))]
    Pending(Vec<String>),
    /// `tidings check` found violations, which it has printed.
    #[error("{0} violations were found")]
    Violated(usize),
    /// Other machines could reach it, and nobody would be asked who they are.
    #[error(
        "{0} can be reached from other machines, so producers need keys and users signed logins: \
        add --api-keys backend=$(openssl rand -hex 32) and --login-keys k1=$(openssl rand -hex 32), \
        or listen on 127.0.0.1, or say --insecure-open"
    )]
    Exposed(std::net::SocketAddr),
    /// `tidings sign` has nothing to sign with.
    #[error("there is no such login key: give --login-keys kid=secret")]
    NoLoginKey,
    /// Nothing was copied.
    #[cfg(all(feature = "postgres", feature = "sqlite"))]
    #[error(transparent)]
    Copy(#[from] store::CopyError),
    /// This build has only one of the two databases.
    #[cfg(not(all(feature = "postgres", feature = "sqlite")))]
    #[error("this build was made with one database only, there is nothing to copy to")]
    Copy,
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A task that must not end did: its state is unknown, so the process stops and starts over.
    #[error("the {0} task crashed")]
    Crashed(&'static str),
}

/// Opens the listening socket that [`run`] serves.
///
/// # Errors
/// [`Error::Listen`] if the address is taken or not this machine's.
pub fn listen(address: std::net::SocketAddr) -> Result<TcpListener, Error> {
    let open = || {
        let socket = if address.is_ipv6() { tokio::net::TcpSocket::new_v6() } else { tokio::net::TcpSocket::new_v4() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|source| Error::Listen { address, source })
}

/// Serves until `shutdown` is cancelled, then drains: no new work, queued work done, sockets told, database closed.
///
/// # Errors
/// Says why the service could not start or go on.
pub async fn run(listener: TcpListener, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let access = Arc::new(Access::new((&config).into()));
    if !config.listen.ip().is_loopback() && !access.may_be_exposed() {
        return Err(Error::Exposed(config.listen));
    }
    metrics::install();
    let admin = config.admin_listen.0.map(listen).transpose()?;
    let opened = store::open(&config.database_url, &(&config).into()).await?;
    let mut bus = bus::connect(&config.bus, &config.database_url)?;
    let (inbox, tasks) = Inbox::new(opened.store, opened.committers, bus.bus, opened.epoch, (&config).into());
    bus.tasks.spawn({
        let inbox = Arc::clone(&inbox);
        async move { inbox.listen(bus.hints).await }
    });
    let writer_stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    for writer in tasks.writers {
        writers.spawn(writer.run(writer_stop.clone()));
    }
    let mut heads = tokio::spawn(tasks.heads.run());
    let mut sweep = tokio::spawn({
        let (inbox, stop) = (Arc::clone(&inbox), shutdown.clone());
        async move { inbox.sweep(stop).await }
    });

    let mut tend = tokio::spawn({
        let (inbox, stop) = (Arc::clone(&inbox), shutdown.clone());
        async move { tokio::join!(inbox.tend(stop.clone()), inbox.retain(stop)) }
    });

    let realtime = Realtime::new(&inbox, &access, (&config).into());
    let app = App::new(Arc::clone(&inbox), Arc::clone(&access), (&config).into(), shutdown.clone());
    let engine = cors().layer(realtime.service());
    let router = web::router(app, &config.socket_path)
        .route_service(&config.socket_path, engine.clone())
        .route_service(&format!("{}/", config.socket_path), engine)
        .layer(from_fn_with_state(access, web::admit));

    let address = listener.local_addr().map_err(|source| Error::Listen { address: config.listen, source })?;
    println!(
        "Tidings listens on http://{address}, keeps its data in {}; open http://{address}/ to try it.",
        opened.place
    );
    if let Some(address) = admin.as_ref().and_then(|listener| listener.local_addr().ok()) {
        info!("Metrics are at http://{address}/metrics");
    }
    let connections = TaskTracker::new();
    let admin_router = web::admin_router();
    let admin = async {
        match &admin {
            Some(listener) => accept(listener, &admin_router, &config, &connections, &shutdown).await,
            None => std::future::pending().await,
        }
    };
    let crashed = tokio::select! {
        () = accept(&listener, &router, &config, &connections, &shutdown) => None,
        () = admin => None,
        () = tidy_metrics() => None,
        _ = writers.join_next() => Some("writer"),
        _ = &mut heads => Some("heads"),
        _ = bus.tasks.join_next() => Some("bus"),
        _ = &mut sweep => Some("sweep").filter(|_| !shutdown.is_cancelled()),
        _ = &mut tend => Some("schedule").filter(|_| !shutdown.is_cancelled()),
    };
    if let Some(task) = crashed {
        return Err(Error::Crashed(task));
    }
    drop(listener);

    let drain_timeout = Duration::from_secs(config.drain_timeout_secs);
    info!(timeout_secs = config.drain_timeout_secs, "Stopping");
    connections.close();
    let drained = tokio::time::timeout(drain_timeout, async {
        realtime.announce_drain(drain_timeout).await;
        realtime.close().await;
        inbox.drain().await;
        connections.wait().await;
    });
    if drained.await.is_err() {
        warn!(sockets.open = connections.len(), "Stopped waiting for what is still open");
    }
    writer_stop.cancel();
    let finished = tokio::time::timeout(drain_timeout, async {
        while let Some(result) = writers.join_next().await {
            result.map_err(|_| Error::Crashed("writer"))?;
        }
        Ok(())
    });
    finished.await.unwrap_or_else(|_| {
        error!("The database did not finish in time");
        Err(Error::Crashed("writer"))
    })
}

async fn tidy_metrics() {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        metrics::tidy();
    }
}

/// Browsers of 2.x clients send their polls with credentials, so the origin is mirrored instead of `*`.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .allow_methods([Method::GET, Method::POST])
        .allow_credentials(true)
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    config: &Config,
    connections: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(config.header_timeout_secs))
        .max_buf_size(config.max_header_bytes);
    let stuck_timeout = Duration::from_secs(config.stuck_timeout_secs);
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                if let Err(error) = prepare(&stream, stuck_timeout) {
                    debug!(%error, "A connection broke before it was served");
                    continue;
                }
                let connection = serve(stream, &http, router.clone(), shutdown.clone());
                connections.spawn(connection);
            }
            // Most of all: no descriptor is free. Those who are connected are served on.
            Err(error) => {
                warn!(%error, "Cannot accept a connection, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What is small goes out at once, and a peer that acknowledges nothing is given up after `stuck_timeout`.
fn prepare(stream: &TcpStream, stuck_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(stuck_timeout))?;
    Ok(())
}

fn serve(
    stream: TcpStream,
    http: &http1::Builder,
    router: Router,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let line = Line::new(stream);
    let service = TowerToHyperService::new(Extension(line.hang_up()).layer(router));
    let connection = http.serve_connection(TokioIo::new(line), service).with_upgrades();
    async move {
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%error, "A connection ended");
        }
    }
}
