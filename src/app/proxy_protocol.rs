//! The PROXY protocol, versions 1 and 2: a header in front of everything else, TLS included, by which a balancer that
//! passes on TCP connections says whose each is. It is read to its last byte and no further.
//! Source: <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// What version 2 begins with: no HTTP request and no TLS handshake can.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of the longest header of version 1, its line end included.
const MAX_LINE: usize = 107;

/// Why a connection has no usable header.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// It ended or broke, as that of a health check does which only connects.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error("it did not begin with a PROXY header")]
    Missing,
    /// It is not as the protocol has it.
    #[error("its PROXY header is malformed: {0}")]
    Malformed(&'static str),
}

/// Reads the header; the address of the client, or none if the connection is the proxy's own.
pub(super) async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, HeaderError> {
    // No header is shorter.
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        read_binary(stream).await
    } else if start.starts_with(b"PROXY ") {
        read_line(stream, &start).await
    } else {
        Err(HeaderError::Missing)
    }
}

/// Version 1: `PROXY TCP4 203.0.113.9 10.0.0.1 51000 4001` and a line end.
async fn read_line(stream: &mut (impl AsyncRead + Unpin), start: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    let mut line = start.to_vec();
    // Byte by byte, because the length is not known and what follows belongs to somebody else.
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_LINE {
            return Err(HeaderError::Malformed("the line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = str::from_utf8(&line).map_err(|_| HeaderError::Malformed("the line is not ASCII"))?;
    let words: Vec<&str> = line.trim_end_matches("\r\n").split(' ').collect();
    let (source, destination, ports) = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", "TCP4", source, destination, from, to] => (v4(source), v4(destination), [from, to]),
        ["PROXY", "TCP6", source, destination, from, to] => (v6(source), v6(destination), [from, to]),
        _ => return Err(HeaderError::Malformed("it is neither TCP4 nor TCP6 with two addresses and two ports")),
    };
    if destination.is_none() || ports.iter().any(|port| port.parse::<u16>().is_err()) {
        return Err(HeaderError::Malformed("an address or port is not valid"));
    }
    source.map(Some).ok_or(HeaderError::Malformed("an address or port is not valid"))
}

fn v4(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv4Addr>().ok().map(IpAddr::from)
}

fn v6(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

/// Version 2, behind the signature: version and command, family and transport, length; addresses, ports and extensions.
async fn read_binary(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, HeaderError> {
    const IPV4_BYTES: usize = 2 * (4 + 2);
    const IPV6_BYTES: usize = 2 * (16 + 2);
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [command, family, length @ ..] = fixed;
    let length = usize::from(u16::from_be_bytes(length));
    let mut addresses = [0; IPV6_BYTES];
    let known = length.min(IPV6_BYTES);
    stream.read_exact(&mut addresses[..known]).await?;
    // Extensions, of which none is needed.
    let mut extensions = stream.take((length - known) as u64);
    if tokio::io::copy(&mut extensions, &mut tokio::io::sink()).await? < (length - known) as u64 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match (command, family) {
        // The proxy asks for itself.
        (0x20, _) => Ok(None),
        (0x21, 0x11) if length >= IPV4_BYTES => {
            let [a, b, c, d, ..] = addresses;
            Ok(Some(Ipv4Addr::new(a, b, c, d).into()))
        }
        (0x21, 0x21) if length >= IPV6_BYTES => {
            let (source, _) = addresses.split_first_chunk::<16>().expect("it is longer");
            Ok(Some(Ipv6Addr::from(*source).into()))
        }
        (0x21, 0x11 | 0x21) => Err(HeaderError::Malformed("it is too short for its addresses")),
        // Of a socket without an address, or of a kind that the proxy does not know.
        (0x21, 0x00 | 0x31) => Ok(None),
        (0x21, _) => Err(HeaderError::Malformed("it is not for a TCP connection")),
        _ => Err(HeaderError::Malformed("it has an unknown version or command")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of these bytes, which come one at a time, and what is left of them.
    async fn read(bytes: &[u8]) -> (Result<Option<IpAddr>, HeaderError>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(1);
        let bytes = bytes.to_vec();
        tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await });
        let result = read_header(&mut far).await;
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        (result, rest)
    }

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, addresses].concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0xc7, 0x38, 0x0f, 0xa1];

    fn v6_addresses() -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [&address("2001:db8::9")[..], &address("2001:db8::1"), &[0xc7, 0x38, 0x0f, 0xa1]].concat()
    }

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_what_follows() {
        let longest = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        // Amazon's balancers add extensions, of any length.
        let extended = |addresses: &[u8], more: usize| [addresses, &vec![7; more]].concat();
        for (header, client) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 51000 4001\r\n".to_vec(), Some("203.0.113.9")),
            (b"PROXY TCP6 2001:db8::9 2001:db8::1 51000 4001\r\n".to_vec(), Some("2001:db8::9")),
            (longest.into_bytes(), Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary(0x21, 0x11, &V4), Some("203.0.113.9")),
            (binary(0x21, 0x11, &extended(&V4, 3)), Some("203.0.113.9")),
            (binary(0x21, 0x11, &extended(&V4, 5_000)), Some("203.0.113.9")),
            (binary(0x21, 0x11, &extended(&V4, 65_523)), Some("203.0.113.9")),
            (binary(0x21, 0x21, &v6_addresses()), Some("2001:db8::9")),
            (binary(0x21, 0x21, &extended(&v6_addresses(), 84)), Some("2001:db8::9")),
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, &V4), None),
        ] {
            for rest in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"\r\n", b""] {
                let (read, left) = read(&[&header, rest].concat()).await;
                assert_eq!(read.unwrap(), client.map(|text| text.parse().unwrap()), "{header:?}");
                assert_eq!(left, rest, "{header:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_told_from_one_that_is_wrong() {
        for bytes in
            [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00"]
        {
            assert!(matches!(read(bytes).await.0, Err(HeaderError::Missing)), "{bytes:?}");
        }
        for line in [
            "PROXY TCP4 203.0.113.9 10.0.0.1 51000\r\n",
            "PROXY TCP4 203.0.113.9 10.0.0.1 51000 4001 1\r\n",
            "PROXY TCP4 203.0.113.9  10.0.0.1 51000 4001\r\n",
            "PROXY TCP4 203.0.113.256 10.0.0.1 51000 4001\r\n",
            "PROXY TCP4 2001:db8::9 2001:db8::1 51000 4001\r\n",
            "PROXY TCP6 203.0.113.9 10.0.0.1 51000 4001\r\n",
            "PROXY TCP4 203.0.113.9 none 51000 4001\r\n",
            "PROXY TCP4 203.0.113.9 10.0.0.1 65536 4001\r\n",
            "PROXY UDP4 203.0.113.9 10.0.0.1 51000 4001\r\n",
            "PROXY tcp4 203.0.113.9 10.0.0.1 51000 4001\r\n",
            "PROXY TCP4 203.0.113.9 10.0.0.1 51000 4001\n\r\n",
        ] {
            assert!(matches!(read(line.as_bytes()).await.0, Err(HeaderError::Malformed(_))), "{line:?}");
        }
        let endless = [&b"PROXY UNKNOWN "[..], &[b'a'; 200]].concat();
        assert!(matches!(read(&endless).await.0, Err(HeaderError::Malformed(_))));
        for header in [
            binary(0x21, 0x11, &V4[..11]),
            binary(0x21, 0x21, &V4),
            binary(0x21, 0x12, &V4),
            binary(0x11, 0x11, &V4),
            binary(0x22, 0x11, &V4),
        ] {
            assert!(matches!(read(&header).await.0, Err(HeaderError::Malformed(_))), "{header:?}");
        }
        let (line, version_2) = (&b"PROXY TCP4 203.0.113.9 10.0.0.1 51000 4001\r\n"[..], binary(0x21, 0x11, &V4));
        for whole in [line, &version_2] {
            for end in 0..whole.len() {
                assert!(matches!(read(&whole[..end]).await.0, Err(HeaderError::Io(_))), "{end} of {whole:?}");
            }
        }
    }
}
