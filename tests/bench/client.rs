//! The clients: as cheap as they can be, because they share the machine with the server.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// No answer takes longer unless something is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One kept HTTP connection.
pub(crate) struct Backend {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Backend {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Pushes and returns when it was answered 200.
    pub(crate) async fn push(&mut self, body: &str) -> io::Result<()> {
        self.request("POST", "/api", body).await
    }

    /// Asks and returns when it was answered 200.
    pub(crate) async fn request(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some(end) = find(&self.buffer, b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: usize =
                length.and_then(|digits| digits.trim().parse().ok()).expect("every answer has a length");
            while self.buffer.len() < end + 4 + length {
                self.stream.read_buf(&mut self.buffer).await?;
            }
            let ok = head.starts_with("http/1.1 200");
            return if ok { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&self.buffer).into_owned())) };
        }
    }

    /// The `id` in the answer to the last push.
    pub(crate) fn pushed_id(&self) -> String {
        let answer = String::from_utf8_lossy(&self.buffer);
        answer.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an id").to_owned()
    }
}

/// One websocket, connected to the namespace.
pub(crate) struct Page {
    line: WebSocketStream<TcpStream>,
}

impl Page {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let config = WebSocketConfig::default().read_buffer_size(4096);
        let (line, _) =
            tokio_tungstenite::client_async_with_config(url, stream, Some(config)).await.map_err(io::Error::other)?;
        let mut page = Self { line };
        page.send("40").await?;
        while !page.next().await?.starts_with("40") {}
        Ok(page)
    }

    /// Logs in and returns when that was answered; what comes before the answer would be an error of the server.
    pub(crate) async fn login(&mut self, token: &str, batch: bool) -> io::Result<()> {
        self.send(&format!(r#"421["user_login",{{"tokenId":"{token}","batch":{batch}}}]"#)).await?;
        loop {
            let packet = self.next().await?;
            if packet.starts_with("431") {
                return if packet.contains("\"ok\":true") { Ok(()) } else { Err(io::Error::other(packet)) };
            }
        }
    }

    pub(crate) async fn send(&mut self, packet: &str) -> io::Result<()> {
        self.line.send(Message::text(packet)).await.map_err(io::Error::other)
    }

    /// The next packet that is not a ping; those are answered.
    pub(crate) async fn next(&mut self) -> io::Result<String> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.line.next()).await;
            let message = next.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            let message = message.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(io::Error::other)?;
            if let Message::Text(text) = message {
                if text.as_str() == "2" {
                    self.send("3").await?;
                } else {
                    return Ok(text.as_str().to_owned());
                }
            }
        }
    }
}

/// The number that follows the first `key` in a packet.
pub(crate) fn number_after(packet: &str, key: &str) -> Option<u64> {
    let rest = &packet[packet.find(key)? + key.len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
