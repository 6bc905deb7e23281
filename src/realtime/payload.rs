//! The bodies of polling: how large one may be, how large a message in it may be, and how a client learns it.
//!
//! A websocket limits each message. A body that is posted by polling holds any number of them, and the engine limits only
//! the whole. So a [`Meter`] measures the packets of a body while it arrives, before the engine has them.
//!
//! The engine has one limit, `max_payload`, for three things: bodies, answers, and the `maxPayload` of the handshake. It
//! cuts an answer at that limit and keeps the packet that did not fit for the next poll, but forgets it when the client
//! upgrades to a websocket in between. So the engine gets [`ENGINE_LIMIT`], which no answer reaches (128 packets of any
//! configured size do not), and [`advertise`] writes the real limit into the handshake. The handshake of a websocket is
//! written by the engine itself and keeps `ENGINE_LIMIT`: clients use `maxPayload` only to split what they post.

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, StatusCode};

/// What the engine takes for its limit.
pub(super) const ENGINE_LIMIT: u32 = i32::MAX.unsigned_abs();

/// Messages of the largest size that a body may hold. Clients learn it as `maxPayload` and split what they send.
const MESSAGES_PER_BODY: usize = 16;

/// The same for engine.io 3, whose clients (2.x) do not know `maxPayload`: what waits while a POST is under way goes into
/// the next one. It is as many as the default queue of a socket's events takes.
const MESSAGES_PER_BODY_V3: usize = 64;

/// A handshake has about 120 bytes.
const MAX_HANDSHAKE_BYTES: usize = 4096;

/// How packets stand in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// engine.io 4: the record separator between packets.
    Separators,
    /// engine.io 3, text: `length:packet`, the length in UTF-16 units.
    Lengths,
    /// engine.io 3, binary: the kind, the digits of the length in bytes (0 to 9), 255, the packet.
    Binary,
}

/// What a body may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    framing: Framing,
    message_bytes: usize,
}

/// Why a body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the body or a message in it is larger than --max-message-bytes allows")]
    TooLarge,
    #[error("the body is not a sequence of packets")]
    Malformed,
}

impl Limits {
    /// `version` is the request's `EIO`; the engine refuses those that are unknown here.
    pub(super) fn new(version: Option<&str>, content_type: Option<&HeaderValue>, message_bytes: usize) -> Self {
        let is_binary = content_type.is_some_and(|kind| kind.as_bytes() == b"application/octet-stream");
        let framing = match version {
            Some("4") => Framing::Separators,
            _ if is_binary => Framing::Binary,
            _ => Framing::Lengths,
        };
        Self { framing, message_bytes }
    }

    pub(super) fn body_bytes(self) -> usize {
        let messages = if self.framing == Framing::Separators { MESSAGES_PER_BODY } else { MESSAGES_PER_BODY_V3 };
        self.message_bytes.saturating_mul(messages).min(ENGINE_LIMIT as usize)
    }

    /// Bytes of a packet that begins with `first`. Binary messages stand in a text in base64, which makes them larger.
    fn packet_bytes(self, first: u8) -> usize {
        const BASE64: u8 = b'b';
        if first != BASE64 || self.framing == Framing::Binary {
            return self.message_bytes;
        }
        let prefix = if self.framing == Framing::Separators { "b" } else { "b4" };
        self.message_bytes.div_ceil(3).saturating_mul(4).saturating_add(prefix.len())
    }
}

/// Measures the packets of a body that arrives in chunks of any size.
#[derive(Debug)]
pub(super) struct Meter {
    limits: Limits,
    received: usize,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before the kind of a packet, with [`Framing::Binary`].
    Kind,
    /// In the length of a packet; with [`Framing::Separators`] before the packet.
    Length { length: usize },
    /// In a packet.
    Packet {
        size: usize,
        limit: usize,
        /// UTF-16 units or bytes that have not begun.
        left: usize,
        /// Bytes that are left of the character that has.
        rest: usize,
    },
}

impl Meter {
    pub(super) fn new(limits: Limits) -> Self {
        let mut meter = Self { limits, received: 0, state: State::Kind };
        meter.end_packet();
        meter
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] as soon as the body or a packet has too many bytes.
    pub(super) fn take(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.received = self.received.saturating_add(chunk.len());
        if self.received > self.limits.body_bytes() {
            return Err(Refusal::TooLarge);
        }
        chunk.iter().try_for_each(|byte| self.take_byte(*byte))
    }

    fn take_byte(&mut self, byte: u8) -> Result<(), Refusal> {
        const SEPARATOR: u8 = 0x1e;
        const END_OF_LENGTH: u8 = 0xff;
        let framing = self.limits.framing;
        if framing == Framing::Separators && byte == SEPARATOR {
            self.end_packet();
            return Ok(());
        }
        match &mut self.state {
            State::Kind => self.state = State::Length { length: 0 },
            State::Length { .. } if framing == Framing::Separators => {
                let limit = self.limits.packet_bytes(byte);
                self.state = State::Packet { size: 1, limit, left: 0, rest: 0 };
            }
            State::Length { length } => {
                let digit = if framing == Framing::Lengths { byte.wrapping_sub(b'0') } else { byte };
                let is_end = byte == if framing == Framing::Lengths { b':' } else { END_OF_LENGTH };
                match *length {
                    _ if digit < 10 => *length = length.saturating_mul(10).saturating_add(digit.into()),
                    0 if is_end => self.end_packet(),
                    left if is_end => self.state = State::Packet { size: 0, limit: usize::MAX, left, rest: 0 },
                    _ => return Err(Refusal::Malformed),
                }
            }
            State::Packet { size, limit, left, rest } => {
                if *size == 0 {
                    *limit = self.limits.packet_bytes(byte);
                }
                *size += 1;
                match framing {
                    Framing::Separators => {}
                    Framing::Binary => *left -= 1,
                    Framing::Lengths => {
                        let (units, more) = match byte {
                            ..0x80 => (1, 0),
                            0x80..0xc0 => (0, rest.saturating_sub(1)),
                            0xc0..0xe0 => (1, 1),
                            0xe0..0xf0 => (1, 2),
                            0xf0.. => (2, 3),
                        };
                        (*left, *rest) = (left.saturating_sub(units), more);
                    }
                }
                let is_complete = framing != Framing::Separators && *left == 0 && *rest == 0;
                if *size > *limit {
                    return Err(Refusal::TooLarge);
                }
                if is_complete {
                    self.end_packet();
                }
            }
        }
        Ok(())
    }

    fn end_packet(&mut self) {
        self.state = if self.limits.framing == Framing::Binary { State::Kind } else { State::Length { length: 0 } };
    }
}

/// Writes the real limit into the answer to a polling handshake.
pub(super) async fn advertise(response: Response, limits: Limits) -> Response {
    if response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, MAX_HANDSHAKE_BYTES).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let body = with_max_payload(&body, limits).map_or(Body::from(body.clone()), |rewritten| {
        parts.headers.insert(CONTENT_LENGTH, rewritten.len().into());
        Body::from(rewritten)
    });
    Response::from_parts(parts, body)
}

fn with_max_payload(body: &[u8], limits: Limits) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let replace = |packet: &str| {
        let field = |bytes: usize| format!(r#""maxPayload":{bytes}"#);
        packet.replacen(&field(ENGINE_LIMIT as usize), &field(limits.body_bytes()), 1)
    };
    if limits.framing == Framing::Separators {
        return Some(replace(text));
    }
    let packet = replace(text.split_once(':')?.1);
    // The packet is plain ASCII.
    Some(format!("{}:{packet}", packet.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE_BYTES: usize = 100;

    fn limits(framing: Framing) -> Limits {
        Limits { framing, message_bytes: MESSAGE_BYTES }
    }

    fn body(framing: Framing, packets: &[&str]) -> Vec<u8> {
        let framed = |packet: &&str| match framing {
            Framing::Separators => packet.as_bytes().to_vec(),
            Framing::Lengths => format!("{}:{packet}", packet.encode_utf16().count()).into_bytes(),
            Framing::Binary => {
                let digits = packet.len().to_string().bytes().map(|digit| digit - b'0').collect();
                [vec![0], digits, vec![0xff], packet.as_bytes().to_vec()].concat()
            }
        };
        let between: &[u8] = if framing == Framing::Separators { b"\x1e" } else { b"" };
        packets.iter().map(framed).collect::<Vec<_>>().join(between)
    }

    /// What the meter says to a body, which must not depend on the chunks it comes in.
    fn measure(framing: Framing, body: &[u8]) -> Result<(), Refusal> {
        let in_chunks = |bytes| {
            let mut meter = Meter::new(limits(framing));
            body.chunks(bytes).try_for_each(|chunk| meter.take(chunk))
        };
        let verdict = in_chunks(body.len().max(1));
        for bytes in [1, 2, 7] {
            assert_eq!(in_chunks(bytes), verdict, "in chunks of {bytes}");
        }
        verdict
    }

    #[test]
    fn many_messages_of_the_largest_size_fit_and_a_larger_one_does_not() {
        let ascii = "4".repeat(MESSAGE_BYTES);
        let wide = format!("4{}", "é😀1€".repeat(9));
        assert_eq!(wide.len(), 91);
        for framing in [Framing::Separators, Framing::Lengths, Framing::Binary] {
            let small = ["2", "", &ascii, &wide, "4", &ascii, &wide, &ascii];
            assert_eq!(measure(framing, &body(framing, &small)), Ok(()), "{framing:?}");
            for large in [format!("{ascii}4"), format!("{wide}😀😀é")] {
                let mut packets = small.to_vec();
                packets.push(&large);
                assert_eq!(measure(framing, &body(framing, &packets)), Err(Refusal::TooLarge), "{framing:?}");
            }
        }
    }

    #[test]
    fn a_binary_message_counts_as_it_does_on_a_websocket() {
        for (framing, prefix) in [(Framing::Separators, "b"), (Framing::Lengths, "b4")] {
            let packet = |bytes: usize| format!("{prefix}{}", "A".repeat(bytes.div_ceil(3) * 4));
            assert_eq!(measure(framing, &body(framing, &[&packet(MESSAGE_BYTES)])), Ok(()), "{framing:?}");
            let larger = packet(MESSAGE_BYTES + 3);
            assert_eq!(measure(framing, &body(framing, &["4", &larger])), Err(Refusal::TooLarge), "{framing:?}");
        }
    }

    #[test]
    fn a_body_has_a_limit_of_its_own_whatever_is_in_it() {
        for framing in [Framing::Separators, Framing::Lengths, Framing::Binary] {
            let limit = limits(framing).body_bytes();
            let mut all = body(framing, &vec![""; limit + 1]);
            all.truncate(limit);
            assert_eq!(measure(framing, &all), Ok(()), "{framing:?}");
            all.push(0);
            assert_eq!(measure(framing, &all), Err(Refusal::TooLarge), "{framing:?}");
        }
        assert_eq!(limits(Framing::Separators).body_bytes(), 1600);
        assert_eq!(Limits { message_bytes: usize::MAX, ..limits(Framing::Lengths) }.body_bytes(), 2_147_483_647);
    }

    #[test]
    fn a_length_that_the_engine_might_read_otherwise_is_refused() {
        for text in ["+5:40abc", "5 :40abc", "-1:4", "4", "x"] {
            let verdict = measure(Framing::Lengths, text.as_bytes());
            assert_eq!(verdict, if text == "4" { Ok(()) } else { Err(Refusal::Malformed) }, "{text}");
        }
        assert_eq!(measure(Framing::Binary, &[0, b'5', 0xff]), Err(Refusal::Malformed));
        let endless = "9".repeat(50) + ":4" + &"x".repeat(MESSAGE_BYTES);
        assert_eq!(measure(Framing::Lengths, endless.as_bytes()), Err(Refusal::TooLarge));
    }

    #[tokio::test]
    async fn a_handshake_tells_the_limit_of_its_protocol() {
        let json = |limit: usize| format!(r#"0{{"sid":"AAAA","upgrades":["websocket"],"maxPayload":{limit}}}"#);
        let engine = json(ENGINE_LIMIT as usize);
        for (framing, sent, told) in [
            (Framing::Separators, engine.clone(), json(1600)),
            (Framing::Lengths, format!("{}:{engine}", engine.len()), format!("{}:{}", json(6400).len(), json(6400))),
        ] {
            let response = ([(CONTENT_LENGTH, sent.len().to_string())], sent).into_response();
            let response = advertise(response, limits(framing)).await;
            assert_eq!(response.headers()[CONTENT_LENGTH], told.len().to_string());
            assert_eq!(to_bytes(response.into_body(), 1000).await.unwrap(), told);
        }
    }
}
