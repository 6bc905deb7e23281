//! Makes the requests of sockets small before the engine keeps them.
//!
//! The engine keeps headers and URI for as long as the socket lives. As hyper hands them over they are slices of its
//! read buffer, so each idle socket would pin 16 KiB of it. A copy of what the engine looks at is a few hundred bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Uri};
use hyper::body::{Bytes, Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use tokio::time::Sleep;

use super::payload::{Limits, Meter, Refusal};
use crate::limits::discard;

/// What the engine reads to answer a request.
const KEPT: [HeaderName; 7] =
    [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE];

/// Copies what the engine needs of a request and lets go of the rest. Its body is read as far as messages of up to
/// `message_bytes` allow ([`Limits`]), for at most `timeout`. Whether it was too large is then noted in `too_large`.
///
/// A request without a protocol version is one of the first clients, which did not send it: it gets `EIO=3`, as the
/// Node server assumes.
pub(super) fn lean(
    request: Request<Body>,
    message_bytes: usize,
    timeout: Duration,
    too_large: &Arc<AtomicBool>,
) -> Request<Body> {
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
    let limits = Limits::new(parameter(query, "EIO"), headers.get(CONTENT_TYPE), message_bytes);
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
    let (meter, deadline) = (Meter::new(limits), Box::pin(tokio::time::sleep(timeout)));
    let body = Bounded { body, meter, too_large: Arc::clone(too_large), deadline };
    Request::from_parts(parts, Body::new(body))
}

/// A body that has to be there in time, however it trickles in, and within its limits.
struct Bounded {
    body: Body,
    meter: Meter,
    too_large: Arc<AtomicBool>,
    deadline: Pin<Box<Sleep>>,
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        if !body.is_end_stream() {
            tokio::spawn(discard(body));
        }
    }
}

impl hyper::body::Body for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err("the body did not arrive in time".into())));
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context)?);
        let data = frame.as_ref().and_then(Frame::data_ref);
        if let Some(refusal) = data.and_then(|data| self.meter.take(data).err()) {
            self.too_large.store(refusal == Refusal::TooLarge, Ordering::Relaxed);
            return Poll::Ready(Some(Err(refusal.into())));
        }
        Poll::Ready(frame.map(Ok))
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
        let lean = lean(request, 100, Duration::from_secs(1), &Arc::default());
        assert_eq!(lean.uri(), "/socket.io/?EIO=4&transport=websocket");
        assert_eq!(lean.headers().len(), 1);
        assert!(lean.extensions().is_empty());
    }

    #[test]
    fn a_request_without_a_protocol_version_gets_the_oldest() {
        let request = Request::builder().uri("/socket.io/?transport=polling").body(Body::empty()).unwrap();
        let lean = lean(request, 100, Duration::from_secs(1), &Arc::default());
        assert_eq!(lean.uri(), "/socket.io/?EIO=3&transport=polling");
    }
}
