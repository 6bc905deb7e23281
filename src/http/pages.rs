//! The demo page, the client below `/client`, and the Socket.IO client bundles where pages expect them.

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName,
    IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{App, Problem};

/// Name, hash and contents, plain and by gzip, of a file.
type Bundle = (&'static str, &'static str, &'static [u8], Option<&'static [u8]>);

/// What was in `client/dist` when this binary was built.
static BUNDLES: &[Bundle] = include!(concat!(env!("OUT_DIR"), "/bundles.rs"));

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
        .route("/favicon.svg", get(|| page("image/svg+xml", include_str!("../../client/demo/favicon.svg"))))
        .route("/client/{file}", get(|Path(file): Path<String>, headers| bundle(file, headers, false)))
        .route(&format!("{socket_path}/{{file}}"), get(|Path(file): Path<String>, headers| bundle(file, headers, true)))
}

async fn page(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    ([(CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-cache")], text)
}

/// The bundles of the Socket.IO client are kept apart from the rest: `theirs`.
async fn bundle(file: String, headers: HeaderMap, theirs: bool) -> Response {
    let wanted = |name: &str| name == file && name.starts_with("socket.io") == theirs;
    let Some((name, hash, plain, gzip)) = BUNDLES.iter().find(|(name, ..)| wanted(name)) else {
        let detail = "there is no such file; if it is a client bundle, run `make client` and build again";
        return Problem::new(StatusCode::NOT_FOUND, "not_found", detail).into_response();
    };
    let gzip = gzip.filter(|_| listed(&headers, ACCEPT_ENCODING).any(is_gzip));
    let etag = format!("\"{hash}{}\"", if gzip.is_some() { "-gzip" } else { "" });
    let is_known = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag;
    let is_known = listed(&headers, IF_NONE_MATCH).any(is_known);
    let caching = [(ETAG, etag.as_str()), (CACHE_CONTROL, "public, max-age=0"), (VARY, "accept-encoding")];
    if is_known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let content_type = if name.ends_with(".map") { "application/json" } else { JAVASCRIPT };
    let mut response = (caching, [(CONTENT_TYPE, content_type)], gzip.unwrap_or(plain)).into_response();
    if gzip.is_some() {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// What a header lists, which may come in several lines.
fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Whether a coding that is listed is gzip and wanted: `gzip;q=0` is not.
fn is_gzip(coding: &str) -> bool {
    let mut parts = coding.split(';').map(str::trim);
    parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"))
        && parts.all(|part| part.strip_prefix("q=").and_then(|weight| weight.parse().ok()) != Some(0.0))
}
