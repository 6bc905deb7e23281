//! `POST /api`: the push.

use axum::Json;
use axum::extract::{Request, State};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use serde::{Serialize, Serializer, ser::SerializeSeq};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::body::{Format, parse};
use super::{App, Problem};
use crate::inbox::PushError;
use crate::metrics;
use crate::notification::{Pushed, Rev, Token};
use crate::store::{IdempotencyKey, WriterError};

/// The longest idempotency key, in characters.
const MAX_KEY_LEN: usize = 255;

/// The answer to a push. `responseCode` and `data` are what backends of the old contract look at.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    response_code: u8,
    data: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    accepted: usize,
    #[serde(serialize_with = "results")]
    results: Vec<(Token, Rev)>,
}

impl From<Option<Pushed>> for Answer {
    fn from(pushed: Option<Pushed>) -> Self {
        let (id, results) = pushed.map_or((None, Vec::new()), |pushed| (Some(pushed.id), pushed.results));
        Self { response_code: 0, data: "OK!", id, accepted: results.len(), results }
    }
}

fn results<S: Serializer>(results: &[(Token, Rev)], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Row<'a> {
        token: &'a Token,
        seq: Rev,
    }
    let mut rows = serializer.serialize_seq(Some(results.len()))?;
    for (token, seq) in results {
        rows.serialize_element(&Row { token, seq: *seq })?;
    }
    rows.end()
}

/// Stores one notification a token and answers after they are durable.
pub(super) async fn push(State(app): State<App>, request: Request) -> Result<Json<Answer>, Problem> {
    let answer = store(&app, request).await;
    metrics::pushed(answer.as_ref().map_or_else(|problem| problem.code, |_| "stored"));
    answer
}

async fn store(app: &App, request: Request) -> Result<Json<Answer>, Problem> {
    let (parts, body) = request.into_parts();
    let format = format(&parts.headers)?;
    let key = idempotency_key(&parts.headers)?;
    let body = read(&parts.headers, body, app.limits.body_bytes).await?;
    let push = parse(format, &body, &app.limits)?;
    let key = key.map(|key| IdempotencyKey {
        // Until producers have names there is one.
        owner: String::new(),
        key,
        body_sha256: hex(&Sha256::digest(&body)),
    });
    if push.tokens.is_empty() && key.is_none() {
        return Ok(Json(None.into()));
    }
    let nobody = push.tokens.is_empty();
    let pushed = app.inbox.push(push, key).await.map_err(|error| problem(&error))?;
    Ok(Json(Some(pushed).filter(|_| !nobody).into()))
}

fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Ok(Format::Json),
        "application/x-www-form-urlencoded" => Ok(Format::Form),
        json if json.starts_with("application/") && json.ends_with("+json") => Ok(Format::Json),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Content-Type must be application/json or application/x-www-form-urlencoded",
        )),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let bytes = value.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_KEY_LEN || !bytes.iter().all(u8::is_ascii_graphic) {
        let detail = format!("Idempotency-Key must be 1 to {MAX_KEY_LEN} visible ASCII characters without spaces");
        return Err(Problem::bad_request("invalid_idempotency_key", detail));
    }
    Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
}

/// Reads at most `limit` bytes. A length that announces more is refused before anything is read.
async fn read(headers: &HeaderMap, body: axum::body::Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::too_large("body_too_large", format!("a body is at most {limit} bytes long"));
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Problem::bad_request("invalid_body", "the body ended before its announced length")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn problem(error: &PushError) -> Problem {
    match error {
        PushError::KeyInFlight => Problem::new(StatusCode::CONFLICT, "idempotency_in_flight", error.to_string()),
        PushError::KeyMismatch => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch", error.to_string())
        }
        PushError::Writer(WriterError::Busy) => {
            Problem::unavailable("busy", "too many pushes wait to be stored; nothing was stored, try again later")
        }
        PushError::Writer(WriterError::Stopped) => Problem::draining(),
        PushError::Writer(WriterError::Store(failure)) => Problem::store(failure),
    }
}
