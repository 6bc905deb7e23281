//! Who may do what: producers show an API key, users a signed login, and while nobody has to show anything only this
//! machine is let in. Decisions alone: no I/O, and the time is an argument.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::notification::Token;

/// Headers by which a proxy says that a request is not from here.
const PROXIED: [&str; 5] =
    ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-real-ip"];

/// Everything that decides.
#[derive(Debug, Default)]
pub struct Access {
    producers: Vec<Producer>,
    logins: HashMap<String, Secret>,
    audience: String,
    unsigned: Unsigned,
    /// Nobody is asked for anything, on purpose.
    insecure_open: bool,
    origins: Vec<String>,
}

/// What becomes of a login without a signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unsigned {
    /// It is refused.
    #[default]
    Refused,
    /// It is let in, and counted and logged.
    Warned,
    /// It is let in.
    Welcome,
}

/// How to make an [`Access`].
#[derive(Debug, Default)]
pub struct Rules {
    /// Names and keys of producers.
    pub api_keys: Vec<(String, String)>,
    /// Ids and secrets that logins are signed with.
    pub login_keys: Vec<(String, String)>,
    /// Stands in what is signed, so that a login for one service is none for another.
    pub audience: String,
    /// What becomes of a login without a signature when there are keys.
    pub unsigned: Unsigned,
    /// Whether to let everybody in without asking.
    pub insecure_open: bool,
    /// Origins of pages that may connect, besides those of this machine; `*` for all.
    pub origins: Vec<String>,
}

/// A producer that may push. Its key is not kept, only a hash of it.
#[derive(Debug)]
struct Producer {
    name: String,
    sha256: [u8; 32],
}

/// What logins are signed with.
struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// What a user shows at a login.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// When it is no longer good, in Unix seconds.
    pub exp: i64,
    /// Which key it was signed with.
    pub kid: String,
    /// Lower-case hex HMAC-SHA256.
    pub sig: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential {{ exp: {}, kid: {:?}, .. }}", self.exp, self.kid)
    }
}

/// Why a request is not even looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Without credentials only this machine is served, and a proxy speaks for others.
    #[error(
        "it came through a proxy, but no credentials are configured: set --api-keys and --login-keys, or --insecure-open"
    )]
    Proxied,
    /// It was sent to a name that is not this machine's: perhaps by a page that rebinds one.
    #[error("its Host is not this machine: set --api-keys and --login-keys, or --insecure-open")]
    Host,
    /// It comes from a page of elsewhere.
    #[error("its Origin is not allowed: add it to --origins")]
    Origin,
}

impl Stranger {
    /// What programs are told.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Proxied => "proxied",
            Self::Host => "foreign_host",
            Self::Origin => "foreign_origin",
        }
    }
}

/// No credential, or not a good one. Which of the two is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a valid credential is needed")]
pub struct Denied;

impl Access {
    /// The rules as they are asked.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        let Rules { api_keys, login_keys, audience, unsigned, insecure_open, origins } = rules;
        let producer = |(name, key): (String, String)| Producer { name, sha256: Sha256::digest(key.as_bytes()).into() };
        Self {
            producers: api_keys.into_iter().map(producer).collect(),
            logins: login_keys.into_iter().map(|(kid, secret)| (kid, Secret(secret.into_bytes()))).collect(),
            audience,
            unsigned,
            insecure_open,
            origins: origins.into_iter().map(|origin| origin.to_ascii_lowercase()).collect(),
        }
    }

    /// Whether it may be reached from other machines: everybody is asked who they are, or nobody on purpose.
    #[must_use]
    pub fn may_be_exposed(&self) -> bool {
        self.insecure_open || (!self.producers.is_empty() && !self.logins.is_empty())
    }

    /// Lets a request in, or not.
    ///
    /// # Errors
    /// Says what is foreign about it.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Stranger> {
        if self.insecure_open {
            return Ok(());
        }
        let host = text(headers, HOST.as_str());
        if !self.may_be_exposed() {
            if headers.contains_key(FORWARDED) || PROXIED.iter().any(|name| headers.contains_key(*name)) {
                return Err(Stranger::Proxied);
            }
            if host.is_some_and(|host| !is_here(host)) {
                return Err(Stranger::Host);
            }
        }
        match headers.get(ORIGIN) {
            None => Ok(()),
            Some(origin) => match origin.to_str() {
                Ok(origin) if self.is_known(&origin.to_ascii_lowercase(), host) => Ok(()),
                _ => Err(Stranger::Origin),
            },
        }
    }

    /// A page of this machine on any port, of the very host that it asks, or one that is listed.
    fn is_known(&self, origin: &str, host: Option<&str>) -> bool {
        if self.origins.iter().any(|known| known == origin || known == "*") {
            return true;
        }
        let Some(authority) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else {
            return false;
        };
        is_here(authority) || (self.may_be_exposed() && host.is_some_and(|host| host.eq_ignore_ascii_case(authority)))
    }

    /// The name of the producer that a request is from; empty while nobody needs a key.
    ///
    /// # Errors
    /// It shows no key, or not one that is known.
    pub fn producer(&self, headers: &HeaderMap) -> Result<String, Denied> {
        if self.producers.is_empty() {
            return Ok(String::new());
        }
        let bearer = text(headers, AUTHORIZATION.as_str()).and_then(|value| after_scheme(value, "bearer"));
        let key = bearer.or_else(|| text(headers, "x-api-key")).ok_or(Denied)?;
        let shown: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        // All are compared, so that the time says nothing about which came close.
        let found = self.producers.iter().fold(None, |found, producer| {
            let same: bool = producer.sha256.ct_eq(&shown).into();
            if same { Some(&producer.name) } else { found }
        });
        found.cloned().ok_or(Denied)
    }

    /// Lets a producer, or the user of the inbox, at an inbox.
    ///
    /// # Errors
    /// It shows neither an API key nor a login that is good for this token.
    pub fn owner(&self, headers: &HeaderMap, token: &Token, now: DateTime<Utc>) -> Result<(), Denied> {
        if !self.producers.is_empty() && self.producer(headers).is_ok() {
            return Ok(());
        }
        if self.producers.is_empty() && self.logins.is_empty() {
            return Ok(());
        }
        let shown = text(headers, AUTHORIZATION.as_str()).and_then(|value| after_scheme(value, "tidings"));
        let credential = shown.and_then(Credential::of_header).ok_or(Denied)?;
        self.verify(&credential, token, now).map(drop)
    }

    /// Until when a login is good; without an end while logins need no signature.
    ///
    /// # Errors
    /// The signature is missing, wrong, too old, or of an unknown key.
    pub fn login(
        &self,
        credential: Option<&Credential>,
        token: &Token,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, Denied> {
        match credential {
            _ if self.logins.is_empty() => Ok(None),
            // One that is shown must be good, whatever becomes of those without.
            Some(credential) => self.verify(credential, token, now).map(Some),
            None if self.unsigned == Unsigned::Refused => Err(Denied),
            None => {
                if self.unsigned == Unsigned::Warned {
                    crate::metrics::unsigned_login();
                    tracing::warn!(?token, "A login without a signature was let in");
                }
                Ok(None)
            }
        }
    }

    fn verify(&self, credential: &Credential, token: &Token, now: DateTime<Utc>) -> Result<DateTime<Utc>, Denied> {
        let secret = self.logins.get(&credential.kid).ok_or(Denied)?;
        let mac = self.mac(secret, token.as_str(), credential.exp);
        let sig = unhex(&credential.sig).ok_or(Denied)?;
        mac.verify_slice(&sig).map_err(|_| Denied)?;
        let exp = DateTime::from_timestamp(credential.exp, 0).ok_or(Denied)?;
        if exp > now { Ok(exp) } else { Err(Denied) }
    }

    /// Signs a login with one of the keys, the first by its id unless named.
    #[must_use]
    pub fn sign(&self, token: &str, exp: i64, kid: Option<&str>) -> Option<Credential> {
        let kid = kid.or_else(|| self.logins.keys().map(String::as_str).min())?;
        let mac = self.mac(self.logins.get(kid)?, token, exp);
        let sig = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Credential { exp, kid: kid.to_owned(), sig })
    }

    fn mac(&self, secret: &Secret, token: &str, exp: i64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("a key of any length will do");
        mac.update(format!("tidings.login.v1\n{}\n{token}\n{exp}", self.audience).as_bytes());
        mac
    }
}

impl Credential {
    /// As it stands in `Authorization: Tidings kid=..., exp=..., sig=...`.
    fn of_header(text: &str) -> Option<Self> {
        let (mut exp, mut kid, mut sig) = (None, None, None);
        for part in text.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            let value = value.trim_matches('"');
            match name {
                "exp" => exp = value.parse().ok(),
                "kid" => kid = Some(value.to_owned()),
                "sig" => sig = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(Self { exp: exp?, kid: kid?, sig: sig? })
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn after_scheme<'v>(value: &'v str, scheme: &str) -> Option<&'v str> {
    let (first, rest) = value.split_once(' ')?;
    first.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

/// Lower-case digits alone: one signature is written in one way.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Whether an authority (a host with or without a port) is this machine.
fn is_here(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if port.is_empty() || is_port(port) => address,
            _ => return false,
        },
        None => match authority.rfind(':') {
            Some(colon) if is_port(&authority[colon..]) => &authority[..colon],
            _ => authority,
        },
    };
    let host = host.to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn secured() -> Access {
        Access::new(Rules {
            api_keys: vec![("backend".into(), "key one".into()), ("other".into(), "key two".into())],
            login_keys: vec![("k1".into(), "secret one".into()), ("k2".into(), "secret two".into())],
            audience: "tidings".into(),
            origins: vec!["https://App.example.com".into()],
            ..Rules::default()
        })
    }

    fn token(text: &str) -> Token {
        Token::parse(text, 256).unwrap()
    }

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(secs, 0).unwrap()
    }

    #[test]
    fn without_credentials_only_this_machine_is_let_in() {
        let open = Access::default();
        assert!(!open.may_be_exposed());
        for host in
            ["localhost:4001", "127.0.0.1:4001", "127.3.2.1", "[::1]:4001", "[::1]", "app.localhost", "LOCALHOST"]
        {
            assert_eq!(open.admit(&headers(&[("host", host)])), Ok(()), "{host}");
        }
        for host in
            ["example.com", "127.0.0.1.example.com", "localhost.example.com:80", "10.0.0.1", "[::2]", "[::1]evil", ""]
        {
            assert_eq!(open.admit(&headers(&[("host", host)])), Err(Stranger::Host), "{host}");
        }
        for name in ["forwarded", "x-forwarded-for", "x-real-ip"] {
            assert_eq!(open.admit(&headers(&[("host", "localhost"), (name, "x")])), Err(Stranger::Proxied));
        }
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080", "HTTP://LOCALHOST"] {
            assert_eq!(open.admit(&headers(&[("origin", origin)])), Ok(()), "{origin}");
        }
        for origin in
            ["null", "http://evil.com", "http://localhost.evil.com", "file://", "http://localhost:99999", "localhost"]
        {
            assert_eq!(open.admit(&headers(&[("origin", origin)])), Err(Stranger::Origin), "{origin}");
        }
        let with_null = Access::new(Rules { origins: vec!["null".into()], ..Rules::default() });
        assert_eq!(with_null.admit(&headers(&[("origin", "null")])), Ok(()));
        let anybody = Access::new(Rules { insecure_open: true, ..Rules::default() });
        assert_eq!(anybody.admit(&headers(&[("host", "example.com"), ("origin", "null"), ("forwarded", "x")])), Ok(()));
    }

    #[test]
    fn with_credentials_it_may_be_reached_and_pages_are_known_by_their_origin() {
        let access = secured();
        assert!(access.may_be_exposed());
        let from = |origin| {
            access.admit(&headers(&[("host", "push.example.com"), ("x-forwarded-for", "x"), ("origin", origin)]))
        };
        for known in
            ["https://app.example.com", "https://APP.example.com", "https://push.example.com", "http://localhost:1"]
        {
            assert_eq!(from(known), Ok(()), "{known}");
        }
        for evil in [
            "https://app.example.com.evil.com",
            "https://app.example.com:8443",
            "http://app.example.com",
            "null",
            "https://evil",
        ] {
            assert_eq!(from(evil), Err(Stranger::Origin), "{evil}");
        }
    }

    #[test]
    fn producers_are_known_by_their_keys() {
        let access = secured();
        assert_eq!(access.producer(&headers(&[("authorization", "Bearer key one")])), Ok("backend".into()));
        assert_eq!(access.producer(&headers(&[("authorization", "bearer key two")])), Ok("other".into()));
        assert_eq!(access.producer(&headers(&[("x-api-key", "key two")])), Ok("other".into()));
        for wrong in [headers(&[]), headers(&[("x-api-key", "key")]), headers(&[("authorization", "Basic key one")])] {
            assert_eq!(access.producer(&wrong), Err(Denied));
        }
        assert_eq!(Access::default().producer(&headers(&[])), Ok(String::new()));
    }

    #[test]
    fn a_login_is_good_for_its_token_its_time_and_its_key() {
        let access = secured();
        // As any backend computes it: HMAC-SHA256 of "tidings.login.v1\ntidings\n1\n2000" under "secret one".
        let sig = "790c4d8f7f80ec11ef13efe7dbe7bd646cf4305c2f33fc50d42936b6a1260d92";
        let good = Credential { exp: 2000, kid: "k1".into(), sig: sig.into() };
        assert_eq!(access.sign("1", 2000, None).unwrap().sig, sig);
        let login = |credential: &Credential, name: &str, now| access.login(Some(credential), &token(name), at(now));
        assert_eq!(login(&good, "1", 1999), Ok(Some(at(2000))));
        for (bad, name, now) in [
            (good.clone(), "2", 1999),
            (good.clone(), "1", 2000),
            (Credential { exp: 2001, ..good.clone() }, "1", 1999),
            (Credential { kid: "k2".into(), ..good.clone() }, "1", 1999),
            (Credential { kid: "k3".into(), ..good.clone() }, "1", 1999),
            (Credential { sig: sig[..62].into(), ..good.clone() }, "1", 1999),
            (Credential { sig: sig.to_uppercase(), ..good.clone() }, "1", 1999),
            (Credential { sig: String::new(), ..good.clone() }, "1", 1999),
        ] {
            assert_eq!(login(&bad, name, now), Err(Denied), "{bad:?}");
        }
        assert_eq!(access.login(None, &token("1"), at(0)), Err(Denied));
        assert_eq!(Access::default().login(None, &token("1"), at(0)), Ok(None));
        let second = access.sign("1", 2000, Some("k2")).unwrap();
        assert_eq!(login(&second, "1", 0), Ok(Some(at(2000))), "both keys are good while one replaces the other");
        let header = format!("Tidings kid=\"k1\", exp=2000, sig={sig}");
        let shown = headers(&[("authorization", &header)]);
        assert_eq!(access.owner(&shown, &token("1"), at(0)), Ok(()));
        assert_eq!(access.owner(&shown, &token("2"), at(0)), Err(Denied));
        assert_eq!(access.owner(&headers(&[("x-api-key", "key one")]), &token("2"), at(0)), Ok(()));
        assert_eq!(Access::default().owner(&headers(&[]), &token("2"), at(0)), Ok(()));
        let login_keys = vec![("k1".into(), "secret one".into())];
        let users = Access::new(Rules { login_keys, audience: "tidings".into(), ..Rules::default() });
        assert_eq!(users.owner(&headers(&[]), &token("1"), at(0)), Err(Denied), "users have to show who they are");
        assert_eq!(users.owner(&shown, &token("1"), at(0)), Ok(()));
    }

    #[test]
    fn unsigned_logins_may_be_let_in_for_a_while_but_no_wrong_ones() {
        for unsigned in [Unsigned::Warned, Unsigned::Welcome] {
            let login_keys = vec![("k1".into(), "secret".into())];
            let access = Access::new(Rules { login_keys, unsigned, ..Rules::default() });
            assert_eq!(access.login(None, &token("1"), at(0)), Ok(None));
            let wrong = Credential { exp: 9, kid: "k1".into(), sig: "00".into() };
            assert_eq!(access.login(Some(&wrong), &token("1"), at(0)), Err(Denied));
        }
    }

    #[test]
    fn nothing_that_is_secret_is_shown() {
        let shown = format!("{:?} {:?}", secured(), secured().sign("1", 1, None));
        assert!(!shown.contains("secret one") && !shown.contains("key one"), "{shown}");
    }
}
