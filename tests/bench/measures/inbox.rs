//! What a user's page asks for.

use std::time::Instant;

use hdrhistogram::Histogram;

use super::Figures;
use crate::client::HttpConnection;
use crate::load::{Data, Plan, Until, push};
use crate::server::{Kind, Server};

/// Rows of each inbox of a large table.
const INBOX_ROWS: u64 = 10;

/// Unread rows of one large inbox.
const LARGE_INBOX: u64 = 10_000;

/// So often each is asked of it.
const LARGE_REQUESTS: u64 = 50;

/// What is asked: a name, and method, path and body of the request.
const ASKED: [(&str, &str, &str, &str); 3] =
    [("list", "GET", "", ""), ("counts", "GET", "/counts", ""), ("read all", "POST", "/read", r#"{"all":true}"#)];

/// Times in milliseconds of what a user's page asks for, one request at a time, in a table of `rows` rows: of inboxes of ten
/// rows, each asked once, and then again and again of one that is large.
pub(crate) async fn inbox(kind: Kind, rows: u64, requests: u64) -> Figures {
    let server = Server::start(kind, &["--max-receipt-ids", "10000"]);
    let inboxes = rows / INBOX_ROWS;
    let plan = Plan { tokens: inboxes, fan: inboxes.min(1_000), pushers: 1, rate: None };
    push(server.address, "", plan, Until::Pushed(rows / plan.fan), Instant::now()).await;
    let mut backend = HttpConnection::connect(server.address).await.expect("connect");
    let mut ids = Vec::new();
    for number in 0..LARGE_INBOX {
        let data = Data { number, micros: 0 };
        let body = format!(r#"{{"tokens":["large"],"entityType":"like","data":{data}}}"#);
        backend.push(body.as_bytes()).await.expect("push");
        ids.push(format!("\"{}\"", backend.pushed_id()));
    }
    server.analyze();
    let unread = format!(r#"{{"ids":[{}]}}"#, ids.join(","));
    let mut figures = Figures::new();
    let mut add = |name: String, took: &Histogram<u64>| {
        for (quantile, suffix) in [(0.5, "p50"), (0.99, "p99")] {
            figures.push((format!("{name}, {suffix} ms"), took.value_at_quantile(quantile) as f64 / 1000.0));
        }
    };
    for (name, method, path, body) in ASKED {
        let mut took = Histogram::new(3).expect("three digits are allowed");
        for n in 0..requests {
            let path = format!("/api/inbox/{}{path}", n * (inboxes / requests));
            took.record(micros(&mut backend, method, &path, body).await).ok();
        }
        add(name.to_owned(), &took);
    }
    for (name, method, path, body) in ASKED {
        let mut took = Histogram::new(3).expect("three digits are allowed");
        for _ in 0..LARGE_REQUESTS {
            if method == "POST" {
                backend.request("POST", "/api/inbox/large/unread", unread.as_bytes()).await.expect("an answer");
            }
            took.record(micros(&mut backend, method, &format!("/api/inbox/large{path}"), body).await).ok();
        }
        add(format!("{name} of 10,000 unread"), &took);
    }
    figures
}

/// How long a request takes.
async fn micros(backend: &mut HttpConnection, method: &str, path: &str, body: &str) -> u64 {
    let began = Instant::now();
    backend.request(method, path, body.as_bytes()).await.expect("an answer");
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}
