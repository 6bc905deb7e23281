//! The demo page, and the Socket.IO client bundles where pages expect them.

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};

use super::{App, Problem};

/// Name and contents of the bundles in `client/dist` when this binary was built.
static BUNDLES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/bundles.rs"));

/// Pages load nothing from elsewhere and run no inline script.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// A bundle changes only with the version of this binary.
const BUNDLE_ETAG: &str = concat!("\"tidings-", env!("CARGO_PKG_VERSION"), "\"");

pub(super) fn router(socket_path: &str) -> Router<App> {
    let index: &'static str =
        include_str!("../../client/demo/index.html").replace("{{SOCKET_PATH}}", socket_path).leak();
    Router::new()
        .route("/", get(move || page("text/html; charset=utf-8", index)))
        .route("/demo.js", get(|| page(JAVASCRIPT, include_str!("../../client/demo/demo.js"))))
        .route("/demo.css", get(|| page("text/css; charset=utf-8", include_str!("../../client/demo/demo.css"))))
        .route(&format!("{socket_path}/{{file}}"), get(bundle))
}

async fn page(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    ([(CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-cache")], text)
}

async fn bundle(Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Some((name, contents)) = BUNDLES.iter().find(|(name, _)| *name == file) else {
        let detail = "there is no such file; if it is a client bundle, run `make client` and build again";
        return Problem::new(StatusCode::NOT_FOUND, "not_found", detail).into_response();
    };
    let caching = [(ETAG, BUNDLE_ETAG), (CACHE_CONTROL, "public, max-age=0")];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known == BUNDLE_ETAG) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let content_type = if name.ends_with(".map") { "application/json" } else { JAVASCRIPT };
    (caching, [(CONTENT_TYPE, content_type)], *contents).into_response()
}
