//! The use cases: push, login, ack and read, and the sweep that makes up for lost hints.
//!
//! It knows the store and the bus, and no wire format: HTTP and Socket.IO call in here with checked values, and a session
//! gets its messages through an [`Outlet`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::bus::{Bus, Hint};
use crate::metrics;
use crate::notification::{
    Content, Event, Head, NewPush, Notification, Placed, Pushed, ReceiptKind, Rev, Selection, Token,
};
use crate::store::{
    self, Committer, Edit, IdempotencyKey, KeyName, KeyedPush, PushOutcome, Receipt, Sent, Store, StoredKey, Writer,
    WriterError, WriterTask,
};

mod heads;
mod hub;
mod pump;
mod scan;
mod session;
mod tend;
#[cfg(test)]
mod tests;

pub use heads::HeadsTask;
pub use hub::{Hub, Live, Ring};
pub use pump::{Delivery, Outbound, Outlet, OutletError, Pump};
pub use scan::Listed;
pub use session::Session;
pub use tend::Retention;

use heads::Heads;
use pump::Backlog;
use scan::{Gaps, Step};

/// Heads that a sweep reads with one query.
const SWEPT_AT_ONCE: usize = 1_000;

/// The least time between two sweeps.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Every bound of the use cases.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Jobs that may wait for the writer.
    pub write_queue: usize,
    /// Rows that one transaction takes.
    pub commit_rows: usize,
    /// Bytes of `data` that one transaction takes.
    pub commit_bytes: usize,
    /// How long a push or receipt waits for its commit.
    pub store_timeout: Duration,
    /// How long a step of a large change may keep others waiting.
    pub step: Duration,
    /// Messages that an acking client may have unacked.
    pub window: usize,
    /// Rows a page of the table holds.
    pub page: u32,
    /// Bytes of `data` of a list, whatever its rows; the last row may go beyond.
    pub page_bytes: usize,
    /// Events the hub keeps a token.
    pub ring: Ring,
    /// Sessions a token may have on this node.
    pub max_sockets_per_token: usize,
    /// Pages of the table that are read at a time.
    pub replays: usize,
    /// A socket that takes nothing for this long is closed.
    pub stuck_timeout: Duration,
    /// What is kept for how long.
    pub retention: Retention,
    /// How often heads are compared with the table.
    pub sweep_interval: Duration,
    /// Rows of a client that never acks count as delivered when its socket is alive this long after it would have been
    /// closed for its silence, had it not got them; if not set they never do.
    pub heartbeat: Option<Duration>,
}

/// The use cases over one database.
pub struct Inbox {
    store: Arc<dyn Store>,
    writer: Writer,
    hub: Arc<Hub>,
    bus: Arc<dyn Bus>,
    heads: Heads,
    /// Of the data set as it was at the start.
    first_epoch: Arc<str>,
    settings: Settings,
    /// Bounds the memory and the load of reading pages: one huge inbox takes its turn like any other.
    readers: Semaphore,
    /// As many again for the first page of logins: a user who comes does not wait behind those who catch up.
    login_readers: Semaphore,
    gaps: Gaps,
    /// Owner and key of the keyed pushes that wait for their commit.
    pending_keys: Mutex<HashSet<KeyName>>,
    sessions: TaskTracker,
    /// Hints may have been lost.
    gap: Notify,
}

/// The tasks that an [`Inbox`] needs running.
pub struct Tasks {
    /// They commit; to be stopped last.
    pub writers: Vec<WriterTask>,
    /// Reads heads for logins.
    pub heads: HeadsTask,
}

/// Why a push was not done.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// A push with the same idempotency key is being committed.
    #[error("a push with this Idempotency-Key is in flight")]
    KeyInFlight,
    /// The same idempotency key came before with another body.
    #[error("this Idempotency-Key was used with another body")]
    KeyMismatch,
    /// The writer did not do it.
    #[error(transparent)]
    Writer(#[from] WriterError),
}

/// Why a login was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The token has as many sessions on this node as it may.
    #[error("this token has too many sockets")]
    TooManySockets,
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What a client knows from an earlier session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Everything up to this rev.
    pub rev: Rev,
    /// Of this data set.
    pub epoch: String,
}

/// What a login is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// The data set; a cursor from another one means nothing.
    pub epoch: Arc<str>,
    /// The inbox as of the login.
    pub head: Head,
    /// How many messages will be replayed.
    pub undelivered: u64,
}

/// A session that is attached and has not been sent anything yet.
pub struct Login {
    /// To be sent before [`Login::start`].
    pub greeting: Greeting,
    /// For the session's receipts and its end.
    pub session: Arc<Session>,
    pump: Box<Pump>,
}

impl Inbox {
    /// Makes the use cases over an open database.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        committers: Vec<Box<dyn Committer>>,
        bus: Arc<dyn Bus>,
        epoch: String,
        settings: Settings,
    ) -> (Arc<Self>, Tasks) {
        let emptied = {
            let bus = Arc::clone(&bus);
            move |token: &Token| bus.unsubscribe(token)
        };
        let hub = Arc::new(Hub::new(settings.ring, settings.max_sockets_per_token, emptied));
        let publish = {
            let (hub, bus) = (Arc::clone(&hub), Arc::clone(&bus));
            move |events: Vec<(Token, Event)>| {
                bus.publish(&events);
                hub.publish(events);
            }
        };
        let (writer, writers) = Writer::new(
            committers,
            settings.write_queue,
            settings.commit_rows,
            settings.commit_bytes,
            settings.store_timeout,
            settings.step,
            publish,
        );
        let (heads, heads_task) = Heads::new(Arc::clone(&store));
        let (readers, login_readers) = (Semaphore::new(settings.replays), Semaphore::new(settings.replays));
        let inbox = Self {
            store,
            writer,
            hub,
            bus,
            heads,
            first_epoch: epoch.into(),
            settings,
            readers,
            login_readers,
            gaps: Gaps::default(),
            pending_keys: Mutex::default(),
            sessions: TaskTracker::new(),
            gap: Notify::new(),
        };
        (Arc::new(inbox), Tasks { writers, heads: heads_task })
    }

    /// Stores one row per token and returns after they are durable.
    ///
    /// # Errors
    /// Nothing was written, unless it is [`store::Error::OutcomeUnknown`].
    pub async fn push(&self, push: NewPush, key: Option<IdempotencyKey>) -> Result<Pushed, PushError> {
        let _pending = match &key {
            Some(key) => Some(PendingKey::enter(&self.pending_keys, key).ok_or(PushError::KeyInFlight)?),
            None => None,
        };
        if push.options.live_only() {
            return Ok(self.pass(push));
        }
        match self.writer.push(KeyedPush { push, key }).await? {
            PushOutcome::Pushed(pushed) => Ok(pushed),
            PushOutcome::KeyMismatch => Err(PushError::KeyMismatch),
        }
    }

    /// Sends a push to whoever is there, on this node and, as far as the bus can carry it, on others.
    fn pass(&self, push: NewPush) -> Pushed {
        let NewPush { tokens, entity_type, data, options: _ } = push;
        let content =
            Content { id: Uuid::now_v7(), entity_type, data: data.into_raw(), created_at: store::now_millis() };
        let id = content.id;
        self.bus.pass(&tokens, &content);
        let live = passing(content);
        tokens.iter().for_each(|token| self.hub.pass(token, &live));
        let placed = |token| Placed { token, seq: None, grouped_into: None };
        Pushed { id, results: tokens.into_iter().map(placed).collect() }
    }

    /// Attaches a session and reads what it missed. With a cursor it catches up on everything since, besides what is
    /// undelivered; if the cursor is of another data set or too old, the session is told to start over.
    ///
    /// # Errors
    /// The session is detached again then.
    pub async fn login(
        self: &Arc<Self>,
        token: &Token,
        batch: bool,
        since: Option<Cursor>,
        outlet: Arc<dyn Outlet>,
    ) -> Result<Login, LoginError> {
        // In this order: whatever is committed after the head was read wakes the session.
        let attachment = self.hub.attach(token, batch).ok_or(LoginError::TooManySockets)?;
        self.bus.subscribe(token).await;
        let (head, epoch) = self.heads.read(token).await?;
        // Whoever of this token is behind that has missed a hint.
        attachment.channel.hint(head.rev);
        // A cursor of another data set, ahead of this one's head or from before what is kept is worth nothing.
        let good = |cursor: &Cursor| *cursor.epoch == *epoch && (head.purged_rev..=head.rev).contains(&cursor.rev);
        let resync = since.as_ref().is_some_and(|cursor| !good(cursor));
        let since = since.filter(good).map(|cursor| cursor.rev);
        let upto = since.unwrap_or(head.rev);

        let (mut first, mut undelivered) = (Step { rows: Vec::new(), next: None }, 0);
        if head.rev > head.delivered_upto {
            let readers = &self.login_readers;
            first = self.undelivered_step(readers, token, &epoch, head.delivered_upto, upto).await?;
            while let Some(next) = first.next.filter(|_| first.rows.is_empty()) {
                first = self.undelivered_step(readers, token, &epoch, next, upto).await?;
            }
            let counted = first.next.unwrap_or(upto);
            undelivered =
                first.rows.len() as u64 + self.count_undelivered(readers, token, &epoch, counted, head.rev).await?;
            // Rows that were acked since the watermark was moved last would be passed at each login.
            if first.rows.first().is_none_or(|row| row.seq > head.delivered_upto + 1) {
                self.writer.advance(token, head.rev);
            }
        }
        let session = Arc::clone(&attachment.session);
        // Nothing before the first of them is left to be acked.
        session.stored_ack_upto(first.rows.first().map_or(upto, |row| row.seq - 1));
        debug!(session = session.id(), ?token, inbox.rev = head.rev, inbox.undelivered = undelivered, "Login");
        let backlog = Backlog { head, first, since, resync };
        Ok(Login {
            pump: Box::new(Pump::new(Arc::clone(self), attachment, outlet, batch, Arc::clone(&epoch), backlog)),
            greeting: Greeting { epoch, head, undelivered },
            session,
        })
    }

    /// The state that a login would be answered with now.
    ///
    /// # Errors
    /// [`LoginError::Store`] if the database does not answer.
    pub async fn greeting(&self, token: &Token) -> Result<Greeting, LoginError> {
        let (head, epoch) = self.heads.read(token).await?;
        let undelivered = self.count_undelivered(&self.readers, token, &epoch, head.delivered_upto, head.rev).await?;
        Ok(Greeting { epoch, head, undelivered })
    }

    /// Takes what a client says it has: what is no longer in flight makes room for more, which is sent at once. Returns how
    /// many messages that were. Whether it is stored is another matter: what is not is sent again at the next login.
    pub fn received(&self, session: &Session, kind: ReceiptKind, selection: &Selection) -> usize {
        let received = session.received(selection, kind == ReceiptKind::Ack);
        if let Some(upto) = received.advance {
            self.writer.advance(session.token(), upto);
        }
        received.freed
    }

    /// Marks rows of the session's own inbox delivered soon; nobody is told. Returns false if too many acks wait already.
    #[must_use]
    pub fn ack(&self, session: &Session, ids: &[Uuid]) -> bool {
        self.writer.ack(session.token(), ids)
    }

    /// Marks rows of the session's own inbox; a read returns the inbox's head after the commit.
    ///
    /// # Errors
    /// As for [`Writer::receipt`].
    pub async fn receipt(
        &self,
        session: &Session,
        kind: ReceiptKind,
        selection: Selection,
    ) -> Result<Option<Head>, WriterError> {
        let (after, sent) = session.acked_and_sent();
        let acked = match (kind, &selection) {
            (ReceiptKind::Ack, Selection::UpTo(upto)) => Some(sent.min(*upto)),
            _ => None,
        };
        let (token, origin) = (session.token().clone(), Some(session.id()));
        let head = self.writer.receipt(Receipt { token, kind, selection, after, origin, life: None }).await?;
        if let Some(upto) = acked {
            session.stored_ack_upto(upto);
        }
        Ok(head)
    }

    /// Marks rows of an inbox for somebody who is no session, and returns the inbox's head after the commit.
    ///
    /// # Errors
    /// As for [`Writer::receipt`].
    pub async fn mark(&self, token: Token, kind: ReceiptKind, selection: Selection) -> Result<Head, WriterError> {
        let receipt = Receipt { token, kind, selection, after: 0, origin: None, life: None };
        let head = self.writer.receipt(receipt).await?;
        Ok(head.unwrap_or_default())
    }

    /// The head of an inbox and the epoch it belongs to.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`] if the database does not answer.
    pub async fn head(&self, token: &Token) -> Result<(Head, Arc<str>), store::Error> {
        self.heads.read(token).await
    }

    /// A push and what became of it, a page of its recipients at a time.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`] if the database does not answer.
    pub async fn sent(&self, id: Uuid, after: &str, limit: u32) -> Result<Option<Sent>, store::Error> {
        self.reading(self.store.sent(id, after, limit)).await
    }

    /// Takes a push back from every inbox and from the schedule; returns from how many.
    ///
    /// # Errors
    /// As for [`Writer::edit`].
    pub async fn retract(&self, id: Uuid) -> Result<u64, WriterError> {
        self.writer.edit(Edit::retract(id), None).await
    }

    /// Takes an actor out of a group; returns whether they were in it.
    ///
    /// # Errors
    /// As for [`Writer::edit`].
    pub async fn ungroup(&self, token: Token, key: String, actor: String) -> Result<bool, WriterError> {
        let edit = Edit::Ungroup { token: token.clone(), key, actor };
        Ok(self.writer.edit(edit, Some(&token)).await? > 0)
    }

    /// Forgets an inbox and everything in it, and cuts its sessions; returns how many notifications it had.
    ///
    /// # Errors
    /// As for [`Writer::edit`].
    pub async fn erase(self: &Arc<Self>, token: Token) -> Result<u64, WriterError> {
        let inbox = Arc::clone(self);
        // A task of its own: the sessions end also when the caller has gone.
        let work = tokio::spawn(async move {
            let rows = inbox.writer.edit(Edit::erase(token.clone()), Some(&token)).await;
            if matches!(rows, Ok(_) | Err(WriterError::Unfinished)) {
                inbox.disconnect(&token);
            }
            rows
        });
        work.await.unwrap_or(Err(WriterError::Stopped))
    }

    /// Ends the sessions of a token here and has other nodes do so; returns how many were here. Their sockets are closed,
    /// and may log in again with a login that is still good.
    pub fn disconnect(&self, token: &Token) -> usize {
        self.bus.cut(token);
        self.hub.cut(token)
    }

    /// The API keys as they stand in the table.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`] if the database does not answer.
    pub async fn api_keys(&self) -> Result<Vec<StoredKey>, store::Error> {
        self.store.api_keys().await
    }

    /// Notes when API keys were last used. It is told to whoever lists them, and nothing hangs on it.
    pub async fn note_used_keys(&self, keys: Vec<(String, DateTime<Utc>)>) {
        if !keys.is_empty()
            && let Err(error) = self.writer.edit(Edit::NoteUse { keys }, None).await
        {
            debug!(%error, "Cannot store when keys were last used");
        }
    }

    /// Answers if the database does, and could write when it last had to.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`] if not.
    pub async fn ping(&self) -> Result<(), store::Error> {
        self.store.epoch().await?;
        match self.writer.is_failing() {
            true => Err(store::Error::Unavailable("its last transaction failed".into())),
            false => Ok(()),
        }
    }

    /// Takes what the other nodes say, until the bus ends.
    pub async fn listen(&self, mut hints: mpsc::Receiver<Hint>) {
        while let Some(hint) = hints.recv().await {
            match hint {
                Hint::Moved(token, rev) => {
                    metrics::hint_heard();
                    self.hub.hint(&token, rev);
                }
                Hint::Passing(token, content) => self.hub.pass(&token, &passing(content)),
                Hint::Cut(token) => drop(self.hub.cut(&token)),
                Hint::Gap => self.gap.notify_one(),
            }
        }
    }

    /// Compares the heads of every token that has sessions here with the table, every sweep interval and whenever hints
    /// may have been lost, until `stop`; and the epoch with the one that was there before.
    pub async fn sweep(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.settings.sweep_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        let next = async |ticks: &mut tokio::time::Interval| {
            tokio::select! {
                _ = ticks.tick() => self.hub.forget_old_events(),
                () = self.gap.notified() => {}
            }
        };
        let mut epoch = Arc::clone(&self.first_epoch);
        while stop.run_until_cancelled(next(&mut ticks)).await.is_some() {
            for tokens in self.hub.tokens().chunks(SWEPT_AT_ONCE) {
                match self.store.heads(tokens).await {
                    Ok(heads) => {
                        if heads.epoch != epoch {
                            self.hub.doubt_all();
                            epoch = heads.epoch;
                        }
                        let rev = |token| heads.of.get(token).map_or(0, |(head, _)| head.rev);
                        tokens.iter().for_each(|token| self.hub.compare(token, rev(token)));
                    }
                    Err(error) => {
                        warn!(%error, "Cannot sweep, retrying");
                        self.gap.notify_one();
                        break;
                    }
                }
            }
            // However many gaps are told, and while the database is down.
            stop.run_until_cancelled(tokio::time::sleep(SWEEP_PAUSE)).await;
        }
    }

    /// Runs work for a session that must be done before the service may stop.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.sessions.spawn(work);
    }

    /// Ends every session and waits until what they asked for is done.
    pub async fn drain(&self) {
        self.hub.end_sessions();
        self.sessions.close();
        self.sessions.wait().await;
    }

    /// Runs a read of a page when it is its turn.
    async fn reading<T>(&self, read: impl Future<Output = Result<T, store::Error>>) -> Result<T, store::Error> {
        scan::turn(&self.readers, read).await
    }
}

impl Login {
    /// Starts to send: what was undelivered, then everything newer.
    pub fn start(self) {
        self.pump.drive();
    }
}

/// A message that is sent live only.
fn passing(content: Content) -> Arc<Live> {
    Arc::new(Event::New(Notification { seq: 0, content: Arc::new(content), read: false, group: None }).into())
}

/// A keyed push in flight; leaves the set when dropped.
struct PendingKey<'a> {
    keys: &'a Mutex<HashSet<KeyName>>,
    name: KeyName,
}

impl<'a> PendingKey<'a> {
    fn enter(keys: &'a Mutex<HashSet<KeyName>>, key: &IdempotencyKey) -> Option<Self> {
        let name = key.name();
        let fresh = keys.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        fresh.then_some(Self { keys, name })
    }
}

impl Drop for PendingKey<'_> {
    fn drop(&mut self) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
