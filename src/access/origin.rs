//! Where a page comes from, compared as RFC 6454 does: by scheme, host and port, not as text.

use url::Url;

/// The origin of a page or an app.
///
/// `ws` and `wss` are `http` and `https`: some clients name the URL of the socket that they open. A default port is none,
/// and a host that is not ASCII is in its `xn--` form. Of any other scheme (`capacitor://localhost`,
/// `chrome-extension://ID`) the rest is one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// What `--origins` lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginRule(Rule);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// Every origin.
    Any,
    /// A page that has none, such as a file or a sandboxed frame.
    Null,
    /// This one.
    One(Origin),
    /// Every subdomain of its host, however deep, but not the host itself.
    Subdomains(Origin),
    /// Every host of this scheme: extensions of Firefox have another one in each browser.
    Scheme(String),
}

/// Why a text is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// There is no `://`.
    #[error("it has no scheme: write https://HOST or https://HOST:PORT")]
    NoScheme,
    /// Something before `://` that is not the name of a scheme.
    #[error("its scheme must be letters, digits, +, - and . and begin with a letter")]
    Scheme,
    /// It goes on behind the host.
    #[error("an origin ends with its host or port: leave out the path, the query and what follows")]
    Path,
    /// It has a user or a password.
    #[error("an origin has no user and no password")]
    User,
    /// The host or the port cannot be one.
    #[error("its host or port is not valid")]
    Host,
    /// A `*` where none may be.
    #[error(
        "* may stand alone for every origin, for all subdomains as in https://*.example.com, and for all hosts of a \
        scheme other than http and https as in moz-extension://*"
    )]
    Wildcard,
}

impl Origin {
    /// Reads the value of an `Origin` header.
    pub(super) fn parse(text: &str) -> Result<Self, OriginError> {
        let (scheme, rest) = text.split_once("://").ok_or(OriginError::NoScheme)?;
        let mut chars = scheme.chars();
        let is_scheme = chars.next().is_some_and(|first| first.is_ascii_alphabetic())
            && chars.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        if !is_scheme {
            return Err(OriginError::Scheme);
        }
        if rest.contains(['/', '\\', '?', '#']) {
            return Err(OriginError::Path);
        }
        if rest.contains('@') {
            return Err(OriginError::User);
        }
        // A URL parser drops or decodes these.
        if rest.contains(|c: char| c == '%' || c.is_whitespace() || c.is_control()) {
            return Err(OriginError::Host);
        }
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "ws" => "http".to_owned(),
            "wss" => "https".to_owned(),
            other => other.to_owned(),
        };
        if !matches!(scheme.as_str(), "http" | "https") {
            return Ok(Self { scheme, host: rest.to_lowercase(), port: None });
        }
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|_| OriginError::Host)?;
        // Nothing can be reached at port 0.
        let port = url.port_or_known_default().filter(|port| *port > 0).ok_or(OriginError::Host)?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(OriginError::Host)?;
        Ok(Self { host: host.to_owned(), port: Some(port), scheme })
    }

    /// Whether a page of this origin asks the very service that it came from, by the `Host` of its request.
    pub(super) fn is_of_host(&self, host: &str) -> bool {
        self.port.is_some() && Self::parse(&format!("{}://{host}", self.scheme)).is_ok_and(|own| own == *self)
    }

    /// Whether it is a page of this machine, on any port.
    pub(super) fn is_here(&self) -> bool {
        self.port.is_some() && super::is_here(&self.host)
    }
}

impl OriginRule {
    /// Reads an entry of `--origins`.
    ///
    /// # Errors
    /// Says why no origin could ever be this.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        let rule = match text {
            "*" => Rule::Any,
            _ if text.eq_ignore_ascii_case("null") => Rule::Null,
            _ => Self::of_origin(Origin::parse(text)?)?,
        };
        Ok(Self(rule))
    }

    fn of_origin(mut origin: Origin) -> Result<Rule, OriginError> {
        match origin.host.strip_prefix('*').map(str::to_owned) {
            None if origin.host.contains('*') => Err(OriginError::Wildcard),
            None => Ok(Rule::One(origin)),
            Some(rest) if rest.is_empty() && origin.port.is_none() => Ok(Rule::Scheme(origin.scheme)),
            Some(rest) => match rest.strip_prefix('.') {
                Some(domain) if !domain.is_empty() && !domain.contains('*') => {
                    origin.host = domain.to_owned();
                    Ok(Rule::Subdomains(origin))
                }
                _ => Err(OriginError::Wildcard),
            },
        }
    }

    /// Whether it lets in this origin, or a page that has none.
    pub(super) fn lets_in(&self, origin: Option<&Origin>) -> bool {
        match (&self.0, origin) {
            (Rule::Any, _) | (Rule::Null, None) => true,
            (Rule::Null, Some(_)) | (_, None) => false,
            (Rule::One(one), Some(origin)) => one == origin,
            (Rule::Scheme(scheme), Some(origin)) => *scheme == origin.scheme,
            (Rule::Subdomains(parent), Some(origin)) => {
                let sub = origin.host.strip_suffix(&parent.host).and_then(|sub| sub.strip_suffix('.'));
                (&parent.scheme, parent.port) == (&origin.scheme, origin.port) && sub.is_some_and(|sub| !sub.is_empty())
            }
        }
    }

    /// Whether it lets in everybody.
    pub(super) fn is_any(&self) -> bool {
        self.0 == Rule::Any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lets_in(rule: &str, origin: &str) -> bool {
        let rule = OriginRule::parse(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        rule.lets_in(Some(&Origin::parse(origin).unwrap_or_else(|error| panic!("{origin}: {error}"))))
    }

    #[test]
    fn an_origin_is_compared_by_scheme_host_and_port() {
        for (rule, same) in [
            ("https://app.example.com", "https://app.example.com:443"),
            ("https://app.example.com:443", "https://app.example.com"),
            ("http://app.example.com:80", "http://app.example.com"),
            ("https://app.example.com", "wss://app.example.com"),
            ("wss://app.example.com", "https://app.example.com:443"),
            ("ws://app.example.com:8080", "http://app.example.com:8080"),
            ("HTTPS://App.Example.COM", "https://app.example.com"),
            ("https://müller.example", "https://xn--mller-kva.example"),
            ("https://MÜLLER.example", "https://xn--mller-kva.example"),
            ("https://xn--mller-kva.example", "https://müller.example"),
            ("http://[2001:DB8:0::1]:3000", "http://[2001:db8::1]:3000"),
        ] {
            assert!(lets_in(rule, same), "{rule} {same}");
        }
        for (rule, other) in [
            ("https://app.example.com", "http://app.example.com"),
            ("https://app.example.com", "ws://app.example.com"),
            ("https://app.example.com", "https://app.example.com:8443"),
            ("https://app.example.com:80", "http://app.example.com"),
            ("https://app.example.com", "https://app.example.com.evil.com"),
            ("https://app.example.com", "https://evil-app.example.com"),
            ("https://app.example.com", "capacitor://app.example.com"),
        ] {
            assert!(!lets_in(rule, other), "{rule} {other}");
        }
    }

    #[test]
    fn apps_and_extensions_have_origins_too() {
        for app in [
            "capacitor://localhost",
            "ionic://localhost",
            "tauri://localhost",
            "app://obsidian.md",
            "app://.",
            "file://",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "moz-extension://8a2f2a1e-6d3c-4c8e-9f7b-0d5f3c1f2b11",
            "safari-web-extension://8A2F2A1E-6D3C-4C8E-9F7B-0D5F3C1F2B11",
            "vscode-webview://0a1b2c",
        ] {
            assert!(lets_in(app, app) && lets_in(app, &app.to_uppercase()), "{app}");
            assert!(!lets_in(app, "capacitor://elsewhere") && !lets_in(app, "https://localhost"), "{app}");
        }
        assert!(lets_in("moz-extension://*", "moz-extension://8a2f2a1e-6d3c-4c8e-9f7b-0d5f3c1f2b11"));
        assert!(!lets_in("moz-extension://*", "chrome-extension://abc"));
    }

    #[test]
    fn a_wildcard_stands_for_every_subdomain_and_nothing_beside() {
        for (rule, sub) in [
            ("https://*.example.com", "https://pr-7.example.com"),
            ("https://*.example.com", "https://a.b.example.com:443"),
            ("https://*.example.com:8443", "https://a.example.com:8443"),
            ("wss://*.example.com", "https://a.example.com"),
            ("https://*.müller.example", "https://a.xn--mller-kva.example"),
        ] {
            assert!(lets_in(rule, sub), "{rule} {sub}");
        }
        for other in [
            "https://example.com",
            "https://evilexample.com",
            "https://a.example.com.evil.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://.example.com",
        ] {
            assert!(
                !Origin::parse(other)
                    .is_ok_and(|other| { OriginRule::parse("https://*.example.com").unwrap().lets_in(Some(&other)) }),
                "{other}"
            );
        }
    }

    #[test]
    fn what_can_never_match_is_refused_with_what_is_wrong() {
        use OriginError::{Host, NoScheme, Path, Scheme, User, Wildcard};
        for (text, problem) in [
            ("app.example.com", NoScheme),
            ("https:app.example.com", NoScheme),
            ("", NoScheme),
            ("://app.example.com", Scheme),
            ("1ttp://a", Scheme),
            ("https://app.example.com/", Path),
            ("https://app.example.com/page", Path),
            ("https://app.example.com?a", Path),
            ("https:///app.example.com", Path),
            ("https://user@app.example.com", User),
            ("https://", Host),
            ("https://a:0", Host),
            ("https://a:65536", Host),
            ("https://a:port", Host),
            ("https://a b", Host),
            ("https://ex%61mple.com", Host),
            ("https://[::1", Host),
            ("https://*", Wildcard),
            ("https://*:8443", Wildcard),
            ("https://*example.com", Wildcard),
            ("https://app-*.example.com", Wildcard),
            ("https://*.*.example.com", Wildcard),
            ("https://app.example.*", Wildcard),
            ("https://*.", Wildcard),
        ] {
            assert_eq!(OriginRule::parse(text), Err(problem), "{text}");
        }
    }

    #[test]
    fn a_page_knows_its_own_host_whether_or_not_that_names_the_default_port() {
        let own = |origin: &str, host: &str| Origin::parse(origin).unwrap().is_of_host(host);
        for (origin, host) in [
            ("https://push.example.com", "push.example.com"),
            ("https://push.example.com", "push.example.com:443"),
            ("wss://push.example.com", "Push.example.com:443"),
            ("https://push.example.com:443", "push.example.com"),
            ("http://push.example.com", "push.example.com:80"),
            ("ws://push.example.com:4001", "push.example.com:4001"),
        ] {
            assert!(own(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://push.example.com", "push.example.com:80"),
            ("https://push.example.com", "push.example.com:4001"),
            ("https://push.example.com", "example.com"),
            ("https://push.example.com", ""),
            ("capacitor://localhost", "localhost"),
        ] {
            assert!(!own(origin, host), "{origin} {host}");
        }
    }
}
