//! A push as a form, as browsers and the HTTP libraries of many languages write it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::ready;

use chrono::{DateTime, Utc};
use futures_util::stream::once as stream_of;
use hyper::body::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};

use super::names::Unknown;
use super::{Asked, Limits, Parsed, Problem, Tokens, check, invalid, media};

/// A field of a form.
pub(super) struct Pair<'a> {
    name: Cow<'a, str>,
    value: Cow<'a, str>,
    /// A part of a multipart form says of itself that it is.
    is_json: bool,
}

/// A part of a multipart form.
#[derive(Debug)]
pub(in crate::http) struct Part {
    name: String,
    value: String,
    is_json: bool,
}

impl<'a> From<&'a Part> for Pair<'a> {
    fn from(Part { name, value, is_json }: &'a Part) -> Self {
        Self { name: name.into(), value: value.into(), is_json: *is_json }
    }
}

impl Part {
    /// Texts are hashed behind their lengths, so that none can pass for two.
    pub(super) fn hash_into(&self, hash: Sha256) -> Sha256 {
        let hash = [&self.name, &self.value]
            .into_iter()
            .fold(hash, |hash, text| hash.chain_update(text.len().to_be_bytes()).chain_update(text));
        hash.chain_update([u8::from(self.is_json)])
    }
}

/// The parts of a multipart form.
pub(super) async fn parts(body: Bytes, boundary: String) -> Result<Vec<Part>, Problem> {
    let malformed = |error: multer::Error| invalid(format!("the body is not multipart/form-data: {error}"));
    let mut multipart = multer::Multipart::new(stream_of(ready(Ok::<_, Infallible>(body))), boundary);
    let mut parts = Vec::new();
    while let Some(field) = multipart.next_field().await.map_err(malformed)? {
        let Some(name) = field.name().map(str::to_owned) else {
            return Err(invalid(format!("part {} of the form has no name", parts.len())));
        };
        let kind = field.content_type();
        let is_json = kind.is_some_and(|kind| kind.essence_str() == "application/json");
        if field.file_name().is_some() && !is_json {
            return Err(invalid(format!(
                "{name} is a file: send its value as a field, or as a part of type application/json"
            )));
        }
        if let Some(charset) = kind.and_then(|kind| kind.get_param("charset")) {
            media::expect_utf8(&format!("charset={charset}"))?;
        }
        let value = field.bytes().await.map_err(malformed)?;
        let value = String::from_utf8(value.into()).map_err(|_| invalid(format!("{name} is not UTF-8")))?;
        parts.push(Part { name, value, is_json });
    }
    Ok(parts)
}

#[cfg(any(test, fuzzing))]
impl super::Received {
    /// A body whose parts stand between lines of `--x`; it is all there, so nothing has to be waited for.
    pub(in crate::http) fn multipart(body: Bytes) -> Result<Self, Problem> {
        let parts = futures_util::FutureExt::now_or_never(parts(body, "x".to_owned()));
        parts.expect("it waits for nothing").map(Self::Multipart)
    }
}

/// The fields of `application/x-www-form-urlencoded`.
pub(super) fn pairs(body: &[u8]) -> Result<impl Iterator<Item = Result<Pair<'_>, Problem>>, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| invalid("the body is not a form"))?;
    Ok(text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok(Pair { name: decoded(name, "a name")?, value: decoded(value, name)?, is_json: false })
    }))
}

fn decoded<'a>(encoded: &'a str, name: &str) -> Result<Cow<'a, str>, Problem> {
    let spaced = encoded.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(|text| Cow::Owned(text.into_owned())).map_err(|_| invalid(format!("{name} is not UTF-8")))
}

pub(super) fn parse<'a>(
    pairs: impl Iterator<Item = Result<Pair<'a>, Problem>>,
    limits: &Limits,
    now: DateTime<Utc>,
) -> Result<Parsed, Problem> {
    let (mut tokens, mut entity_type, mut data) = (Tokens::new(limits), None, None);
    let (mut asked, mut unknown) = (Asked::default(), Unknown::default());
    tokens.are_missing = true;
    for pair in pairs {
        let Pair { name, value, is_json } = pair?;
        match &*name {
            name if is_tokens(name) => {
                tokens.are_missing = false;
                add_tokens(&mut tokens, &value)?;
            }
            "entityType" => once(&mut entity_type, &name, value)?,
            "data" => once(&mut data, &name, (value, is_json))?,
            "ttl" => once(&mut asked.ttl, &name, value)?,
            "collapseKey" => once(&mut asked.collapse_key, &name, value)?,
            "groupKey" => once(&mut asked.group_key, &name, value)?,
            "actor" => once(&mut asked.actor, &name, value)?,
            "deliverAt" => once(&mut asked.deliver_at, &name, value)?,
            nested if nested.starts_with("data[") => {
                return Err(invalid("data in a form is one string; send JSON for anything nested"));
            }
            nested if nested.starts_with("tokens[") => {
                let detail =
                    "tokens in a form are tokens=, tokens[]= or tokens[0]=, once for each: strings, nothing nested";
                return Err(invalid(detail));
            }
            other => unknown.add(other),
        }
    }
    let data = data.map(|(text, is_json)| match is_json {
        true => RawValue::from_string(text.into_owned()).map_err(|error| invalid(format!("data: {error}"))),
        false => Ok(to_raw_value(&text).expect("a string always serialises")),
    });
    let entity_type = entity_type.unwrap_or_default().into_owned();
    check(tokens, entity_type, data.transpose()?, asked.options(limits, now)?, unknown, limits)
}

/// `tokens`, `tokens[]` (jQuery, PHP), `tokens[0]` (PHP, Guzzle, axios).
fn is_tokens(name: &str) -> bool {
    let index = name.strip_prefix("tokens").and_then(|rest| match rest {
        "" => Some(""),
        _ => rest.strip_prefix('[')?.strip_suffix(']'),
    });
    index.is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A token, or the JSON array that some clients make of an array.
fn add_tokens(tokens: &mut Tokens<'_>, value: &str) -> Result<(), Problem> {
    let trimmed = value.trim_ascii();
    if !(trimmed.starts_with('[') && trimmed.ends_with(']')) {
        return tokens.add(value);
    }
    let array = serde_json::from_str(trimmed).map_err(|error| invalid(format!("tokens is no JSON array: {error}")))?;
    tokens.add_array(array)
}

fn once<T>(field: &mut Option<T>, name: &str, value: T) -> Result<(), Problem> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("{name} is given twice"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Received;
    use super::*;
    use crate::http::fuzz::LIMITS;

    /// The tokens and the data of a form, or why it is refused.
    fn parsed(received: &Received) -> Result<(Vec<String>, String), String> {
        let parsed = super::super::parse(received, &LIMITS, Utc::now()).map_err(|problem| problem.detail)?;
        let tokens = parsed.push.tokens.iter().map(|token| token.as_str().to_owned()).collect();
        Ok((tokens, parsed.push.data.as_str().to_owned()))
    }

    fn form(body: &'static str) -> Result<(Vec<String>, String), String> {
        parsed(&Received::Form(body.into()))
    }

    fn multipart(parts: &[&str]) -> Result<Received, String> {
        let parts = parts.iter().map(|part| format!("--x\r\nContent-Disposition: form-data; name={part}\r\n"));
        let body = parts.collect::<String>() + "--x--\r\n";
        Received::multipart(body.into()).map_err(|problem| problem.detail)
    }

    fn wanted(tokens: &[&str], data: &str) -> Result<(Vec<String>, String), String> {
        Ok((tokens.iter().map(|token| (*token).to_owned()).collect(), data.to_owned()))
    }

    #[test]
    fn tokens_are_taken_as_every_library_writes_them() {
        for body in [
            "tokens=a&tokens=b",
            "tokens[]=a&tokens[]=b",
            "tokens%5B%5D=a&tokens%5B%5D=b",
            "tokens%5B0%5D=a&tokens%5B1%5D=b",
            "tokens[0]=a&tokens[1]=b",
            "tokens[7]=a&tokens[3]=b",
            "tokens=a&tokens[]=b&tokens[0]=a",
            "tokens=%5B%22a%22%2C%22b%22%5D",
            "tokens=[\"a\",+\"b\"]",
            "tokens=[\"a\"]&tokens=b",
        ] {
            assert_eq!(form(body), wanted(&["a", "b"], "{}"), "{body}");
        }
        assert_eq!(form("tokens=[1,2.0,1e1]"), wanted(&["1", "2", "10"], "{}"), "numbers in an array are JSON's");
        assert_eq!(form("tokens=1.0&data=5"), wanted(&["1.0"], "\"5\""), "a field is a string");
        for (body, named) in [
            ("tokens=", "tokens[0]: a token must not be empty"),
            ("tokens[]=a&tokens[]=", "tokens[1]: a token must not be empty"),
            ("tokens=[\"a\",]", "tokens is no JSON array"),
            ("tokens=[null]", "tokens[0] must be a string or an integer"),
            ("tokens=[1.5]", "tokens[0] must be a string or an integer"),
            ("tokens[0][id]=a", "nothing nested"),
            ("tokens[user]=a", "nothing nested"),
            ("data[who]=a&tokens=a", "data in a form is one string"),
        ] {
            assert!(form(body).unwrap_err().contains(named), "{body}: {:?}", form(body));
        }
    }

    #[test]
    fn a_multipart_form_is_taken_like_any_other() {
        let plain = multipart(&["tokens[]\r\n\r\na", "\"tokens[]\"\r\n\r\nb", "data\r\n\r\né & more"]).unwrap();
        assert_eq!(parsed(&plain), wanted(&["a", "b"], "\"é & more\""));
        let json = multipart(&[
            "tokens\r\ncontent-type: application/json\r\n\r\n[\"a\",2]",
            "data; filename=blob\r\ncontent-type: application/json; charset=utf-8\r\n\r\n{\"n\": 1.10}",
        ]);
        assert_eq!(parsed(&json.unwrap()), wanted(&["a", "2"], "{\"n\": 1.10}"));
        assert_eq!(parsed(&multipart(&[]).unwrap()), wanted(&[], "{}"));
        let broken = multipart(&["tokens\r\n\r\na", "data\r\ncontent-type: application/json\r\n\r\n{"]).unwrap();
        assert!(parsed(&broken).unwrap_err().contains("data: "), "{:?}", parsed(&broken));
        for (part, named) in [
            ("data; filename=\"a.txt\"\r\n\r\nhello", "data is a file"),
            ("data\r\ncontent-type: text/plain; charset=iso-8859-1\r\n\r\nhello", "iso-8859-1"),
        ] {
            assert!(multipart(&[part]).unwrap_err().contains(named), "{part}");
        }
        let cut = Received::multipart("--x\r\nContent-Disposition: form-data; name=tokens\r\n\r\na".into());
        assert!(cut.unwrap_err().detail.contains("the body is not multipart/form-data"));
    }

    #[test]
    fn parts_that_could_pass_for_others_are_told_apart_and_boundaries_are_not() {
        let sha256 = |parts: &[&str]| multipart(parts).unwrap().sha256();
        let one = sha256(&["tokens\r\n\r\na", "data\r\n\r\nb"]);
        assert_ne!(one, sha256(&["tokens\r\n\r\nad", "ata\r\n\r\nb"]));
        assert_ne!(one, sha256(&["tokens\r\n\r\na", "data\r\ncontent-type: application/json\r\n\r\nb"]));
        let other = "--another\r\nContent-Disposition: form-data; name=\"tokens\"\r\n\r\na\r\n--another\r\n\
            Content-Disposition: form-data; name=\"data\"\r\n\r\nb\r\n--another--\r\n";
        let other = futures_util::FutureExt::now_or_never(parts(other.into(), "another".to_owned())).unwrap();
        assert_eq!(one, Received::Multipart(other.unwrap()).sha256());
        let bytes = "tokens=a";
        assert_ne!(Received::Form(bytes.into()).sha256(), Received::Json(bytes.into()).sha256());
    }
}
