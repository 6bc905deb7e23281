//! One connected socket: its events in the order they came, and its session once it has logged in.
//!
//! Logins and logouts wait in a queue and are done one after another, by a worker task that exists only while some wait.
//! Receipts go another way, see [`super::receipts`]: they take effect on the session as they come and are stored when the
//! database has time.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use hyper::body::Bytes;
use serde_json::json;
use socketioxide::adapter::LocalAdapter;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::handler::{FromMessageParts, Value as RawEvent};
use socketioxide::socket::{Sid, Socket};
use socketioxide::{SendError, SocketError};
use tokio::task::AbortHandle;
use tracing::{Instrument, debug, error, info_span, warn};

use super::line::CurrentLine;
use super::receipts::Receipts;
use super::wall_clock::until;
use super::wire::{self, Answer, ClientEvent, Refusal, Refused};
use super::{Realtime, current_line};
use crate::access::Credential;
use crate::inbox::{LoginError, Outbound, Outlet, OutletError, Session};
use crate::limits::log_due;
use crate::metrics;

/// A client is told so long before its login ends.
const EXPIRY_NOTICE: TimeDelta = TimeDelta::seconds(60);

/// Refusals that may wait to be sent, about 150 bytes each. A client that earns more is closed.
const MAX_REFUSALS: usize = 1024;

/// One connected socket.
pub(super) struct Client {
    realtime: Realtime,
    /// What it showed when it connected, for all its logins.
    handshake: Vec<Credential>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// Events that wait, at most `event_queue` besides receipts; each is at most one message of the client. When it is full
    /// the client is told `too_many_events`, for which there is room apart.
    waiting: VecDeque<Command>,
    /// How many of them are receipts, which wait for a login or logout before them.
    pub(super) waiting_receipts: usize,
    /// Whether a worker runs.
    working: bool,
    pub(super) receipts: Receipts,
    session: Option<Arc<Session>>,
    /// When the login has expired, and what ends the session then. It holds the socket, so it must not outlive it.
    expiry: Option<(DateTime<Utc>, AbortHandle)>,
    /// What hangs up if no login comes.
    login_timer: Option<AbortHandle>,
    /// Logins that wait or are being done.
    logins: usize,
    /// Logouts that wait.
    logouts: usize,
    gone: bool,
}

/// What waits for the worker, with its acknowledgement callback if it has one.
struct Command {
    work: Work,
    callbacks: Vec<Callback>,
}

enum Work {
    Do(ClientEvent),
    /// The protocol does not know it, but it counts.
    Ignore,
    /// It will not be done.
    Refuse(Refused),
}

impl State {
    fn stop_expiry(&mut self) {
        if let Some((_, expiry)) = self.expiry.take() {
            expiry.abort();
        }
    }

    fn stop_login_timer(&mut self) {
        if let Some(timer) = self.login_timer.take() {
            timer.abort();
        }
    }
}

impl Client {
    pub(super) fn new(realtime: Realtime, handshake: Vec<Credential>) -> Arc<Self> {
        Arc::new(Self { realtime, handshake, state: Mutex::default() })
    }

    pub(super) fn realtime(&self) -> &Realtime {
        &self.realtime
    }

    /// Hangs up on the socket unless it logs in in time, from now on. To its client that is a connection that broke, so it
    /// connects again by itself; one that is disconnected from the namespace would not. A login that is on its way then is
    /// given as long again, but no longer: it may be one of many that are refused.
    pub(super) fn expect_login(client: &Arc<Self>, socket: Sid) {
        let Some(timeout) = client.realtime.settings.login_timeout else { return };
        let waiting = Arc::downgrade(client);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            if waiting.upgrade().is_some_and(|client| client.state().logins > 0) {
                tokio::time::sleep(timeout).await;
            }
            let Some(client) = waiting.upgrade() else { return };
            let silent = {
                let mut state = client.state();
                // Else the end of the socket would abort this task before it is done.
                state.login_timer = None;
                state.session.is_none() && !state.gone
            };
            if silent && let Some(socket) = client.realtime.socket(socket) {
                debug!("Closed a socket that did not log in in time");
                client.realtime.hang_up(&socket).await;
            }
        });
        let mut state = client.state();
        state.stop_login_timer();
        state.login_timer = Some(timer.abort_handle());
        if state.gone {
            state.stop_login_timer();
        }
    }

    /// Takes an event in the order it came.
    pub(super) fn take(self: &Arc<Self>, socket: SocketRef, Incoming { packet, callback }: Incoming) {
        let settings = &self.realtime.settings;
        let work = match wire::parse(&packet, settings.max_token_bytes, settings.max_receipt_ids) {
            Ok(Some(event)) => Work::Do(event),
            Ok(None) => Work::Ignore,
            Err(refused) => Work::Refuse(refused),
        };
        let callbacks: Vec<Callback> = callback.is_wanted().then_some(callback).into_iter().collect();
        let mut state = self.state();
        if state.gone {
            return;
        }
        let work = match work {
            Work::Do(ClientEvent::Receipt(kind, selection)) => {
                // A login that waits may be somebody else's.
                let unsettled = state.logins + state.logouts + state.waiting_receipts;
                if let Some(session) = state.session.clone().filter(|_| unsettled == 0) {
                    drop(state);
                    return self.receive(&socket, &session, kind, &selection, callbacks);
                }
                match unsettled {
                    0 => Work::Refuse(Refused { refusal: not_logged_in(), login: false }),
                    // It is about the session that the login before it makes.
                    _ => Work::Do(ClientEvent::Receipt(kind, selection)),
                }
            }
            work => work,
        };
        let is_receipt = matches!(work, Work::Do(ClientEvent::Receipt(..)));
        let events = state.waiting.len() - state.waiting_receipts;
        if events >= self.realtime.settings.event_queue + MAX_REFUSALS {
            state.gone = true;
            drop(state);
            if let Some(left_out) = log_due("too_many_refusals") {
                warn!(left_out, "Closed a socket: its client sent more than could be answered");
            }
            let realtime = self.realtime.clone();
            tokio::spawn(async move { realtime.hang_up(&socket).await });
            return;
        }
        let work = match work {
            Work::Do(event) if !is_receipt && events >= self.realtime.settings.event_queue => {
                let refusal = Refusal::new("too_many_events", "too many events are waiting, send this one again later");
                Work::Refuse(Refused { refusal, login: matches!(event, ClientEvent::Login(_)) })
            }
            work => work,
        };
        state.waiting_receipts += usize::from(is_receipt);
        state.logins += usize::from(matches!(work, Work::Do(ClientEvent::Login(_))));
        state.logouts += usize::from(matches!(work, Work::Do(ClientEvent::Logout)));
        state.waiting.push_back(Command { work, callbacks });
        let start = !std::mem::replace(&mut state.working, true);
        drop(state);
        if is_receipt {
            self.hold(&socket);
        }
        if start {
            self.realtime.inbox.spawn(Arc::clone(self).work(socket));
        }
    }

    /// The socket is gone. The receipts it sent before are still done.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        state.gone = true;
        // Nobody is there to be told.
        state.waiting.retain(|command| matches!(command.work, Work::Do(_)));
        state.stop_expiry();
        state.stop_login_timer();
        if let Some(session) = &state.session {
            session.end();
        }
    }

    /// Ends the session, if there is one: nothing of it is sent any more once this returns.
    fn end_session(&self) -> bool {
        let session = {
            let mut state = self.state();
            state.stop_expiry();
            state.session.take()
        };
        session.inspect(|session| session.end()).is_some()
    }

    async fn work(self: Arc<Self>, socket: SocketRef) {
        while let Some(Command { work, callbacks }) = self.next() {
            // What comes meanwhile waits its turn; a client that sends even more is refused. One that has left is not done
            // faster, or leaving and coming back would be a way around. Receipts are paced when they are stored.
            if !matches!(work, Work::Do(ClientEvent::Receipt(..))) {
                self.keep_pace(&socket).await;
            }
            match work {
                Work::Do(ClientEvent::Login(request)) => {
                    let span = info_span!("socket.login", token = ?request.token);
                    self.login(&socket, request, &callbacks).instrument(span).await;
                    self.state().logins -= 1;
                }
                Work::Do(ClientEvent::Receipt(kind, selection)) => {
                    let session = self.state().session.clone();
                    match session {
                        Some(session) => self.receive(&socket, &session, kind, &selection, callbacks),
                        None => self.answer_all(&callbacks, &Answer::from(&not_logged_in())).await,
                    }
                    self.state().waiting_receipts -= 1;
                    self.release(&socket);
                }
                Work::Do(ClientEvent::Logout) => {
                    let ended = self.end_session();
                    self.state().logouts -= 1;
                    if ended {
                        Self::expect_login(&self, socket.id);
                        self.answer_all(&callbacks, &Answer::DONE).await;
                    } else {
                        self.answer_all(&callbacks, &Answer::from(&not_logged_in())).await;
                    }
                }
                Work::Ignore => {}
                Work::Refuse(Refused { refusal, login }) => self.refuse(&socket, &refusal, login, &callbacks).await,
            }
        }
    }

    /// Counts an event and waits until it is in time.
    pub(super) async fn keep_pace(&self, socket: &SocketRef) {
        let (rate, burst) = (self.realtime.settings.event_rate, self.realtime.settings.event_queue);
        let line = current_line(socket);
        while let Some(wait) = line.and_then(|line| line.wait(rate, burst)) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Counts an event if it is in time.
    pub(super) fn is_in_time(&self, socket: &SocketRef) -> bool {
        let (rate, burst) = (self.realtime.settings.event_rate, self.realtime.settings.event_queue);
        current_line(socket).and_then(|line| line.wait(rate, burst)).is_none()
    }

    /// The next event; if there is none, the worker is to end.
    fn next(&self) -> Option<Command> {
        let mut state = self.state();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.working = false;
            state.waiting = VecDeque::new();
        }
        next
    }

    async fn login(self: &Arc<Self>, socket: &SocketRef, request: wire::LoginRequest, callbacks: &[Callback]) {
        let shown = request.credentials.iter().chain(&self.handshake);
        let expires = match self.realtime.access.login(shown, &request.token, Utc::now()) {
            Ok(expires) => expires,
            Err(denied) => {
                let address = current_line(socket).and_then(CurrentLine::address);
                denied.warn(&request.token, address);
                let refusal = Refusal::new("unauthorized", "a valid signed login is needed");
                return self.refuse(socket, &refusal, true, callbacks).await;
            }
        };
        let is_again = self.state().session.as_ref().is_some_and(|session| *session.token() == request.token);
        let refusal = match is_again {
            // The page asks again what it has: it gets the state, and nothing twice.
            true => {
                // First, or the session could end while the database is asked.
                self.expire_at(socket, expires);
                match self.realtime.inbox.greeting(&request.token).await {
                    Ok(greeting) => {
                        metrics::login("accepted");
                        return self.answer_all(callbacks, &Answer::from(&greeting)).await;
                    }
                    Err(error) => login_refusal(&error),
                }
            }
            false => {
                // Pages of the first protocol cannot log out: whoever logs in as somebody else is that user from here on.
                if self.end_session() {
                    Self::expect_login(self, socket.id);
                }
                let outlet = Arc::new(SocketOutlet { realtime: self.realtime.clone(), socket: socket.clone() });
                match self.realtime.inbox.login(&request.token, request.batch, request.since, outlet).await {
                    Ok(login) => {
                        let gone = {
                            let mut state = self.state();
                            state.session = Some(Arc::clone(&login.session));
                            state.stop_login_timer();
                            state.gone
                        };
                        metrics::login("accepted");
                        if !gone {
                            self.expire_at(socket, expires);
                            self.answer_all(callbacks, &Answer::from(&login.greeting)).await;
                            login.start();
                        }
                        return;
                    }
                    Err(error) => login_refusal(&error),
                }
            }
        };
        self.refuse(socket, &refusal, true, callbacks).await;
    }

    /// Ends the session when its login is no longer good by the wall clock, unless it is renewed before; the client is told in
    /// time.
    fn expire_at(self: &Arc<Self>, socket: &SocketRef, expires: Option<DateTime<Utc>>) {
        // Locked until the expiry is in its place: only the one that is there may end the session.
        let mut state = self.state();
        state.stop_expiry();
        state.expiry = expires.filter(|_| !state.gone).map(|end| {
            let (client, socket) = (Arc::downgrade(self), socket.clone());
            let work = async move {
                let is_due = || {
                    client.upgrade().filter(|client| client.state().expiry.as_ref().is_some_and(|(due, _)| *due == end))
                };
                until(end - EXPIRY_NOTICE, Utc::now).await;
                if is_due().is_none() {
                    return;
                }
                socket.emit("login_expiring", &json!({"exp": end.timestamp()})).ok();
                until(end, Utc::now).await;
                let Some(client) = is_due().filter(|client| client.end_session()) else { return };
                socket.emit("login_error", &Refusal::new("login_expired", "the login has expired")).ok();
                Self::expect_login(&client, socket.id);
            };
            (end, tokio::spawn(work).abort_handle())
        });
    }

    /// A refused login is also an event: old pages give no callback.
    async fn refuse(&self, socket: &SocketRef, refusal: &Refusal, login: bool, callbacks: &[Callback]) {
        if login {
            metrics::login(refusal.code());
            self.until_taken(|| socket.emit("login_error", refusal)).await;
        }
        self.answer_all(callbacks, &Answer::from(refusal)).await;
    }

    /// Calls the client's callbacks, if it gave any.
    pub(super) async fn answer_all(&self, callbacks: &[Callback], answer: &Answer<'_>) {
        for callback in callbacks {
            self.until_taken(|| callback.send(answer)).await;
        }
    }

    /// Sends something, waiting while the socket's buffer is full and the socket is there.
    async fn until_taken(&self, send: impl Fn() -> Result<(), SendError>) {
        let mut pause = Duration::from_millis(1);
        while matches!(send(), Err(SendError::Socket(SocketError::InternalChannelFull))) && !self.state().gone {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_logged_in() -> Refusal {
    Refusal::new("not_logged_in", "send user_login first")
}

fn login_refusal(error: &LoginError) -> Refusal {
    match error {
        LoginError::TooManySockets => Refusal::new("too_many_sockets", "this token has too many sockets"),
        LoginError::Store(error) => {
            if let Some(left_out) = log_due("login_failed") {
                warn!(%error, left_out, "Login failed");
            }
            Refusal::new("unavailable", "the database does not answer, log in again later")
        }
    }
}

/// An event as the library hands it over.
pub(super) struct Incoming {
    /// A JSON array of the name and its arguments. The library would parse it too, but into numbers that round.
    packet: String,
    callback: Callback,
}

/// The acknowledgement callback of an event, if the client gave one. The library's own can be tried only once, and is
/// lost when the socket's buffer is full at that moment.
pub(super) struct Callback {
    socket: Arc<Socket>,
    id: Option<i64>,
}

impl FromMessageParts<LocalAdapter> for Incoming {
    type Error = Infallible;

    fn from_message_parts(socket: &Arc<Socket>, event: &mut RawEvent, id: &Option<i64>) -> Result<Self, Infallible> {
        let packet = event.as_str().map(|text| text.as_str().to_owned()).unwrap_or_default();
        Ok(Self { packet, callback: Callback { socket: Arc::clone(socket), id: *id } })
    }
}

impl Callback {
    fn is_wanted(&self) -> bool {
        self.id.is_some()
    }

    fn send(&self, answer: &Answer<'_>) -> Result<(), SendError> {
        let Ok(sender) = AckSender::from_message_parts(&self.socket, &mut RawEvent::Bytes(Bytes::new()), &self.id);
        sender.send(answer)
    }
}

/// Sends to one socket.
struct SocketOutlet {
    realtime: Realtime,
    socket: SocketRef,
}

impl Outlet for SocketOutlet {
    fn send(&self, outbound: &Outbound<'_>) -> Result<(), OutletError> {
        wire::emit(&self.socket, outbound).map_err(|error| match error {
            SendError::Socket(SocketError::InternalChannelFull) => OutletError::Full,
            SendError::Socket(SocketError::Closed) => OutletError::Closed,
            SendError::Serialize(error) => {
                if let Some(left_out) = log_due("unserialisable") {
                    error!(%error, left_out, "Cannot serialise a message");
                }
                OutletError::Closed
            }
        })
    }

    fn silence(&self) -> Duration {
        self.realtime.silence(self.socket.protocol())
    }

    fn close(&self) {
        let (realtime, socket) = (self.realtime.clone(), self.socket.clone());
        tokio::spawn(async move { realtime.hang_up(&socket).await });
    }
}
