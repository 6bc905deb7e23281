//! Makes the requests of sockets small before the engine keeps them.
//!
//! The engine keeps headers and URI for as long as the socket lives. As hyper hands them over they are slices of its
//! read buffer, so each idle socket would pin 16 KiB of it. A copy of what the engine looks at is a few hundred bytes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body_util::Limited;
use hyper::body::{Bytes, Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use tokio::time::Sleep;

/// What the engine reads to answer a request.
const KEPT: [HeaderName; 7] =
    [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE];

/// Copies what the engine needs of a request and lets go of the rest. Of its body at most `max_bytes` are read,
/// for at most `timeout`.
///
/// A request without a protocol version is one of the first clients, which did not send it: it gets `EIO=3`, as the
/// Node server assumes.
pub(super) fn lean(request: Request<Body>, max_bytes: usize, timeout: Duration) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let copied = |name: HeaderName| {
        let value = HeaderValue::from_bytes(parts.headers.get(&name)?.as_bytes()).ok()?;
        Some((name, value))
    };
    let copies: Vec<_> = KEPT.into_iter().filter_map(copied).collect();
    // No room for more: there is one map a socket.
    let mut headers = HeaderMap::with_capacity(copies.len());
    headers.extend(copies);
    let query = parts.uri.query().unwrap_or_default();
    let version = if parameter(query, "EIO").is_some() { "" } else { "EIO=3&" };
    let copy = format!("{}?{version}{query}", parts.uri.path());
    // It was a valid path and query before, and still is one with the version in front.
    parts.uri = copy.parse::<Uri>().unwrap_or_default();
    parts.headers = headers;
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    // Emptied it would keep its size.
    parts.extensions = Extensions::new();
    if let Some(upgrade) = upgrade {
        parts.extensions.insert(upgrade);
    }
    if body.is_end_stream() {
        return Request::from_parts(parts, Body::empty());
    }
    let body = Timely { body: Limited::new(body, max_bytes), deadline: Box::pin(tokio::time::sleep(timeout)) };
    Request::from_parts(parts, Body::new(body))
}

/// A body that has to be there in time, however it trickles in.
struct Timely {
    body: Limited<Body>,
    deadline: Pin<Box<Sleep>>,
}

impl hyper::body::Body for Timely {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err("the body did not arrive in time".into())));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The value of a parameter of a query, as it was sent.
pub(super) fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_the_engine_reads_and_nothing_else() {
        let request = Request::builder()
            .uri("/socket.io/?EIO=4&transport=websocket")
            .header("upgrade", "websocket")
            .header("cookie", "long")
            .extension("somebody's")
            .body(Body::empty())
            .unwrap();
        let lean = lean(request, 100, Duration::from_secs(1));
        assert_eq!(lean.uri(), "/socket.io/?EIO=4&transport=websocket");
        assert_eq!(lean.headers().len(), 1);
        assert!(lean.extensions().is_empty());
    }

    #[test]
    fn a_request_without_a_protocol_version_gets_the_oldest() {
        let request = Request::builder().uri("/socket.io/?transport=polling").body(Body::empty()).unwrap();
        assert_eq!(lean(request, 100, Duration::from_secs(1)).uri(), "/socket.io/?EIO=3&transport=polling");
    }
}
