//! From the bytes of a push to a checked [`NewPush`]: parsing is validation, and every refusal says where.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::{Limits, Problem};
use crate::limits::discard;
use crate::notification::{GroupKey, NewPush, Options, Payload, PayloadError, Token, TokenError};

/// How a body is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    Json,
    Form,
}

/// How the headers say that the body is written.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Ok(Format::Json),
        "application/x-www-form-urlencoded" => Ok(Format::Form),
        json if json.starts_with("application/") && json.ends_with("+json") => Ok(Format::Json),
        _ => Err(unsupported("application/json or application/x-www-form-urlencoded")),
    }
}

/// Reads as many bytes as a body may have, for as long as it may take. A length that announces more is refused before
/// anything is read.
pub(super) async fn read(headers: &HeaderMap, mut body: Body, limits: &Limits) -> Result<Bytes, Problem> {
    let limit = limits.body_bytes;
    let too_large = || Problem::too_large("body_too_large", format!("a body is at most {limit} bytes long"));
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        // Who asks first is told not to send it.
        if !headers.contains_key(EXPECT) {
            tokio::spawn(discard(body));
        }
        return Err(too_large());
    }
    let collected = tokio::time::timeout(limits.body_timeout, Limited::new(&mut body, limit).collect()).await;
    let collected = collected.map_err(|_| {
        let detail = format!("the body did not arrive within {} seconds", limits.body_timeout.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    })?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            tokio::spawn(discard(body));
            Err(too_large())
        }
        Err(_) => Err(Problem::bad_request("invalid_body", "the body ended before its announced length")),
    }
}

/// Reads a body that must be JSON.
pub(super) async fn read_json(request: Request, limits: &Limits) -> Result<Value, Problem> {
    let (parts, body) = request.into_parts();
    if !matches!(format(&parts.headers)?, Format::Json) {
        return Err(unsupported("application/json"));
    }
    let body = read(&parts.headers, body, limits).await?;
    serde_json::from_slice(&body).map_err(|error| invalid(format!("the body: {error}")))
}

fn unsupported(wanted: &str) -> Problem {
    let detail = format!("Content-Type must be {wanted}");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

/// Checks a body.
pub(super) fn parse(format: Format, body: &[u8], limits: &Limits, now: DateTime<Utc>) -> Result<NewPush, Problem> {
    match format {
        Format::Json => parse_json(body, limits, now),
        Format::Form => parse_form(body, limits, now),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow)]
    tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    entity_type: Option<&'a RawValue>,
    /// `null` is data like any other; only a missing one is replaced.
    #[serde(default, deserialize_with = "present")]
    data: Option<Box<RawValue>>,
    #[serde(borrow)]
    ttl: Option<&'a RawValue>,
    #[serde(borrow)]
    collapse_key: Option<&'a RawValue>,
    #[serde(borrow)]
    group_key: Option<&'a RawValue>,
    #[serde(borrow)]
    actor: Option<&'a RawValue>,
    #[serde(borrow)]
    deliver_at: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::deserialize(deserializer).map(Some)
}

fn parse_json(body: &[u8], limits: &Limits, now: DateTime<Utc>) -> Result<NewPush, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|error| invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    // serde would take an array for the fields in order.
    if text.trim_ascii_start().starts_with(|start| start != '{') {
        return Err(invalid("the body must be a JSON object"));
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| invalid(format!("the body: {error}")))?;
    let mut tokens = Tokens::new(limits);
    match fields.tokens {
        None => {}
        // A single empty text means nobody, as a missing list does.
        Some(empty) if empty.get() == "\"\"" => {}
        Some(list) if list.get().starts_with('[') => {
            let list: Vec<&RawValue> =
                serde_json::from_str(list.get()).map_err(|error| invalid(format!("tokens: {error}")))?;
            for (at, item) in list.into_iter().enumerate() {
                let text = Token::text_of_json(item).map_err(|error| unstorable(&format!("tokens[{at}]"), &error))?;
                tokens.add(&text.ok_or_else(|| not_a_token(at))?, at)?;
            }
        }
        Some(one) => {
            let text = Token::text_of_json(one).map_err(|error| unstorable("tokens", &error))?;
            let wanted = || invalid("tokens must be a text, a number, or a list of texts and numbers");
            tokens.add(&text.ok_or_else(wanted)?, 0)?;
        }
    }
    let asked = Asked {
        ttl: fields.ttl.map(|ttl| Cow::Borrowed(ttl.get())),
        collapse_key: json_text(fields.collapse_key, "collapseKey")?,
        group_key: json_text(fields.group_key, "groupKey")?,
        actor: json_text(fields.actor, "actor")?,
        deliver_at: json_text(fields.deliver_at, "deliverAt")?,
    };
    let entity_type = json_text(fields.entity_type, "entityType")?.unwrap_or_default();
    check(tokens, entity_type.into_owned(), fields.data, asked.options(limits, now)?, limits)
}

fn json_text<'a>(json: Option<&'a RawValue>, field: &str) -> Result<Option<Cow<'a, str>>, Problem> {
    match json.map(RawValue::get) {
        None => Ok(None),
        Some(text) if text.starts_with('"') => {
            serde_json::from_str(text).map(Some).map_err(|error| unstorable(field, &error))
        }
        Some(_) => Err(invalid(format!("{field} must be a text"))),
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
        let wanted = || invalid(format!("ttl must be seconds: a whole number up to {}", u32::MAX));
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
            return Err(invalid("ttl 0 is for whoever is there now: collapseKey, groupKey and deliverAt need a row"));
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
        return Err(Problem::bad_request("invalid_data", format!("{field} holds the NUL character")));
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

fn not_a_token(at: usize) -> Problem {
    invalid(format!("tokens[{at}] must be a text or a number in decimal digits"))
}

fn parse_form(body: &[u8], limits: &Limits, now: DateTime<Utc>) -> Result<NewPush, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| invalid("the body is not a form"))?;
    let (mut tokens, mut entity_type, mut data) = (Tokens::new(limits), None, None);
    let mut asked = Asked::default();
    let mut values = 0;
    let mut lonely_empty = false;
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name, "a name")?, decode(value, name)?);
        match &*name {
            "tokens" | "tokens[]" => {
                lonely_empty = values == 0 && value.is_empty();
                if !lonely_empty {
                    tokens.add(&value, values)?;
                }
                values += 1;
            }
            "entityType" => once(&mut entity_type, &name, value)?,
            "data" => once(&mut data, &name, value)?,
            "ttl" => once(&mut asked.ttl, &name, value)?,
            "collapseKey" => once(&mut asked.collapse_key, &name, value)?,
            "groupKey" => once(&mut asked.group_key, &name, value)?,
            "actor" => once(&mut asked.actor, &name, value)?,
            "deliverAt" => once(&mut asked.deliver_at, &name, value)?,
            nested if nested.starts_with("data[") => {
                return Err(invalid("data in a form is one text; send JSON for anything nested"));
            }
            _ => {}
        }
    }
    if lonely_empty && values > 1 {
        return Err(not_a_token(0));
    }
    let data = data.map(|text| to_raw_value(&text).expect("a text always serialises"));
    check(tokens, entity_type.unwrap_or_default().into_owned(), data, asked.options(limits, now)?, limits)
}

fn decode<'a>(encoded: &'a str, name: &str) -> Result<Cow<'a, str>, Problem> {
    let spaced = encoded.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(|text| Cow::Owned(text.into_owned())).map_err(|_| invalid(format!("{name} is not UTF-8")))
}

fn once<'a>(field: &mut Option<Cow<'a, str>>, name: &str, value: Cow<'a, str>) -> Result<(), Problem> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("{name} is given twice"))),
    }
}

fn check(
    tokens: Tokens<'_>,
    entity_type: String,
    data: Option<Box<RawValue>>,
    options: Options,
    limits: &Limits,
) -> Result<NewPush, Problem> {
    let data = data.unwrap_or_else(|| RawValue::from_string("{}".to_owned()).expect("it is JSON"));
    if entity_type.len() > limits.entity_type_bytes {
        let detail =
            format!("entityType is at most {} bytes long, this one is {}", limits.entity_type_bytes, entity_type.len());
        return Err(Problem::too_large("entity_type_too_long", detail));
    }
    if entity_type.contains('\0') {
        return Err(Problem::bad_request("invalid_data", "entityType holds the NUL character"));
    }
    let data = Payload::parse(data, limits.data_bytes, limits.depth).map_err(|error| match error {
        PayloadError::TooLarge { .. } => Problem::too_large("data_too_large", error.to_string()),
        _ => Problem::bad_request("invalid_data", error.to_string()),
    })?;
    Ok(NewPush { tokens: tokens.distinct, entity_type, data, options })
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::bad_request("invalid_body", detail)
}

/// The distinct tokens of a push in the order they come.
struct Tokens<'l> {
    limits: &'l Limits,
    seen: HashSet<Token>,
    distinct: Vec<Token>,
}

impl<'l> Tokens<'l> {
    fn new(limits: &'l Limits) -> Self {
        Self { limits, seen: HashSet::new(), distinct: Vec::new() }
    }

    fn add(&mut self, text: &str, at: usize) -> Result<(), Problem> {
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
        let push = parse(Format::Json, body.as_bytes(), &LIMITS, now());
        push.map(|push| push.options).map_err(|problem| problem.detail)
    }

    fn json(body: &str) -> Result<(Vec<String>, String, String), (&'static str, String)> {
        shown(parse(Format::Json, body.as_bytes(), &LIMITS, now()))
    }

    fn form(body: &str) -> Result<(Vec<String>, String, String), (&'static str, String)> {
        shown(parse(Format::Form, body.as_bytes(), &LIMITS, now()))
    }

    fn shown(push: Result<NewPush, Problem>) -> Result<(Vec<String>, String, String), (&'static str, String)> {
        push.map(|push| {
            let tokens = push.tokens.iter().map(|token| token.as_str().to_owned()).collect();
            (tokens, push.entity_type, push.data.as_str().to_owned())
        })
        .map_err(|problem| (problem.code, problem.detail))
    }

    fn accepted(tokens: &[&str], entity_type: &str, data: &str) -> (Vec<String>, String, String) {
        (tokens.iter().map(|&token| token.to_owned()).collect(), entity_type.to_owned(), data.to_owned())
    }

    #[test]
    fn tokens_are_a_text_a_number_or_a_list_and_count_once() {
        assert_eq!(json(r#"{"tokens":"a"}"#), Ok(accepted(&["a"], "", "{}")));
        assert_eq!(json(r#"{"tokens":42}"#), Ok(accepted(&["42"], "", "{}")));
        assert_eq!(json(r#"{"tokens":[2,"1","2",1.5]}"#), Ok(accepted(&["2", "1", "1.5"], "", "{}")));
        assert_eq!(json(r#"{"tokens":[18446744073709551616]}"#).unwrap_err().0, "token_too_long");
    }

    #[test]
    fn no_tokens_mean_nobody() {
        for body in ["{}", r#"{"tokens":null}"#, r#"{"tokens":[]}"#, r#"{"tokens":""}"#] {
            assert_eq!(json(body), Ok(accepted(&[], "", "{}")));
        }
        assert_eq!(form("tokens="), Ok(accepted(&[], "", "{}")));
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
        assert_eq!(code_of(r#"{"entityType":5}"#).1, "entityType must be a text");
        assert_eq!(code_of(r#"{"tokens":["\ud800"]}"#).0, "invalid_data");
        assert_eq!(code_of("[1]").1, "the body must be a JSON object");
        assert_eq!(code_of(r#"{"tokens":["a",null]}"#).1, "tokens[1] must be a text or a number in decimal digits");
        assert_eq!(code_of(r#"{"tokens":["a",1e3]}"#).1, "tokens[1] must be a text or a number in decimal digits");
        assert_eq!(code_of(r#"{"tokens":["a",""]}"#).1, "tokens[1]: a token must not be empty");
        assert_eq!(
            code_of(r#"{"tokens":["a\u0000"]}"#),
            ("invalid_data", "tokens[0]: a token must not hold the NUL character".into())
        );
        assert_eq!(code_of(r#"{"tokens":[1,2,3,4]}"#), ("too_many_tokens", "a push has at most 3 tokens".into()));
        assert_eq!(code_of(r#"{"entityType":"123456789"}"#).0, "entity_type_too_long");
        assert_eq!(code_of("{\"tokens\":\n [1").1, "the body: EOF while parsing a list at line 2 column 3");
        assert_eq!(
            code_of(r#"{"data":[[[[[1]]]]]}"#),
            ("invalid_data", "data nests deeper than 4 levels at byte 4".into())
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
            (r#"{"ttl":-1}"#, "ttl must be seconds: a whole number up to 4294967295"),
            (r#"{"ttl":"60"}"#, "ttl must be seconds: a whole number up to 4294967295"),
            (r#"{"ttl":1.5}"#, "ttl must be seconds: a whole number up to 4294967295"),
            (r#"{"collapseKey":7}"#, "collapseKey must be a text"),
            (r#"{"collapseKey":""}"#, "collapseKey must not be empty"),
            (r#"{"groupKey":"123456789"}"#, "groupKey is at most 8 bytes long, this one is 9"),
            (r#"{"groupKey":"a\u0000"}"#, "groupKey holds the NUL character"),
            (r#"{"actor":"Alice"}"#, "actor needs a groupKey"),
            (r#"{"collapseKey":"a","groupKey":"b"}"#, "a push has a collapseKey or a groupKey, not both"),
            (r#"{"deliverAt":"2026-02-02T03:04:05Z"}"#, "deliverAt is at most 30 days ahead"),
        ] {
            assert_eq!(options(body), Err(wanted.to_owned()), "{body}");
        }
        assert!(options(r#"{"deliverAt":"tomorrow"}"#).unwrap_err().starts_with("deliverAt must be a time such as"));
        for body in [r#"{"ttl":0,"groupKey":"a"}"#, r#"{"ttl":0,"deliverAt":"2026-01-03T00:00:00Z"}"#] {
            assert!(options(body).unwrap_err().starts_with("ttl 0 is for whoever is there now"), "{body}");
        }
    }

    #[test]
    fn a_form_repeats_its_tokens_and_its_data_is_a_text() {
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
