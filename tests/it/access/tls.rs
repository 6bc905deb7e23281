//! TLS on the service's own port, with a certificate that can be replaced.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use tokio_tungstenite::tungstenite::Message as Frame;

use crate::access::limits::an_idle_connection_outlives_half_a_request;
use crate::server::{PATIENCE, TestServer};

/// Writes a fresh certificate with its key into a folder.
fn renew(folder: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).expect("it is written");
    std::fs::write(folder.join("cert.pem"), cert.pem()).expect("it is written");
    cert.der().clone()
}

/// Asks over TLS as somebody who trusts this certificate alone.
async fn ask(server: &TestServer, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    ask_for(server, trusted, "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await
}

async fn ask_for(server: &TestServer, trusted: &CertificateDer<'static>, request: &str) -> std::io::Result<String> {
    let mut line = connect(server, trusted).await?;
    line.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    line.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn connect(server: &TestServer, trusted: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("it is taken");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("a client")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let line = TcpStream::connect(server.address()).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, line).await
}

#[tokio::test]
async fn the_timeouts_of_connections_hold_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = renew(folder.path());
    let flag = |name: &str, file: &str| format!("--{name}={}", folder.path().join(file).display());
    let flags = [&*flag("tls-cert", "cert.pem"), &flag("tls-key", "key.pem"), "--header-timeout-secs=1"];
    let server = TestServer::with(&flags).await;
    an_idle_connection_outlives_half_a_request(async || connect(&server, &trusted).await.expect("TLS")).await;
}

#[tokio::test]
async fn a_client_logs_in_and_receives_over_wss() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = renew(folder.path());
    let flag = |name: &str, file: &str| format!("--{name}={}", folder.path().join(file).display());
    let server = TestServer::with(&[&flag("tls-cert", "cert.pem"), &flag("tls-key", "key.pem")]).await;
    let line = connect(&server, &trusted).await.expect("TLS");
    let url = "wss://localhost/socket.io/?EIO=4&transport=websocket";
    let (mut socket, _) = tokio_tungstenite::client_async(url, line).await.expect("a websocket");
    socket.send(Frame::text("40")).await.expect("it is sent");
    // As every client does: what comes before the namespace has answered is an error.
    while !socket.next().await.expect("it goes on").expect("a frame").into_text().expect("text").starts_with("40") {}
    socket.send(Frame::text(r#"421["user_login",{"tokenId":"1"}]"#)).await.expect("it is sent");
    let body = r#"{"tokens":["1"],"data":"over TLS"}"#;
    let mut pushed = false;
    let received = async {
        loop {
            let frame = socket.next().await.expect("it goes on").expect("a frame").into_text().expect("text");
            if frame.contains("replay_complete") && !pushed {
                let push = format!(
                    "POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
                    content-length: {}\r\n\r\n{body}",
                    body.len()
                );
                assert!(ask_for(&server, &trusted, &push).await.unwrap().starts_with("HTTP/1.1 200"));
                pushed = true;
            }
            if frame.contains("receive_message") {
                assert!(frame.contains("over TLS"), "{frame}");
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, received).await.expect("it is received in time");
}

#[tokio::test]
async fn it_serves_tls_alone_and_takes_a_renewed_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let first = renew(folder.path());
    let flag = |name: &str, file: &str| format!("--{name}={}", folder.path().join(file).display());
    let flags = [flag("tls-cert", "cert.pem"), flag("tls-key", "key.pem"), "--reload-interval-secs=1".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = TestServer::with(&flags).await;
    assert!(server.ready_line().contains("https://"), "{}", server.ready_line());
    let answer = ask(&server, &first).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("strict-transport-security: max-age="), "{answer}");
    let plain = crate::api::raw(server.address(), b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(!plain.contains("200"), "{plain}");

    std::fs::write(folder.path().join("cert.pem"), "no certificate").unwrap();
    tokio::time::timeout(PATIENCE, async {
        while !server.stderr().contains("cert.pem") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("it says what is wrong");
    assert!(ask(&server, &first).await.is_ok(), "the one before stays");
    let list = "GET /api/inbox/1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert!(ask_for(&server, &first, list).await.unwrap().starts_with("HTTP/1.1 200"));
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(["key", "add", "--name=n", "--scope=push"]).env("DATABASE_URL", server.place().url());
    assert!(command.output().await.expect("the binary runs").status.success());
    tokio::time::timeout(PATIENCE, async {
        while !ask_for(&server, &first, list).await.unwrap().starts_with("HTTP/1.1 401") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("keys are taken over beside a certificate that is broken");

    let second = renew(folder.path());
    tokio::time::timeout(PATIENCE, async {
        while ask(&server, &second).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the new one is served");
    assert!(ask(&server, &first).await.is_err(), "the old one is not");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_said_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    renew(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    for (flags, said) in [
        (vec![format!("--tls-cert={}", file("cert.pem"))], "must be given together"),
        (vec![format!("--tls-cert={}", file("cert.pem")), format!("--tls-key={}", file("none"))], "cannot read"),
        (vec![format!("--tls-cert={}", file("key.pem")), format!("--tls-key={}", file("key.pem"))], "certificate"),
        (vec![format!("--tls-cert={}", file("cert.pem")), format!("--tls-key={}", file("cert.pem"))], "private key"),
    ] {
        let builder = flags.iter().fold(TestServer::builder(), |builder, flag| builder.flag(flag));
        let refusal = builder.prepare().start_refused().await;
        assert!(refusal.code == Some(1) && refusal.stderr.contains(said), "{said}: {refusal:?}");
    }
}
