//! `/api/sessions`: who is connected, to be ended at once.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use http::Uri;
use serde::Serialize;
use utoipa::ToSchema;

use super::inbox::path_token;
use super::problem::ProblemBody;
use super::query::without_parameters;
use super::{App, Problem};
use crate::access::{Caller, Scope};

/// Result of disconnecting a user.
#[derive(Serialize, ToSchema)]
pub(super) struct Disconnected {
    /// Number of sockets on the node that answers; other nodes close theirs and are not counted.
    disconnected: usize,
}

/// Disconnect a user
///
/// Closes every socket of the user, on every node. A login that is still valid can open a new one, so stop signing logins for
/// the user first.
#[utoipa::path(post, path = "/api/sessions/{token}/disconnect", tag = "inbox",
    security((), ("apiKey" = ["admin"]), ("apiKeyHeader" = ["admin"])),
    params(("token" = String, Path, description = "The user")),
    responses((status = 200, body = Disconnected, description = "They are closed"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn disconnect(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    token: Result<Path<String>, PathRejection>,
) -> Result<Json<Disconnected>, Problem> {
    let token = path_token(token, &app.limits)?;
    app.producer(&caller, Scope::Admin).map_err(|problem| problem.about(&token))?;
    without_parameters(&uri)?;
    Ok(Json(Disconnected { disconnected: app.inbox.disconnect(&token) }))
}
