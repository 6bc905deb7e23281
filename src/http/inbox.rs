//! The inbox of one user, for backends and for the user's own page: list, count, mark, erase.

use axum::extract::{Path, Request, State, rejection::PathRejection};
use axum::{Extension, Json};
use chrono::{DateTime, Utc};
use http::{HeaderMap, Uri};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::read_json;
use super::problem::ProblemBody;
use super::query::{Parameters, Params, without_parameters};
use super::{App, Limits, Problem};
use crate::access::{Caller, Scope};
use crate::inbox::Listed;
use crate::notification::{self, ReceiptKind, Rev, Selection, Token, TokenError, timestamp};
use crate::store::{Entry, ListQuery, MAX_TYPES};

/// Items of a page unless the caller asks for fewer or more.
const DEFAULT_LIMIT: u32 = 50;

/// Filters and page of a list.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// `true` for unread notifications only, `false` for read ones only.
    unread: Option<bool>,
    /// Only notifications of this type.
    entity_type: Option<String>,
    /// Only notifications below this `seq`: the `next` of the previous page.
    #[param(minimum = 0)]
    before: Option<i64>,
    /// Most notifications of the page, from 1 up to `--page`.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 4_294_967_295_i64, default = 50)]
    limit: Option<u32>,
}

impl Parameters for ListParams {
    const NAMES: &'static [&'static str] = &["unread", "entityType", "before", "limit"];
}

/// A page of an inbox, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct InboxPage {
    items: Vec<Item>,
    /// The `before` of the next page; null at the end.
    next: Option<i64>,
    /// A rev at or before the state of the page: a cursor for `user_login`.
    rev: i64,
    /// Unread notifications in the whole inbox.
    unread: i64,
    /// The data set that `rev` belongs to.
    epoch: String,
}

/// A notification in an inbox.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item {
    id: Uuid,
    seq: i64,
    entity_type: String,
    /// As in the push, byte for byte.
    #[schema(value_type = Value)]
    data: Box<RawValue>,
    #[schema(format = DateTime)]
    created_at: String,
    /// When a device acked it.
    #[schema(format = DateTime)]
    delivered_at: Option<String>,
    /// When it was read.
    #[schema(format = DateTime)]
    read_at: Option<String>,
    /// When it expires.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<Group>,
}

/// The pushes that a group stands for.
#[derive(Serialize, ToSchema)]
pub(super) struct Group {
    key: String,
    /// Distinct actors; a push without an actor counts as one more.
    count: i64,
    /// The last three, newest first.
    actors: Vec<String>,
}

impl From<Entry> for Item {
    fn from(Entry { notification, delivered_at, read_at, expires_at }: Entry) -> Self {
        let content = &notification.content;
        let group = notification.group.as_deref().cloned();
        Self {
            id: content.id,
            seq: notification.seq,
            entity_type: content.entity_type.clone(),
            data: content.data.clone(),
            created_at: timestamp(content.created_at),
            delivered_at: delivered_at.map(timestamp),
            read_at: read_at.map(timestamp),
            expires_at: expires_at.map(timestamp),
            group: group.map(|notification::Group { key, count, actors }| Group { key, count, actors }),
        }
    }
}

/// Unread notifications of an inbox.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Counts {
    unread: i64,
    /// By `entityType`, for the 1,000 types with the most.
    by_type: BTreeMap<String, i64>,
}

/// An inbox after a change.
#[derive(Serialize, ToSchema)]
pub(super) struct Head {
    rev: i64,
    unread: i64,
}

/// Result of erasing a user.
#[derive(Serialize, ToSchema)]
pub(super) struct Erased {
    /// Number of notifications, including scheduled ones.
    erased: u64,
}

/// The notifications to mark: exactly one of the three.
#[derive(ToSchema)]
#[serde(untagged, rename_all_fields = "camelCase")]
#[expect(dead_code, reason = "it only describes what Selection::parse takes")]
pub(super) enum ReadBody {
    /// Those with these ids.
    Ids { ids: Vec<Uuid> },
    /// Those up to and including this `seq`.
    UpTo {
        #[schema(minimum = 0, rename = "upTo")]
        up_to: i64,
    },
    /// All of them; must be `true`.
    All {
        #[schema(schema_with = only_true)]
        all: bool,
    },
}

fn only_true() -> Object {
    ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true])).build()
}

/// The notifications to mark.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes what Selection::parse takes")]
pub(super) struct UnreadBody {
    /// Those with these ids.
    ids: Vec<Uuid>,
}

/// List an inbox
///
/// Newest first, without retracted and expired notifications. Pages do not shift while new ones arrive.
#[utoipa::path(get, path = "/api/inbox/{token}", tag = "inbox",
    security((), ("apiKey" = ["read"]), ("apiKeyHeader" = ["read"]), ("login" = []), ("jwt" = [])),
    params(("token" = String, Path, description = "The inbox"), ListParams),
    responses((status = 200, body = InboxPage, description = "A page"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    token: Result<Path<String>, PathRejection>,
    params: Result<Params<ListParams>, Problem>,
) -> Result<Json<InboxPage>, Problem> {
    let token = path_token(token, &app.limits)?;
    app.owner(&caller, &headers, &token, Scope::Read)?;
    let Params(params) = params?;
    let limit = limit(params.limit, app.limits.page)?;
    if params.entity_type.as_ref().is_some_and(|text| text.contains('\0')) {
        return Err(Problem::bad_request("invalid_query", "entityType contains the NUL character"));
    }
    if params.before.is_some_and(|before| before < 0) {
        return Err(Problem::bad_request("invalid_query", "before must be a seq: an integer, 0 or more"));
    }
    let query = ListQuery {
        token: &token,
        before: params.before.unwrap_or(Rev::MAX),
        above: 0,
        unread: params.unread,
        entity_type: params.entity_type.as_deref(),
        limit,
        now: Utc::now(),
    };
    let Listed { head, epoch, rows, next } = app.inbox.list(&query).await.map_err(|error| Problem::store(&error))?;
    let items = rows.into_iter().map(Item::from).collect();
    Ok(Json(InboxPage { items, next, rev: head.rev, unread: head.unread, epoch: epoch.to_string() }))
}

/// Count unread notifications
#[utoipa::path(get, path = "/api/inbox/{token}/counts", tag = "inbox",
    security((), ("apiKey" = ["read"]), ("apiKeyHeader" = ["read"]), ("login" = []), ("jwt" = [])),
    params(("token" = String, Path, description = "The inbox")),
    responses((status = 200, body = Counts, description = "The counts"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn counts(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    uri: Uri,
    token: Result<Path<String>, PathRejection>,
) -> Result<Json<Counts>, Problem> {
    let token = path_token(token, &app.limits)?;
    app.owner(&caller, &headers, &token, Scope::Read)?;
    without_parameters(&uri)?;
    let by_type = app.inbox.counts(&token).await.map_err(|error| Problem::store(&error))?;
    let unread = match i64::try_from(by_type.len()) {
        Ok(types) if types < MAX_TYPES => by_type.iter().map(|count| count.unread).sum(),
        _ => app.inbox.head(&token).await.map_err(|error| Problem::store(&error))?.0.unread,
    };
    let by_type = by_type.into_iter().map(|count| (count.entity_type, count.unread)).collect();
    Ok(Json(Counts { unread, by_type }))
}

/// Mark notifications read
///
/// Every session of the user is told. Notifications that are read already are not changed.
#[utoipa::path(post, path = "/api/inbox/{token}/read", tag = "inbox",
    security((), ("apiKey" = ["push"]), ("apiKeyHeader" = ["push"]), ("login" = []), ("jwt" = [])),
    params(("token" = String, Path, description = "The inbox")), request_body = ReadBody,
    responses((status = 200, body = Head, description = "The inbox afterwards"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn read(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    token: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Head>, Problem> {
    mark(&app, &caller, token, request, ReceiptKind::Read).await
}

/// Mark notifications unread
#[utoipa::path(post, path = "/api/inbox/{token}/unread", tag = "inbox",
    security((), ("apiKey" = ["push"]), ("apiKeyHeader" = ["push"]), ("login" = []), ("jwt" = [])),
    params(("token" = String, Path, description = "The inbox")), request_body = UnreadBody,
    responses((status = 200, body = Head, description = "The inbox afterwards"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn unread(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    token: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Head>, Problem> {
    mark(&app, &caller, token, request, ReceiptKind::Unread).await
}

async fn mark(
    app: &App,
    caller: &Caller,
    token: Result<Path<String>, PathRejection>,
    request: Request,
    kind: ReceiptKind,
) -> Result<Json<Head>, Problem> {
    let token = path_token(token, &app.limits)?;
    app.owner(caller, request.headers(), &token, Scope::Push)?;
    without_parameters(request.uri())?;
    let body = read_json(request, &app.limits).await?;
    // A bare id or list is for sockets, whose events have no fields.
    if !body.is_object() {
        return Err(Problem::bad_request("invalid_body", "the body must be a JSON object"));
    }
    let selection = Selection::parse(&body, kind).map_err(|wrong| Problem::bad_request("invalid_body", wrong))?;
    let (ids, most) = (selection.ids(), app.limits.receipt_ids);
    if ids > most {
        return Err(Problem::too_large("too_many_ids", format!("at most {most} ids at a time, these are {ids}")));
    }
    let head = app.inbox.mark(token, kind, selection).await.map_err(|error| Problem::write(&error))?;
    Ok(Json(Head { rev: head.rev, unread: head.unread }))
}

/// Erase a user
///
/// Removes every notification, counter and key of the inbox, and what is scheduled for it, and closes its sockets.
#[utoipa::path(delete, path = "/api/inbox/{token}", tag = "inbox",
    security((), ("apiKey" = ["admin"]), ("apiKeyHeader" = ["admin"])),
    params(("token" = String, Path, description = "The inbox")),
    responses((status = 200, body = Erased, description = "The user is erased"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn erase(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    token: Result<Path<String>, PathRejection>,
) -> Result<Json<Erased>, Problem> {
    let token = path_token(token, &app.limits)?;
    app.producer(&caller, Scope::Admin).map_err(|problem| problem.about(&token))?;
    without_parameters(&uri)?;
    let erased = app.inbox.erase(token).await.map_err(|error| Problem::write(&error))?;
    Ok(Json(Erased { erased }))
}

/// The token in a path.
pub(super) fn path_token(token: Result<Path<String>, PathRejection>, limits: &Limits) -> Result<Token, Problem> {
    let Path(text) = token.map_err(|error| Problem::bad_request("invalid_path", error.body_text()))?;
    parse_token(&text, limits)
}

pub(super) fn parse_token(text: &str, limits: &Limits) -> Result<Token, Problem> {
    Token::parse(text, limits.token_bytes).map_err(|error| match error {
        TokenError::TooLong { .. } => Problem::too_large("token_too_long", error.to_string()),
        TokenError::Nul | TokenError::Empty => Problem::bad_request("invalid_data", error.to_string()),
    })
}

/// How many rows a page has: what is asked for, but no more than `most`.
pub(super) fn limit(asked: Option<u32>, most: u32) -> Result<u32, Problem> {
    match asked {
        Some(0) => Err(Problem::bad_request("invalid_query", "limit must be 1 or more")),
        asked => Ok(asked.unwrap_or(DEFAULT_LIMIT).min(most)),
    }
}

/// As text, if it is there.
pub(super) fn text_of(at: Option<DateTime<Utc>>) -> Option<String> {
    at.map(timestamp)
}
