//! HTTP: the push, the inbox, health, and the pages. Handlers take a request apart, make one call, and put the answer together.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chrono::Utc;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Access;
use crate::inbox::Inbox;
use crate::metrics;
use crate::notification::Token;

mod body;
mod docs;
mod inbox;
mod pages;
mod problem;
mod push;
mod sent;

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
    /// Bytes of `data`.
    pub data_bytes: usize,
    /// Levels of `data`.
    pub depth: usize,
    /// How far ahead `deliverAt` may be.
    pub delay: Duration,
    /// Rows of one page of a list.
    pub page: u32,
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

    /// The name of the producer that a request is from.
    fn producer(&self, headers: &HeaderMap) -> Result<String, Problem> {
        self.access.producer(headers).map_err(|_| Problem::denied())
    }

    /// Lets a producer or the user of the inbox in.
    fn owner(&self, headers: &HeaderMap, token: &Token) -> Result<(), Problem> {
        self.access.owner(headers, token, Utc::now()).map_err(|_| Problem::denied())
    }
}

/// Everything but the sockets; `socket_path` is where the client bundles are served.
pub fn router(app: App, socket_path: &str) -> Router {
    let (api, document) = OpenApiRouter::with_openapi(docs::Document::openapi())
        .routes(routes!(push::push, push::alive))
        .routes(routes!(inbox::list, inbox::erase))
        .routes(routes!(inbox::counts))
        .routes(routes!(inbox::read))
        .routes(routes!(inbox::unread))
        .routes(routes!(sent::show, sent::retract))
        .routes(routes!(sent::ungroup))
        .split_for_parts();
    api.merge(docs::router(&document))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .merge(pages::router(socket_path))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
        })
        .with_state(app)
}

/// Lets a request in, or refuses it with one line in the log that names the flag.
pub async fn admit(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(stranger) => {
            warn!(code = stranger.code(), "Refused a request: {stranger}");
            Problem::new(StatusCode::FORBIDDEN, stranger.code(), stranger.to_string()).into_response()
        }
    }
}

/// What is for operators alone, on a listener of its own.
pub fn admin_router() -> Router {
    let text = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Router::new()
        .route("/metrics", get(move || async move { (text, metrics::render()) }))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found", "there is only /metrics here") })
}

/// 200 if a push would probably work: the database answers and the service is not stopping.
async fn ready(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    if app.stopping.is_cancelled() {
        return Err(Problem::draining());
    }
    app.inbox.ping().await.map_err(|error| Problem::store(&error))?;
    Ok("ready")
}
