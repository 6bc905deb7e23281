//! What stands before every handler: who is let in at all, from where it comes, which key it shows, and how often.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tracing::warn;

use super::Problem;
use crate::access::{Access, Caller, ClientAddress};
use crate::limits::{Left, Quiet, Rate, Seats, site};
use crate::metrics;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How long somebody with too many sockets should wait, in seconds: one of them has to go first.
const RETRY_SOCKET_SECS: HeaderValue = HeaderValue::from_static("10");

/// What the guards share.
#[derive(Clone)]
pub struct Guard {
    /// Who may do what.
    pub access: Arc<Access>,
    /// Requests a second by API key.
    pub key_rate: Arc<Rate>,
    /// Requests and new sockets a second by address, of those without a key.
    pub address_rate: Arc<Rate>,
    /// Sockets by address.
    pub sockets: Seats,
    /// Of refused requests and sockets: whoever may not come in shall not fill the disk either.
    pub refusals: Arc<Quiet>,
}

/// Lets a request from the other end of a connection in; or returns the refusal, with a line in the log that names the
/// flag, at most one of a kind a second.
pub fn admit(guard: &Guard, peer: IpAddr, request: &mut Request) -> Option<Response> {
    if let Err(stranger) = guard.access.admit(request.headers()) {
        if let Some(left_out) = guard.refusals.due(stranger.code(), Instant::now()) {
            warn!(code = stranger.code(), left_out, "Refused a request: {stranger}");
        }
        return Some(Problem::new(StatusCode::FORBIDDEN, stranger.code(), stranger.to_string()).into_response());
    }
    let client = ClientAddress(guard.access.client_address(peer, request.headers()));
    request.extensions_mut().insert(client);
    None
}

/// How often the caller of a request may still ask, to be told with the answer.
pub struct Quota(&'static str, Left);

impl Quota {
    /// Adds it to the headers of an answer.
    pub fn tell(self, response: &mut Response) {
        tell(response, self.0, self.1);
    }

    /// The answer when nothing is left of it.
    #[must_use]
    pub fn refusal(&self) -> Response {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", too_many(self.0)).into_response()
    }
}

/// Finds out which key a request of the API shows, and what is left of its rate, if it has one. Handlers find a [`Caller`]
/// in it. A plain function: as a layer it would box each request and each answer once more.
///
/// # Errors
/// The request comes too soon: nothing is left.
pub fn identify(guard: &Guard, peer: IpAddr, request: &mut Request) -> Result<Option<Quota>, Quota> {
    let path = request.uri().path();
    if !(path == "/api" || path.starts_with("/api/")) || request.method() == Method::OPTIONS {
        return Ok(None);
    }
    let address = request.extensions().get().map_or(peer, |ClientAddress(address)| *address);
    let caller = guard.access.caller(request.headers(), Utc::now());
    let (policy, left) = match &caller {
        Caller::Anyone => ("none", None),
        Caller::Producer { name, .. } => ("key", guard.key_rate.count(name)),
        Caller::Unknown => ("address", guard.address_rate.count(&site(address).to_string())),
    };
    let quota = left.map(|left| Quota(policy, left));
    if let Some(quota @ Quota(_, Left { retry_after: Some(_), .. })) = quota {
        metrics::limited(policy);
        return Err(quota);
    }
    request.extensions_mut().insert(caller);
    Ok(quota)
}

/// Takes a seat for a new socket, or refuses it. The seat goes with the request.
pub async fn seat(
    State(guard): State<Guard>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    mut request: Request,
    next: Next,
) -> Response {
    let query = request.uri().query().unwrap_or_default();
    if query.split('&').any(|pair| pair.starts_with("sid=")) {
        return next.run(request).await;
    }
    let left = match guard.access.caller(request.headers(), Utc::now()) {
        Caller::Unknown => guard.address_rate.count(&site(address).to_string()),
        Caller::Anyone | Caller::Producer { .. } => None,
    };
    if let Some(left) = left.filter(|left| left.retry_after.is_some()) {
        metrics::limited("address");
        let mut response =
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", too_many("address")).into_response();
        tell(&mut response, "address", left);
        return response;
    }
    let Some(seat) = guard.sockets.take(address) else {
        metrics::limited("sockets");
        if let Some(left_out) = guard.refusals.due("sockets", Instant::now()) {
            warn!(%address, left_out, "Refused a socket: its address has --max-sockets-per-address already");
        }
        let detail = "this address has as many sockets as it may; behind a proxy the service needs --trusted-proxies";
        let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_sockets", detail).into_response();
        response.headers_mut().insert(RETRY_AFTER, RETRY_SOCKET_SECS);
        return response;
    };
    request.extensions_mut().insert(seat);
    next.run(request).await
}

fn too_many(policy: &str) -> &'static str {
    match policy {
        "key" => "this API key is used more often than it may be",
        _ => "this address asks more often than it may",
    }
}

/// As in draft-ietf-httpapi-ratelimit-headers-10.
fn tell(response: &mut Response, policy: &str, left: Left) {
    let Left { quota, window_secs, remaining, retry_after } = left;
    // Rounded up: asking a little later is fine, a little earlier is not.
    let wait = retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
    let reset = wait.unwrap_or(0);
    let headers = response.headers_mut();
    let mut set = |name, text: String| headers.insert(name, HeaderValue::try_from(text).expect("plain ASCII"));
    set(RATE_LIMIT_POLICY, format!("\"{policy}\";q={quota};w={window_secs}"));
    set(RATE_LIMIT, format!("\"{policy}\";r={remaining};t={reset}"));
    if let Some(wait) = wait {
        set(RETRY_AFTER, wait.max(1).to_string());
    }
}
