//! The `data` of a push: kept byte for byte, after a check for what one of the databases could not hold or read back.
//!
//! `serde_json` has already made sure that the text is JSON and valid UTF-8; this scan adds what JSON allows and a
//! database does not: an escaped NUL, a lone surrogate, nesting deeper than the limit.

use serde_json::value::RawValue;

/// JSON text that SQLite and Postgres both store and read back unchanged.
#[derive(Debug, Clone)]
pub struct Payload {
    json: Box<RawValue>,
    is_shared: bool,
}

/// What is wrong with a payload, and at which byte of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// More bytes than the limit.
    #[error("data is at most {max} bytes long, this is {len}")]
    TooLarge {
        /// Bytes of the text.
        len: usize,
        /// The configured limit in bytes.
        max: usize,
    },
    /// Arrays and objects nested deeper than the limit.
    #[error("data is nested deeper than {max} levels at byte {at}")]
    TooDeep {
        /// The configured limit in levels.
        max: usize,
        /// Offset of the bracket that goes too deep.
        at: usize,
    },
    /// `\u0000` in a string.
    #[error("data contains the NUL character (\\u0000) at byte {at}")]
    Nul {
        /// Offset of the escape.
        at: usize,
    },
    /// Half of a UTF-16 pair.
    #[error("data contains a lone surrogate (half of a UTF-16 pair) at byte {at}")]
    LoneSurrogate {
        /// Offset of the escape.
        at: usize,
    },
}

impl Payload {
    /// Checks a JSON text of at most `max_bytes` bytes and `max_depth` levels.
    ///
    /// # Errors
    /// Says what is wrong and at which byte.
    pub fn parse(json: Box<RawValue>, max_bytes: usize, max_depth: usize) -> Result<Self, PayloadError> {
        if json.get().len() > max_bytes {
            return Err(PayloadError::TooLarge { len: json.get().len(), max: max_bytes });
        }
        scan(json.get().as_bytes(), max_depth)?;
        Ok(Self { json, is_shared: false })
    }

    /// A payload read back from the database, where only checked ones stand.
    pub(crate) fn stored(json: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(json).map(|json| Self { json, is_shared: false })
    }

    /// The JSON text.
    #[must_use]
    pub fn into_raw(self) -> Box<RawValue> {
        self.json
    }

    /// The JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.json.get()
    }

    /// Has it stored once for all rows of its push.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.is_shared = true;
        self
    }

    /// Whether it is stored once for all rows of its push.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }
}

fn scan(json: &[u8], max_depth: usize) -> Result<(), PayloadError> {
    let (mut at, mut depth, mut in_string) = (0, 0_usize, false);
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                at += escape_len(json, at)?;
                continue;
            }
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > max_depth {
                    return Err(PayloadError::TooDeep { max: max_depth, at });
                }
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The length of the escape (or pair of escapes) that starts at `at`.
fn escape_len(json: &[u8], at: usize) -> Result<usize, PayloadError> {
    match code_unit(json, at) {
        None => Ok(2),
        Some(0) => Err(PayloadError::Nul { at }),
        Some(0xd800..0xdc00) => match code_unit(json, at + 6) {
            Some(0xdc00..0xe000) => Ok(12),
            _ => Err(PayloadError::LoneSurrogate { at }),
        },
        Some(0xdc00..0xe000) => Err(PayloadError::LoneSurrogate { at }),
        Some(_) => Ok(6),
    }
}

/// The UTF-16 code unit of a `\uXXXX` escape at `at`, if there is one.
fn code_unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Payload, PayloadError> {
        Payload::parse(RawValue::from_string(json.to_owned()).unwrap(), 1000, 3)
    }

    #[test]
    fn keeps_every_byte() {
        for json in [
            r#"{ "b":1.10, "a":9007199254740993,"a":1e400 }"#,
            r#""\ud83d\ude00 \\u0000 \" [[[[[ \u00e9""#,
            "[[[1]]]",
            "null",
        ] {
            assert_eq!(parse(json).unwrap().as_str(), json);
        }
    }

    #[test]
    fn refuses_what_a_database_cannot_hold_and_says_where() {
        assert_eq!(parse("[[[[1]]]]").unwrap_err(), PayloadError::TooDeep { max: 3, at: 3 });
        assert_eq!(parse(r#"{"a":"x\u0000"}"#).unwrap_err(), PayloadError::Nul { at: 7 });
        assert_eq!(parse(r#""\ud83d""#).unwrap_err(), PayloadError::LoneSurrogate { at: 1 });
        assert_eq!(parse(r#""\ud83dA\ude00""#).unwrap_err(), PayloadError::LoneSurrogate { at: 1 });
        assert_eq!(parse(r#"["\\","\ude00"]"#).unwrap_err(), PayloadError::LoneSurrogate { at: 7 });
        assert_eq!(
            parse(&format!("\"{}\"", "a".repeat(999))).unwrap_err(),
            PayloadError::TooLarge { len: 1001, max: 1000 }
        );
    }
}
