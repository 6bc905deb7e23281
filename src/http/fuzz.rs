//! What holds for every body of a push, whoever made it.

use std::collections::HashSet;
use std::time::Duration;

use axum::response::IntoResponse;
use chrono::{TimeDelta, Utc};
use hyper::body::Bytes;

use super::Limits;
use super::body::{Parsed, Received, parse};

pub(super) const LIMITS: Limits = Limits {
    body_bytes: 4_096,
    tokens: 4,
    token_bytes: 16,
    entity_type_bytes: 16,
    key_bytes: 16,
    receipt_ids: 4,
    data_bytes: 64,
    depth: 4,
    delay: Duration::from_hours(24),
    page: 1,
    body_timeout: Duration::ZERO,
};

/// Takes any bytes as a push, in JSON and as a form of either kind.
///
/// # Panics
/// If something that a limit or a database forbids is taken, or what is refused is not the producer's fault.
pub fn push(body: &[u8]) {
    let bytes = Bytes::copy_from_slice(body);
    let forms = [Ok(Received::Json(bytes.clone())), Ok(Received::Form(bytes.clone())), Received::multipart(bytes)];
    for received in forms {
        let now = Utc::now();
        let is_json = matches!(received, Ok(Received::Json(_)));
        let push = match received.and_then(|received| parse(&received, &LIMITS, now)) {
            Ok(Parsed { push, warnings, is_doubtful }) => {
                assert!(!warnings.is_empty() || !push.tokens.is_empty(), "nobody is told");
                assert!(!is_doubtful || push.tokens.is_empty());
                push
            }
            Err(problem) => {
                assert!(!problem.detail.is_empty() && problem.into_response().status().is_client_error());
                continue;
            }
        };
        let distinct: HashSet<_> = push.tokens.iter().collect();
        assert!(push.tokens.len() <= LIMITS.tokens && distinct.len() == push.tokens.len());
        let fits = |text: &str, bytes: usize| text.len() <= bytes && !text.contains('\0');
        assert!(push.tokens.iter().all(|token| !token.as_str().is_empty() && fits(token.as_str(), LIMITS.token_bytes)));
        assert!(fits(&push.entity_type, LIMITS.entity_type_bytes));
        assert!(fits(push.data.as_str(), LIMITS.data_bytes));
        serde_json::from_str::<serde::de::IgnoredAny>(push.data.as_str()).expect("what is stored is JSON");
        if is_json && push.data.as_str() != "{}" {
            let data = push.data.as_str().as_bytes();
            assert!(body.windows(data.len()).any(|part| part == data), "it is stored byte for byte");
        }
        let group = push.options.group.as_ref();
        let keys = [push.options.collapse_key.as_ref(), group.map(|group| &group.key)];
        let actor = group.and_then(|group| group.actor.as_ref());
        assert!(keys.into_iter().chain([actor]).flatten().all(|key| fits(key, LIMITS.key_bytes)));
        let latest = now + TimeDelta::from_std(LIMITS.delay).expect("a day");
        assert!(push.options.deliver_at.is_none_or(|due| due <= latest));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_body_is_taken_within_the_limits_or_refused() {
        crate::fuzzed::briefly("push", super::push);
    }
}
