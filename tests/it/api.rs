//! A backend: pushes over HTTP and looks at whole answers; for bodies no client library would send, raw bytes on a socket.

use std::net::SocketAddr;

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::server::PATIENCE;

/// A backend with a pool of connections to one server.
#[derive(Clone)]
pub(crate) struct Api {
    address: SocketAddr,
    http: reqwest::Client,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

/// The answer to an accepted push.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pushed {
    pub(crate) response_code: i64,
    pub(crate) data: String,
    /// Absent when nobody was addressed.
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) accepted: usize,
    pub(crate) results: Vec<PushResult>,
}

/// What one token of a push got.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct PushResult {
    pub(crate) token: String,
    pub(crate) seq: i64,
}

impl Api {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client without TLS");
        Self { address, http }
    }

    /// Any request. An error means that no whole answer came.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Result<Answer, reqwest::Error> {
        let method = method.parse().expect("a method");
        let mut request = self.http.request(method, format!("http://{}{path}", self.address)).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Answer { status, headers, text: answer.text().await? })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await.expect("an answer")
    }

    /// Any request with JSON, which must be answered 200; the answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.send(method, path, &[("content-type", "application/json")], body).await.expect("an answer");
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text);
        answer.json()
    }

    /// Pushes with options; the answer as it is.
    pub(crate) async fn push_as(&self, push: Value) -> Value {
        self.ask("POST", "/api", &push).await
    }

    /// The whole list of an inbox as it is shown, with these parameters.
    pub(crate) async fn list(&self, token: &str, parameters: &str) -> Value {
        self.ask("GET", &format!("/api/inbox/{token}?{parameters}"), &Value::Null).await
    }

    /// Posts a body of any type to `/api`.
    pub(crate) async fn post_as(&self, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send("POST", "/api", &[("content-type", content_type)], body).await.expect("an answer")
    }

    /// Posts JSON to `/api`.
    pub(crate) async fn post(&self, body: &str) -> Answer {
        self.post_as("application/json", body).await
    }

    /// Posts JSON to `/api` with an `Idempotency-Key`.
    pub(crate) async fn post_keyed(&self, key: &str, body: &str) -> Answer {
        self.try_post(Some(key), body).await.expect("an answer")
    }

    /// Posts JSON to `/api`; an error means that no whole answer came.
    pub(crate) async fn try_post(&self, key: Option<&str>, body: &str) -> Result<Answer, reqwest::Error> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        self.send("POST", "/api", &headers, body).await
    }

    /// Pushes `data` (JSON text) to one token and expects it to be accepted.
    pub(crate) async fn push(&self, token: &str, data: &str) -> Pushed {
        self.post(&format!(r#"{{"tokens":{},"entityType":"like","data":{data}}}"#, json!(token))).await.pushed()
    }

    /// Pushes `{"n":1}` .. `{"n":count}` to one token, one after the other.
    pub(crate) async fn push_numbers(&self, token: &str, count: usize) -> Vec<Pushed> {
        let mut pushed = Vec::with_capacity(count);
        for n in 1..=count {
            pushed.push(self.push(token, &format!(r#"{{"n":{n}}}"#)).await);
        }
        pushed
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in answer {self:?}"))
    }

    /// The answer of an accepted push.
    pub(crate) fn pushed(&self) -> Pushed {
        assert_eq!(self.status, 200, "the push was not accepted: {}", self.text);
        let pushed: Pushed =
            serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in answer {}", self.text));
        assert_eq!((pushed.response_code, pushed.data.as_str()), (0, "OK!"), "the old contract's fields");
        assert_eq!(pushed.accepted, pushed.results.len(), "accepted counts the results");
        pushed
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header in ASCII"))
    }

    /// The `code` of a problem.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Checks that this is that problem, whole and well-formed, and returns its detail.
    pub(crate) fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!((self.status, self.code().as_str()), (status, code), "another answer was expected: {}", self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["status"], json!(status), "{}", self.text);
        for field in ["type", "title", "detail"] {
            assert!(problem[field].is_string(), "a problem has a {field}: {}", self.text);
        }
        if status == 503 {
            let seconds = self.header("retry-after").and_then(|value| value.parse::<u32>().ok());
            assert!(seconds.is_some(), "a 503 says when to come back: {:?}", self.headers);
        }
        problem["detail"].as_str().unwrap_or_default().to_owned()
    }
}

/// Writes bytes to the server and reads until it closes or `PATIENCE` is over; what it answered, as text. A reset by the
/// server (it may not want to read the rest) ends the answer too.
pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let stream = TcpStream::connect(address).await.expect("the server accepts");
    let (mut read, mut write) = stream.into_split();
    let mut answer = Vec::new();
    let send = async {
        let _ = write.write_all(request).await;
        std::future::pending::<()>().await;
    };
    let receive = async {
        let mut chunk = [0; 4096];
        while let Ok(count) = read.read(&mut chunk).await {
            if count == 0 {
                break;
            }
            answer.extend_from_slice(&chunk[..count]);
        }
    };
    let _ = timeout(PATIENCE, async {
        tokio::select! { () = send => {}, () = receive => {} }
    })
    .await;
    String::from_utf8_lossy(&answer).into_owned()
}
