//! One task per session, and the only one that sends to it.
//!
//! A pump replays what is undelivered up to the head it read after it was attached to the hub, sets its cursor there,
//! and from then on sends every event beyond the cursor, in `rev` order: from the ring if it has the very next one, else
//! from the table. Attaching first leaves no gap; one sender with a growing cursor leaves no duplicate and no disorder.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Inbox;
use super::hub::{Attachment, Live, Next};
use super::session::Session;
use crate::metrics;
use crate::notification::{Event, Head, Notification, ReceiptKind, Rev, Selection};
use crate::store::{Page, Receipt, Undelivered};

/// What a pump has for its client.
pub enum Outbound<'a> {
    /// One notification.
    Message(&'a Live, Delivery),
    /// Several, for a client that asked for batches.
    Messages(&'a [Arc<Live>], Delivery),
    /// A change to rows that the client may have.
    Changed(&'a Live),
    /// The table was taken back to an earlier state: what the client has of this inbox is no longer true.
    Resync {
        /// The data set as it is now.
        epoch: &'a str,
        /// The inbox as it is now.
        head: Head,
    },
    /// Everything that was undelivered at login is sent.
    ReplayComplete {
        /// How many messages it was.
        count: u64,
        /// The inbox as of the login.
        head: Head,
    },
}

/// Why a notification is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It just happened.
    Live,
    /// It was undelivered at login.
    Replay,
}

impl Delivery {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Replay => "replay",
        }
    }
}

/// Where a pump sends to: one socket.
pub trait Outlet: Send + Sync {
    /// Queues a message for the socket, in order, without waiting.
    ///
    /// # Errors
    /// [`OutletError::Full`] if its buffer has no room now; nothing was queued then.
    fn send(&self, outbound: &Outbound<'_>) -> Result<(), OutletError>;

    /// Closes the socket, whatever its buffer holds.
    fn close(&self);
}

/// Why an [`Outlet`] did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutletError {
    /// Try again later.
    Full,
    /// The socket is gone.
    Closed,
}

/// The session is over, for whatever reason.
struct Ended;

/// The sender of one session.
pub struct Pump {
    pub(super) inbox: Arc<Inbox>,
    attachment: Attachment,
    outlet: Arc<dyn Outlet>,
    batch: bool,
    /// Of the data set that the cursor belongs to.
    epoch: Arc<str>,
    /// Every event up to here was sent or was not this session's to get.
    cursor: Rev,
    pace: Pace,
    /// The sweeps' doubts that were looked into.
    doubts: u64,
    /// When which revs were sent, for clients that never ack; at most one entry a second.
    unconfirmed: VecDeque<(Instant, Rev)>,
}

/// What a login has to catch up with.
pub(super) struct Backlog {
    pub(super) head: Head,
    /// The first of what is undelivered, up to the cursor if there is one.
    pub(super) first: Page<Notification>,
    /// The rev up to which the client knows everything, if that is true.
    pub(super) since: Option<Rev>,
    /// Whether the client thinks it knows what it cannot.
    pub(super) resync: bool,
}

impl Pump {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        attachment: Attachment,
        outlet: Arc<dyn Outlet>,
        batch: bool,
        epoch: Arc<str>,
    ) -> Self {
        Self {
            inbox,
            attachment,
            outlet,
            batch,
            epoch,
            cursor: 0,
            pace: Pace::default(),
            doubts: 0,
            unconfirmed: VecDeque::new(),
        }
    }

    fn session(&self) -> &Session {
        &self.attachment.session
    }

    /// Sends until the session ends.
    pub(super) async fn run(mut self, backlog: Backlog) {
        // Boxed, as are the steps below: an idle session keeps only the memory of its wait.
        if Box::pin(self.replay(backlog)).await.is_ok() {
            while self.wait().await.is_ok() && Box::pin(self.catch_up()).await.is_ok() {}
        }
        if self.session().is_cut() {
            self.outlet.close();
        }
        debug!(session = self.session().id(), "Session ended");
    }

    /// Sends the undelivered rows up to the head, or up to the client's cursor and then every event beyond it, and sets
    /// the cursor to the head.
    async fn replay(&mut self, backlog: Backlog) -> Result<(), Ended> {
        let Backlog { head, first: mut page, since, resync } = backlog;
        let mut count = 0;
        if resync {
            let epoch = Arc::clone(&self.epoch);
            self.send(&Outbound::Resync { epoch: &epoch, head }).await?;
        }
        loop {
            let last = page.rows.last().map(|row| row.seq);
            count += page.rows.len() as u64;
            let rows: Vec<_> = page.rows.into_iter().map(|row| Arc::new(Event::New(row).into())).collect();
            self.send_events(&rows, Delivery::Replay).await?;
            let Some(after) = last.filter(|_| page.more) else { break };
            page = self.undelivered(after, since.unwrap_or(head.rev)).await?;
        }
        if let Some(since) = since {
            count += self.replay_events(since, head.rev).await?;
        }
        self.send(&Outbound::ReplayComplete { count, head }).await?;
        self.cursor = head.rev;
        self.attachment.session.wake();
        Ok(())
    }

    /// Sends every event after one rev up to another, and returns how many of them were notifications.
    async fn replay_events(&mut self, since: Rev, upto: Rev) -> Result<u64, Ended> {
        let mut count = 0;
        self.cursor = since;
        while self.cursor < upto {
            let mut events = self.events().await?;
            // Nothing at all: the table was taken back since the head was read.
            if events.is_empty() || !follow(self.cursor, &events) {
                self.pass_horizon().await?;
                break;
            }
            events.retain(|live| live.event.rev() <= upto);
            count += events.iter().filter(|live| matches!(live.event, Event::New(_))).count() as u64;
            self.send_events(&events, Delivery::Replay).await?;
        }
        Ok(count)
    }

    /// What comes next is purged, so the client must start over from the head as it is now.
    async fn pass_horizon(&mut self) -> Result<(), Ended> {
        let (head, epoch) = self.head().await?;
        self.start_over(self.cursor.max(head.rev), head, epoch).await
    }

    /// The inbox as it is now, and the epoch that belongs to it.
    async fn head(&self) -> Result<(Head, Arc<str>), Ended> {
        loop {
            match self.inbox.heads.read(self.session().token()).await {
                Ok(found) => return Ok(found),
                Err(error) => self.rest(&error).await?,
            }
        }
    }

    /// Tells the client to list the inbox again, and goes on from `cursor`.
    async fn start_over(&mut self, cursor: Rev, head: Head, epoch: Arc<str>) -> Result<(), Ended> {
        metrics::resynced();
        self.send(&Outbound::Resync { epoch: &epoch, head }).await?;
        (self.cursor, self.epoch) = (cursor, epoch);
        Ok(())
    }

    async fn undelivered(&self, after: Rev, upto: Rev) -> Result<Page<Notification>, Ended> {
        let token = self.session().token();
        loop {
            let now = Utc::now();
            let page = Undelivered { token, after, upto, limit: self.inbox.settings.page, now };
            match self.inbox.reading(self.inbox.store.undelivered(&page)).await {
                Ok(page) => return Ok(page),
                Err(error) => self.rest(&error).await?,
            }
        }
    }

    /// Sends everything beyond the cursor.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        loop {
            let doubts = self.attachment.channel.doubts();
            if doubts != self.doubts {
                self.look_again().await?;
                self.doubts = doubts;
            }
            self.send_passing().await?;
            let next = self.attachment.channel.next(self.cursor, self.inbox.settings.page as usize);
            let events = match next {
                Next::UpToDate => return Ok(()),
                Next::Events(events) => events,
                Next::Behind(behind) => {
                    let events = self.events().await?;
                    if events.is_empty() {
                        self.attachment.channel.settle(&behind, self.cursor);
                    }
                    if !follow(self.cursor, &events) {
                        self.pass_horizon().await?;
                        continue;
                    }
                    events
                }
            };
            self.send_events(&events, Delivery::Live).await?;
        }
    }

    /// Asks the table whether it was taken back: it ends before the cursor, or has another epoch. Then the client must
    /// start over from there.
    async fn look_again(&mut self) -> Result<(), Ended> {
        let (head, epoch) = self.head().await?;
        // An inbox that was not there yet at the login may have got another life than was thought: that is no other table.
        let data_set = |epoch: &str| epoch.split('.').next().map(str::to_owned);
        if head.rev < self.cursor || data_set(&epoch) != data_set(&self.epoch) {
            warn!(session = self.session().id(), "The table was taken back to an earlier state");
            // Before the head is read that counts: what is published from here on is newer, and kept.
            self.attachment.channel.forget();
            let (head, epoch) = self.head().await?;
            self.attachment.channel.hint(head.rev);
            self.start_over(head.rev, head, epoch).await?;
        }
        Ok(())
    }

    /// The next events of the table.
    async fn events(&self) -> Result<Vec<Arc<Live>>, Ended> {
        loop {
            let (token, limit) = (self.session().token(), self.inbox.settings.page);
            let page = self.inbox.store.events(token, self.cursor, limit, Utc::now());
            match self.inbox.reading(page).await {
                Ok(page) => return Ok(page.rows.into_iter().map(|event| Arc::new(event.into())).collect()),
                Err(error) => self.rest(&error).await?,
            }
        }
    }

    /// Sends what is sent live only. It takes no rev and no room: nothing waits for its ack.
    async fn send_passing(&mut self) -> Result<(), Ended> {
        for live in self.session().passing() {
            let outbound = match self.batch {
                true => Outbound::Messages(std::slice::from_ref(&live), Delivery::Live),
                false => Outbound::Message(&live, Delivery::Live),
            };
            self.send(&outbound).await?;
            metrics::sent(1, Delivery::Live.name());
        }
        Ok(())
    }

    /// Sends events in order, as many at a time as the client takes. The cursor follows.
    async fn send_events(&mut self, events: &[Arc<Live>], delivery: Delivery) -> Result<(), Ended> {
        let mut rest = events;
        while let Some(first) = rest.first() {
            let taken = match &first.event {
                Event::Changed { origin, .. } => {
                    if *origin != Some(self.session().id()) {
                        self.send(&Outbound::Changed(first)).await?;
                    }
                    1
                }
                Event::Gone { .. } => 1,
                Event::New(_) => {
                    let room = self.room().await?;
                    let run = rest.iter().take_while(|live| matches!(live.event, Event::New(_)));
                    let run = run.take(if self.batch { room } else { 1 }).count();
                    let outbound = match self.batch {
                        true => Outbound::Messages(&rest[..run], delivery),
                        false => Outbound::Message(first, delivery),
                    };
                    self.send(&outbound).await?;
                    metrics::sent(run, delivery.name());
                    run
                }
            };
            for live in &rest[..taken] {
                self.cursor = live.event.rev();
                if let Event::New(notification) = &live.event {
                    self.session().sent(notification.seq, notification.content.id, self.inbox.settings.window);
                    self.note_unconfirmed(notification.seq);
                }
            }
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Waits until at least one message may be sent.
    async fn room(&mut self) -> Result<usize, Ended> {
        loop {
            let room = self.session().room(self.inbox.settings.window);
            if room > 0 {
                return Ok(room);
            }
            self.send_passing().await?;
            self.wait().await?;
        }
    }

    /// Sends one message, waiting while the socket's buffer is full. A socket that takes nothing for `stuck_timeout` is
    /// closed.
    async fn send(&mut self, outbound: &Outbound<'_>) -> Result<(), Ended> {
        let mut stuck: Option<Instant> = None;
        loop {
            if let Some(pause) = self.pace.before_sending() {
                self.sleep(pause).await?;
            }
            match self.attachment.session.send(|| self.outlet.send(outbound)).ok_or(Ended)? {
                Ok(()) => return Ok(()),
                Err(OutletError::Closed) => return Err(Ended),
                Err(OutletError::Full) => {
                    self.pace.full();
                    let since = *stuck.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.inbox.settings.stuck_timeout {
                        warn!(session = self.session().id(), "A socket takes nothing any more, closing it");
                        self.outlet.close();
                        return Err(Ended);
                    }
                }
            }
        }
    }

    /// Sleeps, unless the session ends before.
    async fn sleep(&self, pause: Duration) -> Result<(), Ended> {
        tokio::time::sleep(pause).await;
        if self.session().ended() { Err(Ended) } else { Ok(()) }
    }

    /// After a failed read: says so and waits a moment. The socket stays.
    async fn rest(&self, error: &crate::store::Error) -> Result<(), Ended> {
        warn!(session = self.session().id(), %error, "Cannot read an inbox, trying again");
        self.sleep(MAX_PAUSE).await
    }

    /// Waits for anything to do. For a client that never acks it also counts its rows delivered when the socket has
    /// outlived a heartbeat that was queued behind them, if so configured.
    async fn wait(&mut self) -> Result<(), Ended> {
        match self.unconfirmed.front() {
            None => self.session().woken().await,
            Some(&(sent, _)) => {
                let due = sent + self.inbox.settings.heartbeat.unwrap_or_default();
                if tokio::time::timeout_at(due, self.session().woken()).await.is_err() {
                    Box::pin(self.confirm()).await;
                }
            }
        }
        if self.session().ended() { Err(Ended) } else { Ok(()) }
    }

    fn note_unconfirmed(&mut self, rev: Rev) {
        if self.inbox.settings.heartbeat.is_none() || self.session().acking() {
            self.unconfirmed.clear();
            return;
        }
        let now = Instant::now();
        match self.unconfirmed.back_mut() {
            Some((sent, newest)) if now.duration_since(*sent) < Duration::from_secs(1) => (*sent, *newest) = (now, rev),
            _ => self.unconfirmed.push_back((now, rev)),
        }
    }

    async fn confirm(&mut self) {
        if self.session().acking() {
            self.unconfirmed.clear();
        }
        let Some((_, rev)) = self.unconfirmed.pop_front() else { return };
        let receipt = Receipt {
            token: self.session().token().clone(),
            kind: ReceiptKind::Ack,
            selection: Selection::UpTo(rev),
            origin: Some(self.session().id()),
        };
        if let Err(error) = self.inbox.writer.receipt(receipt).await {
            warn!(session = self.session().id(), %error, "Cannot mark rows delivered, trying again");
            self.unconfirmed.push_front((Instant::now(), rev));
        }
    }
}

/// Whether the events come one after the other from the cursor on. If not, what is between was purged.
fn follow(cursor: Rev, events: &[Arc<Live>]) -> bool {
    events.iter().zip(cursor + 1..).all(|(live, expected)| live.event.rev() == expected)
}

const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// How fast to fill a buffer that has been full: it can only be felt by running into its end.
///
/// After each pause fewer messages are sent than had room the last time. So the buffer nearly always has room for the
/// engine's own heartbeat, which would otherwise fail and close a slow but healthy socket.
#[derive(Default)]
struct Pace {
    /// Messages sent since the last pause.
    sent: u32,
    /// How many may be sent until the next pause; 0 without a limit.
    limit: u32,
    pause: Duration,
    is_full: bool,
}

impl Pace {
    /// The buffer had no room after what was sent since the last pause.
    fn full(&mut self) {
        self.pause = if self.sent < 32 { self.pause * 2 } else { self.pause / 2 }.clamp(MIN_PAUSE, MAX_PAUSE);
        self.limit = (self.sent - self.sent / 4).max(1);
        self.is_full = true;
    }

    /// How long to wait before the next message.
    fn before_sending(&mut self) -> Option<Duration> {
        if self.is_full || (self.limit > 0 && self.sent >= self.limit) {
            let pause = self.pause;
            if !self.is_full {
                // Nothing ran full since: try a little more, a little sooner.
                self.limit = self.limit.saturating_add(self.limit / 8 + 1);
                self.pause = (pause / 2).max(MIN_PAUSE);
            }
            (self.sent, self.is_full) = (1, false);
            return Some(pause);
        }
        self.sent = self.sent.saturating_add(1);
        None
    }
}
