//! When a connection that sends no request, or half of one, is closed.
//!
//! hyper has one timer for both. It runs from the end of a response until the headers of the next request are complete,
//! so a kept connection that is idle and headers that arrive slowly look the same to it. [`Timer`] is that timer, but it
//! also knows from [`Watched`] whether bytes have arrived since hyper began to wait: before the first one the idle
//! timeout counts, after it the header timeout.
//!
//! A busy connection costs no timer registration per request. One timer is registered per connection; while its deadline
//! is earlier than needed it is left alone, and moved when it fires.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a connection may be without a complete request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// From the first byte of a request until its headers are complete; and until the first byte of a new connection.
    pub(super) header: Duration,
    /// From the end of a response until the first byte of the next request.
    pub(super) idle: Duration,
}

impl Timeouts {
    /// Prepares a connection for hyper: the stream and the timer belong together.
    pub(super) fn watch<S>(self, stream: S) -> (Watched<S>, Timer) {
        let received = Arc::new(AtomicBool::new(false));
        let clock = Clock {
            received: Arc::clone(&received),
            timeouts: self,
            has_waited: AtomicBool::new(false),
            sleep: Mutex::new(Box::pin(tokio::time::sleep(self.header))),
        };
        (Watched { stream, received }, Timer(Arc::new(clock)))
    }
}

/// A stream that notes when bytes arrive. After an upgrade it lives as long as the websocket, so it holds only the flag.
pub(super) struct Watched<S> {
    stream: S,
    received: Arc<AtomicBool>,
}

/// The timer of one connection. hyper asks it to sleep when it begins to wait for a request, and drops that sleep when
/// the headers are complete.
pub(super) struct Timer(Arc<Clock>);

struct Clock {
    /// Whether bytes have arrived since hyper began to wait. Only the task of the connection writes and reads it.
    received: Arc<AtomicBool>,
    timeouts: Timeouts,
    /// Whether hyper waited for a request before: then the connection is a kept one.
    has_waited: AtomicBool,
    sleep: Mutex<Pin<Box<Sleep>>>,
}

/// One wait for the headers of a request.
struct Wait {
    clock: Arc<Clock>,
    has_begun: bool,
    deadline: Instant,
}

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    /// The deadline that hyper asks for is not used: it has one timeout for all waits.
    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let Timeouts { header, idle } = self.0.timeouts;
        // Bytes that came in one read with the end of the request before are not seen any more. A request of which
        // nothing else follows has the idle timeout.
        self.0.received.store(false, Ordering::Relaxed);
        let is_kept = self.0.has_waited.swap(true, Ordering::Relaxed);
        let deadline = Instant::now() + if is_kept { idle } else { header };
        Box::pin(Wait { clock: Arc::clone(&self.0), has_begun: false, deadline })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

impl Future for Wait {
    type Output = ();

    /// hyper polls this after every read that did not complete the headers.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !self.has_begun && self.clock.received.load(Ordering::Relaxed) {
            self.has_begun = true;
            self.deadline = Instant::now() + self.clock.timeouts.header;
        }
        let mut sleep = self.clock.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        if sleep.deadline() > self.deadline {
            sleep.as_mut().reset(self.deadline);
        }
        while sleep.as_mut().poll(context).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            // It was set for an earlier wait.
            sleep.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

impl hyper::rt::Sleep for Wait {}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.received.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::Response;
    use http::Request;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    /// The client's end of a connection that hyper serves. A request takes longer than the header timeout.
    fn connect() -> DuplexStream {
        let (client, server) = tokio::io::duplex(1024);
        let (stream, timer) = Timeouts { header: HEADER, idle: IDLE }.watch(server);
        let answer = service_fn(async |_: Request<Incoming>| {
            tokio::time::sleep(HEADER * 2).await;
            Ok::<_, std::convert::Infallible>(Response::new(Body::from("yes")))
        });
        let mut http = http1::Builder::new();
        http.timer(timer).header_read_timeout(IDLE);
        tokio::spawn(async move { http.serve_connection(TokioIo::new(stream), answer).await });
        client
    }

    async fn ask(client: &mut DuplexStream) {
        client.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"yes") {
            assert!(client.read_buf(&mut answer).await.unwrap() > 0, "closed before the answer");
        }
    }

    /// How long it takes until the server closes the connection, while `trickle` is sent every second.
    async fn closed_after(mut client: DuplexStream, trickle: &[u8]) -> Duration {
        let began = Instant::now();
        loop {
            let mut heard = Vec::new();
            if let Ok(read) = tokio::time::timeout(Duration::from_secs(1), client.read_to_end(&mut heard)).await {
                read.unwrap();
                return began.elapsed();
            }
            client.write_all(trickle).await.ok();
        }
    }

    fn assert_about(elapsed: Duration, expected: Duration) {
        let late = Duration::from_secs(1);
        assert!((expected..=expected + late).contains(&elapsed), "{elapsed:?} instead of {expected:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_that_sends_nothing_is_closed_after_the_header_timeout() {
        assert_about(closed_after(connect(), b"").await, HEADER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_is_closed_after_the_idle_timeout() {
        let mut client = connect();
        for _ in 0..3 {
            ask(&mut client).await;
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        }
        ask(&mut client).await;
        assert_about(closed_after(client, b"").await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_request_is_closed_after_the_header_timeout_however_it_arrives() {
        for trickle in [&b""[..], b"a"] {
            for requests_before in [0, 1, 3] {
                let mut client = connect();
                for _ in 0..requests_before {
                    ask(&mut client).await;
                    tokio::time::sleep(HEADER / 2).await;
                }
                client.write_all(b"GET / HTTP/1.1\r\nhost: loc").await.unwrap();
                assert_about(closed_after(client, trickle).await, HEADER);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_begins_late_still_has_its_header_timeout() {
        let mut client = connect();
        ask(&mut client).await;
        tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        client.write_all(&REQUEST[..20]).await.unwrap();
        tokio::time::sleep(HEADER - Duration::from_secs(1)).await;
        client.write_all(&REQUEST[20..]).await.unwrap();
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
}
