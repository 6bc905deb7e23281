//! Hints over the database's own `NOTIFY`, which needs nothing besides Postgres.
//!
//! A notification goes out in a transaction of its own: inside a push's it would make all commits wait for one lock.
//! Every node hears every hint, so this carries a few nodes, not dozens. The listener needs a session of its own and so
//! cannot go through a pooler in transaction mode.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tracing::info;
use uuid::Uuid;

use super::outbox::{News, Outbox, TIMEOUT};
use super::retry::Retry;
use super::{Bus, BusError, Hint, Settings};
use crate::metrics;
use crate::notification::{Content, Event, Rev, Token};

/// Postgres takes payloads below 8,000 bytes.
const MAX_PAYLOAD: usize = 7_900;

/// Between two transactions, so that under load each carries more: notifications commit one after the other, and every
/// node is woken by each.
const PACE: Duration = Duration::from_millis(4);

/// Each node hears its own messages too, and sends so many at least while it may be silent: a listener that heard none has
/// lost its connection unnoticed.
const HEARTBEATS: u32 = 3;

/// What nodes send each other.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    from: Uuid,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    moved: Vec<(Token, Rev)>,
    /// A message that is not stored; the others are told of rows alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passing: Option<(Token, Box<RawValue>)>,
    /// Its sessions are to be ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cut: Option<Token>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gap: bool,
}

struct PostgresBus {
    outbox: Arc<Outbox>,
}

#[async_trait]
impl Bus for PostgresBus {
    fn publish(&self, events: &[(Token, Event)]) {
        self.outbox.put(events);
    }

    fn pass(&self, tokens: &[Token], content: &Content) {
        self.outbox.pass(tokens, content);
    }

    fn cut(&self, token: &Token) {
        self.outbox.cut(token);
    }

    async fn subscribe(&self, _token: &Token) {}

    fn unsubscribe(&self, _token: &Token) {}
}

/// What both halves of the bus know.
#[derive(Clone)]
struct Line {
    node: Uuid,
    options: PgConnectOptions,
    channel: String,
    silence: Duration,
}

pub(super) fn start(
    settings: &Settings,
    hints: mpsc::Sender<Hint>,
    tasks: &mut JoinSet<()>,
) -> Result<Arc<dyn Bus>, BusError> {
    if !settings.database_url.starts_with("postgres") {
        return Err(BusError::NoPostgres);
    }
    let options = PgConnectOptions::from_str(&settings.database_url)
        .map_err(|error| BusError::Url(error.to_string()))?
        .application_name("tidings bus")
        .disable_statement_logging();
    let (channel, silence) = (settings.prefix.clone(), settings.silence);
    let line = Line { node: Uuid::new_v4(), options, channel, silence };
    let outbox = Arc::new(Outbox::default());
    tasks.spawn(tell(line.clone(), Arc::clone(&outbox)));
    tasks.spawn(listen(line, hints));
    Ok(Arc::new(PostgresBus { outbox }))
}

/// Sends what is in the outbox; while one transaction runs, the next hints gather.
async fn tell(line: Line, outbox: Arc<Outbox>) {
    let (mut connection, mut retry) = (None, Retry::default());
    let mut heartbeat = interval(line.silence / HEARTBEATS);
    loop {
        let news = tokio::select! {
            news = outbox.take() => news,
            _ = heartbeat.tick() => News::default(),
        };
        let (cut, passing) = (news.cut.clone(), news.passing.len());
        let sent = timeout(TIMEOUT, notify(&mut connection, &line, &messages(line.node, news))).await;
        let problem = match sent {
            Ok(Ok(())) => {
                retry.worked();
                tokio::time::sleep(PACE).await;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        metrics::bus_failed("publish");
        connection = None;
        outbox.lost(cut, passing);
        tokio::time::sleep(retry.failed("Hints for other nodes were lost, they follow with the next sweep", &problem))
            .await;
    }
}

async fn notify(connection: &mut Option<PgConnection>, line: &Line, messages: &[String]) -> Result<(), sqlx::Error> {
    let mut usable = match connection.take() {
        Some(connection) => connection,
        None => line.options.connect().await?,
    };
    sqlx::query!("select pg_notify($1, message) from unnest($2::text[]) as message", line.channel, messages)
        .execute(&mut usable)
        .await?;
    *connection = Some(usable);
    Ok(())
}

/// News as messages that each fit into a notification; at least one, if only to be heard.
fn messages(node: Uuid, news: News) -> Vec<String> {
    let message = |moved, gap| Message { from: node, moved, passing: None, cut: None, gap };
    let text = |message: &Message| serde_json::to_string(message).expect("texts and numbers always serialise");
    let empty = text(&message(vec![], true)).len() + "\"moved\":[],".len();
    let (mut messages, mut moved, mut bytes) = (Vec::new(), Vec::new(), empty);
    for (token, rev) in news.revs {
        let length = serde_json::to_string(&(&token, rev)).map_or(0, |pair| pair.len() + 1);
        if bytes + length > MAX_PAYLOAD {
            messages.push(text(&message(std::mem::take(&mut moved), false)));
            bytes = empty;
        }
        bytes += length;
        moved.push((token, rev));
    }
    messages.push(text(&message(moved, news.gap)));
    let cuts = news.cut.into_iter().map(|token| text(&Message { cut: Some(token), ..message(vec![], false) }));
    let passing = news.passing.into_iter().map(|(token, json)| {
        let content = RawValue::from_string(json.to_string()).expect("it was made here");
        text(&Message { passing: Some((token, content)), ..message(vec![], false) })
    });
    for text in cuts.chain(passing) {
        if text.len() < MAX_PAYLOAD {
            messages.push(text);
        } else {
            metrics::hints_dropped(1);
        }
    }
    messages
}

/// Passes on what other nodes say, for ever; a new connection may have missed something.
async fn listen(line: Line, hints: mpsc::Sender<Hint>) {
    let mut retry = Retry::default();
    while !hints.is_closed() {
        // A new one each time: a listener that is given up waits for its connection, and so does its pool.
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(TIMEOUT);
        let problem = match hear(&line, &pool.connect_lazy_with(line.options.clone()), &hints, &mut retry).await {
            Ok(()) => "it fell silent".to_owned(),
            Err(error) => error.to_string(),
        };
        metrics::bus_failed("listen");
        tokio::time::sleep(retry.failed("Lost the bus", &problem)).await;
    }
}

/// Returns when the connection says nothing any more.
async fn hear(
    line: &Line,
    pool: &sqlx::PgPool,
    hints: &mpsc::Sender<Hint>,
    retry: &mut Retry,
) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    let subscribed = timeout(TIMEOUT, listener.listen(&line.channel)).await;
    subscribed.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))??;
    info!("Subscribed to the bus");
    retry.worked();
    hints.send(Hint::Gap).await.ok();
    // As a message of this node begins, which is not worth parsing.
    let own = format!("{{\"from\":\"{}\"", line.node);
    while let Ok(heard) = timeout(line.silence, listener.try_recv()).await {
        let Some(notification) = heard? else {
            // It has connected and subscribed anew.
            metrics::bus_failed("listen");
            hints.send(Hint::Gap).await.ok();
            continue;
        };
        if notification.payload().starts_with(&own) {
            continue;
        }
        for hint in hints_in(notification.payload()) {
            hints.send(hint).await.ok();
        }
    }
    Ok(())
}

/// What another node says; nothing if it is no message of a node.
pub(super) fn hints_in(payload: &str) -> Vec<Hint> {
    let Ok(Message { from: _, moved, passing, cut, gap }) = serde_json::from_str(payload) else { return Vec::new() };
    let passing = passing.and_then(|(token, json)| Some(Hint::Passing(token, serde_json::from_str(json.get()).ok()?)));
    let moved = moved.into_iter().map(|(token, rev)| Hint::Moved(token, rev));
    moved.chain(passing).chain(cut.map(Hint::Cut)).chain(gap.then_some(Hint::Gap)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_fit_into_notifications_and_hold_everything() {
        let token = |n: i64| Token::parse(&format!("{n}{}", "\u{1}".repeat(250)), 256).unwrap();
        let revs: std::collections::HashMap<_, _> = (1..500).map(|n| (token(n), n)).collect();
        let messages = messages(Uuid::new_v4(), News { revs: revs.clone(), gap: true, ..News::default() });
        assert!(messages.iter().all(|message| message.len() < 8_000));
        let parsed: Vec<Message> = messages.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert!(parsed.iter().any(|message| message.gap));
        assert_eq!(
            parsed.into_iter().flat_map(|message| message.moved).collect::<std::collections::HashMap<_, _>>(),
            revs
        );
    }
}
