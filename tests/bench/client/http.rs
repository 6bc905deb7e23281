//! A kept HTTP/1.1 connection, as a backend has.

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::leading_number;

pub(crate) struct HttpConnection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// Where the body of the answer begins.
    body: usize,
}

impl HttpConnection {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request: Vec::new(), answer: Vec::with_capacity(4096), body: 0 })
    }

    /// Pushes and returns when it was answered 200.
    pub(crate) async fn push(&mut self, body: &[u8]) -> io::Result<()> {
        self.request("POST", "/api", body).await
    }

    /// Asks and returns when it was answered 200.
    pub(crate) async fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<()> {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request).await?;
        self.answer.clear();
        let head = loop {
            self.read().await?;
            if let Some(end) = memmem::find(&self.answer, b"\r\n\r\n") {
                break end;
            }
        };
        self.body = head + 4;
        let end = self.body + content_length(&self.answer[..head]).ok_or(ErrorKind::InvalidData)?;
        while self.answer.len() < end {
            self.read().await?;
        }
        if self.answer.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&self.answer).into_owned()))
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.answer).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The first `id` in the last answer.
    pub(crate) fn pushed_id(&self) -> String {
        let answer = String::from_utf8_lossy(&self.answer[self.body..]);
        answer.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an id").to_owned()
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let line = head
        .split(|byte| *byte == b'\n')
        .find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    usize::try_from(leading_number(line[NAME.len()..].trim_ascii_start())?).ok()
}
