//! The composition root: puts the parts together, serves connections, and takes everything down in order.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use http::header::{ORIGIN, RETRY_AFTER};
use http::{HeaderName, Method, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as HttpService, service_fn};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};
use tower_http::cors::{AllowHeaders, AllowOrigin, Cors, CorsLayer};
use tracing::{debug, error, info, warn};

use crate::access::{Access, ClientAddress};
use crate::bus::{self, BusError};
use crate::config::{Config, Logins};
use crate::http::{self as web, App, Guard};
use crate::inbox::Inbox;
use crate::limits::{Rate, Seat, Seats, log_due};
use crate::metrics;
use crate::realtime::{HangUp, Line, Realtime};
use crate::store::{self, OpenError};

mod commands;
mod credentials;
mod proxy_protocol;
mod settings;
mod timeouts;
mod tls;

pub use commands::{check, completions, copy, epoch, key, manual, migrate, sign};
pub use credentials::CredentialsError;
pub use tls::TlsError;

use credentials::Credentials;
use proxy_protocol::HeaderError;
use timeouts::Timeouts;
use tls::Certificate;

/// Pending connections the kernel holds: with 1,024 a herd of reconnecting sockets loses some to one-second retries.
const BACKLOG: u32 = 4096;

/// After a failed accept: long enough for some descriptor to come free, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// When the sockets of a service that stops may come back: another node, or the next binary, is there soon or already.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

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
        add --api-keys backend=$(openssl rand -hex 32) and --login-keys k1=$(openssl rand -hex 32), without --logins open, \
        or listen on 127.0.0.1, or say --insecure-open"
    )]
    Exposed(String),
    /// Nobody's header would be believed.
    #[error("--proxy-protocol needs --trusted-proxies: the networks of the balancers that send the header")]
    ProxyProtocol,
    /// Keys or the certificate cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// `tidings key` has nothing to do for that name, or no room for one more.
    #[error("{0}")]
    KeyName(String),
    /// Standard output takes nothing.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    /// The operating system gives no random numbers.
    #[error("cannot make a key: {0}")]
    Random(String),
    /// `tidings sign` has nothing to sign with.
    #[error("there is no such login key: give --login-keys kid=secret")]
    NoLoginKey,
    /// `tidings sign` was asked for one that the service would refuse.
    #[error(
        "a login is good for {0} days at most: give a shorter --ttl, or more --max-login-days, here and to the service"
    )]
    LoginTooLong(u64),
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
    #[error("cannot listen on {address}: {source}; {flag} takes another address or port")]
    Listen {
        /// What sets it.
        flag: &'static str,
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
pub fn listen(flag: &'static str, address: std::net::SocketAddr) -> Result<TcpListener, Error> {
    let open = || {
        let socket = if address.is_ipv6() { tokio::net::TcpSocket::new_v6() } else { tokio::net::TcpSocket::new_v4() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|source| Error::Listen { flag, address, source })
}

/// What the service needs of descriptors besides connections: the database, files, the bus, the listeners.
const OWN_DESCRIPTORS: u64 = 64;

/// Raises the limit of descriptors as far as this process may. What is left says whether one address can take them all.
fn raise_descriptors(config: &Config) {
    let raised = rlimit::increase_nofile_limit(u64::MAX);
    let needed = config.max_connections_per_address as u64 + OWN_DESCRIPTORS;
    match raised {
        Ok(limit) if limit < needed => warn!(
            limit,
            "The limit of open files (ulimit -n) lets one address take all connections: raise it to more than {needed}, \
            or lower --max-connections-per-address"
        ),
        Ok(_) => {}
        Err(error) => debug!(%error, "Cannot raise the limit of open files"),
    }
}

/// Serves until `shutdown` is cancelled, then drains: no new work, queued work done, sockets told, database closed. When
/// `reload` is notified, keys and the certificate are read again at once.
///
/// # Errors
/// Says why the service could not start or go on.
pub async fn run(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
    reload: Arc<Notify>,
) -> Result<(), Error> {
    metrics::install();
    raise_descriptors(&config);
    let admin = config.admin_listen.0.map(|address| listen("--admin-listen", address)).transpose()?;
    let certificate = Certificate::load(&config).await.map_err(CredentialsError::from)?;
    let acceptor = certificate.as_ref().map(Certificate::acceptor).transpose().map_err(CredentialsError::from)?;
    let opened = store::open(&config.database_url, &(&config).into()).await?;
    let access = Arc::new(Access::new((&config).into()));
    let credentials = Credentials::load(&config, Arc::clone(&access), certificate, &*opened.store).await?;
    if config.proxy_protocol && config.trusted_proxies.0.is_empty() {
        return Err(Error::ProxyProtocol);
    }
    if !access.may_be_exposed() {
        if !config.listen.ip().is_loopback() {
            return Err(Error::Exposed(config.listen.to_string()));
        }
        // Its connections are those of other machines, wherever the balancer is.
        if config.proxy_protocol {
            return Err(Error::Exposed(format!("{} behind --proxy-protocol", config.listen)));
        }
    }
    if config.insecure_open {
        warn!("--insecure-open: everybody is let in, from anywhere and through any proxy");
    }
    if config.logins != Logins::Required {
        warn!(logins = ?config.logins, "Logins without a signature are accepted, so anybody can log in as anybody: see --logins");
    }
    let mut bus = bus::connect(&(&config).into())?;
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

    let mut credentials = tokio::spawn(credentials.keep(Arc::clone(&inbox), reload, shutdown.clone()));

    let realtime = Realtime::new(&inbox, &access, (&config).into());
    let app = App::new(Arc::clone(&inbox), Arc::clone(&access), (&config).into(), shutdown.clone());
    let guard = Guard {
        access,
        key_rate: Arc::new(Rate::per_second(config.key_rate)),
        address_rate: Arc::new(Rate::per_second(config.address_rate)),
        sockets: Seats::each(config.max_sockets_per_address),
        socket_path: config.socket_path.as_str().into(),
    };
    let engine = from_fn_with_state(guard.clone(), web::seat).layer(realtime.service());
    let router = web::router(app, &config.socket_path)
        .route_service(&config.socket_path, engine.clone())
        .route_service(&format!("{}/", config.socket_path), engine);
    let front = Arc::new(Front {
        pages: Some(cors().layer(router.clone())),
        router,
        seats: Seats::each(config.max_connections_per_address),
        guard: Some(guard.clone()),
        proxy_protocol: config.proxy_protocol,
        tls: acceptor,
    });
    let scheme = if front.tls.is_some() { "https" } else { "http" };

    let address =
        listener.local_addr().map_err(|source| Error::Listen { flag: "--listen", address: config.listen, source })?;
    println!(
        "Tidings listens on {scheme}://{address}, keeps its data in {}; open {scheme}://{address}/ to try it.",
        opened.place
    );
    if let Some(address) = admin.as_ref().and_then(|listener| listener.local_addr().ok()) {
        info!("Metrics are at http://{address}/metrics");
    }
    let connections = TaskTracker::new();
    let local = config.admin_listen.0.is_some_and(|address| address.ip().is_loopback());
    let router = web::admin_router(local);
    let admin_front =
        Arc::new(Front { pages: None, router, seats: Seats::each(0), guard: None, proxy_protocol: false, tls: None });
    let admin = async {
        match &admin {
            Some(listener) => accept(listener, &admin_front, &config, &connections, &shutdown).await,
            None => std::future::pending().await,
        }
    };
    let crashed = tokio::select! {
        () = accept(&listener, &front, &config, &connections, &shutdown) => None,
        () = admin => None,
        () = tidy(&guard) => None,
        _ = writers.join_next() => Some("writer"),
        _ = &mut heads => Some("heads"),
        _ = bus.tasks.join_next() => Some("bus"),
        _ = &mut sweep => Some("sweep").filter(|_| !shutdown.is_cancelled()),
        _ = &mut credentials => Some("credentials").filter(|_| !shutdown.is_cancelled()),
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
        realtime.announce_drain(COME_BACK_AFTER).await;
        realtime.close().await;
        inbox.drain().await;
        connections.wait().await;
    });
    if drained.await.is_err() {
        warn!(sockets.open = connections.len(), "Stopped waiting for open connections");
    }
    writer_stop.cancel();
    let finished = tokio::time::timeout(drain_timeout, async {
        while let Some(result) = writers.join_next().await {
            result.map_err(|_| Error::Crashed("writer"))?;
        }
        Ok(())
    });
    finished.await.unwrap_or_else(|_| {
        error!("The database did not close in time");
        Err(Error::Crashed("writer"))
    })
}

/// What is kept for a while only.
async fn tidy(guard: &Guard) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        metrics::tidy();
        guard.key_rate.tidy();
        guard.address_rate.tidy();
    }
}

/// How long a browser need not ask again what a page may send, as long as Chromium keeps it. The request itself is checked each
/// time.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_hours(2);

/// For origins that were let in before, so all that come here. Browsers of 2.x clients send their polls with credentials,
/// so the origin is mirrored instead of `*`.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .expose_headers([
            RETRY_AFTER,
            HeaderName::from_static("ratelimit"),
            HeaderName::from_static("ratelimit-policy"),
        ])
        .allow_credentials(true)
        .max_age(PREFLIGHT_MAX_AGE)
}

/// What a listener serves.
struct Front {
    router: Router,
    /// The same as pages get it, and caches before them.
    pages: Option<Cors<Router>>,
    /// Connections by address.
    seats: Seats,
    /// Says who is let in, and knows the proxies, whose connections are not counted.
    guard: Option<Guard>,
    /// Whether the connections of these proxies begin with a header that says whose they are.
    proxy_protocol: bool,
    tls: Option<TlsAcceptor>,
}

impl Front {
    fn seat(&self, client: IpAddr) -> Option<Seat> {
        let seat = if self.trusts(client) { Seats::each(0).take(client) } else { self.seats.take(client) };
        if seat.is_none() {
            // There is no request yet that could be answered.
            metrics::limited("connections");
            debug!(address = %client, "Closed a connection: its address has --max-connections-per-address already");
        }
        seat
    }

    fn trusts(&self, peer: IpAddr) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.access.trusts(peer))
    }

    /// Whose connection a proxy passes on, with its seat; nothing if it is to be closed.
    async fn passed_on(&self, stream: &mut TcpStream, proxy: IpAddr, timeout: Duration) -> Option<(IpAddr, Seat)> {
        let client = match tokio::time::timeout(timeout, proxy_protocol::read_header(stream)).await {
            Ok(Ok(client)) => client.map_or(proxy, |client| client.to_canonical()),
            Ok(Err(error @ HeaderError::Io(_))) => {
                debug!(%proxy, %error, "A connection ended before its PROXY header");
                return None;
            }
            Ok(Err(error)) => {
                if let Some(left_out) = log_due("proxy_protocol") {
                    warn!(%proxy, left_out, "Closed a connection: {error}; --proxy-protocol expects a PROXY header from every one of --trusted-proxies");
                }
                return None;
            }
            Err(_) => {
                debug!(%proxy, "A connection took too long to send its PROXY header");
                return None;
            }
        };
        Some((client, self.seat(client)?))
    }

    /// Answers a request. What is done for each, whatever it asks for, stands here: in layers, each would box every route and
    /// every answer once more.
    async fn answer(&self, request: Request<Incoming>, peer: IpAddr, line: HangUp) -> Response {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(line);
        let stranger = web::check_host(&mut request);
        let stranger = stranger.or_else(|| web::admit(self.guard.as_ref()?, peer, &mut request));
        let client = request.extensions().get::<ClientAddress>().copied();
        let is_backend = request.method() == Method::POST && !request.headers().contains_key(ORIGIN);
        let pages = self.pages.as_ref().filter(|_| !is_backend);
        let quota = match &self.guard {
            Some(guard) if stranger.is_none() => web::identify(guard, peer, &mut request),
            _ => Ok(None),
        };
        let answer = match (stranger, &quota, pages) {
            (Some(refusal), ..) => Ok(refusal),
            (None, Ok(_), Some(pages)) => pages.clone().call(request).await,
            (None, Ok(_), None) => self.router.clone().call(request).await,
            // A page must be able to read why.
            (None, Err(too_soon), Some(_)) => {
                let refuse = tower::service_fn(|_| std::future::ready(Ok(too_soon.refusal())));
                cors().layer(refuse).call(request).await
            }
            (None, Err(too_soon), None) => Ok(too_soon.refusal()),
        };
        let mut response = answer.unwrap_or_else(|never: Infallible| match never {});
        if let Ok(Some(quota)) | Err(quota) = quota {
            quota.tell(&mut response);
        }
        if self.guard.is_some() {
            web::trace_refusal(peer, client, &response);
        }
        web::protect(&mut response, self.tls.is_some());
        response
    }
}

async fn accept(
    listener: &TcpListener,
    front: &Arc<Front>,
    config: &Config,
    connections: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let timeouts = Timeouts {
        header: Duration::from_secs(config.header_timeout_secs),
        idle: Duration::from_secs(config.idle_timeout_secs),
    };
    let mut http = http1::Builder::new();
    // That there is one: the timer of each connection knows the timeouts.
    http.header_read_timeout(timeouts.idle).max_buf_size(config.max_header_bytes);
    let stuck_timeout = Duration::from_secs(config.stuck_timeout_secs);
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let peer = peer.ip();
                let passed_on = front.proxy_protocol && front.trusts(peer);
                // Of one that is passed on the client is not known yet.
                let seat = if passed_on { None } else { front.seat(peer) };
                if seat.is_none() && !passed_on {
                    continue;
                }
                if let Err(error) = prepare(&stream, stuck_timeout) {
                    debug!(%error, "A connection broke before it was served");
                    continue;
                }
                let (front, http, shutdown) = (Arc::clone(front), http.clone(), shutdown.clone());
                connections.spawn(async move {
                    let (mut stream, mut client, mut _seat) = (stream, peer, seat);
                    if passed_on {
                        // Boxed, so that it takes no room in the tasks of others.
                        let header = Box::pin(front.passed_on(&mut stream, peer, timeouts.header));
                        let Some((address, seat)) = shutdown.run_until_cancelled(header).await.flatten() else {
                            return;
                        };
                        (client, _seat) = (address, Some(seat));
                    }
                    let line = Line::new(stream);
                    let (hang_up, tls) = (line.hang_up(), front.tls.clone());
                    let service = service_fn(move |request| {
                        let (front, hang_up) = (Arc::clone(&front), hang_up.clone());
                        async move { Ok::<_, Infallible>(front.answer(request, client, hang_up).await) }
                    });
                    let Some(tls) = tls else { return serve(line, timeouts, http, service, shutdown).await };
                    match tokio::time::timeout(timeouts.header, tls.accept(line)).await {
                        Ok(Ok(stream)) => serve(stream, timeouts, http, service, shutdown).await,
                        Ok(Err(error)) => debug!(%error, "A connection did not speak TLS"),
                        Err(_) => debug!("A connection took too long for its TLS handshake"),
                    }
                });
            }
            // Most of all: no descriptor is free. Those who are connected are served on.
            Err(error) => {
                if let Some(left_out) = log_due("accept_failed") {
                    warn!(%error, left_out, "Cannot accept a connection, retrying");
                }
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

async fn serve<S>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    timeouts: Timeouts,
    mut http: http1::Builder,
    service: S,
    shutdown: CancellationToken,
) where
    S: HttpService<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Send + 'static,
{
    let (stream, timer) = timeouts.watch(stream);
    let connection = http.timer(timer).serve_connection(TokioIo::new(stream), service).with_upgrades();
    drop(http);
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
