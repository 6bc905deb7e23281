//! The events of the wire protocol: names, payloads, answers.

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use socketioxide::SendError;
use socketioxide::extract::SocketRef;
use uuid::Uuid;

use crate::inbox::{Delivery, Greeting, Live, Outbound};
use crate::notification::{
    Change, ChangeKind, Event, Head, Notification, ReceiptKind, Rev, Selection, Token, timestamp,
};

/// A checked event of a client.
#[derive(Debug, PartialEq)]
pub(super) enum ClientEvent {
    Login(LoginRequest),
    Receipt(ReceiptKind, Selection),
    Logout,
}

/// The payload of `user_login`; its `userId` and `socketId` are not needed.
#[derive(Debug, PartialEq)]
pub(super) struct LoginRequest {
    pub(super) token: Token,
    /// Whether the client takes `receive_messages`.
    pub(super) batch: bool,
}

/// Why an event was not done: a stable code and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new("invalid_payload", message)
    }
}

/// What an acknowledgement callback gets.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Answer<'a> {
    Greeting { ok: bool, epoch: &'a str, rev: Rev, unread: i64, undelivered: u64 },
    Head { ok: bool, rev: Rev, unread: i64 },
    Done { ok: bool },
    Refused { ok: bool, code: &'static str, message: &'a str },
}

impl Answer<'_> {
    pub(super) const DONE: Self = Self::Done { ok: true };
}

impl<'a> From<&'a Greeting> for Answer<'a> {
    fn from(Greeting { epoch, head, undelivered }: &'a Greeting) -> Self {
        Self::Greeting { ok: true, epoch, rev: head.rev, unread: head.unread, undelivered: *undelivered }
    }
}

impl From<Head> for Answer<'_> {
    fn from(head: Head) -> Self {
        Self::Head { ok: true, rev: head.rev, unread: head.unread }
    }
}

impl<'a> From<&'a Refusal> for Answer<'a> {
    fn from(Refusal { code, message }: &'a Refusal) -> Self {
        Self::Refused { ok: false, code, message }
    }
}

/// An event that was refused.
#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    /// Whether it was a login.
    pub(super) login: bool,
}

/// Checks an event, given as the packet's JSON: an array of the name and its arguments. `None` for one that the protocol
/// does not know, which is ignored as Socket.IO servers do.
pub(super) fn parse(packet: &str, max_token_bytes: usize) -> Result<Option<ClientEvent>, Refused> {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(packet) else { return Ok(None) };
    let name = items.first().and_then(|name| serde_json::from_str::<String>(name.get()).ok()).unwrap_or_default();
    let payload = items.get(1).copied();
    let event = match name.as_str() {
        "user_login" => login(payload, max_token_bytes).map(ClientEvent::Login),
        "ack" => selection(value(payload), false).map(|rows| ClientEvent::Receipt(ReceiptKind::Ack, rows)),
        "read" => selection(value(payload), true).map(|rows| ClientEvent::Receipt(ReceiptKind::Read, rows)),
        "user_logout" => Ok(ClientEvent::Logout),
        _ => return Ok(None),
    };
    event.map(Some).map_err(|refusal| Refused { refusal, login: name == "user_login" })
}

/// No payload at all is as good as null.
fn value(payload: Option<&RawValue>) -> Value {
    payload.and_then(|payload| serde_json::from_str(payload.get()).ok()).unwrap_or_default()
}

fn login(payload: Option<&RawValue>, max_token_bytes: usize) -> Result<LoginRequest, Refusal> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow, rename = "tokenId")]
        token: Option<&'a RawValue>,
        batch: Option<Value>,
    }
    let needed = || Refusal::invalid("user_login needs an object with tokenId, a text or a number");
    let fields: Fields<'_> = payload.and_then(|payload| serde_json::from_str(payload.get()).ok()).ok_or_else(needed)?;
    let text = fields.token.and_then(|token| Token::text_of_json(token).ok().flatten()).ok_or_else(needed)?;
    let token = Token::parse(&text, max_token_bytes).map_err(|error| Refusal::invalid(format!("tokenId: {error}")))?;
    let batch = match fields.batch {
        None => false,
        Some(Value::Bool(batch)) => batch,
        Some(_) => return Err(Refusal::invalid("batch must be true or false")),
    };
    Ok(LoginRequest { token, batch })
}

fn selection(payload: Value, may_be_all: bool) -> Result<Selection, Refusal> {
    match payload {
        Value::String(id) => Ok(Selection::Ids(vec![parse_id(&id).ok_or_else(|| Refusal::invalid("not an id"))?])),
        Value::Array(list) => ids(&list),
        Value::Object(fields) => match (fields.get("ids"), fields.get("upTo"), fields.get("all")) {
            (Some(Value::Array(list)), None, None) => ids(list),
            (None, Some(rev), None) => match rev.as_i64() {
                Some(rev) if rev >= 0 => Ok(Selection::UpTo(rev)),
                _ => Err(Refusal::invalid("upTo must be a rev: a whole number, 0 or more")),
            },
            (None, None, Some(Value::Bool(true))) if may_be_all => Ok(Selection::All),
            _ => Err(selection_refusal(may_be_all)),
        },
        _ => Err(selection_refusal(may_be_all)),
    }
}

fn selection_refusal(may_be_all: bool) -> Refusal {
    let all = if may_be_all { ", {all: true}" } else { "" };
    Refusal::invalid(format!("exactly one of {{ids: [...]}}, {{upTo: rev}}{all}, an id or a list of ids is needed"))
}

fn ids(list: &[Value]) -> Result<Selection, Refusal> {
    let parsed = list.iter().enumerate().map(|(at, id)| {
        id.as_str().and_then(parse_id).ok_or_else(|| Refusal::invalid(format!("ids[{at}] is not an id")))
    });
    Ok(Selection::Ids(parsed.collect::<Result<_, _>>()?))
}

fn parse_id(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok()
}

/// `receive_message`, and the items of `receive_messages`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    entity_type: &'a str,
    data: &'a RawValue,
    id: Uuid,
    seq: Rev,
    rev: Rev,
    created_at: String,
    replay: bool,
    read: bool,
}

impl<'a> Message<'a> {
    fn new(notification: &'a Notification, delivery: Delivery) -> Self {
        let content = &notification.content;
        Self {
            entity_type: &content.entity_type,
            data: &content.data,
            id: content.id,
            seq: notification.seq,
            rev: notification.seq,
            created_at: timestamp(content.created_at),
            replay: delivery == Delivery::Replay,
            read: notification.read,
        }
    }
}

/// `inbox_changed`.
#[derive(Serialize)]
struct InboxChanged<'a> {
    rev: Rev,
    #[serde(flatten)]
    what: WhatChanged<'a>,
    unread: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum WhatChanged<'a> {
    Changes(Vec<RowChange<'a>>),
    ReadUpTo(Rev),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RowChange<'a> {
    id: Uuid,
    read_at: &'a str,
}

/// Queues a message for a socket.
///
/// # Errors
/// As the library's `emit`: its buffer is full or the socket is closed.
pub(super) fn emit(socket: &SocketRef, outbound: &Outbound<'_>) -> Result<(), SendError> {
    match outbound {
        Outbound::Message(live, Delivery::Live) => socket.emit("receive_message", encoded(live)),
        Outbound::Message(live, delivery) => match &live.event {
            Event::New(notification) => socket.emit("receive_message", &Message::new(notification, *delivery)),
            Event::Changed { .. } => Ok(()),
        },
        Outbound::Messages(lives, Delivery::Live) => {
            socket.emit("receive_messages", &lives.iter().map(|live| encoded(live)).collect::<Vec<_>>())
        }
        Outbound::Messages(lives, delivery) => {
            let messages = lives.iter().filter_map(|live| match &live.event {
                Event::New(notification) => Some(Message::new(notification, *delivery)),
                Event::Changed { .. } => None,
            });
            socket.emit("receive_messages", &messages.collect::<Vec<_>>())
        }
        Outbound::Changed(live) => socket.emit("inbox_changed", encoded(live)),
        Outbound::Resync { epoch, head } => {
            socket.emit("resync", &json!({"epoch": epoch, "rev": head.rev, "unread": head.unread}))
        }
        Outbound::ReplayComplete { count, head } => {
            socket.emit("replay_complete", &json!({"count": count, "rev": head.rev, "unread": head.unread}))
        }
    }
}

/// The wire form of something live, made once for all sessions of the token.
fn encoded(live: &Live) -> &RawValue {
    live.encoded.get_or_init(|| {
        match &live.event {
            Event::New(notification) => to_raw_value(&Message::new(notification, Delivery::Live)),
            Event::Changed { rev, change: Change { kind, unread }, at, .. } => {
                let at = timestamp(*at);
                let what = match kind {
                    ChangeKind::Read(ids) => {
                        WhatChanged::Changes(ids.iter().map(|id| RowChange { id: *id, read_at: &at }).collect())
                    }
                    ChangeKind::ReadUpTo(upto) => WhatChanged::ReadUpTo(*upto),
                };
                to_raw_value(&InboxChanged { rev: *rev, what, unread: *unread })
            }
        }
        .expect("texts, numbers and stored JSON always serialise")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c0de-0000-7000-8000-000000000001";

    fn parsed(name: &str, payload: &Value) -> Result<Option<ClientEvent>, String> {
        parse(&json!([name, payload]).to_string(), 8).map_err(|refused| refused.refusal.message)
    }

    #[test]
    fn receipts_take_every_documented_form() {
        let id = Uuid::parse_str(ID).unwrap();
        for (payload, selection) in [
            (json!(ID), Selection::Ids(vec![id])),
            (json!([ID, ID]), Selection::Ids(vec![id, id])),
            (json!({"ids": [ID]}), Selection::Ids(vec![id])),
            (json!({"upTo": 17}), Selection::UpTo(17)),
            (json!({"all": true}), Selection::All),
        ] {
            assert_eq!(parsed("read", &payload), Ok(Some(ClientEvent::Receipt(ReceiptKind::Read, selection))));
        }
    }

    #[test]
    fn bad_receipts_are_refused_with_where() {
        assert_eq!(parsed("ack", &json!({"ids": [ID, 7]})), Err("ids[1] is not an id".into()));
        assert_eq!(parsed("ack", &json!({"upTo": -1})), Err("upTo must be a rev: a whole number, 0 or more".into()));
        for payload in [json!(null), json!({}), json!({"all": true}), json!({"ids": [ID], "upTo": 1}), json!(7)] {
            let wanted = "exactly one of {ids: [...]}, {upTo: rev}, an id or a list of ids is needed";
            assert_eq!(parsed("ack", &payload), Err(wanted.into()));
        }
    }

    #[test]
    fn login_takes_texts_and_numbers_as_tokens() {
        for token in [json!("42"), json!(42)] {
            let request = LoginRequest { token: Token::parse("42", 8).unwrap(), batch: false };
            let payload = json!({"tokenId": token, "userId": 42, "socketId": "someone else's"});
            assert_eq!(parsed("user_login", &payload), Ok(Some(ClientEvent::Login(request))));
        }
        for packet in ["[\"user_login\"]", "[\"user_login\",[1]]", "[\"user_login\",{\"userId\":1}]"] {
            assert!(parse(packet, 8).unwrap_err().login, "{packet}");
        }
        let large = parse("[\"user_login\",{\"tokenId\":18446744073709551617}]", 32).unwrap();
        let token = Token::parse("18446744073709551617", 32).unwrap();
        assert_eq!(large, Some(ClientEvent::Login(LoginRequest { token, batch: false })), "digit for digit");
        assert!(parsed("user_login", &json!({"tokenId": "too long!"})).is_err());
        assert!(parsed("user_login", &json!({"tokenId": "1", "batch": "yes"})).is_err());
    }

    #[test]
    fn events_of_other_protocols_are_ignored() {
        assert_eq!(parsed("typing", &json!({})), Ok(None));
    }
}
