//! One connected socket: its events in the order they came, and its session once it has logged in.
//!
//! A worker task exists only while events wait, so an idle socket costs none. Events are done one after another, except
//! that receipts of one kind that wait together become one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::{SendError, SocketError};
use tracing::Instrument;
use tracing::{debug, error, info_span, warn};

use super::Settings;
use super::wire::{self, Answer, ClientEvent, Refusal};
use crate::inbox::{Inbox, LoginError, Outbound, Outlet, OutletError, Session};
use crate::notification::{ReceiptKind, Selection};
use crate::store::WriterError;

/// One connected socket.
pub(super) struct Client {
    inbox: Arc<Inbox>,
    settings: Arc<Settings>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Events that wait, at most `event_queue`; each is at most one message of the client. When it is full the client is
    /// told `too_many_events`.
    waiting: VecDeque<Command>,
    /// Whether a worker runs.
    working: bool,
    session: Option<Arc<Session>>,
    gone: bool,
}

/// An event and its acknowledgement callback.
struct Command {
    event: ClientEvent,
    ack: AckSender,
}

impl Client {
    pub(super) fn new(inbox: Arc<Inbox>, settings: Arc<Settings>) -> Arc<Self> {
        Arc::new(Self { inbox, settings, state: Mutex::default() })
    }

    /// Closes the socket unless it logs in in time.
    pub(super) fn expect_login(client: &Arc<Self>, socket: SocketRef) {
        let client = Arc::downgrade(client);
        let Some(timeout) = client.upgrade().map(|client| client.settings.login_timeout) else { return };
        tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            let Some(client) = client.upgrade() else { return };
            let silent = {
                let state = client.state();
                state.session.is_none() && !state.gone && !state.working
            };
            if silent {
                let refusal = Refusal::new("login_timeout", "no user_login came in time");
                socket.emit("login_error", &refusal).ok();
                socket.disconnect().ok();
            }
        });
    }

    /// Takes an event in the order it came.
    pub(super) fn take(
        self: &Arc<Self>,
        socket: SocketRef,
        name: &str,
        payload: Result<Value, impl std::error::Error>,
        ack: AckSender,
    ) {
        let payload = payload.unwrap_or(Value::Null);
        let event = match wire::parse(name, payload, self.settings.max_token_bytes) {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(refusal) => {
                if name == wire::USER_LOGIN {
                    socket.emit("login_error", &refusal).ok();
                }
                answer(ack, &Answer::Refused(&refusal));
                return;
            }
        };
        let mut state = self.state();
        if state.gone {
            return;
        }
        if state.waiting.len() >= self.settings.event_queue {
            drop(state);
            let refusal = Refusal::new("too_many_events", "too many events wait, send this one again later");
            answer(ack, &Answer::Refused(&refusal));
            return;
        }
        state.waiting.push_back(Command { event, ack });
        if !std::mem::replace(&mut state.working, true) {
            self.inbox.spawn(Arc::clone(self).work(socket));
        }
    }

    /// The socket is gone. The receipts it sent before are still done.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        state.gone = true;
        if let Some(session) = &state.session {
            session.end();
        }
    }

    async fn work(self: Arc<Self>, socket: SocketRef) {
        while let Some((command, merged)) = self.next() {
            match command.event {
                ClientEvent::Login(request) => {
                    let span = info_span!("socket.login", token = ?request.token);
                    self.login(&socket, request, command.ack).instrument(span).await;
                }
                ClientEvent::Receipt(kind, selection) => {
                    let outcome = self.receipt(kind, selection).await;
                    let answered = match &outcome {
                        Ok(None) => Answer::Done,
                        Ok(Some(head)) => Answer::Head { rev: head.rev, unread: head.unread },
                        Err(refusal) => Answer::Refused(refusal),
                    };
                    answer(command.ack, &answered);
                    merged.into_iter().for_each(|ack| answer(ack, &answered));
                }
                ClientEvent::Logout => {
                    let session = self.state().session.take();
                    match session {
                        Some(session) => {
                            session.end();
                            Self::expect_login(&self, socket.clone());
                            answer(command.ack, &Answer::Done);
                        }
                        None => answer(command.ack, &Answer::Refused(&not_logged_in())),
                    }
                }
            }
        }
    }

    /// The next event, with the callbacks of those that were merged into it.
    fn next(&self) -> Option<(Command, Vec<AckSender>)> {
        let mut state = self.state();
        let Some(mut command) = state.waiting.pop_front() else {
            state.working = false;
            state.waiting = VecDeque::new();
            return None;
        };
        let mut merged = Vec::new();
        if let ClientEvent::Receipt(kind, selection) = &mut command.event {
            while let Some(Command { event: ClientEvent::Receipt(next_kind, next), .. }) = state.waiting.front_mut() {
                if next_kind != kind || !merge(selection, next) {
                    break;
                }
                merged.extend(state.waiting.pop_front().map(|command| command.ack));
            }
        }
        Some((command, merged))
    }

    async fn login(self: &Arc<Self>, socket: &SocketRef, request: wire::LoginRequest, ack: AckSender) {
        let current = self.state().session.clone();
        let refusal = match current {
            Some(session) if *session.token() != request.token => {
                Refusal::new("already_logged_in", "this socket is logged in as another token, log out first")
            }
            // The page asks again what it has: it gets the state, and nothing twice.
            Some(_) => match self.inbox.greeting(&request.token).await {
                Ok(greeting) => return answer(ack, &Answer::from(&greeting)),
                Err(error) => login_refusal(&error),
            },
            None => {
                let outlet = Arc::new(SocketOutlet { socket: socket.clone() });
                match self.inbox.login(&request.token, request.batch, outlet).await {
                    Ok(login) => {
                        let mut state = self.state();
                        if state.gone {
                            return;
                        }
                        state.session = Some(Arc::clone(&login.session));
                        drop(state);
                        answer(ack, &Answer::from(&login.greeting));
                        login.start();
                        return;
                    }
                    Err(error) => login_refusal(&error),
                }
            }
        };
        socket.emit("login_error", &refusal).ok();
        answer(ack, &Answer::Refused(&refusal));
    }

    async fn receipt(
        &self,
        kind: ReceiptKind,
        selection: Selection,
    ) -> Result<Option<crate::notification::Head>, Refusal> {
        let session = self.state().session.clone().ok_or_else(not_logged_in)?;
        self.inbox.receipt(&session, kind, selection).await.map_err(|error| match error {
            WriterError::Busy => Refusal::new("unavailable", "the service is busy, send this again later"),
            WriterError::Stopped => Refusal::new("unavailable", "the service is stopping"),
            WriterError::Store(error) => {
                warn!(%error, "Receipt failed");
                Refusal::new("unavailable", "the database does not answer, send this again later")
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds `next` to `selection` if the two can be one.
fn merge(selection: &mut Selection, next: &mut Selection) -> bool {
    match (selection, next) {
        (Selection::Ids(ids), Selection::Ids(more)) => ids.append(more),
        (Selection::UpTo(rev), Selection::UpTo(more)) => *rev = (*rev).max(*more),
        _ => return false,
    }
    true
}

fn not_logged_in() -> Refusal {
    Refusal::new("not_logged_in", "send user_login first")
}

fn login_refusal(error: &LoginError) -> Refusal {
    match error {
        LoginError::TooManySockets => Refusal::new("too_many_sockets", "this token has too many sockets"),
        LoginError::Store(error) => {
            warn!(%error, "Login failed");
            Refusal::new("unavailable", "the database does not answer, log in again later")
        }
    }
}

/// Calls the client's callback, if it gave one. It is lost if the socket's buffer has no room: a client that gets no
/// answer asks again.
fn answer(ack: AckSender, answer: &Answer<'_>) {
    if let Err(error) = ack.send(answer) {
        debug!(%error, "Cannot answer an event");
    }
}

/// Sends to one socket.
struct SocketOutlet {
    socket: SocketRef,
}

impl Outlet for SocketOutlet {
    fn send(&self, outbound: &Outbound<'_>) -> Result<(), OutletError> {
        wire::emit(&self.socket, outbound).map_err(|error| match error {
            SendError::Socket(SocketError::InternalChannelFull) => OutletError::Full,
            SendError::Socket(SocketError::Closed) => OutletError::Closed,
            SendError::Serialize(error) => {
                error!(%error, "Cannot serialise a message");
                OutletError::Closed
            }
        })
    }

    fn close(&self) -> bool {
        !matches!(self.socket.clone().disconnect(), Err(SocketError::InternalChannelFull))
    }
}
