//! The polling transport of the Socket.IO client: one long GET at a time, POSTs beside it, and the two framings.
//!
//! engine.io 4 puts the record separator between packets; engine.io 3 writes `length:packet`, the length in UTF-16 units.

use std::collections::VecDeque;

use reqwest::Client;
use tokio::task::JoinHandle;

use crate::socket::{Dial, Engine, Gone};

const SEPARATOR: char = '\u{1e}';

/// A POST of many packets is sent when it is longer than this; the server takes 64 KiB.
const POST_BYTES: usize = 16 * 1024;

/// A polling session.
pub(crate) struct Polling {
    dial: Dial,
    http: Client,
    session: Option<String>,
    packets: VecDeque<String>,
    /// The GET that is open. A task, so that not awaiting it to the end loses nothing.
    poll: Option<JoinHandle<Result<String, Gone>>>,
}

impl Polling {
    pub(crate) fn new(dial: Dial) -> Self {
        let http = Client::builder().no_proxy().build().expect("a client without TLS");
        Self { dial, http, session: None, packets: VecDeque::new(), poll: None }
    }

    pub(crate) fn opened(&mut self, session: &str) {
        self.session = Some(session.to_owned());
    }

    pub(crate) fn dial(&self) -> &Dial {
        &self.dial
    }

    pub(crate) fn session(&self) -> &str {
        self.session.as_deref().expect("the session is open")
    }

    /// The next packet. Cancel safe.
    pub(crate) async fn receive(&mut self) -> Result<String, Gone> {
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return Ok(packet);
            }
            self.poll_once().await?;
        }
    }

    pub(crate) async fn send(&mut self, packet: &str) -> Result<(), Gone> {
        let body = match self.dial.engine {
            Engine::V3 => format!("{}:{packet}", packet.encode_utf16().count()),
            Engine::V4 => packet.to_owned(),
        };
        self.send_body(body).await
    }

    /// Sends many packets, as many in one POST as fit into a small one.
    pub(crate) async fn send_many(&mut self, packets: &[String]) -> Result<(), Gone> {
        let mut body = String::new();
        for packet in packets {
            let framed = match self.dial.engine {
                Engine::V3 => format!("{}:{packet}", packet.encode_utf16().count()),
                Engine::V4 if body.is_empty() => packet.clone(),
                Engine::V4 => format!("{SEPARATOR}{packet}"),
            };
            body.push_str(&framed);
            if body.len() > POST_BYTES {
                self.send_body(std::mem::take(&mut body)).await?;
            }
        }
        if body.is_empty() { Ok(()) } else { self.send_body(body).await }
    }

    /// Posts a body as it is.
    pub(crate) async fn send_body(&mut self, body: String) -> Result<(), Gone> {
        let request = self.http.post(self.url()).header("content-type", "text/plain;charset=UTF-8").body(body);
        answer_of(request).await.map(drop)
    }

    /// Waits for the open GET, if there is one, before the transport changes.
    pub(crate) async fn finish(&mut self) {
        if self.poll.is_some() {
            self.poll_once().await.expect("the last poll is answered");
        }
    }

    /// What was polled and not yet received.
    pub(crate) fn drain(&mut self) -> Vec<String> {
        self.packets.drain(..).collect()
    }

    /// Waits for the answer of the open GET, or of a new one. Cancel safe.
    pub(crate) async fn poll_once(&mut self) -> Result<(), Gone> {
        let poll = self.poll.get_or_insert_with(|| {
            let request = self.http.get(format!(
                "http://{}{}/?EIO={}&transport=polling{}",
                self.dial.address,
                self.dial.path,
                self.dial.engine.number(),
                self.session.as_ref().map(|sid| format!("&sid={sid}")).unwrap_or_default()
            ));
            tokio::spawn(answer_of(request))
        });
        let answer = poll.await.expect("a poll does not panic");
        self.poll = None;
        let answer = answer?;
        let packets = match self.dial.engine {
            Engine::V3 => split_lengths(&answer),
            Engine::V4 => answer.split(SEPARATOR).filter(|packet| !packet.is_empty()).map(str::to_owned).collect(),
        };
        if packets.is_empty() {
            return Err(Gone("an empty poll: the session has ended".to_owned()));
        }
        self.packets.extend(packets);
        Ok(())
    }

    fn url(&self) -> String {
        let Dial { address, path, engine, .. } = &self.dial;
        format!("http://{address}{path}/?EIO={}&transport=polling&sid={}", engine.number(), self.session())
    }
}

async fn answer_of(request: reqwest::RequestBuilder) -> Result<String, Gone> {
    let gone = |error: reqwest::Error| Gone(format!("polling: {error}"));
    let answer = request.send().await.map_err(gone)?;
    let status = answer.status();
    let text = answer.text().await.map_err(gone)?;
    if status.is_success() { Ok(text) } else { Err(Gone(format!("polling: {status} {text}"))) }
}

/// `length:packet` one after the other, lengths in UTF-16 units.
fn split_lengths(mut text: &str) -> Vec<String> {
    let mut packets = Vec::new();
    while let Some((length, rest)) = text.split_once(':') {
        let length: usize = length.parse().unwrap_or_else(|_| panic!("not a length: {length}"));
        let mut units = 0;
        let end = rest
            .char_indices()
            .find(|(_, c)| {
                let full = units >= length;
                units += c.len_utf16();
                full
            })
            .map_or(rest.len(), |(at, _)| at);
        packets.push(rest[..end].to_owned());
        text = &rest[end..];
    }
    assert!(text.is_empty(), "the rest of a poll is not a packet: {text}");
    packets
}

#[test]
fn lengths_of_engine_io_3_are_counted_in_utf_16_units() {
    assert_eq!(split_lengths("2:40"), ["40"]);
    assert_eq!(split_lengths("5:4😀é12:40"), ["4😀é1", "40"]);
    assert_eq!(split_lengths(""), [""; 0]);
}
