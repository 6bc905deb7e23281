//! The loads. Each is bounded in count and time, checks that nothing was lost, and returns its figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::{Barrier, Mutex, Notify};
use tokio::task::JoinSet;

use crate::client::{Backend, PATIENCE, Page, number_after};
use crate::server::{Kind, Server};

/// One figure: its name and its value.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// Connections that push at the same time.
const PRODUCERS: u64 = 64;

/// Addresses that pushes go to when nobody is there.
const TOKENS: u64 = 10_000;

/// Sockets that are opened at the same time, so that neither side drowns.
const OPENING: usize = 64;

/// A socket acks what it has at most this often, as a client that batches its acks does.
const ACK_EVERY: Duration = Duration::from_secs(1);

/// A small random number generator: the load must be the same for both servers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// About 200 bytes, as a like or a comment has.
fn body(tokens: &str, sent: u128) -> String {
    let text = "x".repeat(120);
    format!(
        r#"{{"tokens":[{tokens}],"entityType":"like","data":{{"t":{sent},"who":"somebody","post":4711,"text":"{text}"}}}}"#
    )
}

/// Durable pushes with nobody online: pushes a second and rows a second.
pub(crate) async fn pushes(kind: Kind, width: u64, names: [&'static str; 2], seconds: u64) -> Figures {
    let server = Server::start(kind, &[]);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut producers = JoinSet::new();
    let started = Instant::now();
    for producer in 0..PRODUCERS {
        let mut backend = Backend::connect(server.address).await.expect("connect");
        producers.spawn(async move {
            let mut random = Random(producer + 1);
            let mut done = 0_u64;
            while Instant::now() < until {
                let first = random.below(TOKENS);
                let tokens: Vec<_> = (0..width).map(|n| format!("\"{}\"", (first + n * 7) % TOKENS)).collect();
                backend.push(&body(&tokens.join(","), 0)).await.expect("push");
                done += 1;
            }
            done
        });
    }
    let done: u64 = producers.join_all().await.into_iter().sum();
    let rate = done as f64 / started.elapsed().as_secs_f64();
    vec![(names[0], rate), (names[1], rate * width as f64)]
}

/// Logged-in sockets that count and ack what they get.
struct Readers {
    received: Arc<AtomicU64>,
    latency: Arc<Mutex<Histogram<u64>>>,
    tasks: JoinSet<()>,
}

impl Readers {
    /// `token_of` gives the token of the n-th socket.
    async fn login(server: &Server, count: u64, start: Instant, token_of: impl Fn(u64) -> String) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let latency = Arc::new(Mutex::new(Histogram::new(3).expect("a histogram")));
        let mut tasks = JoinSet::new();
        for (reader, mut page) in (0..count).zip(open(server, count).await) {
            page.login(&token_of(reader), false).await.expect("login");
            while !page.next().await.expect("replay").contains("replay_complete") {}
            let (received, latency) = (Arc::clone(&received), Arc::clone(&latency));
            tasks.spawn(async move {
                let (mut newest, mut ack_at) = (0, None);
                let mut mine = Histogram::<u64>::new(3).expect("a histogram");
                loop {
                    let next = match ack_at {
                        None => page.next().await,
                        Some(due) => match tokio::time::timeout_at(due, page.next()).await {
                            Ok(next) => next,
                            Err(_) => {
                                ack_at = None;
                                if page.send(&format!(r#"42["ack",{{"upTo":{newest}}}]"#)).await.is_err() {
                                    break;
                                }
                                continue;
                            }
                        },
                    };
                    let Ok(packet) = next else { break };
                    if !packet.starts_with("42[\"receive_message\"") {
                        continue;
                    }
                    if let Some(sent) = number_after(&packet, "\"t\":") {
                        let micros = start.elapsed().as_micros().saturating_sub(u128::from(sent));
                        mine.record(u64::try_from(micros).unwrap_or(u64::MAX).max(1)).ok();
                    }
                    newest = number_after(&packet, "\"rev\":").expect("a rev");
                    ack_at.get_or_insert_with(|| tokio::time::Instant::now() + ACK_EVERY);
                    received.fetch_add(1, Ordering::Relaxed);
                }
                latency.lock().await.add(mine).ok();
            });
        }
        Self { received, latency, tasks }
    }

    /// Waits until that many messages came to all sockets together.
    async fn expect(&self, messages: u64) {
        let until = Instant::now() + PATIENCE;
        while self.received.load(Ordering::Relaxed) < messages {
            assert!(Instant::now() < until, "lost: {} of {messages} came", self.received.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Opens sockets, some at a time.
async fn open(server: &Server, count: u64) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut opening = JoinSet::new();
    for _ in 0..count {
        if opening.len() == OPENING {
            pages.extend(opening.join_next().await.map(|page| page.expect("a task")));
        }
        let address = server.address;
        opening.spawn(async move { Page::connect(address).await.expect("connect") });
    }
    pages.extend(opening.join_all().await);
    pages
}

/// Durable pushes to one token each, of 1,000 that are logged in, receive and ack.
pub(crate) async fn live(kind: Kind, flags: &[&str], names: [&'static str; 2], seconds: u64) -> Figures {
    let server = Server::start(kind, flags);
    let start = Instant::now();
    let readers = Readers::login(&server, 1000, start, |reader| reader.to_string()).await;
    let (used, started) = (server.processor_time(), Instant::now());
    let until = started + Duration::from_secs(seconds);
    let mut producers = JoinSet::new();
    for producer in 0..PRODUCERS {
        let mut backend = Backend::connect(server.address).await.expect("connect");
        producers.spawn(async move {
            let mut random = Random(producer + 1);
            let mut done = 0_u64;
            while Instant::now() < until {
                let token = random.below(1000);
                backend.push(&body(&format!("\"{token}\""), start.elapsed().as_micros())).await.expect("push");
                done += 1;
            }
            done
        });
    }
    let done: u64 = producers.join_all().await.into_iter().sum();
    let rate = done as f64 / started.elapsed().as_secs_f64();
    readers.expect(done).await;
    let micros = (server.processor_time() - used).as_micros() as f64 / done as f64;
    vec![(names[0], rate), (names[1], micros)]
}

/// From the POST to the client at a fixed rate, whether the server keeps up or not.
///
/// With `bus` the sockets are on another node than the pushes.
pub(crate) async fn latency(kind: Kind, bus: Option<&str>, names: [&'static str; 2], seconds: u64) -> Figures {
    const RATE: u64 = 500;
    let flags: Vec<&str> = bus.into_iter().collect();
    let server = Server::start(kind, &flags);
    let other = bus.map(|_| server.beside(&flags));
    let start = Instant::now();
    let mut readers = Readers::login(other.as_ref().unwrap_or(&server), 1000, start, |reader| reader.to_string()).await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<u128>();
    let receiver = Arc::new(Mutex::new(receiver));
    let mut producers = JoinSet::new();
    for producer in 0..PRODUCERS {
        let mut backend = Backend::connect(server.address).await.expect("connect");
        let receiver = Arc::clone(&receiver);
        producers.spawn(async move {
            let mut random = Random(producer + 1);
            loop {
                let Some(due) = receiver.lock().await.recv().await else { break };
                let token = random.below(1000);
                backend.push(&body(&format!("\"{token}\""), due)).await.expect("push");
            }
        });
    }
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for _ in 0..RATE * seconds {
        let due = ticks.tick().await;
        sender.send(due.into_std().duration_since(start).as_micros()).expect("the producers wait");
    }
    drop(sender);
    producers.join_all().await;
    readers.expect(RATE * seconds).await;
    drop((other, server));
    while readers.tasks.join_next().await.is_some() {}
    let latency = readers.latency.lock().await;
    let millis = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    vec![(names[0], millis(0.5)), (names[1], millis(0.99))]
}

/// One push to 1,000 sockets of one token.
pub(crate) async fn fan_out(kind: Kind, pushes: u64) -> Figures {
    let server = Server::start(kind, &["--max-sockets-per-token", "2000"]);
    let start = Instant::now();
    let readers = Readers::login(&server, 1000, start, |_| "celebrity".into()).await;
    let mut backend = Backend::connect(server.address).await.expect("connect");
    let (used, started) = (server.processor_time(), Instant::now());
    for push in 1..=pushes {
        backend.push(&body("\"celebrity\"", start.elapsed().as_micros())).await.expect("push");
        readers.expect(push * 1000).await;
    }
    let deliveries = (pushes * 1000) as f64;
    let micros = (server.processor_time() - used).as_micros() as f64 / deliveries;
    vec![
        ("1,000 sockets of one token: deliveries/s", deliveries / started.elapsed().as_secs_f64()),
        ("1,000 sockets of one token: processor µs a delivery", micros),
    ]
}

/// 1,000 users with 100 rows each come back at once.
pub(crate) async fn replay(kind: Kind, batch: bool, names: [&'static str; 2]) -> Figures {
    const USERS: u64 = 1000;
    const ROWS: u64 = 100;
    let server = Server::start(kind, &[]);
    let mut backend = Backend::connect(server.address).await.expect("connect");
    let tokens: Vec<_> = (0..USERS).map(|token| format!("\"{token}\"")).collect();
    for _ in 0..ROWS {
        backend.push(&body(&tokens.join(","), 0)).await.expect("push");
    }
    let pages = open(&server, USERS).await;
    let used = server.processor_time();
    let took = at_once(pages, move |mut page, user| async move {
        page.login(&user.to_string(), batch).await.expect("login");
        let mut rows = 0;
        while rows < ROWS {
            let packet = page.next().await.expect("replay");
            let before = rows;
            rows += packet.matches("\"replay\":true").count() as u64;
            if batch && rows > before {
                let newest = packet.rfind("\"rev\":").and_then(|at| number_after(&packet[at..], "\"rev\":"));
                page.send(&format!(r#"42["ack",{{"upTo":{}}}]"#, newest.expect("a rev"))).await.expect("ack");
            }
        }
        page
    })
    .await;
    let rows = (USERS * ROWS) as f64;
    let micros = (server.processor_time() - used).as_micros() as f64 / rows;
    vec![(names[0], rows / took.as_secs_f64()), (names[1], micros)]
}

/// Sockets that are connected log in at once, with nothing to replay.
pub(crate) async fn herd(kind: Kind, sockets: u64, name: &'static str) -> Figures {
    let server = Server::start(kind, &["--login-timeout-secs", "60"]);
    let pages = open(&server, sockets).await;
    let took = at_once(pages, |mut page, user| async move {
        page.login(&user.to_string(), false).await.expect("login");
        page
    })
    .await;
    vec![(name, sockets as f64 / took.as_secs_f64())]
}

/// Resident memory that an idle logged-in websocket adds.
pub(crate) async fn memory(kind: Kind, sockets: u64) -> Figures {
    let server = Server::start(kind, &["--login-timeout-secs", "2"]);
    // What the server needs once is not a socket's: warm it up with some that go again.
    drop(Readers::login(&server, 200, Instant::now(), |reader| format!("warm-{reader}")).await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = server.resident();
    let readers = Readers::login(&server, sockets, Instant::now(), |reader| reader.to_string()).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let added = server.resident().saturating_sub(before) as f64;
    drop(readers);
    vec![("resident KiB an idle socket", added / sockets as f64 / 1024.0)]
}

/// Everybody pushes to one token.
pub(crate) async fn hot(kind: Kind, name: &'static str, seconds: u64) -> Figures {
    let server = Server::start(kind, &[]);
    let until = Instant::now() + Duration::from_secs(seconds);
    let started = Instant::now();
    let mut producers = JoinSet::new();
    for _ in 0..PRODUCERS {
        let mut backend = Backend::connect(server.address).await.expect("connect");
        producers.spawn(async move {
            let mut done = 0_u64;
            while Instant::now() < until {
                backend.push(&body("\"hot\"", 0)).await.expect("push");
                done += 1;
            }
            done
        });
    }
    let done: u64 = producers.join_all().await.into_iter().sum();
    vec![(name, done as f64 / started.elapsed().as_secs_f64())]
}

/// What Postgres itself does with the statement: a number of connections run it as fast as they can.
async fn bare(
    connections: usize,
    seconds: u64,
    statement: &'static str,
    tokens: impl Fn(&mut Random) -> Vec<String> + Clone + Send + 'static,
) -> f64 {
    // For its tables.
    let server = Server::start(Kind::TidingsOnPostgres, &[]);
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(u32::try_from(connections).expect("few"))
        .connect(&server.place.url())
        .await
        .expect("connect");
    let numbers = Arc::new(AtomicU64::new(1));
    let (started, until) = (Instant::now(), Instant::now() + Duration::from_secs(seconds));
    let mut tasks = JoinSet::new();
    for seed in 1..=connections as u64 {
        let (pool, numbers, tokens) = (pool.clone(), Arc::clone(&numbers), tokens.clone());
        tasks.spawn(async move {
            let (mut random, mut done) = (Random(seed), 0);
            while Instant::now() < until {
                let number = i64::try_from(numbers.fetch_add(1, Ordering::Relaxed)).expect("small");
                let text = body("", 0);
                let data = text.split_once("\"data\":").expect("data").1.trim_end_matches('}').to_owned() + "}";
                sqlx::query(statement)
                    .bind(tokens(&mut random))
                    .bind(number)
                    .bind(uuid::Uuid::now_v7())
                    .bind(data)
                    .execute(&pool)
                    .await
                    .expect("the statement works");
                done += 1;
            }
            done
        });
    }
    let done: u64 = tasks.join_all().await.into_iter().sum();
    pool.close().await;
    done as f64 / started.elapsed().as_secs_f64()
}

/// Rows of 1,000 tokens a statement, without the inboxes.
pub(crate) async fn bare_unnest(connections: usize, names: [&'static str; 2], seconds: u64) -> Figures {
    let tokens = |random: &mut Random| {
        let first = random.below(TOKENS);
        (0..1000).map(|n| ((first + n * 7) % TOKENS).to_string()).collect()
    };
    let statement = "insert into notification (token, seq, id, entity_type, created_at, data)
        select token, $2, $3, 'like', now(), $4::json from unnest($1::text[]) as token";
    let rate = bare(connections, seconds, statement, tokens).await;
    vec![(names[0], rate), (names[1], rate * 1000.0)]
}

/// One row of one token a statement, each waiting for the row lock of the inbox.
pub(crate) async fn one_row_lock(name: &'static str, seconds: u64) -> Figures {
    let statement = "with target as (
            insert into inbox (token, rev, unread, created_at) select token, 1, 1, now() from unnest($1::text[]) as token
            on conflict (token) do update set rev = inbox.rev + 1, unread = inbox.unread + 1 returning token, rev
        )
        insert into notification (token, seq, id, entity_type, created_at, data)
        select token, rev, $3, 'like', now(), $4::json from target where $2::bigint > 0";
    vec![(name, bare(64, seconds, statement, |_| vec!["hot".to_owned()]).await)]
}

/// Rows of each inbox of a large table.
const INBOX_ROWS: u64 = 10;

/// Unread rows of one large inbox.
const LARGE_INBOX: u64 = 10_000;

/// So often each is asked of it.
const LARGE_REQUESTS: u64 = 50;

/// Times in milliseconds of what a user's page asks for, one request at a time, in a table of `rows` rows: of inboxes of ten
/// rows, each asked once, and then again and again of one that is large.
pub(crate) async fn inbox(kind: Kind, rows: u64, names: [&'static str; 12], requests: u64) -> Figures {
    let server = Server::start(kind, &["--max-receipt-ids", "10000"]);
    let mut backend = Backend::connect(server.address).await.expect("connect");
    let inboxes = rows / INBOX_ROWS;
    for _ in 0..INBOX_ROWS {
        for first in (0..inboxes).step_by(1_000) {
            let tokens: Vec<_> = (first..(first + 1_000).min(inboxes)).map(|n| format!("\"{n}\"")).collect();
            backend.push(&body(&tokens.join(","), 0)).await.expect("push");
        }
    }
    let mut ids = Vec::new();
    for _ in 0..LARGE_INBOX {
        backend.push(&body("\"large\"", 0)).await.expect("push");
        ids.push(format!("\"{}\"", backend.pushed_id()));
    }
    server.analyze();
    let unread = format!(r#"{{"ids":[{}]}}"#, ids.join(","));
    let asked = [("GET", "", ""), ("GET", "/counts", ""), ("POST", "/read", r#"{"all":true}"#)];
    let mut took: Vec<Histogram<u64>> = Vec::new();
    for (method, path, body) in asked {
        let mut small = Histogram::new(3).expect("a histogram");
        for n in 0..requests {
            let path = format!("/api/inbox/{}{path}", n * (inboxes / requests));
            small.record(micros(&mut backend, method, &path, body).await).ok();
        }
        took.push(small);
    }
    for (method, path, body) in asked {
        let mut large = Histogram::new(3).expect("a histogram");
        for _ in 0..LARGE_REQUESTS {
            if method == "POST" {
                backend.request("POST", "/api/inbox/large/unread", &unread).await.expect("an answer");
            }
            large.record(micros(&mut backend, method, &format!("/api/inbox/large{path}"), body).await).ok();
        }
        took.push(large);
    }
    let values =
        took.iter().flat_map(|took| [0.5, 0.99].map(|quantile| took.value_at_quantile(quantile) as f64 / 1000.0));
    names.into_iter().zip(values).collect()
}

/// How long a request takes.
async fn micros(backend: &mut Backend, method: &str, path: &str, body: &str) -> u64 {
    let began = Instant::now();
    backend.request(method, path, body).await.expect("an answer");
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Lets every page do something at the same moment and returns how long it took until the last was done.
async fn at_once<F: Future<Output = Page> + Send + 'static>(
    pages: Vec<Page>,
    act: impl Fn(Page, u64) -> F + Clone + Send + 'static,
) -> Duration {
    let gate = Arc::new(Barrier::new(pages.len() + 1));
    let (left, done) = (Arc::new(AtomicU64::new(pages.len() as u64)), Arc::new(Notify::new()));
    let mut tasks = JoinSet::new();
    for (user, page) in (0..).zip(pages) {
        let (gate, left, done, act) = (Arc::clone(&gate), Arc::clone(&left), Arc::clone(&done), act.clone());
        tasks.spawn(async move {
            gate.wait().await;
            let page = act(page, user).await;
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                done.notify_one();
            }
            page
        });
    }
    gate.wait().await;
    let started = Instant::now();
    tokio::time::timeout(PATIENCE, done.notified()).await.expect("somebody is still waiting");
    let took = started.elapsed();
    tasks.join_all().await;
    took
}
