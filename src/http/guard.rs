//! What stands before every handler: who is let in at all, from where it comes, which key it shows, and how often.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use http::header::{HOST, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::Problem;
use super::problem::Refusal;
use crate::access::{Access, Caller, ClientAddress, Refused, Resource, Stranger};
use crate::limits::{Left, Rate, Seats, site};
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
    /// Where the engine answers: not a page.
    pub socket_path: Arc<str>,
}

impl Guard {
    fn resource(&self, request: &Request) -> Resource {
        let path = request.uri().path();
        let below_engine =
            path.strip_prefix(&*self.socket_path).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        match below_engine {
            _ if request.method() != Method::GET && request.method() != Method::HEAD => Resource::Action,
            Some("" | "/") => Resource::Action,
            Some(_) => Resource::ClientFile,
            None if path.starts_with("/client/") => Resource::ClientFile,
            None if path == "/api" || path.starts_with("/api/") => Resource::Action,
            None => Resource::Page,
        }
    }
}

/// Refuses a request that names two hosts: somebody between may have looked at the other one. The host of an absolute URI is
/// that of the request (RFC 9112 section 3.2.2).
pub fn check_host(request: &mut Request) -> Option<Response> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    let contradiction = match request.uri().authority() {
        _ if another.is_some() => "it has two Host headers",
        None => return None,
        Some(authority) => match host {
            Some(host) if is_same_host(request.uri().scheme_str(), authority.as_str(), host) => return None,
            Some(_) => "its Host is not that of its URI",
            None => {
                let host = HeaderValue::from_str(authority.as_str());
                request.headers_mut().insert(HOST, host.expect("an authority is plain ASCII"));
                return None;
            }
        },
    };
    Some(Problem::bad_request("invalid_host", contradiction).into_response())
}

fn is_same_host(scheme: Option<&str>, authority: &str, host: &HeaderValue) -> bool {
    let port = if scheme == Some("https") { ":443" } else { ":80" };
    let without_port = |host: &'_ str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    host.to_str().is_ok_and(|host| without_port(host) == without_port(authority))
}

/// Lets a request from the other end of a connection in, or returns the refusal.
pub fn admit(guard: &Guard, peer: IpAddr, request: &mut Request) -> Option<Response> {
    if let Err(stranger) = guard.access.admit(request.headers(), guard.resource(request))
        && !(stranger == Stranger::Host && is_bare_health_check(request))
    {
        let problem = Problem::new(StatusCode::FORBIDDEN, stranger.code(), stranger.to_string());
        return Some(problem.logged(stranger.to_string()).into_response());
    }
    let client = ClientAddress(guard.access.client_address(peer, request.headers()));
    request.extensions_mut().insert(client);
    None
}

/// Whether this is what old load balancers send: HTTP/1.0 and no Host, which no browser can leave out. The answer says no more
/// than that the service is there.
fn is_bare_health_check(request: &Request) -> bool {
    !request.headers().contains_key(HOST) && matches!(request.uri().path(), "/healthz" | "/readyz")
}

/// Counts a refused request, and says in the log why and whom it is from, at most one line a second for each reason: clients
/// must not be able to fill the disk. What is not there is counted alone.
pub fn trace_refusal(peer: IpAddr, client: Option<ClientAddress>, response: &Response) {
    let Some(Refusal { reason, token, log }) = response.extensions().get() else { return };
    metrics::refused(reason);
    if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
        return;
    }
    let address = client.map_or(peer, |ClientAddress(address)| address);
    let why = log.as_deref();
    let refused = Refused { what: "a request", code: reason, kind: reason, why, address: Some(address) };
    refused.warn(token.as_ref());
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
        let detail =
            "this address has the most sockets that are allowed; behind a proxy the service needs --trusted-proxies";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_sockets", detail);
        let mut response = problem.logged("its address has --max-sockets-per-address already").into_response();
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
