//! From the bytes of a push to a checked [`NewPush`]: parsing is validation, and every refusal says where.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{Limits, Problem};
use crate::limits::discard;
use crate::notification::{GroupKey, NewPush, Options, Payload, PayloadError, Token, TokenError};

mod form;
mod media;
pub(super) mod names;

pub(super) use names::Warning;

use form::Part;
use media::{Coding, Declared};
use names::Unknown;

/// A body that arrived whole: inflated, without a byte order mark, and in a format that is known.
#[derive(Debug)]
pub(super) enum Received {
    Json(Bytes),
    Form(Bytes),
    Multipart(Vec<Part>),
}

/// Reads a body and finds out how it is written: as its headers say, and as JSON where they say nothing or what a client
/// says that was not asked, but the body plainly is.
pub(super) async fn receive(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Received, Problem> {
    let (declared, coding) = match Declared::of(headers).and_then(|declared| Ok((declared, Coding::of(headers)?))) {
        Ok(known) => known,
        Err(problem) => {
            refuse(headers, body);
            return Err(problem);
        }
    };
    let bytes = read(headers, body, limits).await?;
    let bytes = match coding {
        None => bytes,
        Some(coding) => coding.inflate(&bytes, limits.body_bytes)?,
    };
    Received::new(declared, media::without_byte_order_mark(bytes)?).await
}

impl Received {
    async fn new(declared: Declared, bytes: Bytes) -> Result<Self, Problem> {
        match declared {
            Declared::Json => Ok(Self::Json(bytes)),
            Declared::Form | Declared::Unknown if media::is_plainly_json(&bytes) => Ok(Self::Json(bytes)),
            Declared::Form => Ok(Self::Form(bytes)),
            Declared::Multipart(boundary) => Ok(Self::Multipart(form::parts(bytes, boundary).await?)),
            Declared::Unknown => Err(media::unsupported(
                "Content-Type must be set: application/json, application/x-www-form-urlencoded or multipart/form-data",
            )),
        }
    }

    /// Tells one request from another. The same bytes in another format are another one; the boundary of a multipart form,
    /// which each try makes anew, is not looked at.
    pub(super) fn sha256(&self) -> String {
        let digest = match self {
            Self::Json(bytes) => Sha256::digest(bytes),
            Self::Form(bytes) => Sha256::new_with_prefix(b"form\n").chain_update(bytes).finalize(),
            Self::Multipart(parts) => {
                let hash = Sha256::new_with_prefix(b"multipart\n");
                parts.iter().fold(hash, |hash, part| part.hash_into(hash)).finalize()
            }
        };
        hex::encode(digest)
    }
}

/// What a body asks for.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) push: NewPush,
    /// What was not understood, and what that led to.
    pub(super) warnings: Vec<Warning>,
    /// It names nobody, and has fields that are not known: perhaps one of them should have.
    pub(super) is_doubtful: bool,
}

/// Lets the client say the rest of a body that is refused, or tells it not to.
fn refuse(headers: &HeaderMap, body: Body) {
    // Who asks first is told not to send it.
    if !headers.contains_key(EXPECT) {
        tokio::spawn(discard(body));
    }
}

/// Reads as many bytes as a body may have, for as long as it may take. A length that announces more is refused before
/// anything is read.
async fn read(headers: &HeaderMap, mut body: Body, limits: &Limits) -> Result<Bytes, Problem> {
    let limit = limits.body_bytes;
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        refuse(headers, body);
        return Err(too_large(limit));
    }
    let collected = tokio::time::timeout(limits.body_timeout, Limited::new(&mut body, limit).collect()).await;
    let collected = collected.map_err(|_| {
        let detail = format!("the body did not arrive within {} seconds", limits.body_timeout.as_secs());
        Problem::new(http::StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    })?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            tokio::spawn(discard(body));
            Err(too_large(limit))
        }
        Err(_) => Err(Problem::bad_request("invalid_body", "the body ended before its announced length")),
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::too_large("body_too_large", format!("a body is at most {limit} bytes long"))
}

/// Reads a body that must be JSON.
pub(super) async fn read_json(request: Request, limits: &Limits) -> Result<Value, Problem> {
    let (parts, body) = request.into_parts();
    match receive(&parts.headers, body, limits).await? {
        Received::Json(body) => serde_json::from_slice(&body).map_err(|error| invalid(format!("the body: {error}"))),
        Received::Form(_) | Received::Multipart(_) => {
            Err(media::unsupported("Content-Type must be application/json, and the body JSON"))
        }
    }
}

/// Checks a body.
pub(super) fn parse(body: &Received, limits: &Limits, now: DateTime<Utc>) -> Result<Parsed, Problem> {
    match body {
        Received::Json(body) => parse_json(body, limits, now),
        Received::Form(body) => form::parse(form::pairs(body)?, limits, now),
        Received::Multipart(parts) => form::parse(parts.iter().map(|part| Ok(part.into())), limits, now),
    }
}

/// The fields of a push as they are written.
#[derive(Default)]
struct Fields<'a> {
    tokens: Option<&'a RawValue>,
    entity_type: Option<&'a RawValue>,
    /// `null` is data like any other; only a missing one is replaced.
    data: Option<Box<RawValue>>,
    ttl: Option<&'a RawValue>,
    collapse_key: Option<&'a RawValue>,
    group_key: Option<&'a RawValue>,
    actor: Option<&'a RawValue>,
    deliver_at: Option<&'a RawValue>,
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    Tokens,
    EntityType,
    Data,
    Ttl,
    CollapseKey,
    GroupKey,
    Actor,
    DeliverAt,
    Unknown(String),
}

/// By hand, because a derived one would drop the names that it does not know, or copy everything to keep them.
impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::Tokens => once(&mut fields.tokens, "tokens", map.next_value()?)?,
                        Field::Data => once(&mut fields.data, "data", map.next_value()?)?,
                        Field::EntityType => once(&mut fields.entity_type, "entityType", map.next_value()?)?,
                        Field::Ttl => once(&mut fields.ttl, "ttl", map.next_value()?)?,
                        Field::CollapseKey => once(&mut fields.collapse_key, "collapseKey", map.next_value()?)?,
                        Field::GroupKey => once(&mut fields.group_key, "groupKey", map.next_value()?)?,
                        Field::Actor => once(&mut fields.actor, "actor", map.next_value()?)?,
                        Field::DeliverAt => once(&mut fields.deliver_at, "deliverAt", map.next_value()?)?,
                        Field::Unknown(name) => {
                            map.next_value::<de::IgnoredAny>()?;
                            fields.unknown.add(&name);
                        }
                    }
                }
                Ok(fields)
            }
        }

        fn once<T, E: de::Error>(field: &mut Option<T>, name: &'static str, value: T) -> Result<(), E> {
            match field.replace(value) {
                None => Ok(()),
                Some(_) => Err(E::duplicate_field(name)),
            }
        }

        deserializer.deserialize_map(Object)
    }
}

fn parse_json(body: &[u8], limits: &Limits, now: DateTime<Utc>) -> Result<Parsed, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|error| invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    match text.trim_ascii_start().as_bytes().first() {
        None | Some(b'{') => {}
        Some(b'"') => return Err(invalid("the body must be a JSON object; this is a string, perhaps encoded twice")),
        Some(_) => return Err(invalid("the body must be a JSON object")),
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| invalid(format!("the body: {error}")))?;
    let mut tokens = Tokens::new(limits);
    match fields.tokens {
        None => tokens.are_missing = true,
        Some(array) if array.get().starts_with('[') => tokens.add_array(array)?,
        Some(single) => {
            let text = Token::text_of_json(single).map_err(|error| unstorable("tokens", &error))?;
            let wrong = || invalid("tokens must be a string, an integer, or an array of strings and integers");
            tokens.add(&text.ok_or_else(wrong)?)?;
        }
    }
    let asked = Asked {
        ttl: json_other(fields.ttl).map(|ttl| Cow::Borrowed(ttl.get())),
        collapse_key: json_text(fields.collapse_key, "collapseKey")?,
        group_key: json_text(fields.group_key, "groupKey")?,
        actor: json_text(fields.actor, "actor")?,
        deliver_at: json_text(fields.deliver_at, "deliverAt")?,
    };
    let entity_type = json_text(fields.entity_type, "entityType")?.unwrap_or_default();
    check(tokens, entity_type.into_owned(), fields.data, asked.options(limits, now)?, fields.unknown, limits)
}

/// Of fields other than `data` and `tokens`, `null` is as good as none.
fn json_other(json: Option<&RawValue>) -> Option<&RawValue> {
    json.filter(|json| json.get() != "null")
}

fn json_text<'a>(json: Option<&'a RawValue>, field: &str) -> Result<Option<Cow<'a, str>>, Problem> {
    match json_other(json).map(RawValue::get) {
        None => Ok(None),
        Some(text) if text.starts_with('"') => {
            serde_json::from_str(text).map(Some).map_err(|error| unstorable(field, &error))
        }
        Some(_) => Err(invalid(format!("{field} must be a string"))),
    }
}

/// The options of a push as they are written.
#[derive(Default)]
struct Asked<'a> {
    ttl: Option<Cow<'a, str>>,
    collapse_key: Option<Cow<'a, str>>,
    group_key: Option<Cow<'a, str>>,
    actor: Option<Cow<'a, str>>,
    deliver_at: Option<Cow<'a, str>>,
}

impl Asked<'_> {
    fn options(self, limits: &Limits, now: DateTime<Utc>) -> Result<Options, Problem> {
        let wanted = || invalid(format!("ttl must be an integer number of seconds, at most {}", u32::MAX));
        let ttl_secs = self.ttl.map(|text| text.parse().map_err(|_| wanted())).transpose()?;
        let key = |text: Option<Cow<'_, str>>, field| text.map(|text| checked_key(&text, field, limits)).transpose();
        let (collapse_key, group_key) = (key(self.collapse_key, "collapseKey")?, key(self.group_key, "groupKey")?);
        let actor = key(self.actor, "actor")?;
        let deliver_at = self.deliver_at.map(|text| later(&text, limits.delay, now)).transpose()?;
        let options = Options {
            ttl_secs,
            collapse_key,
            group: match (group_key, actor) {
                (Some(key), actor) => Some(GroupKey { key, actor }),
                (None, Some(_)) => return Err(invalid("actor needs a groupKey")),
                (None, None) => None,
            },
            deliver_at,
        };
        if options.collapse_key.is_some() && options.group.is_some() {
            return Err(invalid("a push has a collapseKey or a groupKey, not both"));
        }
        let kept = options.collapse_key.is_some() || options.group.is_some() || options.deliver_at.is_some();
        if options.live_only() && kept {
            return Err(invalid(
                "a push with ttl 0 is never stored, so it cannot have collapseKey, groupKey or deliverAt",
            ));
        }
        Ok(options)
    }
}

/// A text that names something within an inbox.
pub(super) fn checked_key(text: &str, field: &str, limits: &Limits) -> Result<String, Problem> {
    if text.is_empty() {
        return Err(invalid(format!("{field} must not be empty")));
    }
    if text.contains('\0') {
        return Err(Problem::bad_request("invalid_data", format!("{field} contains the NUL character")));
    }
    if text.len() > limits.key_bytes {
        let detail = format!("{field} is at most {} bytes long, this one is {}", limits.key_bytes, text.len());
        return Err(Problem::too_large("key_too_long", detail));
    }
    Ok(text.to_owned())
}

/// A time from now on, in whole milliseconds as the table has them.
fn later(text: &str, most: Duration, now: DateTime<Utc>) -> Result<DateTime<Utc>, Problem> {
    let at = DateTime::parse_from_rfc3339(text)
        .map_err(|error| invalid(format!("deliverAt must be a time such as 2026-01-02T03:04:05Z: {error}")))?;
    let at = at.to_utc().duration_trunc(TimeDelta::milliseconds(1)).unwrap_or(at.to_utc());
    if at.signed_duration_since(now).to_std().is_ok_and(|ahead| ahead > most) {
        return Err(invalid(format!("deliverAt is at most {} days ahead", most.as_secs() / 86_400)));
    }
    Ok(at)
}

/// A text that is JSON and still no Unicode: it holds a lone surrogate.
fn unstorable(field: &str, error: &serde_json::Error) -> Problem {
    Problem::bad_request("invalid_data", format!("{field}: {error}"))
}

fn check(
    tokens: Tokens<'_>,
    entity_type: String,
    data: Option<Box<RawValue>>,
    options: Options,
    unknown: Unknown,
    limits: &Limits,
) -> Result<Parsed, Problem> {
    let data = data.unwrap_or_else(|| RawValue::from_string("{}".to_owned()).expect("it is JSON"));
    if entity_type.len() > limits.entity_type_bytes {
        let detail =
            format!("entityType is at most {} bytes long, this one is {}", limits.entity_type_bytes, entity_type.len());
        return Err(Problem::too_large("entity_type_too_long", detail));
    }
    if entity_type.contains('\0') {
        return Err(Problem::bad_request("invalid_data", "entityType contains the NUL character"));
    }
    let data = Payload::parse(data, limits.data_bytes, limits.depth).map_err(|error| match error {
        PayloadError::TooLarge { .. } => Problem::too_large("data_too_large", error.to_string()),
        _ => Problem::bad_request("invalid_data", error.to_string()),
    })?;
    let is_doubtful = tokens.distinct.is_empty() && !unknown.is_empty();
    let warnings = unknown.warnings(tokens.are_missing, tokens.distinct.is_empty())?;
    let push = NewPush { tokens: tokens.distinct, entity_type, data, options };
    Ok(Parsed { push, warnings, is_doubtful })
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::bad_request("invalid_body", detail)
}

/// The distinct tokens of a push in the order they come.
struct Tokens<'l> {
    limits: &'l Limits,
    seen: HashSet<Token>,
    distinct: Vec<Token>,
    posted: usize,
    /// The push does not say for whom it is.
    are_missing: bool,
}

impl<'l> Tokens<'l> {
    fn new(limits: &'l Limits) -> Self {
        Self { limits, seen: HashSet::new(), distinct: Vec::new(), posted: 0, are_missing: false }
    }

    fn add_array(&mut self, array: &RawValue) -> Result<(), Problem> {
        let items: Vec<&RawValue> =
            serde_json::from_str(array.get()).map_err(|error| invalid(format!("tokens: {error}")))?;
        for item in items {
            let at = self.posted;
            let text = Token::text_of_json(item).map_err(|error| unstorable(&format!("tokens[{at}]"), &error))?;
            self.add(&text.ok_or_else(|| invalid(format!("tokens[{at}] must be a string or an integer")))?)?;
        }
        Ok(())
    }

    fn add(&mut self, text: &str) -> Result<(), Problem> {
        let at = self.posted;
        self.posted += 1;
        let token = Token::parse(text, self.limits.token_bytes).map_err(|error| match error {
            TokenError::TooLong { .. } => Problem::too_large("token_too_long", format!("tokens[{at}]: {error}")),
            TokenError::Nul => Problem::bad_request("invalid_data", format!("tokens[{at}]: {error}")),
            TokenError::Empty => invalid(format!("tokens[{at}]: {error}")),
        })?;
        if self.seen.insert(token.clone()) {
            if self.distinct.len() == self.limits.tokens {
                let detail = format!("a push has at most {} tokens", self.limits.tokens);
                return Err(Problem::too_large("too_many_tokens", detail));
            }
            self.distinct.push(token);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        body_bytes: 1000,
        tokens: 3,
        token_bytes: 8,
        entity_type_bytes: 8,
        key_bytes: 8,
        receipt_ids: 4,
        data_bytes: 100,
        depth: 4,
        delay: Duration::from_secs(30 * 86_400),
        page: 100,
        body_timeout: Duration::from_secs(30),
    };

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2026-01-02T03:04:05Z").unwrap().to_utc()
    }

    fn options(body: &str) -> Result<Options, String> {
        let parsed = parse(&Received::Json(body.to_owned().into()), &LIMITS, now());
        parsed.map(|parsed| parsed.push.options).map_err(|problem| problem.detail)
    }

    fn json(body: &str) -> Result<(Vec<String>, String, String), (&'static str, String)> {
        shown(parse(&Received::Json(body.to_owned().into()), &LIMITS, now()))
    }

    fn form(body: &str) -> Result<(Vec<String>, String, String), (&'static str, String)> {
        shown(parse(&Received::Form(body.to_owned().into()), &LIMITS, now()))
    }

    fn shown(parsed: Result<Parsed, Problem>) -> Result<(Vec<String>, String, String), (&'static str, String)> {
        parsed
            .map(|Parsed { push, .. }| {
                let tokens = push.tokens.iter().map(|token| token.as_str().to_owned()).collect();
                (tokens, push.entity_type, push.data.as_str().to_owned())
            })
            .map_err(|problem| (problem.code, problem.detail))
    }

    fn accepted(tokens: &[&str], entity_type: &str, data: &str) -> (Vec<String>, String, String) {
        (tokens.iter().map(|&token| token.to_owned()).collect(), entity_type.to_owned(), data.to_owned())
    }

    #[test]
    fn tokens_are_strings_and_integers_and_count_once() {
        assert_eq!(json(r#"{"tokens":"a"}"#), Ok(accepted(&["a"], "", "{}")));
        assert_eq!(json(r#"{"tokens":42}"#), Ok(accepted(&["42"], "", "{}")));
        assert_eq!(json(r#"{"tokens":[2,"1","2",2.0,20e-1,1e1]}"#), Ok(accepted(&["2", "1", "10"], "", "{}")));
        assert_eq!(json(r#"{"tokens":["2.0",2.0]}"#), Ok(accepted(&["2.0", "2"], "", "{}")));
        assert_eq!(json(r#"{"tokens":[18446744073709551616]}"#).unwrap_err().0, "token_too_long");
    }

    fn warnings(body: &str) -> Vec<(String, String)> {
        let parsed = parse(&Received::Json(body.to_owned().into()), &LIMITS, now()).unwrap();
        let warnings = serde_json::to_value(&parsed.warnings).unwrap();
        let text = |warning: &Value, name: &str| warning[name].as_str().unwrap().to_owned();
        let warnings = warnings.as_array().unwrap().iter();
        warnings.map(|warning| (text(warning, "field"), text(warning, "hint"))).collect()
    }

    #[test]
    fn nobody_is_taken_for_nobody_with_a_warning() {
        for body in ["{}", r#"{"tokens":[]}"#, r#"{"data":1}"#] {
            assert_eq!(json(body).unwrap().0, Vec::<String>::new());
            assert!(matches!(&warnings(body)[..], [(field, hint)] if field == "tokens" && hint.contains("nobody")));
        }
        assert_eq!(form("entityType=like"), Ok(accepted(&[], "like", "{}")));
        for body in [r#"{"tokens":""}"#, r#"{"tokens":null}"#, r#"{"tokens":[""]}"#, r#"{"tokens":[null]}"#] {
            assert_eq!(json(body).unwrap_err().0, "invalid_body", "{body}");
        }
    }

    #[test]
    fn names_that_are_not_known_are_told_and_those_that_should_name_somebody_refused() {
        assert_eq!(warnings(r#"{"tokens":[1],"data":2,"ttl":3}"#), []);
        let ignored = "it is not a field of a push and was ignored";
        let meant = |name: &str| format!("{ignored}: did you mean {name}?");
        assert_eq!(
            warnings(r#"{"tokens":[1],"EntityType":"like","socketId":"x","user_id":{"a":[1]},"Data":null}"#),
            [
                ("EntityType".to_owned(), meant("entityType")),
                ("socketId".to_owned(), ignored.to_owned()),
                ("user_id".to_owned(), meant("tokens")),
                ("Data".to_owned(), meant("data")),
            ]
        );
        for name in ["Tokens", "token", "TOKENS", "tokenIds", "tokens[]", "userId", "recipients", "to", "tokns"] {
            let (code, detail) = json(&format!(r#"{{"{name}":["a"],"data":1}}"#)).unwrap_err();
            assert!(code == "invalid_body" && detail.contains(name) && detail.contains("mean tokens?"), "{detail}");
        }
        for name in ["Tokens", "token", "tokens.0", "to"] {
            assert!(form(&format!("{name}=a&data=1")).unwrap_err().1.contains("mean tokens?"), "{name}");
        }
        for json in
            ["%7B%22tokens%22%3A%5B%221%22%5D%7D", r#""{\"tokens\":[\"1\"]}""#, "'{tokens:[1],data:x}'", r#"\"[1]"#]
        {
            assert!(form(json).unwrap_err().1.contains("application/json"), "{json}");
        }
        let doubtful = |body: &str| parse(&Received::Json(body.to_owned().into()), &LIMITS, now()).unwrap().is_doubtful;
        assert_eq!([doubtful("{}"), doubtful(r#"{"x":1}"#), doubtful(r#"{"x":1,"tokens":[1]}"#)], [false, true, false]);
    }

    #[test]
    fn data_is_kept_byte_for_byte_and_null_is_data() {
        assert_eq!(
            json(r#"{"tokens":"a","data":{ "b":1.10, "a" : 1e400 }}"#).unwrap().2,
            r#"{ "b":1.10, "a" : 1e400 }"#
        );
        assert_eq!(json(r#"{"tokens":"a","data":null}"#).unwrap().2, "null");
    }

    #[test]
    fn refusals_say_where() {
        let code_of = |body| json(body).unwrap_err();
        assert_eq!(code_of("").1, "the body: EOF while parsing a value at line 1 column 0");
        assert_eq!(code_of(r#"{"entityType":5}"#).1, "entityType must be a string");
        assert_eq!(code_of(r#"{"tokens":["\ud800"]}"#).0, "invalid_data");
        assert_eq!(code_of("[1]").1, "the body must be a JSON object");
        assert!(code_of(r#""{\"tokens\":[1]}""#).1.contains("encoded twice"));
        assert_eq!(code_of(r#"{"data":1,"data":2}"#).1, "the body: duplicate field `data` at line 1 column 19");
        assert_eq!(code_of(r#"{"tokens":["a",null]}"#).1, "tokens[1] must be a string or an integer");
        assert_eq!(code_of(r#"{"tokens":["a",1.5]}"#).1, "tokens[1] must be a string or an integer");
        assert_eq!(code_of(r#"{"tokens":["a",""]}"#).1, "tokens[1]: a token must not be empty");
        assert_eq!(
            code_of(r#"{"tokens":["a\u0000"]}"#),
            ("invalid_data", "tokens[0]: a token must not contain the NUL character".into())
        );
        assert_eq!(code_of(r#"{"tokens":[1,2,3,4]}"#), ("too_many_tokens", "a push has at most 3 tokens".into()));
        assert_eq!(code_of(r#"{"entityType":"123456789"}"#).0, "entity_type_too_long");
        assert_eq!(code_of("{\"tokens\":\n [1").1, "the body: EOF while parsing a list at line 2 column 3");
        assert_eq!(
            code_of(r#"{"data":[[[[[1]]]]]}"#),
            ("invalid_data", "data is nested deeper than 4 levels at byte 4".into())
        );
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(options(r#"{"tokens":"a"}"#), Ok(Options::default()));
        let all =
            options(r#"{"ttl":60,"groupKey":"post-7","actor":"Alice","deliverAt":"2026-01-03T04:04:05.6789+01:00"}"#);
        let group = Some(GroupKey { key: "post-7".into(), actor: Some("Alice".into()) });
        let deliver_at = Some(now() + TimeDelta::milliseconds(86_400_678));
        assert_eq!(all, Ok(Options { ttl_secs: Some(60), collapse_key: None, group, deliver_at }));
        assert!(options(r#"{"ttl":0}"#).unwrap().live_only());
        assert!(options(r#"{"deliverAt":"2020-01-01T00:00:00Z"}"#).is_ok(), "the past is now");
        for (body, wanted) in [
            (r#"{"ttl":-1}"#, "ttl must be an integer number of seconds, at most 4294967295"),
            (r#"{"ttl":"60"}"#, "ttl must be an integer number of seconds, at most 4294967295"),
            (r#"{"ttl":1.5}"#, "ttl must be an integer number of seconds, at most 4294967295"),
            (r#"{"collapseKey":7}"#, "collapseKey must be a string"),
            (r#"{"collapseKey":""}"#, "collapseKey must not be empty"),
            (r#"{"groupKey":"123456789"}"#, "groupKey is at most 8 bytes long, this one is 9"),
            (r#"{"groupKey":"a\u0000"}"#, "groupKey contains the NUL character"),
            (r#"{"actor":"Alice"}"#, "actor needs a groupKey"),
            (r#"{"collapseKey":"a","groupKey":"b"}"#, "a push has a collapseKey or a groupKey, not both"),
            (r#"{"deliverAt":"2026-02-02T03:04:05Z"}"#, "deliverAt is at most 30 days ahead"),
        ] {
            assert_eq!(options(body), Err(wanted.to_owned()), "{body}");
        }
        assert!(options(r#"{"deliverAt":"tomorrow"}"#).unwrap_err().starts_with("deliverAt must be a time such as"));
        for body in [r#"{"ttl":0,"groupKey":"a"}"#, r#"{"ttl":0,"deliverAt":"2026-01-03T00:00:00Z"}"#] {
            assert!(options(body).unwrap_err().starts_with("a push with ttl 0 is never stored"), "{body}");
        }
    }

    #[test]
    fn a_form_repeats_its_tokens_and_its_data_is_a_string() {
        assert_eq!(
            form("tokens=1&tokens=b+c&tokens=1&entityType=like&data=You+shall%20not+pass%21"),
            Ok(accepted(&["1", "b c"], "like", r#""You shall not pass!""#))
        );
        assert_eq!(form("tokens=1&tokens=").unwrap_err().1, "tokens[1]: a token must not be empty");
        assert_eq!(form("tokens=%ff").unwrap_err().1, "tokens is not UTF-8");
        assert_eq!(form("data=1&data=2").unwrap_err().1, "data is given twice");
        assert_eq!(form("data[who]=2").unwrap_err().0, "invalid_body");
    }
}
