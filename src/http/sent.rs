//! What became of a push, and how to take it back.

use axum::extract::{Path, State, rejection::PathRejection};
use axum::{Extension, Json};
use http::Uri;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::checked_key;
use super::inbox::{limit, parse_token, text_of};
use super::problem::ProblemBody;
use super::query::{Parameters, Params, without_parameters};
use super::{App, Problem};
use crate::access::{Caller, Scope};
use crate::notification::timestamp;
use crate::store;

/// Which recipients to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RecipientParams {
    /// Only tokens after this one: the `next` of the previous page.
    after: Option<String>,
    /// Most recipients of the page, from 1 up to `--page`.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 4_294_967_295_i64, default = 50)]
    limit: Option<u32>,
}

impl Parameters for RecipientParams {
    const NAMES: &'static [&'static str] = &["after", "limit"];
}

/// Status of a push, and a page of its recipients.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sent {
    id: Uuid,
    entity_type: String,
    /// As in the push, byte for byte.
    #[schema(value_type = Value)]
    data: Box<RawValue>,
    #[schema(format = DateTime)]
    created_at: String,
    /// When it enters the inboxes, if it has not yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    deliver_at: Option<String>,
    /// Number of recipients, including scheduled ones.
    sent: i64,
    /// Recipients who have it on a device.
    delivered: i64,
    /// Recipients who have read it.
    read: i64,
    /// Recipients from whose inbox it was retracted.
    retracted: i64,
    /// Sorted by token.
    recipients: Vec<Recipient>,
    /// The `after` of the next page; null at the end.
    next: Option<String>,
}

/// Status of a push in one inbox.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Recipient {
    token: String,
    /// Null while it is scheduled.
    seq: Option<i64>,
    #[schema(format = DateTime)]
    delivered_at: Option<String>,
    #[schema(format = DateTime)]
    read_at: Option<String>,
    #[schema(format = DateTime)]
    retracted_at: Option<String>,
}

/// Result of a retraction.
#[derive(Serialize, ToSchema)]
pub(super) struct Retracted {
    /// Number of inboxes and scheduled entries that it was removed from.
    retracted: u64,
}

/// Result of removing an actor.
#[derive(Serialize, ToSchema)]
pub(super) struct Removed {
    /// False if the actor was not in the group.
    removed: bool,
}

/// Get the status of a push
///
/// A push that joined a group is found under the id of the group, the `groupedInto` of its answer.
#[utoipa::path(get, path = "/api/notifications/{id}", tag = "notifications",
    security((), ("apiKey" = ["read"]), ("apiKeyHeader" = ["read"])),
    params(("id" = Uuid, Path, description = "The `id` in the answer to the push"), RecipientParams),
    responses((status = 200, body = Sent, description = "The status"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    params: Result<Params<RecipientParams>, Problem>,
) -> Result<Json<Sent>, Problem> {
    app.producer(&caller, Scope::Read)?;
    let id = path_id(id)?;
    let Params(params) = params?;
    let limit = limit(params.limit, app.limits.page)?;
    let after = params.after.unwrap_or_default();
    if after.contains('\0') {
        return Err(Problem::bad_request("invalid_query", "after contains the NUL character"));
    }
    let sent = app.inbox.sent(id, &after, limit).await.map_err(|error| Problem::store(&error))?;
    let store::Sent { content, deliver_at, totals, recipients } = sent.ok_or_else(unknown)?;
    let next = recipients.rows.last().filter(|_| recipients.more).map(|row| row.token.as_str().to_owned());
    let recipients = recipients.rows.into_iter().map(|row| Recipient {
        token: row.token.as_str().to_owned(),
        seq: row.seq,
        delivered_at: text_of(row.delivered_at),
        read_at: text_of(row.read_at),
        retracted_at: text_of(row.retracted_at),
    });
    Ok(Json(Sent {
        id,
        entity_type: content.entity_type,
        data: content.data,
        created_at: timestamp(content.created_at),
        deliver_at: text_of(deliver_at),
        sent: totals.sent,
        delivered: totals.delivered,
        read: totals.read,
        retracted: totals.retracted,
        recipients: recipients.collect(),
        next,
    }))
}

/// Retract a push
///
/// Removes it from every inbox and from the schedule; it is never replayed, and connected clients are told. Repeating it
/// changes nothing. A push that joined a group has the id of the group, the `groupedInto` of its answer; under that id the
/// whole group is retracted.
#[utoipa::path(delete, path = "/api/notifications/{id}", tag = "notifications",
    security((), ("apiKey" = ["push"]), ("apiKeyHeader" = ["push"])),
    params(("id" = Uuid, Path, description = "The `id` in the answer to the push")),
    responses((status = 200, body = Retracted, description = "It is retracted"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn retract(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Retracted>, Problem> {
    app.producer(&caller, Scope::Push)?;
    without_parameters(&uri)?;
    let id = path_id(id)?;
    let retracted = app.inbox.retract(id).await.map_err(|error| Problem::write(&error))?;
    if retracted == 0 && app.inbox.sent(id, "", 1).await.map_err(|error| Problem::store(&error))?.is_none() {
        return Err(unknown());
    }
    Ok(Json(Retracted { retracted }))
}

/// Remove an actor from a group
///
/// The un-like: the newest notification of the group, read or unread, loses the actor, and is retracted with its last actor.
/// Older notifications of the group are not changed.
#[utoipa::path(delete, path = "/api/groups/{token}/{groupKey}/actors/{actor}", tag = "notifications",
    security((), ("apiKey" = ["push"]), ("apiKeyHeader" = ["push"])),
    params(("token" = String, Path, description = "The inbox"), ("groupKey" = String, Path, description = "The `groupKey` of the pushes"),
        ("actor" = String, Path, description = "The `actor` to remove")),
    responses((status = 200, body = Removed, description = "Whether it was removed"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn ungroup(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    path: Result<Path<(String, String, String)>, PathRejection>,
) -> Result<Json<Removed>, Problem> {
    app.producer(&caller, Scope::Push)?;
    without_parameters(&uri)?;
    let Path((token, key, actor)) = path.map_err(|error| Problem::bad_request("invalid_path", error.body_text()))?;
    let token = parse_token(&token, &app.limits)?;
    let key = checked_key(&key, "groupKey", &app.limits)?;
    let actor = checked_key(&actor, "actor", &app.limits)?;
    let removed = app.inbox.ungroup(token, key, actor).await.map_err(|error| Problem::write(&error))?;
    Ok(Json(Removed { removed }))
}

/// An id in a path. A text that is none is the id of nothing.
fn path_id(id: Result<Path<String>, PathRejection>) -> Result<Uuid, Problem> {
    let Path(text) = id.map_err(|error| Problem::bad_request("invalid_path", error.body_text()))?;
    Uuid::try_parse(&text).map_err(|_| unknown())
}

fn unknown() -> Problem {
    Problem::new(http::StatusCode::NOT_FOUND, "not_found", "no notification has this id")
}
