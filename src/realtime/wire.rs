//! The events of the wire protocol: names, payloads, answers.

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use socketioxide::SendError;
use socketioxide::extract::SocketRef;
use uuid::Uuid;

use crate::access::Credential;
use crate::inbox::{Cursor, Delivery, Greeting, Live, Outbound};
use crate::notification::{
    Change, ChangeKind, Event, Group, Head, Notification, ReceiptKind, Rev, Selection, Token, timestamp,
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
    /// What it has already.
    pub(super) since: Option<Cursor>,
    /// What shows that it is this user.
    pub(super) credentials: Vec<Credential>,
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

    pub(super) fn code(&self) -> &'static str {
        self.code
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
pub(super) fn parse(packet: &str, max_token_bytes: usize, max_ids: usize) -> Result<Option<ClientEvent>, Refused> {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(packet) else { return Ok(None) };
    let name = items.first().and_then(|name| serde_json::from_str::<String>(name.get()).ok()).unwrap_or_default();
    let payload = items.get(1).copied();
    let event = match name.as_str() {
        "user_login" => login(payload, max_token_bytes).map(ClientEvent::Login),
        "ack" => receipt(payload, ReceiptKind::Ack, max_ids),
        "read" => receipt(payload, ReceiptKind::Read, max_ids),
        "unread" => receipt(payload, ReceiptKind::Unread, max_ids),
        "user_logout" => Ok(ClientEvent::Logout),
        _ => return Ok(None),
    };
    event.map(Some).map_err(|refusal| Refused { refusal, login: name == "user_login" })
}

fn receipt(payload: Option<&RawValue>, kind: ReceiptKind, max_ids: usize) -> Result<ClientEvent, Refusal> {
    // No payload at all is as good as null.
    let payload = payload.and_then(|payload| serde_json::from_str(payload.get()).ok()).unwrap_or_default();
    let rows = Selection::parse(&payload, kind).map_err(Refusal::invalid)?;
    match rows.ids() {
        ids if ids > max_ids => {
            Err(Refusal::invalid(format!("a receipt has at most {max_ids} ids, this one has {ids}")))
        }
        _ => Ok(ClientEvent::Receipt(kind, rows)),
    }
}

fn login(payload: Option<&RawValue>, max_token_bytes: usize) -> Result<LoginRequest, Refusal> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow, rename = "tokenId")]
        token: Option<&'a RawValue>,
        batch: Option<Value>,
        rev: Option<Value>,
        epoch: Option<Value>,
    }
    let needed = || Refusal::invalid("user_login needs an object with tokenId, a string or an integer");
    let fields: Fields<'_> = payload.and_then(|payload| serde_json::from_str(payload.get()).ok()).ok_or_else(needed)?;
    let text = fields.token.and_then(|token| Token::text_of_json(token).ok().flatten()).ok_or_else(needed)?;
    let token = Token::parse(&text, max_token_bytes).map_err(|error| Refusal::invalid(format!("tokenId: {error}")))?;
    let batch = match fields.batch {
        None => false,
        Some(Value::Bool(batch)) => batch,
        Some(_) => return Err(Refusal::invalid("batch must be true or false")),
    };
    let since = match (fields.rev, fields.epoch) {
        (None | Some(Value::Null), _) => None,
        (Some(rev), Some(Value::String(epoch))) => {
            let rev = rev.as_i64().filter(|rev| *rev >= 0);
            Some(Cursor { rev: rev.ok_or_else(|| Refusal::invalid("rev must be an integer, 0 or more"))?, epoch })
        }
        (Some(_), _) => return Err(Refusal::invalid("rev needs the epoch that it belongs to, a string")),
    };
    let payload = payload.and_then(|payload| serde_json::from_str::<Value>(payload.get()).ok());
    Ok(LoginRequest { token, batch, since, credentials: credentials(payload.as_ref()) })
}

/// The credentials among the fields of a login or of the handshake. Half of one is none.
pub(super) fn credentials(fields: Option<&Value>) -> Vec<Credential> {
    let text = |name: &str| fields?.get(name)?.as_str().map(str::to_owned);
    let signed =
        || Some(Credential::Signed { exp: fields?.get("exp")?.as_i64()?, kid: text("kid")?, sig: text("sig")? });
    text("jwt").map(Credential::Jwt).into_iter().chain(signed()).collect()
}

/// `receive_message`, and the items of `receive_messages`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    entity_type: &'a str,
    data: &'a RawValue,
    id: Uuid,
    /// Missing in one that is sent live only, and so is `rev`.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Rev>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rev: Option<Rev>,
    created_at: String,
    replay: bool,
    read: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a Group>,
}

impl<'a> Message<'a> {
    fn new(notification: &'a Notification, delivery: Delivery) -> Self {
        let content = &notification.content;
        Self {
            entity_type: &content.entity_type,
            data: &content.data,
            id: content.id,
            seq: Some(notification.seq).filter(|seq| *seq > 0),
            rev: Some(notification.seq).filter(|seq| *seq > 0),
            created_at: timestamp(content.created_at),
            replay: delivery == Delivery::Replay,
            read: notification.read,
            group: notification.group.as_deref(),
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

/// One row that changed, with only what is new of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RowChange<'a> {
    id: Uuid,
    /// `null` for one that is unread again.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_at: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    retracted: bool,
    /// Retracted because its time was over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a Group>,
}

fn what_changed<'a>(kind: &'a ChangeKind, at: &'a str) -> WhatChanged<'a> {
    let row = |id: &Uuid| RowChange { id: *id, read_at: None, retracted: false, expired: false, group: None };
    let rows = match kind {
        ChangeKind::ReadUpTo(upto) => return WhatChanged::ReadUpTo(*upto),
        ChangeKind::Read(ids) => ids.iter().map(|id| RowChange { read_at: Some(Some(at)), ..row(id) }).collect(),
        ChangeKind::Unread(ids) => ids.iter().map(|id| RowChange { read_at: Some(None), ..row(id) }).collect(),
        ChangeKind::Retracted(ids) => ids.iter().map(|id| RowChange { retracted: true, ..row(id) }).collect(),
        ChangeKind::Expired(ids) => {
            ids.iter().map(|id| RowChange { retracted: true, expired: true, ..row(id) }).collect()
        }
        ChangeKind::Group(changed) => vec![RowChange { group: Some(&changed.group), ..row(&changed.id) }],
    };
    WhatChanged::Changes(rows)
}

/// Queues a message for a socket.
///
/// # Errors
/// As the library's `emit`: its buffer is full or the socket is closed.
pub(super) fn emit(socket: &SocketRef, outbound: &Outbound<'_>) -> Result<(), SendError> {
    match outbound {
        Outbound::Message(live, Delivery::Live) if is_kept(live) => socket.emit("receive_message", encoded(live)),
        Outbound::Message(live, delivery) => match &live.event {
            Event::New(notification) => socket.emit("receive_message", &Message::new(notification, *delivery)),
            Event::Changed { .. } | Event::Gone { .. } => Ok(()),
        },
        Outbound::Messages(lives, Delivery::Live) if lives.iter().all(|live| is_kept(live)) => {
            socket.emit("receive_messages", &lives.iter().map(|live| encoded(live)).collect::<Vec<_>>())
        }
        Outbound::Messages(lives, delivery) => {
            let messages = lives.iter().filter_map(|live| match &live.event {
                Event::New(notification) => Some(Message::new(notification, *delivery)),
                Event::Changed { .. } | Event::Gone { .. } => None,
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

/// More bytes of `data` are not kept in their wire form besides: it is made for one token, and a push may have thousands.
const MAX_ENCODED_DATA: usize = 4096;

/// Whether the wire form is kept. Else it is written for each session, where `data` is all but copied as it is.
fn is_kept(live: &Live) -> bool {
    match &live.event {
        Event::New(notification) => notification.content.data.get().len() <= MAX_ENCODED_DATA,
        Event::Changed { .. } | Event::Gone { .. } => true,
    }
}

/// The wire form of something live, made once for all sessions of the token.
fn encoded(live: &Live) -> &RawValue {
    live.encoded.get_or_init(|| {
        match &live.event {
            Event::New(notification) => to_raw_value(&Message::new(notification, Delivery::Live)),
            Event::Changed { rev, change: Change { kind, unread }, at, .. } => {
                let at = timestamp(*at);
                to_raw_value(&InboxChanged { rev: *rev, what: what_changed(kind, &at), unread: *unread })
            }
            Event::Gone { rev } => {
                to_raw_value(&InboxChanged { rev: *rev, what: WhatChanged::Changes(Vec::new()), unread: 0 })
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
        parse(&json!([name, payload]).to_string(), 8, 3).map_err(|refused| refused.refusal.message)
    }

    #[test]
    fn receipts_are_told_apart() {
        for (name, kind) in [("ack", ReceiptKind::Ack), ("read", ReceiptKind::Read), ("unread", ReceiptKind::Unread)] {
            let selection = Selection::Ids(vec![Uuid::parse_str(ID).unwrap()]);
            assert_eq!(parsed(name, &json!([ID])), Ok(Some(ClientEvent::Receipt(kind, selection))));
            assert!(parsed(name, &json!({"ids": [7]})).unwrap_err().contains("ids[0]"));
            assert!(parsed(name, &json!([ID, ID, ID])).is_ok());
            assert!(parsed(name, &json!({"ids": [ID, ID, ID, ID]})).unwrap_err().contains("at most 3"));
        }
    }

    #[test]
    fn a_cursor_is_a_rev_with_its_epoch() {
        let since = |payload: Value| match parsed("user_login", &payload) {
            Ok(Some(ClientEvent::Login(request))) => Ok(request.since),
            other => Err(other.unwrap_err()),
        };
        let cursor = Cursor { rev: 7, epoch: "e".into() };
        assert_eq!(since(json!({"tokenId": "1", "rev": 7, "epoch": "e"})), Ok(Some(cursor)));
        for none in [json!({"tokenId": "1"}), json!({"tokenId": "1", "rev": null, "epoch": "e"})] {
            assert_eq!(since(none), Ok(None));
        }
        for bad in [json!({"tokenId": "1", "rev": 7}), json!({"tokenId": "1", "rev": "7", "epoch": "e"})] {
            assert!(since(bad).unwrap_err().contains("rev"));
        }
    }

    #[test]
    fn changes_have_the_documented_json() {
        let id = Uuid::nil();
        let shown = |kind| {
            let change = Change { kind, unread: 2 };
            let at = chrono::DateTime::UNIX_EPOCH;
            encoded(&Event::Changed { rev: 9, change, at, origin: None }.into()).get().to_owned()
        };
        let rows = |row: &str| {
            format!(r#"{{"rev":9,"changes":[{{"id":"00000000-0000-0000-0000-000000000000",{row}}}],"unread":2}}"#)
        };
        assert_eq!(shown(ChangeKind::Read(vec![id])), rows(r#""readAt":"1970-01-01T00:00:00.000Z""#));
        assert_eq!(shown(ChangeKind::Unread(vec![id])), rows(r#""readAt":null"#));
        assert_eq!(shown(ChangeKind::Retracted(vec![id])), rows(r#""retracted":true"#));
        assert_eq!(shown(ChangeKind::Expired(vec![id])), rows(r#""retracted":true,"expired":true"#));
        assert_eq!(shown(ChangeKind::ReadUpTo(7)), r#"{"rev":9,"readUpTo":7,"unread":2}"#);
        let group = Group { key: "k".into(), count: 4, actors: vec!["Alice".into()] };
        assert_eq!(
            shown(ChangeKind::Group(Box::new(crate::notification::Regrouped { id, group }))),
            rows(r#""group":{"key":"k","count":4,"actors":["Alice"]}"#)
        );
    }

    #[test]
    fn login_takes_texts_and_numbers_as_tokens() {
        for token in [json!("42"), json!(42)] {
            let request = LoginRequest {
                token: Token::parse("42", 8).unwrap(),
                batch: false,
                since: None,
                credentials: Vec::new(),
            };
            let payload = json!({"tokenId": token, "userId": 42, "socketId": "someone else's"});
            assert_eq!(parsed("user_login", &payload), Ok(Some(ClientEvent::Login(request))));
        }
        for packet in ["[\"user_login\"]", "[\"user_login\",[1]]", "[\"user_login\",{\"userId\":1}]"] {
            assert!(parse(packet, 8, 3).unwrap_err().login, "{packet}");
        }
        let large = parse("[\"user_login\",{\"tokenId\":18446744073709551617}]", 32, 3).unwrap();
        let token = Token::parse("18446744073709551617", 32).unwrap();
        assert_eq!(
            large,
            Some(ClientEvent::Login(LoginRequest { token, batch: false, since: None, credentials: Vec::new() })),
            "digit for digit"
        );
        assert!(parsed("user_login", &json!({"tokenId": "too long!"})).is_err());
        assert!(parsed("user_login", &json!({"tokenId": "1", "batch": "yes"})).is_err());
    }

    #[test]
    fn events_of_other_protocols_are_ignored() {
        assert_eq!(parsed("typing", &json!({})), Ok(None));
    }
}
