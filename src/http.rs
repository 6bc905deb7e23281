//! HTTP: the push, the inbox, health, and the pages. Handlers take a request apart, make one call, and put the answer together.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chrono::Utc;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{Access, Caller, Denied, Scope, is_for_this_machine};
use crate::inbox::Inbox;
use crate::metrics;
use crate::notification::Token;

mod body;
mod docs;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guard;
mod inbox;
mod pages;
mod problem;
mod push;
mod query;
mod sent;
mod sessions;

pub use guard::{Guard, Quota, admit, check_host, identify, seat, trace_refusal};
pub use problem::Problem;

/// Every bound of what requests say.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Tokens of a push.
    pub tokens: usize,
    /// Bytes of a token.
    pub token_bytes: usize,
    /// Bytes of `entityType`.
    pub entity_type_bytes: usize,
    /// Bytes of `collapseKey`, `groupKey` and `actor`.
    pub key_bytes: usize,
    /// Ids of a receipt.
    pub receipt_ids: usize,
    /// Bytes of `data`.
    pub data_bytes: usize,
    /// Levels of `data`.
    pub depth: usize,
    /// How far ahead `deliverAt` may be.
    pub delay: Duration,
    /// Rows of one page of a list.
    pub page: u32,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
}

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    inbox: Arc<Inbox>,
    access: Arc<Access>,
    limits: Arc<Limits>,
    /// Cancelled when the service begins to stop.
    stopping: CancellationToken,
}

impl App {
    /// The state of the handlers.
    #[must_use]
    pub fn new(inbox: Arc<Inbox>, access: Arc<Access>, limits: Limits, stopping: CancellationToken) -> Self {
        Self { inbox, access, limits: Arc::new(limits), stopping }
    }

    /// The name of the producer that a request is from, if its key is good for this.
    fn producer(&self, caller: &Caller, scope: Scope) -> Result<String, Problem> {
        caller.may(scope).map(str::to_owned).ok_or_else(|| Problem::denied(scope))
    }

    /// Lets a producer or the user of the inbox in.
    fn owner(&self, caller: &Caller, headers: &HeaderMap, token: &Token, scope: Scope) -> Result<(), Problem> {
        if matches!(caller, Caller::Producer { .. }) && caller.may(scope).is_some() {
            return Ok(());
        }
        let denied = |denied: Denied| Problem::denied(scope).about(token).logged(denied.to_string());
        self.access.user(caller, headers, token, Utc::now()).map_err(denied)
    }
}

/// Everything but the sockets; `socket_path` is where the client bundles are served. To be behind [`admit`] and
/// [`identify`], before [`protect`].
pub fn router(app: App, socket_path: &str) -> Router {
    let (api, document) = OpenApiRouter::with_openapi(docs::Document::openapi())
        .routes(routes!(push::push, push::alive))
        .routes(routes!(inbox::list, inbox::erase))
        .routes(routes!(inbox::counts))
        .routes(routes!(inbox::read))
        .routes(routes!(inbox::unread))
        .routes(routes!(sent::show, sent::retract))
        .routes(routes!(sent::ungroup))
        .routes(routes!(sessions::disconnect))
        .split_for_parts();
    api.merge(docs::router(&document))
        // The server that this one follows took both.
        .route("/api/", get(push::alive).post(push::push))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .merge(pages::router(socket_path))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not support this method")
        })
        .with_state(app)
}

/// Tells browsers and caches what an answer is not to be used for, refusals too; with `tls` it also says that nothing is to be asked
/// without.
pub fn protect(response: &mut Response, tls: bool) {
    let mut set = |name: HeaderName, value| {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    };
    // Most answers are about somebody. What may be kept says so itself.
    set(CACHE_CONTROL, "no-store");
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(REFERRER_POLICY, "no-referrer");
    set(X_FRAME_OPTIONS, "DENY");
    // Pages have policies of their own; nothing else is a page.
    set(CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'");
    if tls {
        set(STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
}

/// What is for operators alone, on a listener of its own. If that is for this machine alone, `local`, a page that rebinds
/// its name gets nothing.
pub fn admin_router(local: bool) -> Router {
    let text = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let router = Router::new()
        .route("/metrics", get(move || async move { (text, metrics::render()) }))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found", "only /metrics is served here") });
    if local { router.layer(from_fn(for_this_machine)) } else { router }
}

async fn for_this_machine(request: Request, next: Next) -> Response {
    if is_for_this_machine(request.headers()) {
        return next.run(request).await;
    }
    Problem::new(StatusCode::FORBIDDEN, "foreign_host", "its Host does not name this machine").into_response()
}

/// 200 if a push would probably work: the database answers and could write, and the service is not stopping.
async fn ready(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    if app.stopping.is_cancelled() {
        return Err(Problem::draining());
    }
    app.inbox.ping().await.map_err(|error| Problem::store(&error))?;
    Ok("ready")
}
