//! Behind a balancer that passes on TCP connections: the client is the one that its PROXY header names, for requests,
//! websockets and TLS alike, and only a trusted balancer may name one.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use super::{API_KEYS, LOGIN_KEYS};
use crate::server::{PATIENCE, TestServer};

const TRUSTED: &str = "--trusted-proxies=127.0.0.1/32";
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

fn line(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 10.0.0.1 51000 4001\r\n").into_bytes()
}

/// Version 2 with an extension, as Amazon's balancers send it.
fn binary(client: [u8; 4]) -> Vec<u8> {
    let extension = [0xea, 0, 4, 1, 2, 3, 4];
    let addresses = [&client[..], &[10, 0, 0, 1], &[0xc7, 0x38, 0x0f, 0xa1], &extension].concat();
    let length = u8::try_from(addresses.len()).expect("it is short");
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0", &[length][..], &addresses].concat()
}

async fn server(flags: &[&str]) -> TestServer {
    TestServer::with(&[&[API_KEYS, LOGIN_KEYS, "--proxy-protocol"], flags].concat()).await
}

async fn dial(server: &TestServer, header: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).await.expect("the server accepts");
    stream.write_all(header).await.expect("it is sent");
    stream
}

/// What is answered until the connection ends; nothing if it is closed.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let mut answer = Vec::new();
    // One that is closed on what it was sent may be reset.
    stream.write_all(request.as_bytes()).await.ok();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer));
    read.await.expect("it ends in time").ok();
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn each_client_has_its_own_limits_behind_one_balancer() {
    let server = server(&[TRUSTED, "--max-sockets-per-address=1", "--max-connections-per-address=2"]).await;
    let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", server.address());
    let mut open = Vec::new();
    for header in [line("203.0.113.1"), binary([203, 0, 113, 2])] {
        let (mut socket, _) =
            tokio_tungstenite::client_async(&url, dial(&server, &header).await).await.expect("a websocket");
        let frame = timeout(PATIENCE, socket.next()).await.expect("in time").expect("a frame").expect("it goes on");
        assert!(frame.into_text().expect("text").starts_with("0{"));
        open.push(socket);
    }
    // The same clients by the other version, whose limit of sockets is reached.
    for header in [binary([203, 0, 113, 1]), line("203.0.113.2")] {
        let refused =
            tokio_tungstenite::client_async(&url, dial(&server, &header).await).await.expect_err("it is refused");
        assert!(refused.to_string().contains("429"), "{refused}");
    }
    // Of connections: one is the websocket's.
    let kept = dial(&server, &line("203.0.113.1")).await;
    let third = async || ask(dial(&server, &line("203.0.113.1")).await, HEALTH).await;
    // The one before may not have been taken up yet.
    let full = async { while !third().await.is_empty() {} };
    timeout(PATIENCE, full).await.expect("the third connection of a client is closed");
    drop(kept);
    assert!(ask(dial(&server, &line("203.0.113.3")).await, HEALTH).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_header_says_who_a_request_is_from_and_a_client_cannot_say_otherwise() {
    let server = server(&[TRUSTED, "--address-rate=1"]).await;
    let guess = "POST /api HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: 198.51.100.7\r\ncontent-length: 0\r\n\
        connection: close\r\n\r\n";
    for client in [[203, 0, 113, 1], [203, 0, 113, 2]] {
        let mut limited = 0;
        for _ in 0..5 {
            let answer = ask(dial(&server, &binary(client)).await, guess).await;
            assert!(answer.starts_with("HTTP/1.1 401") || answer.starts_with("HTTP/1.1 429"), "{answer}");
            limited += usize::from(answer.starts_with("HTTP/1.1 429"));
        }
        assert!(limited > 0, "{client:?} has a rate of its own, whatever X-Forwarded-For says");
    }
}

#[tokio::test]
async fn the_balancers_own_connections_are_served() {
    let server = server(&[TRUSTED]).await;
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    for header in [local, b"PROXY UNKNOWN\r\n".to_vec()] {
        assert!(ask(dial(&server, &header).await, HEALTH).await.starts_with("HTTP/1.1 200"), "{header:?}");
    }
    // A health check that only connects.
    drop(dial(&server, b"").await);
    assert!(!server.stderr().contains("WARN"), "{}", server.stderr());
}

#[tokio::test]
async fn a_balancer_without_a_header_is_cut_off_and_told_of_once_a_second() {
    let server = server(&[TRUSTED, "--header-timeout-secs=1"]).await;
    for _ in 0..3 {
        assert_eq!(ask(dial(&server, b"").await, HEALTH).await, "");
    }
    let wrong = b"PROXY TCP4 nobody 10.0.0.1 51000 4001\r\n";
    assert_eq!(ask(dial(&server, wrong).await, HEALTH).await, "");
    let said = server.stderr();
    assert!(said.contains("did not begin with a PROXY header") && said.contains("--proxy-protocol"), "{said}");
    // Half a header does not hold a connection for ever.
    assert_eq!(ask(dial(&server, b"PROXY TCP4 203").await, "").await, "");
}

#[tokio::test]
async fn a_header_of_somebody_who_is_not_trusted_is_no_header() {
    let server = server(&["--trusted-proxies=192.0.2.0/24", "--max-connections-per-address=2"]).await;
    assert!(ask(dial(&server, b"").await, HEALTH).await.starts_with("HTTP/1.1 200"), "it needs none");
    let forged = ask(dial(&server, &line("203.0.113.1")).await, HEALTH).await;
    assert!(forged.starts_with("HTTP/1.1 400"), "{forged}");
}

/// Writes a certificate with its key into a folder.
fn certify(folder: &Path) -> CertificateDer<'static> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).expect("it is written");
    std::fs::write(folder.join("cert.pem"), cert.pem()).expect("it is written");
    cert.der().clone()
}

#[tokio::test]
async fn the_header_comes_before_tls() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = certify(folder.path());
    let flag = |name: &str, file: &str| format!("--{name}={}", folder.path().join(file).display());
    let server = server(&[TRUSTED, &flag("tls-cert", "cert.pem"), &flag("tls-key", "key.pem")]).await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("it is taken");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("a client")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = || ServerName::try_from("localhost").expect("a name");
    for header in [line("203.0.113.1"), binary([203, 0, 113, 1])] {
        let stream = connector.connect(name(), dial(&server, &header).await).await.expect("TLS behind the header");
        assert!(ask(stream, HEALTH).await.starts_with("HTTP/1.1 200"), "{header:?}");
    }
    assert!(connector.connect(name(), dial(&server, b"").await).await.is_err(), "a header is needed");
}

#[tokio::test]
async fn it_needs_proxies_to_trust_and_keys() {
    for (flags, said) in [
        (&["--proxy-protocol", API_KEYS, LOGIN_KEYS][..], "--trusted-proxies"),
        (&["--proxy-protocol", TRUSTED], "behind --proxy-protocol"),
        (&["--proxy-protocol", TRUSTED, API_KEYS], "--login-keys"),
    ] {
        let builder = flags.iter().fold(TestServer::builder(), |builder, flag| builder.flag(flag));
        let refusal = builder.prepare().start_refused().await;
        assert!(refusal.code == Some(1) && refusal.stderr.contains(said), "{said}: {refusal:?}");
    }
    // Off, a header is what it always was: no request.
    let server = TestServer::with(&[API_KEYS, LOGIN_KEYS, TRUSTED]).await;
    let answer = ask(dial(&server, &line("203.0.113.1")).await, HEALTH).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}
