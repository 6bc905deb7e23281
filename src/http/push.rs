//! `POST /api`: the push.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use chrono::Utc;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Array, Object, OneOfBuilder, Schema, SchemaType, Type};
use uuid::Uuid;

use super::body::{Parsed, Warning, parse, receive};
use super::problem::ProblemBody;
use super::query::without_parameters;
use super::{App, Problem};
use crate::access::{Caller, Scope};
use crate::inbox::PushError;
use crate::metrics;
use crate::notification::{Placed, Pushed, Token};
use crate::store::IdempotencyKey;

/// The longest idempotency key, in characters.
const MAX_KEY_LEN: usize = 255;

/// The answer to a push. `responseCode` and `data` are what backends of the old contract look at.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    /// Always 0.
    response_code: u8,
    /// Always `OK!`.
    data: &'static str,
    /// Id of the push; missing if it had no tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    /// Number of inboxes it was stored in or scheduled for.
    accepted: usize,
    /// One entry per token, in the order of the request.
    results: Vec<PlacedIn>,
    /// Fields that were not understood, and whether the push reached nobody. Missing if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

/// Result of a push for one inbox.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PlacedIn {
    token: String,
    /// Position in the inbox. Missing if the push is scheduled or ephemeral.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<i64>,
    /// Id of the notification that it joined by its `groupKey`; status and retraction are under that id.
    #[serde(skip_serializing_if = "Option::is_none")]
    grouped_into: Option<Uuid>,
}

impl Answer {
    fn new(pushed: Option<Pushed>, warnings: Vec<Warning>) -> Self {
        let (id, results) = pushed.map_or((None, Vec::new()), |pushed| (Some(pushed.id), pushed.results));
        let placed = |Placed { token, seq, grouped_into }: Placed| PlacedIn {
            token: token.as_str().to_owned(),
            seq,
            grouped_into,
        };
        let results: Vec<_> = results.into_iter().map(placed).collect();
        Self { response_code: 0, data: "OK!", id, accepted: results.len(), results, warnings }
    }
}

/// A notification and its recipients.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "it only describes what the parser takes")]
pub(super) struct PushBody {
    /// The inboxes: a string, an integer, or an array of those; duplicates count once. Without any the push reaches nobody.
    #[schema(schema_with = tokens_schema)]
    tokens: Option<Vec<Token>>,
    /// Kind of the notification; `""` by default.
    entity_type: Option<String>,
    /// Any JSON, stored and returned byte for byte; `{}` by default. The inbox element shows these fields of it, all optional:
    /// `title`, `body` (or `text`, `message`), `url`, `icon` (or `image`), `actor: {name, avatar}`, `actions: [{label, url}]`
    /// (at most 2).
    data: Option<Value>,
    /// Seconds until it expires; 0 makes it ephemeral: sent to connected sessions and never stored.
    #[schema(minimum = 0, maximum = 4_294_967_295_i64)]
    ttl: Option<i64>,
    /// Replaces the unread notification with the same key.
    collapse_key: Option<String>,
    /// Joins the unread notification with the same key.
    group_key: Option<String>,
    /// The actor, who counts once in a group.
    actor: Option<String>,
    /// When it enters the inboxes, at most `--max-delay-days` ahead; `ttl` counts from then.
    #[schema(format = DateTime)]
    deliver_at: Option<String>,
}

/// The same as a form.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "it only describes what the parser takes")]
pub(super) struct PushForm {
    /// One field per token, also as `tokens[]` or `tokens[0]`, or one JSON array; duplicates count once.
    #[schema(value_type = Option<Vec<String>>)]
    tokens: Option<Vec<Token>>,
    /// Kind of the notification; `""` by default.
    entity_type: Option<String>,
    /// A string, or in a multipart form a part of type `application/json`; `{}` by default.
    data: Option<String>,
    /// Seconds until it expires; 0 makes it ephemeral: sent to connected sessions and never stored.
    #[schema(minimum = 0, maximum = 4_294_967_295_i64)]
    ttl: Option<i64>,
    /// Replaces the unread notification with the same key.
    collapse_key: Option<String>,
    /// Joins the unread notification with the same key.
    group_key: Option<String>,
    /// The actor, who counts once in a group.
    actor: Option<String>,
    /// When it enters the inboxes, at most `--max-delay-days` ahead; `ttl` counts from then.
    #[schema(format = DateTime)]
    deliver_at: Option<String>,
}

fn tokens_schema() -> Schema {
    let one = [Type::String, Type::Integer];
    let list = Array::new(Object::with_type(SchemaType::from_iter(one.clone())));
    let alone = Object::with_type(SchemaType::from_iter(one));
    OneOfBuilder::new().item(alone).item(list).build().into()
}

/// Push a notification
///
/// Answers after one row per token is durable. With an `Idempotency-Key` a retry gets the same answer and stores nothing again.
/// The body is UTF-8, plain or with `Content-Encoding: gzip` or `deflate`. Unknown fields are ignored, and the
/// `warnings` of the answer name them; if one of them should have named the recipients, the push is refused.
#[utoipa::path(post, path = "/api", tag = "push",
    request_body(content((PushBody = "application/json"), (PushForm = "application/x-www-form-urlencoded"), (PushForm = "multipart/form-data"))),
    security((), ("apiKey" = ["push"]), ("apiKeyHeader" = ["push"])),
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses((status = 200, body = Answer, description = "Stored, or sent to connected sessions"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn push(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Answer>, Problem> {
    let answer = store(&app, &caller, request).await;
    metrics::pushed(answer.as_ref().map_or_else(|problem| problem.code, |_| "stored"));
    answer
}

/// Ping
#[utoipa::path(get, path = "/api", tag = "push", responses((status = 200, body = String, description = "A dot")))]
pub(super) async fn alive() -> &'static str {
    "."
}

async fn store(app: &App, caller: &Caller, request: Request) -> Result<Json<Answer>, Problem> {
    let (parts, body) = request.into_parts();
    let owner = app.producer(caller, Scope::Push)?;
    without_parameters(&parts.uri)?;
    let key = idempotency_key(&parts.headers)?;
    let body = receive(&parts.headers, body, &app.limits).await?;
    let Parsed { push, warnings, is_doubtful } = parse(&body, &app.limits, Utc::now())?;
    // A push that may have been misread leaves its key for the corrected one.
    let key = key.filter(|_| !is_doubtful).map(|key| IdempotencyKey { owner, key, body_sha256: body.sha256() });
    if push.tokens.is_empty() && key.is_none() {
        return Ok(Json(Answer::new(None, warnings)));
    }
    let nobody = push.tokens.is_empty();
    let pushed = app.inbox.push(push, key).await.map_err(|error| problem(&error))?;
    Ok(Json(Answer::new(Some(pushed).filter(|_| !nobody), warnings)))
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

fn problem(error: &PushError) -> Problem {
    match error {
        PushError::KeyInFlight => Problem::new(StatusCode::CONFLICT, "idempotency_in_flight", error.to_string()),
        PushError::KeyMismatch => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch", error.to_string())
        }
        PushError::Writer(error) => Problem::write(error),
    }
}
