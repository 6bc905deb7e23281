//! Hints over Redis pub/sub: a channel per token that has sessions here, so a node hears only what it needs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{AsyncConnectionConfig, Client, RedisError, TlsCertificates};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use super::outbox::{News, Outbox, TIMEOUT};
use super::retry::Retry;
use super::{Bus, BusError, Hint, Settings};
use crate::metrics;
use crate::notification::{Content, Event, Token};

/// The payload that has the sessions of a token ended; neither a number nor JSON.
const CUT: &str = "cut";

/// How long a login waits for its subscription; then the next sweep has to do.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Hints sent in one go.
const PIPELINE: usize = 1_000;

/// A subscription asks this often for a sign of life while it may be silent.
const HEARTBEATS: u32 = 3;

/// Where the messages of this installation go, and where they come from.
#[derive(Clone)]
struct Line {
    client: Client,
    /// Before the token in the name of its channel. The channel without a token, which is nobody's because none is empty,
    /// is every node's: hints of its sender may have been lost.
    channels: String,
    silence: Duration,
}

impl Line {
    fn channel(&self, token: &Token) -> String {
        format!("{}{}", self.channels, token.as_str())
    }
}

struct RedisBus {
    outbox: Arc<Outbox>,
    wanted: mpsc::UnboundedSender<Wanted>,
}

enum Wanted {
    /// Answered when hints come, or when the bus is down.
    Token(Token, oneshot::Sender<()>),
    /// No longer.
    Gone(Token),
}

#[async_trait]
impl Bus for RedisBus {
    fn publish(&self, events: &[(Token, Event)]) {
        self.outbox.put(events);
    }

    fn pass(&self, tokens: &[Token], content: &Content) {
        self.outbox.pass(tokens, content);
    }

    fn cut(&self, token: &Token) {
        self.outbox.cut(token);
    }

    async fn subscribe(&self, token: &Token) {
        let (sender, subscribed) = oneshot::channel();
        if self.wanted.send(Wanted::Token(token.clone(), sender)).is_ok() {
            timeout(SUBSCRIBE_TIMEOUT, subscribed).await.ok();
        }
    }

    fn unsubscribe(&self, token: &Token) {
        self.wanted.send(Wanted::Gone(token.clone())).ok();
    }
}

pub(super) fn start(
    settings: &Settings,
    hints: mpsc::Sender<Hint>,
    tasks: &mut JoinSet<()>,
) -> Result<Arc<dyn Bus>, BusError> {
    let line = Line { client: client(settings)?, channels: format!("{}:", settings.prefix), silence: settings.silence };
    let outbox = Arc::new(Outbox::default());
    // Bounded by the logins, each of which waits for its answer.
    let (wanted, wishes) = mpsc::unbounded_channel();
    tasks.spawn(tell(line.clone(), Arc::clone(&outbox)));
    tasks.spawn(listen(line, wishes, hints));
    Ok(Arc::new(RedisBus { outbox, wanted }))
}

/// Reads the URL and the CA's certificates.
fn client(settings: &Settings) -> Result<Client, BusError> {
    let url = settings.name.as_str();
    // The library passes over some of these options, and fails with others only when it connects.
    if url.contains(['?', '#']) {
        let problem = "it takes no options behind a ? or #, which in a password are %3F and %23; a private CA is named by \
            --bus-ca-file";
        return Err(BusError::Url(problem.to_owned()));
    }
    let path = &settings.ca_file;
    if path.as_os_str().is_empty() {
        return Client::open(url).map_err(|error| BusError::Url(error.to_string()));
    }
    let unusable = |problem: String| BusError::CaFile { path: path.clone(), problem };
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    if CertificateDer::pem_slice_iter(&pem).next().is_none() {
        return Err(unusable("it holds no certificate in PEM".to_owned()));
    }
    // So that what fails below is about the file.
    Client::open(url).map_err(|error| BusError::Url(error.to_string()))?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
    Client::build_with_tls(url, certificates).map_err(|error| unusable(error.to_string()))
}

/// Sends what is in the outbox; while one pipeline is under way, the next hints gather.
async fn tell(line: Line, outbox: Arc<Outbox>) {
    let (mut connection, mut retry) = (None, Retry::default());
    loop {
        let news = outbox.take().await;
        let Err(problem) = publish(&mut connection, &line, &news).await else {
            retry.worked();
            continue;
        };
        metrics::bus_failed("publish");
        connection = None;
        outbox.lost(news.cut, news.passing.len());
        let consequence = "Hints for other nodes were lost, they follow with the next sweep";
        tokio::time::sleep(retry.failed(consequence, &problem.to_string())).await;
    }
}

async fn publish(connection: &mut Option<MultiplexedConnection>, line: &Line, news: &News) -> Result<(), RedisError> {
    let connection = match connection {
        Some(connection) => connection,
        None => {
            let config =
                AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT));
            connection.insert(line.client.get_multiplexed_async_connection_with_config(&config).await?)
        }
    };
    let mut revs = news.revs.iter().peekable();
    while revs.peek().is_some() {
        let mut pipe = redis::pipe();
        for (token, rev) in revs.by_ref().take(PIPELINE) {
            pipe.publish(line.channel(token), *rev).ignore();
        }
        pipe.query_async::<()>(connection).await?;
    }
    if !news.cut.is_empty() {
        let mut pipe = redis::pipe();
        for token in &news.cut {
            pipe.publish(line.channel(token), CUT).ignore();
        }
        pipe.query_async::<()>(connection).await?;
    }
    for passing in news.passing.chunks(PIPELINE) {
        let mut pipe = redis::pipe();
        for (token, json) in passing {
            pipe.publish(line.channel(token), &**json).ignore();
        }
        pipe.query_async::<()>(connection).await?;
    }
    if news.gap {
        redis::cmd("PUBLISH").arg(&line.channels).arg(0).query_async::<()>(connection).await?;
    }
    Ok(())
}

/// Keeps the subscriptions and passes on what is heard, for ever; a new connection may have missed something.
async fn listen(line: Line, mut wishes: mpsc::UnboundedReceiver<Wanted>, hints: mpsc::Sender<Hint>) {
    let (mut tokens, mut retry) = (HashSet::new(), Retry::default());
    loop {
        let problem = match subscribe_again(&line, &tokens).await {
            Ok((sink, stream)) => {
                info!(channels = tokens.len(), "Subscribed to the bus");
                retry.worked();
                hints.send(Hint::Gap).await.ok();
                match hear(&line, sink, stream, &mut tokens, &mut wishes, &hints).await {
                    Some(problem) => problem,
                    None => return,
                }
            }
            Err(problem) => problem,
        };
        metrics::bus_failed("listen");
        let again = tokio::time::sleep(retry.failed("Lost the bus", &problem));
        tokio::pin!(again);
        // Logins go on meanwhile: they are not kept waiting, and are subscribed with the others.
        loop {
            tokio::select! {
                () = &mut again => break,
                wish = wishes.recv() => match wish {
                    Some(Wanted::Token(token, subscribed)) => {
                        tokens.insert(token);
                        subscribed.send(()).ok();
                    }
                    Some(Wanted::Gone(token)) => drop(tokens.remove(&token)),
                    None => return,
                },
            }
        }
    }
}

async fn subscribe_again(line: &Line, tokens: &HashSet<Token>) -> Result<(PubSubSink, PubSubStream), String> {
    let (mut sink, stream) = in_time(line.client.get_async_pubsub()).await?.split();
    let channels = std::iter::once(line.channels.clone()).chain(tokens.iter().map(|token| line.channel(token)));
    for channels in channels.collect::<Vec<_>>().chunks(PIPELINE) {
        in_time(sink.subscribe(channels)).await?;
    }
    Ok((sink, stream))
}

/// What the server answers, or why it is given up.
async fn in_time<T>(answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, String> {
    match timeout(TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// Returns what went wrong with the connection, or nothing when the bus is no longer used.
async fn hear(
    line: &Line,
    mut sink: PubSubSink,
    mut stream: PubSubStream,
    tokens: &mut HashSet<Token>,
    wishes: &mut mpsc::UnboundedReceiver<Wanted>,
    hints: &mpsc::Sender<Hint>,
) -> Option<String> {
    let mut batch = Vec::new();
    let mut heartbeat = tokio::time::interval(line.silence / HEARTBEATS);
    loop {
        tokio::select! {
            _ = heartbeat.tick() => {
                if let Err(problem) = in_time(sink.ping::<()>()).await {
                    return Some(problem);
                }
            }
            message = stream.next() => {
                let Some(message) = message else { return Some("the connection was lost".to_owned()) };
                if let Some(hint) = hint(&line.channels, message.get_channel_name(), &message.get_payload::<String>().unwrap_or_default()) {
                    hints.send(hint).await.ok();
                }
            }
            wished = wishes.recv_many(&mut batch, PIPELINE) => {
                if wished == 0 {
                    return None;
                }
                if let Err(problem) = change(line, &mut sink, tokens, &mut batch, hints).await {
                    return Some(problem);
                }
            }
        }
    }
}

/// Subscribes to what is new and unsubscribes from what is gone, in the order that was wished.
/// A login that did not wait for its subscription may have missed something.
async fn change(
    line: &Line,
    sink: &mut PubSubSink,
    tokens: &mut HashSet<Token>,
    wishes: &mut Vec<Wanted>,
    hints: &mpsc::Sender<Hint>,
) -> Result<(), String> {
    let (mut fresh, mut gone, mut waiting) = (HashSet::new(), HashSet::new(), Vec::new());
    for wish in wishes.drain(..) {
        match wish {
            Wanted::Token(token, subscribed) => {
                if !gone.remove(&token) && tokens.insert(token.clone()) {
                    fresh.insert(token);
                } else {
                    tokens.insert(token);
                }
                waiting.push(subscribed);
            }
            Wanted::Gone(token) => {
                if tokens.remove(&token) && !fresh.remove(&token) {
                    gone.insert(token);
                }
            }
        }
    }
    let channels = |tokens: &HashSet<Token>| tokens.iter().map(|token| line.channel(token)).collect::<Vec<_>>();
    let result = in_time(async {
        if !fresh.is_empty() {
            sink.subscribe(channels(&fresh)).await?;
        }
        if !gone.is_empty() {
            sink.unsubscribe(channels(&gone)).await?;
        }
        Ok(())
    });
    let result = result.await;
    let late = waiting.into_iter().filter_map(|subscribed| subscribed.send(()).err()).count();
    if late > 0 {
        hints.send(Hint::Gap).await.ok();
    }
    result
}

/// A payload is a rev, [`CUT`], or a message that is not stored.
pub(super) fn hint(channels: &str, channel: &str, payload: &str) -> Option<Hint> {
    if channel == channels {
        return Some(Hint::Gap);
    }
    let token = Token::parse(channel.strip_prefix(channels)?, usize::MAX).ok()?;
    if payload == CUT {
        return Some(Hint::Cut(token));
    }
    match payload.parse() {
        Ok(rev) => Some(Hint::Moved(token, rev)),
        Err(_) => Some(Hint::Passing(token, serde_json::from_str(payload).ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn refusal(url: &str, ca_file: &Path) -> String {
        let settings = Settings {
            name: url.to_owned(),
            database_url: "sqlite://tidings.db".to_owned(),
            ca_file: ca_file.to_owned(),
            prefix: "tidings".to_owned(),
            silence: Duration::from_secs(30),
        };
        super::super::connect(&settings).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[tokio::test]
    async fn urls_that_can_never_work_are_refused_without_their_password() {
        for good in ["local", "redis://h", "redis://h:6379/1", "rediss://:secret@h", "redis://u:se%3Fcret@[::1]:6379/"]
        {
            assert_eq!(refusal(good, Path::new("")), "", "{good}");
        }
        for (bad, said) in [
            ("rediss://:secret@h/#insecure", "--bus-ca-file"),
            ("redis://:secret@h/#anything", "%23"),
            ("rediss://:secret@h/?ssl_cert_reqs=none", "?"),
            ("redis://:secret@h/?db=3", "?"),
            ("redis://:se?cret@h", "%3F"),
            ("redis://:secret@h/db", "database number"),
            ("redis://:secret@h:port", "not the URL of a bus"),
            ("redis:", "not the URL of a bus"),
            ("local://h", "is not a bus"),
            ("postgres://u:secret@h/other", "is not a bus"),
            ("rediss", "is not a bus"),
            ("valkey://:secret@h", "is not a bus"),
        ] {
            let refusal = refusal(bad, Path::new(""));
            assert!(refusal.contains(said) && !refusal.contains("cret"), "{bad}: {refusal:?}");
        }
    }

    #[tokio::test]
    async fn a_ca_file_that_cannot_work_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (good, key) = (file("good.pem", &cert.pem()), file("key.pem", &signing_key.serialize_pem()));
        assert_eq!(refusal("rediss://h", &good), "");
        for bus in ["local", "redis://h", "postgres"] {
            assert!(refusal(bus, &good).contains("rediss://HOST"), "{bus}");
        }
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for path in [folder.path().join("none.pem"), file("empty.pem", ""), key, file("broken.pem", broken)] {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let refusal = refusal("rediss://h", &path);
            assert!(refusal.contains("--bus-ca-file") && refusal.contains(&name), "{refusal:?}");
        }
    }
}
