//! How a body is written: its media type, its charset, its coding, and its byte order mark.

use std::io::{ErrorKind, Read};

use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use hyper::body::Bytes;

use super::{Problem, invalid, too_large};

/// What the headers say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Declared {
    Json,
    Form,
    /// With its boundary.
    Multipart(String),
    /// Nothing, or the plain text that HTTP clients say of any string.
    Unknown,
}

impl Declared {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Self::Unknown) };
        let value = value.to_str().unwrap_or_default();
        let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
        let essence = essence.trim();
        let declared = match essence.to_ascii_lowercase().as_str() {
            "application/json" | "text/json" => Self::Json,
            "application/x-www-form-urlencoded" => Self::Form,
            "multipart/form-data" => {
                let boundary = multer::parse_boundary(value);
                Self::Multipart(boundary.map_err(|_| invalid("Content-Type: multipart/form-data needs its boundary"))?)
            }
            "" | "text/plain" => Self::Unknown,
            json if json.starts_with("application/") && json.ends_with("+json") => Self::Json,
            _ => {
                return Err(unsupported(
                    "Content-Type must be application/json, application/x-www-form-urlencoded or multipart/form-data",
                ));
            }
        };
        expect_utf8(parameters)?;
        Ok(declared)
    }
}

/// Refuses a charset whose bytes would be read as something else.
pub(super) fn expect_utf8(parameters: &str) -> Result<(), Problem> {
    let parameters = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    for (_, charset) in parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset")) {
        let charset = charset.trim().trim_matches(['"', '\'']);
        if !["utf-8", "utf8", "us-ascii", ""].iter().any(|known| known.eq_ignore_ascii_case(charset)) {
            return Err(unsupported(format!("the charset {charset:?} is not supported: send UTF-8")));
        }
    }
    Ok(())
}

pub(super) fn unsupported(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

/// A compression of the body. Others are refused: decoders of zstd and brotli are large, and no backend needs one here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let mut found = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            for coding in value.to_str().unwrap_or("?").split(',').map(str::trim) {
                let is = |name: &str| coding.eq_ignore_ascii_case(name);
                let known = match () {
                    () if is("") || is("identity") => continue,
                    () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
                    () if is("deflate") => Some(Self::Deflate),
                    () => None,
                };
                if known.is_none() || found.is_some() {
                    let detail = format!(
                        "the Content-Encoding {coding:?} is not supported{}: send gzip, deflate, or the body as it is",
                        if found.is_some() { " after another one" } else { "" }
                    );
                    return Err(unsupported(detail));
                }
                found = known;
            }
        }
        Ok(found)
    }

    /// Stops at `limit` bytes, whatever a few compressed ones would become.
    pub(super) fn inflate(self, compressed: &[u8], limit: usize) -> Result<Bytes, Problem> {
        let mut rest = compressed;
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let mut inflated = Vec::new();
        let read = match self {
            Self::Gzip => MultiGzDecoder::new(&mut rest).take(most).read_to_end(&mut inflated),
            // The name means zlib, but some clients have always sent the bare stream.
            Self::Deflate if is_zlib(compressed) => ZlibDecoder::new(&mut rest).take(most).read_to_end(&mut inflated),
            Self::Deflate => DeflateDecoder::new(&mut rest).take(most).read_to_end(&mut inflated),
        };
        if inflated.len() > limit {
            return Err(too_large(limit));
        }
        match read {
            Ok(_) if rest.is_empty() => Ok(inflated.into()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(invalid(format!("the body ends in the middle of its {} data", self.name())))
            }
            _ => Err(invalid(format!("the body is not what its Content-Encoding says: {}", self.name()))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

/// Whether it begins with the header of RFC 1950: deflate, and a check sum of two bytes.
fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [method, flags, ..] if method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)) % 31 == 0)
}

/// What editors and some languages put before UTF-8 is no part of the text.
pub(super) fn without_byte_order_mark(bytes: Bytes) -> Result<Bytes, Problem> {
    match *bytes {
        [0xef, 0xbb, 0xbf, ..] => Ok(bytes.slice(3..)),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err(unsupported("the body is UTF-16: send UTF-8")),
        _ => Ok(bytes),
    }
}

/// Whether a body that is not said to be JSON is. A form never begins like that: its clients escape brackets and braces.
pub(super) fn is_plainly_json(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http::HeaderValue;

    use super::*;

    fn declared(content_type: &'static str) -> Result<Declared, String> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Declared::of(&headers).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_media_type_is_known_however_it_is_written() {
        for json in [
            "application/json",
            "Application/JSON",
            " application/json ;charset=UTF-8",
            "application/json;",
            "application/json; charset=\"utf-8\"",
            "application/json; charset=utf8",
            "application/json; charset=us-ascii; odata=verbose",
            "application/vnd.api+json",
            "text/json",
        ] {
            assert_eq!(declared(json), Ok(Declared::Json), "{json}");
        }
        for none in ["", "text/plain", "text/plain;charset=UTF-8"] {
            assert_eq!(declared(none), Ok(Declared::Unknown), "{none}");
        }
        assert_eq!(Declared::of(&HeaderMap::new()).unwrap(), Declared::Unknown);
        assert_eq!(declared("multipart/form-data; boundary=\"a b\""), Ok(Declared::Multipart("a b".to_owned())));
        assert!(declared("multipart/form-data").unwrap_err().contains("boundary"));
        for other in ["application/xml", "text/html", "application/octet-stream", "nonsense", "application/jsonp"] {
            assert!(declared(other).unwrap_err().contains("Content-Type must be application/json"), "{other}");
        }
        for charset in ["iso-8859-1", "UTF-16", "windows-1252", "\"utf-16le\"", "utf-7"] {
            let value = format!("application/json; Charset={charset}").leak();
            assert!(declared(value).unwrap_err().contains("send UTF-8"), "{charset}");
        }
    }

    fn coding(values: &[&'static str]) -> Result<Option<Coding>, String> {
        let lines = values.iter().map(|value| (CONTENT_ENCODING, HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        lines.for_each(|(name, value)| assert!(headers.append(name, value) || headers.len() == 1));
        Coding::of(&headers).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_coding_is_known_or_named_in_the_refusal() {
        assert_eq!([coding(&[]), coding(&["identity"]), coding(&["", ","])], [Ok(None), Ok(None), Ok(None)]);
        assert_eq!(
            [coding(&["GZIP"]), coding(&["identity, x-gzip"])],
            [Ok(Some(Coding::Gzip)), Ok(Some(Coding::Gzip))]
        );
        assert_eq!(coding(&["identity", " deflate"]), Ok(Some(Coding::Deflate)));
        for (values, named) in [
            (&["zstd"][..], "zstd"),
            (&["br"], "br"),
            (&["compress"], "compress"),
            (&["gzip", "br"], "br"),
            (&["gzip, deflate"], "deflate"),
            (&["gzip, gzip"], "after another one"),
        ] {
            assert!(coding(values).unwrap_err().contains(named), "{values:?}");
        }
    }

    fn compressed(coding: &str, text: &[u8]) -> Vec<u8> {
        let level = Compression::best();
        let written = match coding {
            "gzip" => {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                encoder.write_all(text).and_then(|()| encoder.finish())
            }
            "zlib" => {
                let mut encoder = ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(text).and_then(|()| encoder.finish())
            }
            _ => {
                let mut encoder = DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(text).and_then(|()| encoder.finish())
            }
        };
        written.unwrap()
    }

    #[test]
    fn a_body_is_inflated_up_to_its_limit_and_no_further() {
        let text = br#"{"tokens":["1"],"data":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#;
        let bomb = vec![b' '; 5_000_000];
        for (name, coding) in [("gzip", Coding::Gzip), ("zlib", Coding::Deflate), ("raw", Coding::Deflate)] {
            let body = compressed(name, text);
            assert_eq!(coding.inflate(&body, text.len()).unwrap(), &text[..], "{name}");
            let code_of = |body: &[u8], limit| coding.inflate(body, limit).unwrap_err().code;
            assert_eq!(code_of(&body, text.len() - 1), "body_too_large", "{name}");
            assert_eq!(code_of(&compressed(name, &bomb), 1_048_576), "body_too_large", "{name}");
            assert_eq!(code_of(&body[..body.len() - 6], 1000), "invalid_body", "{name} cut off");
            assert_eq!(code_of(&[&body[..], b"more"].concat(), 1000), "invalid_body", "{name} and more behind it");
            assert_eq!(code_of(text, 1000), "invalid_body", "{name} that is not there");
        }
        let twice = [compressed("gzip", b"{\"tokens\":"), compressed("gzip", b"[1]}")].concat();
        assert_eq!(Coding::Gzip.inflate(&twice, 100).unwrap(), "{\"tokens\":[1]}", "members are one text");
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_another_encoding_is_named() {
        let without = |bytes: &'static [u8]| without_byte_order_mark(Bytes::from_static(bytes));
        assert_eq!(without(b"\xef\xbb\xbf{}").unwrap(), "{}");
        assert_eq!(without(b"{}").unwrap(), "{}");
        assert_eq!(without(b"").unwrap(), "");
        for utf16 in [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}"] {
            assert!(without(utf16).unwrap_err().detail.contains("UTF-16"));
        }
    }
}
