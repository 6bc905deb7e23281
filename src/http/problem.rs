//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::json;
use tracing::error;
use utoipa::{ToResponse, ToSchema};

use crate::access::Scope;
use crate::limits::log_due;
use crate::notification::Token;
use crate::store::{self, WriterError};

/// The body of an error answer.
#[derive(ToSchema, ToResponse)]
#[response(description = "The request was refused; `code` says why", content_type = "application/problem+json")]
#[expect(dead_code, reason = "it only describes what is answered")]
pub(super) struct ProblemBody {
    /// Always `about:blank`.
    r#type: String,
    /// Reason phrase of the status.
    title: String,
    status: u16,
    /// What is wrong, where, and how to mend it, for people.
    detail: String,
    /// What is wrong, for programs.
    code: String,
}

/// An error answer. `detail` is for the client: it says what is wrong and where, and never what the server knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: String,
    /// Whose inbox it is about.
    token: Option<Token>,
    /// For operators: what the log says of it, besides its code.
    log: Option<String>,
}

/// What the log and the metrics have of a refused request: it stands in the extensions of its answer.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) token: Option<Token>,
    pub(super) log: Option<String>,
}

/// How long a client should wait before it tries again, in seconds.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

impl Problem {
    /// An error answer with a stable code.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), token: None, log: None }
    }

    /// Tells the log whose inbox it is about.
    pub(super) fn about(self, token: &Token) -> Self {
        Self { token: Some(token.clone()), ..self }
    }

    /// Tells the log, and not the client, what an operator can do. It holds nothing of the request.
    pub(super) fn logged(self, log: impl Into<String>) -> Self {
        Self { log: Some(log.into()), ..self }
    }

    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(super) fn too_large(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail)
    }

    pub(super) fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    /// One answer for every credential that is missing, wrong, too old, or good for something else.
    pub(super) fn denied(scope: Scope) -> Self {
        let detail = format!(
            "a valid API key with the scope {} is needed (Authorization: Bearer or X-Api-Key), or for an inbox its user's login",
            scope.name()
        );
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    pub(super) fn draining() -> Self {
        Self::unavailable("draining", "the service is stopping")
    }

    /// What it means for the client that the writer did not do something.
    pub(super) fn write(error: &WriterError) -> Self {
        match error {
            WriterError::Busy => {
                Self::unavailable("busy", "too many changes wait to be stored; nothing was changed, try again later")
            }
            WriterError::Stopped => Self::draining(),
            WriterError::Unfinished => Self::unavailable(
                "unfinished",
                "the change affects many notifications and is still in progress; repeat the request to be answered when it is complete",
            ),
            WriterError::Store(failure) => Self::store(failure),
        }
    }

    /// What a failure of the database means for the client; logs the failure itself, at most a line a second of each kind.
    pub(super) fn store(failure: &store::Error) -> Self {
        let problem = Self::of_store(failure);
        if let Some(left_out) = log_due(problem.code) {
            error!(error = %failure, left_out, "The database failed a request");
        }
        problem
    }

    fn of_store(failure: &store::Error) -> Self {
        match failure {
            store::Error::StorageFull => {
                Self::unavailable("storage_full", "the disk is full; nothing was changed, try again later")
            }
            store::Error::Unavailable(_) => Self::unavailable(
                "storage_unavailable",
                "the database does not answer; nothing was changed, try again later",
            ),
            store::Error::OutcomeUnknown(_) => Self::unavailable(
                "outcome_unknown",
                "it may be stored or not; the same request again settles it, for a push with the same Idempotency-Key",
            ),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECS);
        }
        if self.status.is_client_error() {
            let refusal = Refusal { reason: self.code, token: self.token, log: self.log };
            response.extensions_mut().insert(refusal);
        }
        response
    }
}
