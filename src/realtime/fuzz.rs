//! What holds for every event of a client, whoever made it.

use chrono::Utc;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use super::wire::{self, ClientEvent};
use crate::access::{Access, Caller, LoginKeys};
use crate::notification::{Selection, Token};

const MAX_TOKEN_BYTES: usize = 16;

const MAX_IDS: usize = 3;

/// Takes any bytes as the payload of a `user_login`, and as an `Authorization`.
///
/// # Panics
/// If a token that is none is taken, or a credential that nobody signed.
pub fn login(payload: &[u8]) {
    let access = Access::default();
    let keys = LoginKeys::default().with_secrets(&[("k1".to_owned(), "nobody signs with it".to_owned())]);
    access.replace_keys(Vec::new(), keys.expect("there is one"));
    let now = Utc::now();
    let somebody = Token::parse("1", MAX_TOKEN_BYTES).expect("a token");
    if let Ok(value) = HeaderValue::from_bytes(payload) {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        assert!(access.user(&Caller::Anyone, &headers, &somebody, now).is_err());
    }
    let Ok(payload) = str::from_utf8(payload) else { return };
    let Ok(Some(event)) = wire::parse(&format!("[\"user_login\",{payload}]"), MAX_TOKEN_BYTES, MAX_IDS) else { return };
    let ClientEvent::Login(login) = event else { panic!("a login is a login") };
    let token = login.token.as_str();
    assert!(!token.is_empty() && token.len() <= MAX_TOKEN_BYTES && !token.contains('\0'));
    assert!(login.since.is_none_or(|since| since.rev >= 0));
    assert!(access.login(&login.credentials, &login.token, now).is_err());
}

/// Takes any bytes as the payload of an `ack`, `read` and `unread`.
///
/// # Panics
/// If more is taken than the payload can name, or rows below the first.
pub fn receipt(payload: &[u8]) {
    let Ok(payload) = str::from_utf8(payload) else { return };
    for name in ["ack", "read", "unread"] {
        match wire::parse(&format!("[\"{name}\",{payload}]"), MAX_TOKEN_BYTES, MAX_IDS) {
            Ok(Some(ClientEvent::Receipt(_, Selection::Ids(ids)))) => {
                assert!(ids.len() <= MAX_IDS && ids.len() * 32 <= payload.len())
            }
            Ok(Some(ClientEvent::Receipt(_, Selection::UpTo(rev)))) => assert!(rev >= 0 && name != "unread"),
            Ok(Some(ClientEvent::Receipt(_, Selection::All))) => assert_eq!(name, "read"),
            Ok(Some(event)) => panic!("{name} became {event:?}"),
            // With a comma the payload may end the event and begin something else.
            Ok(None) => assert!(serde_json::from_str::<serde::de::IgnoredAny>(payload).is_err()),
            Err(refused) => assert!(!refused.login),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_login_lets_in_whom_nobody_signed_for() {
        crate::fuzzed::briefly("login", super::login);
    }

    #[test]
    fn any_receipt_is_taken_as_what_it_says_or_refused() {
        crate::fuzzed::briefly("receipt", super::receipt);
    }
}
