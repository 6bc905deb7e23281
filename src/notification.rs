//! The words of the service as types: tokens, notifications, receipts and the events of an inbox.
//!
//! Parsing is validation: a [`Token`] or a [`Payload`] that exists is within its limits, so nothing further in checks
//! again. No I/O and no wire format of a particular transport here.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

mod payload;
mod selection;
pub use payload::{Payload, PayloadError};
pub use selection::Selection;

/// A position in one inbox: 1, 2, 3, ... Each value is exactly one event.
pub type Rev = i64;

/// The address of one inbox, `tokenId` on the wire. Never empty, no NUL, at most the configured number of bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(Arc<str>);

/// Why a text is not a token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is empty.
    #[error("a token must not be empty")]
    Empty,
    /// The text holds U+0000, which one of the databases cannot store.
    #[error("a token must not contain the NUL character")]
    Nul,
    /// The text is longer than the limit, both in bytes.
    #[error("a token is at most {max} bytes long, this one is {len}")]
    TooLong {
        /// Bytes of the text.
        len: usize,
        /// The configured limit in bytes.
        max: usize,
    },
}

/// Of any length: a node may be configured to take longer ones than another.
impl TryFrom<String> for Token {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        Self::parse(&text, usize::MAX)
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.as_str().to_owned()
    }
}

impl Token {
    /// Checks and takes a text of at most `max_bytes` bytes.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn parse(text: &str, max_bytes: usize) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > max_bytes {
            return Err(TokenError::TooLong { len: text.len(), max: max_bytes });
        }
        if text.contains('\0') {
            return Err(TokenError::Nul);
        }
        Ok(Self(text.into()))
    }

    /// The text of a token that is written as JSON: a string, or a number with an integral value, which is that integer's
    /// decimal text however a language prints it: 7, `7.0` and `70e-1` are one user. `None` for anything else.
    ///
    /// # Errors
    /// The text is no Unicode: it holds a lone surrogate.
    pub fn text_of_json(json: &RawValue) -> Result<Option<Cow<'_, str>>, serde_json::Error> {
        let json = json.get();
        match json.as_bytes().first() {
            Some(b'"') => serde_json::from_str(json).map(Some),
            Some(b'-' | b'0'..=b'9') => Ok(integer_text(json)),
            _ => Ok(None),
        }
    }

    /// A token read back from the database, where only checked ones stand.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight digits of its SHA-256: a log line says whom it is about to who knows the token already.
    #[must_use]
    pub fn short_sha256(&self) -> String {
        hex::encode(&Sha256::digest(self.as_str())[..4])
    }
}

/// As many zeros as the largest double has digits: what is longer is not how anything prints a user's number.
const MAX_ZEROS: i64 = 309;

/// The decimal digits of a JSON number, if its value is an integer.
fn integer_text(json: &str) -> Option<Cow<'_, str>> {
    let (sign, number) = json.strip_prefix('-').map_or(("", json), |number| ("-", number));
    if number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Cow::Borrowed(if number == "0" { number } else { json }));
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_matches('0');
    if significant.is_empty() {
        return Some(Cow::Borrowed("0"));
    }
    let trailing = digits.len() - digits.trim_end_matches('0').len();
    let moved = i64::try_from(trailing).ok()? - i64::try_from(fraction.len()).ok()?;
    let zeros = exponent.parse::<i64>().ok()?.checked_add(moved).filter(|zeros| *zeros <= MAX_ZEROS)?;
    let zeros = "0".repeat(usize::try_from(zeros).ok()?);
    Some(Cow::Owned(format!("{sign}{significant}{zeros}")))
}

/// Shows at most a quarter of it and four characters: logs never hold whole tokens, however short or in which script.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.0.chars().take((self.0.chars().count() / 4).min(4)).collect();
        write!(f, "{shown}..({} bytes)", self.0.len())
    }
}

/// What a push says, the same for all its tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Content {
    /// UUIDv7, shared by all rows of the push.
    pub id: Uuid,
    /// Free text of the backend, at most the configured number of bytes.
    pub entity_type: String,
    /// The JSON text as it was posted, byte for byte.
    pub data: Box<RawValue>,
    /// When the row was committed, UTC, whole milliseconds.
    pub created_at: DateTime<Utc>,
}

/// One row for one token.
#[derive(Debug, Clone)]
pub struct Notification {
    /// The rev at which it was created; orders the inbox and never changes. 0 for one that is sent live only.
    pub seq: Rev,
    /// Shared with the other rows of the push.
    pub content: Arc<Content>,
    /// Whether its user has seen it already.
    pub read: bool,
    /// If it stands for several.
    pub group: Option<Arc<Group>>,
}

/// What the one unread row of a group stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The key that the pushes share.
    pub key: String,
    /// How many acted: each actor counts once, a push without one as one more.
    pub count: i64,
    /// The last [`GROUP_ACTORS`] that acted, newest first.
    pub actors: Vec<String>,
}

/// So many of a group's actors are named.
pub const GROUP_ACTORS: usize = 3;

impl Group {
    /// The group that a first push makes.
    #[must_use]
    pub fn first(key: &str, actor: Option<&str>) -> Self {
        Self { key: key.to_owned(), count: 1, actors: actor.map(str::to_owned).into_iter().collect() }
    }

    /// The group after one more push; `known` says that its actor acted before.
    #[must_use]
    pub fn joined(&self, actor: Option<&str>, known: bool) -> Self {
        let mut actors = self.actors.clone();
        if let Some(actor) = actor {
            actors.retain(|other| other != actor);
            actors.insert(0, actor.to_owned());
            actors.truncate(GROUP_ACTORS);
        }
        Self { key: self.key.clone(), count: self.count + i64::from(!known), actors }
    }
}

/// A checked push: what one accepted POST asks for.
#[derive(Debug)]
pub struct NewPush {
    /// Distinct, in the order they were posted.
    pub tokens: Vec<Token>,
    /// At most the configured number of bytes, no NUL.
    pub entity_type: String,
    /// JSON that both databases can hold and read back.
    pub data: Payload,
    /// What it asks for besides.
    pub options: Options,
}

/// What a push may ask for. Texts hold no NUL and at most the configured number of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Seconds after which its rows expire. 0: it is sent to whoever is there and never stored.
    pub ttl_secs: Option<u32>,
    /// Its row replaces the unread one with the same key, if there is one.
    pub collapse_key: Option<String>,
    /// It becomes part of the unread row with the same key, if there is one.
    pub group: Option<GroupKey>,
    /// When it enters the inboxes; now unless given.
    pub deliver_at: Option<DateTime<Utc>>,
}

/// To which group a push belongs, and who acted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupKey {
    /// Names the group within an inbox.
    pub key: String,
    /// Counts once in a group.
    pub actor: Option<String>,
}

impl Options {
    /// Whether the push is for whoever is there now, and nobody else.
    #[must_use]
    pub fn live_only(&self) -> bool {
        self.ttl_secs == Some(0)
    }

    /// When rows that are made at `now` expire.
    #[must_use]
    pub fn expires_at(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.ttl_secs.map(|secs| now + TimeDelta::seconds(i64::from(secs)))
    }
}

/// What a push became: its id and what it is in each inbox, in the order of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Shared by all rows of the push.
    pub id: Uuid,
    /// One entry a token.
    pub results: Vec<Placed>,
}

/// What a push is in one inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Whose inbox.
    pub token: Token,
    /// Where it stands; none yet if it is for later.
    pub seq: Option<Rev>,
    /// The notification that it became part of, if it made no row of its own.
    pub grouped_into: Option<Uuid>,
}

/// What a client says about rows of its own inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiptKind {
    /// "This device has it": marks rows delivered.
    Ack,
    /// "The user saw it": marks rows read, and delivered with it.
    Read,
    /// "The user wants to see it again": marks rows unread; what is delivered stays delivered.
    Unread,
}

/// A change to rows that were already there, as it stands in `inbox_change`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happened.
    #[serde(flatten)]
    pub kind: ChangeKind,
    /// The inbox's unread rows after it.
    pub unread: i64,
}

/// What a [`Change`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    /// These rows were read.
    Read(Vec<Uuid>),
    /// Every row up to this rev was read.
    ReadUpTo(Rev),
    /// These rows are unread again.
    #[serde(rename = "unreadAgain")]
    Unread(Vec<Uuid>),
    /// These rows were taken back, by the backend or by a newer push with the same collapse key.
    Retracted(Vec<Uuid>),
    /// The time of these rows is over.
    Expired(Vec<Uuid>),
    /// The row of a group stands for more, or for less.
    Group(Box<Regrouped>),
}

/// A row whose group changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regrouped {
    /// The row.
    pub id: Uuid,
    /// What it stands for now.
    #[serde(flatten)]
    pub group: Group,
}

/// What happened at one rev of an inbox.
#[derive(Debug, Clone)]
pub enum Event {
    /// A notification was created.
    New(Notification),
    /// Rows that were already there changed.
    Changed {
        /// The rev it took.
        rev: Rev,
        /// What happened.
        change: Change,
        /// When, UTC.
        at: DateTime<Utc>,
        /// The session that asked for it, which has its answer already; not stored.
        origin: Option<SessionId>,
    },
    /// What was created here is gone: retracted, expired or purged. There is nothing to show.
    Gone {
        /// The rev it took.
        rev: Rev,
    },
}

/// Names a session on its node while the process runs.
pub type SessionId = u64;

impl Event {
    /// The rev it stands at.
    #[must_use]
    pub fn rev(&self) -> Rev {
        match self {
            Self::New(notification) => notification.seq,
            Self::Changed { rev, .. } | Self::Gone { rev } => *rev,
        }
    }

    /// Roughly the bytes it keeps in memory, for bounding queues.
    #[must_use]
    pub fn weight(&self) -> usize {
        256 + match self {
            Self::New(notification) => notification.content.data.get().len() + notification.content.entity_type.len(),
            Self::Changed { change, .. } => match &change.kind {
                ChangeKind::Read(ids)
                | ChangeKind::Unread(ids)
                | ChangeKind::Retracted(ids)
                | ChangeKind::Expired(ids) => ids.len() * size_of::<Uuid>(),
                ChangeKind::ReadUpTo(_) => 0,
                ChangeKind::Group(regrouped) => {
                    regrouped.group.key.len() + regrouped.group.actors.iter().map(String::len).sum::<usize>()
                }
            },
            Self::Gone { .. } => 0,
        }
    }
}

/// The state of an inbox at its newest rev. All zero for a token that never got anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// The newest rev.
    pub rev: Rev,
    /// Rows not read.
    pub unread: i64,
    /// Every row at or below this rev is delivered.
    pub delivered_upto: Rev,
    /// What happened up to this rev is no longer known one by one.
    pub purged_rev: Rev,
}

/// The one text form of a point in time: UTC with milliseconds, `2026-01-02T03:04:05.678Z`.
#[must_use]
pub fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_refuses_what_cannot_be_stored_or_is_too_long() {
        assert_eq!(Token::parse("", 8), Err(TokenError::Empty));
        assert_eq!(Token::parse("a\0b", 8), Err(TokenError::Nul));
        assert_eq!(Token::parse("ééééé", 8), Err(TokenError::TooLong { len: 10, max: 8 }));
        assert_eq!(Token::parse("éééé", 8).unwrap().as_str(), "éééé");
    }

    #[test]
    fn a_number_is_the_same_token_however_it_is_printed() {
        let text = |json: &str| {
            let json = RawValue::from_string(json.to_owned()).unwrap();
            Token::text_of_json(&json).unwrap().map(Cow::into_owned)
        };
        for (text_of_it, spellings) in [
            ("7", &["7", "7.0", "7.000", "7e0", "70e-1", "0.7E1", "0.07e+2", "700.0e-2"][..]),
            ("1000", &["1000", "1e3", "1E+3", "1.0e3", "10000e-1", "1000.0"]),
            ("-42", &["-42", "-42.0", "-4.2e1"]),
            ("0", &["0", "-0", "0.0", "-0.0", "0e5", "0e-5", "0e99999999999999999999"]),
            ("9007199254740993", &["9007199254740993", "9007199254740993.0", "9007199254740.993e3"]),
            ("18446744073709551616", &["18446744073709551616", "1.8446744073709551616e19"]),
            ("100000000000000000000", &["1e20", "1E20", "100000000000000000000.0"]),
        ] {
            for spelling in spellings {
                assert_eq!(text(spelling).as_deref(), Some(text_of_it), "{spelling}");
            }
        }
        for none in ["1.5", "1e-1", "-0.1", "1e400", "1e99999999999999999999", "1e-99999999999999999999", "12e-1"] {
            assert_eq!(text(none), None, "{none}");
        }
        for (json, exact) in [(r#""1.0""#, "1.0"), (r#""1e3""#, "1e3"), (r#""007""#, "007"), (r#""-0""#, "-0")] {
            assert_eq!(text(json).as_deref(), Some(exact), "a string is taken as it is");
        }
        assert!(["null", "true", "[1]", "{}"].into_iter().all(|json| text(json).is_none()));
        assert_eq!(text("1e309").map(|text| text.len()), Some(310));
    }

    #[test]
    fn debug_of_a_token_never_shows_it_whole() {
        let token = Token::parse("alice@example.com", 256).unwrap();
        assert_eq!(format!("{token:?}"), "alic..(17 bytes)");
        for (short, shown) in [
            ("1234", "1..(4 bytes)"),
            ("7", "..(1 bytes)"),
            ("李小龙", "..(9 bytes)"),
            ("二三四五六", "二..(15 bytes)"),
        ] {
            assert_eq!(format!("{:?}", Token::parse(short, 256).unwrap()), shown);
        }
    }

    #[test]
    fn changes_have_the_documented_json() {
        let id = Uuid::nil();
        let read = Change { kind: ChangeKind::Read(vec![id]), unread: 3 };
        let up_to = Change { kind: ChangeKind::ReadUpTo(17), unread: 0 };
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            r#"{"read":["00000000-0000-0000-0000-000000000000"],"unread":3}"#
        );
        assert_eq!(serde_json::to_string(&up_to).unwrap(), r#"{"readUpTo":17,"unread":0}"#);
        let group = Group { key: "post-7".into(), count: 13, actors: vec!["Alice".into(), "Bob".into()] };
        let grouped = Change { kind: ChangeKind::Group(Box::new(Regrouped { id, group })), unread: 1 };
        assert_eq!(
            serde_json::to_string(&grouped).unwrap(),
            r#"{"group":{"id":"00000000-0000-0000-0000-000000000000","key":"post-7","count":13,"actors":["Alice","Bob"]},"unread":1}"#
        );
        let again = Change { kind: ChangeKind::Unread(vec![id]), unread: 1 };
        let retracted = Change { kind: ChangeKind::Retracted(vec![id]), unread: 1 };
        for change in [read, up_to, grouped, again, retracted] {
            assert_eq!(serde_json::from_str::<Change>(&serde_json::to_string(&change).unwrap()).unwrap(), change);
        }
    }
}
