//! Who may do what: producers show an API key, users a signed login, and while nobody has to show anything only this
//! machine is let in. Decisions alone: no I/O, and the time is an argument.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, TimeDelta, Utc};
use http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::limits::log_due;
use crate::notification::Token;

mod login;
mod origin;
mod producer;
#[cfg(test)]
mod tests;

pub use login::{Credential, KeySetError, LoginKeys};
pub use origin::{OriginError, OriginRule};
pub use producer::{ApiKey, Caller, Scope, Scopes, key_sha256};

use origin::Origin;
use producer::Producers;

/// Credentials of one request that are looked at. A client has one, and a proxy may add another.
const MAX_SHOWN: usize = 4;

/// Everything that decides.
#[derive(Debug, Default)]
pub struct Access {
    rules: Rules,
    /// Replaced as a whole when keys change.
    keys: RwLock<Arc<Keys>>,
}

/// What becomes of a login without a signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unsigned {
    /// It is refused.
    #[default]
    Refused,
    /// It is let in, and counted and logged.
    Warned,
    /// It is let in and counted.
    Welcome,
}

/// What does not change while the service runs.
#[derive(Debug, Default)]
pub struct Rules {
    /// Stands in what is signed, so that a login for one service is none for another.
    pub audience: String,
    /// What becomes of a login without a signature when there are keys.
    pub unsigned: Unsigned,
    /// Whether to let everybody in from anywhere. Pages are still told apart if there are `origins`.
    pub insecure_open: bool,
    /// Origins of pages that may connect, besides those of this machine.
    pub origins: Vec<OriginRule>,
    /// Whose word about the address of a client counts.
    pub trusted_proxies: Vec<IpNet>,
    /// How far ahead the end of a login may be.
    pub max_login: Option<TimeDelta>,
}

/// The keys as they are now.
#[derive(Debug, Default)]
struct Keys {
    producers: Producers,
    logins: LoginKeys,
}

/// Why a request is not even looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Without credentials only this machine is served, and a proxy speaks for others.
    #[error(
        "it came through a proxy, but not everybody is asked who they are: set --api-keys and --login-keys, and not \
        --logins open, or say --insecure-open"
    )]
    Proxied,
    /// It was sent to a name that is not this machine's, perhaps by a page that rebinds one, or to none.
    #[error(
        "its Host does not name this machine: set --api-keys and --login-keys, and not --logins open, or say --insecure-open"
    )]
    Host,
    /// It comes from a page of elsewhere.
    #[error("its Origin is not allowed: add it to --origins")]
    Origin,
    /// A page of elsewhere embeds it, opens it, or submits a form to it.
    #[error(
        "a page of another site embeds it or navigates to it: it should ask by fetch or a websocket, from one of --origins"
    )]
    CrossSite,
}

/// What a request asks for, as far as it matters who may have a browser ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// A file of a client, made to be loaded by pages of elsewhere.
    ClientFile,
    /// What a link may lead to: a page, a description, a health check.
    Page,
    /// The API, or a socket; whatever is not only read.
    Action,
}

impl Stranger {
    /// What programs are told.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Proxied => "proxied",
            Self::Host => "foreign_host",
            Self::Origin | Self::CrossSite => "foreign_origin",
        }
    }
}

/// No credential, or not a good one. Whoever shows it is not told why; the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum Denied {
    /// Nothing was shown.
    Missing,
    /// It cannot be read.
    Malformed,
    /// It demands what is not known here.
    Critical,
    /// There is no such key.
    UnknownKey,
    /// It could be signed with several keys.
    SeveralKeys,
    /// Something about it is wrong, or somebody made it up.
    Signature,
    /// It is for another service.
    Audience,
    /// It is somebody else's.
    Subject,
    /// Its time has not come.
    TooEarly,
    /// Its time is over.
    Expired,
    /// It would be good for too long.
    TooFarAhead,
}

impl Denied {
    fn reason(self) -> &'static str {
        match self {
            Self::Missing => "no credential was shown",
            Self::Malformed => "it cannot be read as a JWT with a known alg, sub, exp and aud",
            Self::Critical => "it has crit in its header, of which nothing is understood here",
            Self::UnknownKey => "no login key has its kid and algorithm",
            Self::SeveralKeys => "it has no kid, and several login keys have its algorithm",
            Self::Signature => {
                "its signature is wrong: made with another secret, or for another token, audience or exp"
            }
            Self::Audience => "its aud is not --audience",
            Self::Subject => "its sub is another token",
            Self::TooEarly => "its nbf is still to come",
            Self::Expired => "its exp has passed",
            Self::TooFarAhead => {
                "its exp is further ahead than --max-login-days: exp is in seconds, is this in milliseconds?"
            }
        }
    }

    /// Has the log say so.
    pub fn warn(self, token: &Token, address: Option<ClientAddress>) {
        let (reason, address) = (self.reason(), address.map(|ClientAddress(address)| address));
        let refused = Refused { what: "a login", code: "unauthorized", kind: reason, why: Some(reason), address };
        refused.warn(Some(token));
    }
}

/// What the log says of somebody who was not let in or not understood.
#[derive(Debug)]
pub struct Refused<'r> {
    /// What was refused.
    pub what: &'static str,
    /// What the client was told.
    pub code: &'static str,
    /// There is a line a second of each.
    pub kind: &'static str,
    /// What the client was not told.
    pub why: Option<&'r str>,
    /// Where the client is.
    pub address: Option<IpAddr>,
}

impl Refused<'_> {
    /// Has the log say so, at most a line a second of each kind: whoever may not come in shall not fill the disk either. The
    /// token stands in it as the first eight digits of its SHA-256, by which whoever knows it finds the line.
    pub fn warn(&self, token: Option<&Token>) {
        let Self { what, code, kind, why, address } = self;
        let Some(left_out) = log_due(kind) else { return };
        let hash = token.map(Token::short_sha256);
        let address = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        tracing::warn!(reason = code, %address, token.sha256 = hash, left_out, "Refused {what}{why}");
    }
}

/// Whom a request is from: the peer, or the client that a trusted proxy speaks for.
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub IpAddr);

impl Access {
    /// The rules, with no keys yet.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, keys: RwLock::default() }
    }

    /// Takes these keys instead of those before. Once producers need one they do for good: an empty list then lets nobody
    /// in, not everybody.
    pub fn replace_keys(&self, api_keys: Vec<ApiKey>, logins: LoginKeys) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let producers = keys.producers.replaced(api_keys);
        let logins = logins.replacing(&keys.logins);
        *keys = Arc::new(Keys { producers, logins });
    }

    /// The names of the API keys of the table that were used since the last call, with the last time.
    #[must_use]
    pub fn used_keys(&self) -> Vec<(String, DateTime<Utc>)> {
        self.keys().producers.take_used()
    }

    /// Whether it may be reached from other machines: everybody is asked who they are, or nobody on purpose.
    #[must_use]
    pub fn may_be_exposed(&self) -> bool {
        let keys = self.keys();
        let signed = keys.logins.needed() && self.rules.unsigned != Unsigned::Welcome;
        self.rules.insecure_open || (keys.producers.needed() && signed)
    }

    /// Lets a request in, or not.
    ///
    /// Which page asks is told by `Origin`, which browsers send with a websocket, with a `fetch` of another origin and with
    /// every POST. What is embedded (`<script>`, `<img>`, `<link>`) or navigated to has none, so there `Sec-Fetch-Site`
    /// counts. `cross-site` and `same-site` are alike: a subdomain may be somebody else's, and so may a port. Then only a
    /// client file is let in, and a page that a link leads to. `same-origin` is the service's own page, and `none` is the user,
    /// who typed the address or opened a bookmark. Without the header it is no browser, or an old one.
    ///
    /// # Errors
    /// Says what is foreign about it.
    pub fn admit(&self, headers: &HeaderMap, resource: Resource) -> Result<(), Stranger> {
        if self.rules.insecure_open && self.rules.origins.is_empty() {
            return Ok(());
        }
        let host = text(headers, HOST.as_str());
        let exposed = self.may_be_exposed();
        if !exposed {
            if headers.keys().any(is_of_a_proxy) {
                return Err(Stranger::Proxied);
            }
            if !is_for_this_machine(headers) {
                return Err(Stranger::Host);
            }
        }
        if self.rules.origins.iter().any(OriginRule::is_any) {
            return Ok(());
        }
        match headers.get(ORIGIN) {
            None if is_of_another_page(headers) => match resource {
                Resource::ClientFile => Ok(()),
                Resource::Page if is_followed_link(headers) => Ok(()),
                Resource::Page | Resource::Action => Err(Stranger::CrossSite),
            },
            None => Ok(()),
            // A form of any page that hides where it is; --origins null is for scripts of files and sandboxed frames.
            Some(origin) if origin == "null" && is_of_another_page(headers) && is_navigation(headers) => {
                Err(Stranger::CrossSite)
            }
            Some(origin) if self.is_known(origin, host.filter(|_| exposed)) => Ok(()),
            Some(_) => Err(Stranger::Origin),
        }
    }

    /// A page of this machine on any port, of the very `host` that it asks, or one that is listed.
    fn is_known(&self, origin: &HeaderValue, host: Option<&str>) -> bool {
        let is_listed = |origin: Option<&Origin>| self.rules.origins.iter().any(|known| known.lets_in(origin));
        match origin.to_str() {
            Ok(null) if null.eq_ignore_ascii_case("null") => is_listed(None),
            Ok(text) => Origin::parse(text).is_ok_and(|origin| {
                origin.is_here() || host.is_some_and(|host| origin.is_of_host(host)) || is_listed(Some(&origin))
            }),
            Err(_) => false,
        }
    }

    /// The address of the client behind a connection from `peer`: what the nearest proxy that is not trusted was told.
    #[must_use]
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trusts(peer) {
            return peer;
        }
        let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let hops: Vec<_> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
        let mut client = peer;
        for hop in hops.iter().rev() {
            let Some(address) = address_of(hop) else { break };
            client = address.to_canonical();
            if !self.trusts(client) {
                break;
            }
        }
        client
    }

    /// Whether this is a proxy whose word counts.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.rules.trusted_proxies.iter().any(|proxies| proxies.contains(&address.to_canonical()))
    }

    /// Who a request is from, as far as its API keys say. Of several that are shown any good one is enough: a proxy may add
    /// one, or a client keep an old one in another place.
    #[must_use]
    pub fn caller(&self, headers: &HeaderMap, now: DateTime<Utc>) -> Caller {
        let keys = self.keys();
        if !keys.producers.needed() {
            return Caller::Anyone;
        }
        let bearers = texts(headers, AUTHORIZATION.as_str()).filter_map(|value| after_scheme(value, "bearer"));
        let shown = texts(headers, "x-api-key").chain(bearers).take(MAX_SHOWN);
        let good = shown.filter_map(|shown| keys.producers.find(shown, now));
        good.reduce(Caller::and).unwrap_or(Caller::Unknown)
    }

    /// Lets the user of an inbox at it, by a login in `Authorization`; everybody while nobody is asked for anything.
    ///
    /// # Errors
    /// It shows no login that is good for this token.
    pub fn user(&self, caller: &Caller, headers: &HeaderMap, token: &Token, now: DateTime<Utc>) -> Result<(), Denied> {
        let keys = self.keys();
        if matches!(caller, Caller::Anyone) && !keys.logins.needed() {
            return Ok(());
        }
        let credential = |value| match after_scheme(value, "tidings") {
            Some(signed) => Credential::of_header(signed),
            None => after_scheme(value, "bearer").map(|jwt| Credential::Jwt(jwt.to_owned())),
        };
        let shown: Vec<_> = texts(headers, AUTHORIZATION.as_str()).filter_map(credential).take(MAX_SHOWN).collect();
        self.verify(&keys.logins, &shown, token, now).map(drop)
    }

    /// Until when a login is good; without an end while logins need no signature. Of several credentials any good one is
    /// enough, and the one that is good for longest counts.
    ///
    /// # Errors
    /// The signature is missing, wrong, too old, or of an unknown key.
    pub fn login<'c>(
        &self,
        shown: impl IntoIterator<Item = &'c Credential>,
        token: &Token,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, Denied> {
        let keys = self.keys();
        if !keys.logins.needed() {
            return Ok(None);
        }
        match self.verify(&keys.logins, shown, token, now) {
            // One that is shown must be good, whatever becomes of those without.
            Err(Denied::Missing) if self.rules.unsigned != Unsigned::Refused => {
                crate::metrics::unsigned_login();
                if self.rules.unsigned == Unsigned::Warned
                    && let Some(left_out) = log_due("unsigned_login")
                {
                    tracing::warn!(?token, left_out, "Accepted a login without a signature");
                }
                Ok(None)
            }
            verified => verified.map(Some),
        }
    }

    fn verify<'c>(
        &self,
        keys: &LoginKeys,
        shown: impl IntoIterator<Item = &'c Credential>,
        token: &Token,
        now: DateTime<Utc>,
    ) -> Result<DateTime<Utc>, Denied> {
        let verified = shown.into_iter().map(|credential| keys.verify(credential, token, &self.rules, now));
        verified.reduce(better).unwrap_or(Err(Denied::Missing))
    }

    /// Signs a login with one of the secrets, the first by its id unless named: `exp`, `kid` and `sig`.
    #[must_use]
    pub fn sign(&self, token: &str, exp: i64, kid: Option<&str>) -> Option<(i64, String, String)> {
        self.keys().logins.sign(token, exp, kid, &self.rules.audience)
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// All values of a header that are text.
fn texts<'h>(headers: &'h HeaderMap, name: &'static str) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// The one that is good for longer; of two that are not good the first.
fn better(one: Result<DateTime<Utc>, Denied>, other: Result<DateTime<Utc>, Denied>) -> Result<DateTime<Utc>, Denied> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok(one.max(other)),
        (Err(_), Ok(other)) => Ok(other),
        (one, Err(_)) => one,
    }
}

fn after_scheme<'v>(value: &'v str, scheme: &str) -> Option<&'v str> {
    let (first, rest) = value.split_once(' ')?;
    first.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

/// Whether a proxy says with this header that a request is not from here. One that adds none cannot be told.
fn is_of_a_proxy(name: &HeaderName) -> bool {
    [FORWARDED, VIA].contains(name) || name == "x-real-ip" || name.as_str().starts_with("x-forwarded")
}

/// Whether a request was sent to a name of this machine.
#[must_use]
pub fn is_for_this_machine(headers: &HeaderMap) -> bool {
    text(headers, HOST.as_str()).is_some_and(is_here)
}

/// Whether a browser says that another page asks than the service's own, and not the user.
fn is_of_another_page(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

fn is_navigation(headers: &HeaderMap) -> bool {
    text(headers, "sec-fetch-mode") == Some("navigate")
}

/// Whether it becomes a page of its own; not a frame in another.
fn is_followed_link(headers: &HeaderMap) -> bool {
    is_navigation(headers) && text(headers, "sec-fetch-dest") == Some("document")
}

/// As proxies write it: some with a port, an IPv6 one perhaps in brackets.
fn address_of(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
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
