//! `/api/sessions`: who is connected, to be ended at once.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::inbox::path_token;
use super::problem::ProblemBody;
use super::{App, Problem};
use crate::access::{Caller, Scope};

/// What was ended.
#[derive(Serialize, ToSchema)]
pub(super) struct Disconnected {
    /// Sockets on the node that answers; other nodes do the same and are not counted.
    disconnected: usize,
}

/// Disconnect a user
///
/// Every socket of the user is closed, on every node. A login that is still good opens a new one: it is for users who were
/// locked out where logins are signed.
#[utoipa::path(post, path = "/api/sessions/{token}/disconnect", tag = "inbox",
    security((), ("apiKey" = ["admin"]), ("apiKeyHeader" = ["admin"])),
    params(("token" = String, Path, description = "Whose sockets")),
    responses((status = 200, body = Disconnected, description = "They are closed"), (status = "4XX", response = ProblemBody), (status = 503, response = ProblemBody)))]
pub(super) async fn disconnect(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    token: Result<Path<String>, PathRejection>,
) -> Result<Json<Disconnected>, Problem> {
    let token = path_token(token, &app.limits)?;
    app.producer(&caller, Scope::Admin).map_err(|problem| problem.about(&token))?;
    Ok(Json(Disconnected { disconnected: app.inbox.disconnect(&token) }))
}
