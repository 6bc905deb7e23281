//! The sender of one session, and the only one.
//!
//! A pump replays what is undelivered up to the head it read after it was attached to the hub, sets its cursor there,
//! and from then on sends every event beyond the cursor, in `rev` order: from the ring if it has the very next one, else
//! from the table. Attaching first leaves no gap; one sender with a growing cursor leaves no duplicate and no disorder.
//!
//! It is a state machine: [`Pump::send_now`] sends all that can be sent without waiting and says what it needs next. Most
//! often that is news, and then the pump is parked in its session, where whoever publishes an event or takes an ack finds
//! it and sends on the spot. Only for a read or a pause does it get a task.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Inbox;
use super::hub::{Attachment, Behind, Live, Next};
use super::scan::Step;
use super::session::Session;
use crate::limits::log_due;
use crate::metrics;
use crate::notification::{Event, Head, ReceiptKind, Rev, Selection};
use crate::store::Receipt;

/// What a pump has for its client.
pub enum Outbound<'a> {
    /// One notification.
    Message(&'a Live, Delivery),
    /// Several, for a client that asked for batches.
    Messages(&'a [Arc<Live>], Delivery),
    /// A change to rows that the client may have.
    Changed(&'a Live),
    /// The database went back to an earlier state: what the client has of this inbox is no longer true.
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

/// Where a pump sends to: one socket.
pub trait Outlet: Send + Sync {
    /// Queues a message for the socket, in order, without waiting.
    ///
    /// # Errors
    /// [`OutletError::Full`] if its buffer has no room now; nothing was queued then.
    fn send(&self, outbound: &Outbound<'_>) -> Result<(), OutletError>;

    /// How long its client may be silent before the socket is closed.
    fn silence(&self) -> Duration {
        Duration::ZERO
    }

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
    inbox: Arc<Inbox>,
    attachment: Attachment,
    outlet: Arc<dyn Outlet>,
    batch: bool,
    /// Of the data set that the cursor belongs to.
    epoch: Arc<str>,
    /// Every event up to here was sent or was not this session's to get.
    cursor: Rev,
    stage: Stage,
    /// What was read and is to be sent next, in `rev` order.
    queue: VecDeque<Arc<Live>>,
    /// The client is to start over from this head before anything else is sent.
    resync: Option<Head>,
    pace: Pace,
    /// The pause that the pace asked for is over.
    rested: bool,
    /// Since when the socket takes nothing.
    stuck: Option<Instant>,
    /// The sweeps' doubts that were looked into.
    doubts: u64,
    /// When which revs were sent, for clients that never ack; at most one entry a second.
    unconfirmed: VecDeque<(Instant, Rev)>,
}

/// How far a session has come.
enum Stage {
    /// It is sent what was undelivered at login.
    Undelivered {
        replay: Box<Replay>,
        /// Where the next page begins, if there is one.
        after: Option<Rev>,
    },
    /// It is sent every event beyond the client's own cursor.
    Missed(Box<Replay>),
    /// It is to be told that the replay is complete.
    Replayed(Box<Replay>),
    /// It is sent what happens.
    Live,
}

/// What a login is to be sent before anything live.
struct Replay {
    head: Head,
    /// The rev up to which the client knows everything, if that is true.
    since: Option<Rev>,
    /// How many notifications were queued for it.
    count: u64,
}

/// What a pump needs to go on.
enum Need {
    /// An event, or an ack that makes room.
    News,
    /// Time for the socket to take what its buffer holds.
    Pause(Duration),
    /// The undelivered rows after this rev.
    Undelivered(Rev),
    /// The events after the cursor.
    Events(Option<Behind>),
    /// To know where the table stands.
    Head,
    /// Nothing any more.
    End,
}

/// What a login has to catch up with.
pub(super) struct Backlog {
    pub(super) head: Head,
    /// The first of what is undelivered, up to the cursor if there is one.
    pub(super) first: Step,
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
        backlog: Backlog,
    ) -> Self {
        let Backlog { head, first, since, resync } = backlog;
        let mut pump = Self {
            inbox,
            attachment,
            outlet,
            batch,
            epoch,
            cursor: 0,
            stage: Stage::Live,
            queue: VecDeque::new(),
            resync: resync.then_some(head),
            pace: Pace::default(),
            rested: false,
            stuck: None,
            doubts: 0,
            unconfirmed: VecDeque::new(),
        };
        pump.queue_undelivered(Box::new(Replay { head, since, count: 0 }), first);
        pump
    }

    fn session(&self) -> &Session {
        &self.attachment.session
    }

    /// Sends what can be sent now. Then the pump is parked in its session, or a task gets what it needs.
    pub(super) fn drive(mut self: Box<Self>) {
        loop {
            match self.send_now() {
                Need::News if self.unconfirmed.is_empty() => {
                    let session = Arc::clone(&self.attachment.session);
                    self.queue.shrink_to(MAX_IDLE_QUEUE);
                    match session.park(self) {
                        Some(pump) => self = pump,
                        None => return,
                    }
                }
                Need::End => return self.finish(),
                need => {
                    let inbox = Arc::clone(&self.inbox);
                    inbox.spawn(self.get(need));
                    return;
                }
            }
        }
    }

    /// Gets what is needed and goes on.
    async fn get(mut self: Box<Self>, need: Need) {
        let got = match need {
            Need::News => self.wait().await,
            Need::Pause(pause) => self.sleep(pause).await,
            Need::Undelivered(after) => self.read_undelivered(after).await,
            Need::Events(behind) => self.read_events(behind).await,
            Need::Head => self.look_again().await,
            Need::End => Err(Ended),
        };
        match got {
            Ok(()) => self.drive(),
            Err(Ended) => self.finish(),
        }
    }

    /// The session has ended: detaches it.
    pub(super) fn finish(self: Box<Self>) {
        if self.session().is_cut() {
            self.outlet.close();
        }
        debug!(session = self.session().id(), "Session ended");
        if let Some(upto) = self.session().unadvanced() {
            self.inbox.writer.advance(self.session().token(), upto);
        }
    }

    /// Sends everything that is there, as far as the client takes it, and says what is needed next.
    fn send_now(&mut self) -> Need {
        match self.send_what_is_there() {
            Ok(need) | Err(need) => need,
        }
    }

    fn send_what_is_there(&mut self) -> Result<Need, Need> {
        loop {
            if let Some(head) = self.resync {
                let epoch = Arc::clone(&self.epoch);
                self.send(&Outbound::Resync { epoch: &epoch, head })?;
                self.resync = None;
            }
            if matches!(self.stage, Stage::Live) {
                let doubts = self.attachment.channel.doubts();
                if doubts != self.doubts && self.queue.is_empty() {
                    self.doubts = doubts;
                    return Ok(Need::Head);
                }
            }
            self.send_passing()?;
            self.send_queue()?;
            self.stage = match std::mem::replace(&mut self.stage, Stage::Live) {
                Stage::Undelivered { replay, after: Some(after) } => {
                    self.stage = Stage::Undelivered { replay, after: Some(after) };
                    return Ok(Need::Undelivered(after));
                }
                Stage::Undelivered { replay, after: None } => match replay.since {
                    Some(since) => {
                        self.cursor = since;
                        Stage::Missed(replay)
                    }
                    None => Stage::Replayed(replay),
                },
                Stage::Missed(replay) if self.cursor < replay.head.rev => {
                    self.stage = Stage::Missed(replay);
                    return Ok(Need::Events(None));
                }
                Stage::Missed(replay) => Stage::Replayed(replay),
                Stage::Replayed(replay) => {
                    let (count, head) = (replay.count, replay.head);
                    self.stage = Stage::Replayed(replay);
                    self.send(&Outbound::ReplayComplete { count, head })?;
                    self.cursor = self.cursor.max(head.rev);
                    Stage::Live
                }
                Stage::Live => {
                    let page = self.inbox.settings.page as usize;
                    match self.attachment.channel.next(self.cursor, page, &mut self.queue) {
                        Next::UpToDate => return Ok(Need::News),
                        Next::Events => {}
                        Next::Behind(behind) => return Ok(Need::Events(Some(behind))),
                    }
                    Stage::Live
                }
            };
        }
    }

    fn queue_undelivered(&mut self, mut replay: Box<Replay>, step: Step) {
        replay.count += step.rows.len() as u64;
        self.queue.extend(step.rows.into_iter().map(|row| Arc::new(Event::New(row).into())));
        self.stage = Stage::Undelivered { replay, after: step.next };
    }

    async fn read_undelivered(&mut self, after: Rev) -> Result<(), Ended> {
        let Stage::Undelivered { replay, .. } = &self.stage else { return Ok(()) };
        let upto = replay.since.unwrap_or(replay.head.rev);
        let step = loop {
            // A step may find nothing, and then nothing is sent that would notice.
            if self.session().ended() {
                return Err(Ended);
            }
            let token = self.attachment.session.token();
            match self.inbox.undelivered_step(&self.inbox.readers, token, &self.epoch, after, upto).await {
                Ok(step) => break step,
                Err(error) => self.rest(&error).await?,
            }
        };
        if let Stage::Undelivered { replay, .. } = std::mem::replace(&mut self.stage, Stage::Live) {
            self.queue_undelivered(replay, step);
        }
        Ok(())
    }

    /// Reads the next events of the table.
    async fn read_events(&mut self, behind: Option<Behind>) -> Result<(), Ended> {
        let mut events: Vec<Arc<Live>> = loop {
            let (token, limit) = (self.session().token(), self.inbox.settings.page);
            let page = self.inbox.store.events(token, self.cursor, limit, Utc::now());
            match self.inbox.reading(page).await {
                Ok(page) => break page.rows.into_iter().map(|event| Arc::new(event.into())).collect(),
                Err(error) => self.rest(&error).await?,
            }
        };
        if let Some(behind) = behind
            && events.is_empty()
        {
            self.attachment.channel.settle(&behind, self.cursor);
        }
        let purged = !follow(self.cursor, &events);
        match std::mem::replace(&mut self.stage, Stage::Live) {
            // Nothing at all: the table was taken back since the head was read.
            Stage::Missed(replay) if purged || events.is_empty() => {
                self.stage = Stage::Replayed(replay);
                return self.pass_horizon().await;
            }
            Stage::Missed(mut replay) => {
                events.retain(|live| live.event.rev() <= replay.head.rev);
                replay.count += events.iter().filter(|live| matches!(live.event, Event::New(_))).count() as u64;
                self.stage = Stage::Missed(replay);
            }
            stage => {
                self.stage = stage;
                if purged {
                    return self.pass_horizon().await;
                }
            }
        }
        self.queue.extend(events);
        Ok(())
    }

    /// What comes next is purged, so the client must start over from the head as it is now.
    async fn pass_horizon(&mut self) -> Result<(), Ended> {
        let (head, epoch) = self.head().await?;
        self.start_over(self.cursor.max(head.rev), head, epoch);
        Ok(())
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

    /// Has the client told to list the inbox again, and goes on from `cursor`.
    fn start_over(&mut self, cursor: Rev, head: Head, epoch: Arc<str>) {
        metrics::resynced();
        self.session().start_over(cursor);
        self.resync = Some(head);
        (self.cursor, self.epoch) = (cursor, epoch);
    }

    /// Asks the table whether it was taken back: it ends before the cursor, or has another epoch. Then the client must
    /// start over from there.
    async fn look_again(&mut self) -> Result<(), Ended> {
        let (head, epoch) = self.head().await?;
        // An inbox that was not there yet at the login may have got another life than was thought: that is no other table.
        let data_set = |epoch: &str| epoch.split('.').next().map(str::to_owned);
        if head.rev < self.cursor || data_set(&epoch) != data_set(&self.epoch) {
            if let Some(left_out) = log_due("table_taken_back") {
                warn!(session = self.session().id(), left_out, "The database went back to an earlier state");
            }
            // Before the head is read that counts: what is published from here on is newer, and kept.
            self.attachment.channel.forget();
            let (head, epoch) = self.head().await?;
            self.attachment.channel.hint(head.rev);
            self.start_over(head.rev, head, epoch);
        }
        Ok(())
    }

    /// Sends what is sent live only. It takes no rev and no room: nothing waits for its ack.
    fn send_passing(&mut self) -> Result<(), Need> {
        let mut passing = self.session().take_passing();
        while let Some(live) = passing.front() {
            let outbound = match self.batch {
                true => Outbound::Messages(std::slice::from_ref(live), Delivery::Live),
                false => Outbound::Message(live, Delivery::Live),
            };
            if let Err(need) = self.send(&outbound) {
                self.session().put_back_passing(passing);
                return Err(need);
            }
            metrics::sent_live(1);
            passing.pop_front();
        }
        Ok(())
    }

    /// Sends the queue in order, as many at a time as the client takes. The cursor follows.
    fn send_queue(&mut self) -> Result<(), Need> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let delivery = if matches!(self.stage, Stage::Live) { Delivery::Live } else { Delivery::Replay };
        let mut queue = std::mem::take(&mut self.queue);
        let sent = self.send_events(queue.make_contiguous(), delivery);
        let (taken, sent) = sent.map_or_else(|(taken, need)| (taken, Err(need)), |()| (queue.len(), Ok(())));
        queue.drain(..taken);
        self.queue = queue;
        sent
    }

    /// Sends events, or says how many were sent and what the rest needs.
    fn send_events(&mut self, events: &[Arc<Live>], delivery: Delivery) -> Result<(), (usize, Need)> {
        let mut taken = 0;
        while let Some(first) = events.get(taken) {
            taken += match &first.event {
                Event::Changed { origin, .. } => {
                    if *origin != Some(self.session().id()) {
                        self.send(&Outbound::Changed(first)).map_err(|need| (taken, need))?;
                    }
                    1
                }
                Event::Gone { .. } => 1,
                Event::New(_) => {
                    let room = self.session().room(self.inbox.settings.window);
                    if room == 0 {
                        return Err((taken, Need::News));
                    }
                    let run = events[taken..].iter().take_while(|live| matches!(live.event, Event::New(_)));
                    let run = run.take(if self.batch { room.min(MAX_BATCH) } else { 1 }).count();
                    self.send_messages(&events[taken..taken + run], delivery).map_err(|need| (taken, need))?;
                    run
                }
            };
            self.cursor = events[taken - 1].event.rev();
        }
        Ok(())
    }

    fn send_messages(&mut self, messages: &[Arc<Live>], delivery: Delivery) -> Result<(), Need> {
        self.pause()?;
        let outbound = match messages {
            [live] if !self.batch => Outbound::Message(live, delivery),
            _ => Outbound::Messages(messages, delivery),
        };
        let sent = messages.iter().filter_map(|live| match &live.event {
            Event::New(notification) => Some((notification.seq, notification.content.id)),
            Event::Changed { .. } | Event::Gone { .. } => None,
        });
        let window = self.inbox.settings.window;
        let result = self.session().send_messages(sent, window, || self.outlet.send(&outbound));
        self.taken(result)?;
        match delivery {
            Delivery::Live => metrics::sent_live(messages.len()),
            Delivery::Replay => metrics::sent_replay(messages.len()),
        }
        if let Some(newest) = messages.last() {
            self.note_unconfirmed(newest.event.rev());
        }
        Ok(())
    }

    /// Sends one message that needs no room in the window.
    fn send(&mut self, outbound: &Outbound<'_>) -> Result<(), Need> {
        self.pause()?;
        let result = self.session().send(|| self.outlet.send(outbound));
        self.taken(result)
    }

    /// Asks for the pause that the pace wants before the next message, once.
    fn pause(&mut self) -> Result<(), Need> {
        if std::mem::take(&mut self.rested) {
            return Ok(());
        }
        match self.pace.before_sending() {
            Some(pause) => {
                self.rested = true;
                Err(Need::Pause(pause))
            }
            None => Ok(()),
        }
    }

    /// What follows from how the socket took a message. One that takes nothing for `stuck_timeout` is closed.
    fn taken(&mut self, result: Option<Result<(), OutletError>>) -> Result<(), Need> {
        match result {
            Some(Ok(())) => {
                self.stuck = None;
                Ok(())
            }
            None | Some(Err(OutletError::Closed)) => Err(Need::End),
            Some(Err(OutletError::Full)) => {
                let since = *self.stuck.get_or_insert_with(Instant::now);
                if since.elapsed() > self.inbox.settings.stuck_timeout {
                    if let Some(left_out) = log_due("socket_stuck") {
                        warn!(session = self.session().id(), left_out, "Closed a socket that accepted no data");
                    }
                    self.outlet.close();
                    return Err(Need::End);
                }
                self.pace.full();
                self.rested = true;
                Err(Need::Pause(self.pace.before_sending().unwrap_or(MIN_PAUSE)))
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
        if let Some(left_out) = log_due("inbox_unreadable") {
            warn!(session = self.session().id(), %error, left_out, "Cannot read an inbox, retrying");
        }
        self.sleep(MAX_PAUSE).await
    }

    /// Waits for news. For a client that never acks it also counts its rows delivered when the socket has outlived a
    /// heartbeat that was queued behind them, if so configured.
    async fn wait(&mut self) -> Result<(), Ended> {
        if let Some(&(sent, _)) = self.unconfirmed.front() {
            let due = sent + self.outlet.silence() + self.inbox.settings.heartbeat.unwrap_or_default();
            if tokio::time::timeout_at(due, self.session().woken()).await.is_err() {
                self.confirm().await;
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
            after: 0,
            origin: Some(self.session().id()),
            life: None,
        };
        if let Err(error) = self.inbox.writer.receipt(receipt).await {
            if let Some(left_out) = log_due("heartbeat_unstored") {
                warn!(session = self.session().id(), %error, left_out, "Cannot mark rows delivered, retrying");
            }
            self.unconfirmed.push_front((Instant::now(), rev));
        }
    }
}

/// A client that takes batches gets at most so many messages in one.
const MAX_BATCH: usize = 100;

/// An idle session keeps room for so many events.
const MAX_IDLE_QUEUE: usize = 4;

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
