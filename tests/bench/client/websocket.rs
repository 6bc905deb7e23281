//! A websocket whose frames are written and read by hand.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;

const TEXT: u8 = 1;
const PONG: u8 = 10;

/// An idle socket keeps the smallest; one that a read filled doubles up to the largest.
const READ_BUFFER: Range<usize> = 4 << 10..64 << 10;

pub(super) struct WebSocket {
    stream: TcpStream,
    pub(super) reader: FrameReader,
    pub(super) writer: FrameWriter,
}

impl WebSocket {
    pub(super) async fn connect(address: SocketAddr, path: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let seed = stream.local_addr()?.port();
        let mut socket =
            Self { stream, reader: FrameReader::default(), writer: FrameWriter::new(u32::from(seed) | 1 << 16) };
        loop {
            socket.fill().await?;
            let answer = socket.reader.unread();
            if let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") {
                if !answer.starts_with(b"HTTP/1.1 101") {
                    return Err(io::Error::other(String::from_utf8_lossy(answer).into_owned()));
                }
                // What follows are the first frames.
                socket.reader.start += end + 4;
                return Ok(socket);
            }
        }
    }

    /// Reads once, as much as there is, and writes what waited for room meanwhile.
    pub(super) async fn fill(&mut self) -> io::Result<()> {
        loop {
            if self.writer.waiting.is_empty() {
                self.stream.readable().await?;
            } else if self.stream.ready(Interest::READABLE | Interest::WRITABLE).await?.is_writable() {
                self.flush()?;
            }
            match self.stream.try_read(self.reader.room()) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.reader.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what is waiting, as far as there is room; [`Self::fill`] writes the rest.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.writer.waiting.is_empty() {
            match self.stream.try_write(&self.writer.waiting) {
                Ok(written) => drop(self.writer.waiting.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What was read: `start..end` of the buffer is not parsed yet.
pub(super) struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self { buffer: vec![0; READ_BUFFER.start], start: 0, end: 0 }
    }
}

impl FrameReader {
    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Where the next bytes go to.
    fn room(&mut self) -> &mut [u8] {
        let filled = self.end == self.buffer.len();
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        // More for a frame that is larger, and for a socket that gets more than it can read at once.
        if self.end == self.buffer.len() || filled && self.buffer.len() < READ_BUFFER.end {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The text of the next frame, if all of it was read.
    pub(super) fn next_text(&mut self) -> io::Result<Option<&[u8]>> {
        let text = loop {
            let Some((opcode, payload)) = self.next_frame() else { return Ok(None) };
            match opcode {
                TEXT => break payload,
                PONG => {}
                // Neither server pings at this level, and neither splits a message.
                _ => return Err(io::Error::other(format!("a frame with the opcode {opcode}"))),
            }
        };
        Ok(Some(&self.buffer[text]))
    }

    fn next_frame(&mut self) -> Option<(u8, Range<usize>)> {
        let (opcode, header, length) = match *self.unread() {
            [first, length @ 0..=125, ..] => (first & 15, 2, usize::from(length)),
            [first, 126, high, low, ..] => (first & 15, 4, usize::from(u16::from_be_bytes([high, low]))),
            [first, 127, a, b, c, d, e, f, g, h, ..] => {
                let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                (first & 15, 10, usize::try_from(length).expect("memory holds it"))
            }
            _ => return None,
        };
        let payload = self.start + header..self.start + header + length;
        if payload.end > self.end {
            return None;
        }
        self.start = payload.end;
        Some((opcode, payload))
    }
}

/// What is to be written.
pub(super) struct FrameWriter {
    waiting: Vec<u8>,
    mask: u32,
}

impl FrameWriter {
    fn new(mask: u32) -> Self {
        Self { waiting: Vec::new(), mask }
    }

    /// Adds a masked frame with a text.
    pub(super) fn text(&mut self, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        self.waiting.push(0x80 | TEXT);
        match u8::try_from(length) {
            Ok(length) if length <= 125 => self.waiting.push(0x80 | length),
            _ => {
                self.waiting.push(0x80 | 126);
                let length = u16::try_from(length).expect("a client sends short texts");
                self.waiting.extend_from_slice(&length.to_be_bytes());
            }
        }
        // Another mask for each frame (xorshift), as every client has.
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        let mask = self.mask.to_ne_bytes();
        self.waiting.extend_from_slice(&mask);
        let start = self.waiting.len();
        for part in parts {
            self.waiting.extend_from_slice(part);
        }
        for (at, byte) in self.waiting[start..].iter_mut().enumerate() {
            *byte ^= mask[at & 3];
        }
    }
}
