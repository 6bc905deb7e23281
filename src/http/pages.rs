//! The demo page, the client below `/client`, and the Socket.IO client bundles where pages expect them.

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};

use super::{App, Problem};

/// Name, `ETag` and contents of what was in `client/dist` when this binary was built.
static BUNDLES: &[(&str, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/bundles.rs"));

/// Pages load nothing from elsewhere and run no inline script.
const POLICY: &str =
    "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

pub(super) fn router(socket_path: &str) -> Router<App> {
    let index: &'static str =
        include_str!("../../client/demo/index.html").replace("{{SOCKET_PATH}}", socket_path).leak();
    Router::new()
        .route("/", get(move || page("text/html; charset=utf-8", index)))
        .route("/demo.js", get(|| page(JAVASCRIPT, include_str!("../../client/demo/demo.js"))))
        .route("/demo.css", get(|| page("text/css; charset=utf-8", include_str!("../../client/demo/demo.css"))))
        .route("/client/{file}", get(|Path(file): Path<String>, headers| bundle(file, headers, false)))
        .route(&format!("{socket_path}/{{file}}"), get(|Path(file): Path<String>, headers| bundle(file, headers, true)))
}

async fn page(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    ([(CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-cache")], text)
}

/// The bundles of the Socket.IO client are kept apart from the rest: `theirs`.
async fn bundle(file: String, headers: HeaderMap, theirs: bool) -> Response {
    let wanted = |name: &str| name == file && name.starts_with("socket.io") == theirs;
    let Some((name, etag, contents)) = BUNDLES.iter().find(|(name, ..)| wanted(name)) else {
        let detail = "there is no such file; if it is a client bundle, run `make client` and build again";
        return Problem::new(StatusCode::NOT_FOUND, "not_found", detail).into_response();
    };
    let caching = [(ETAG, *etag), (CACHE_CONTROL, "public, max-age=0")];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known == etag) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let content_type = if name.ends_with(".map") { "application/json" } else { JAVASCRIPT };
    (caching, [(CONTENT_TYPE, content_type)], *contents).into_response()
}
