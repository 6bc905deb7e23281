//! The parameters of a query: those that a request has, and no others. A filter that is misspelled would answer with
//! everything, and an erasure with one would erase more than was meant.
//!
//! Checked are the requests of the API. Not checked are those whose answer does not depend on anything, to which monitoring
//! and caches add parameters of their own: `GET /api`, health checks, metrics, pages and files; nor the engine of the
//! sockets, whose clients send what their users configure.

use axum::extract::{FromRequestParts, Query};
use http::Uri;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::Problem;
use super::body::names;

/// The parameters that a request has.
pub(super) trait Parameters: DeserializeOwned {
    /// What they are called.
    const NAMES: &'static [&'static str];
}

/// The parameters of a query. One without a value is as good as none: many clients write an absent one like that.
pub(super) struct Params<T>(pub(super) T);

impl<T: Parameters, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        check(query, T::NAMES)?;
        let has_value = |pair: &&str| pair.split_once('=').is_some_and(|(_, value)| !value.is_empty());
        let given: Vec<_> = query.split('&').filter(has_value).collect();
        let uri = Uri::try_from(format!("/?{}", given.join("&"))).expect("it is a part of a URI");
        let params = Query::try_from_uri(&uri).map(|Query(params)| Self(params));
        params.map_err(|error| Problem::bad_request("invalid_query", error.body_text()))
    }
}

/// Refuses every parameter, for a request that has none.
pub(super) fn without_parameters(uri: &Uri) -> Result<(), Problem> {
    uri.query().map_or(Ok(()), |query| check(query, &[]))
}

/// Refuses a name that is not known, but for one that has a `=` and no value behind it. A name alone looks like a flag.
fn check(query: &str, known: &'static [&'static str]) -> Result<(), Problem> {
    let says_something = |pair: &&str| pair.split_once('=').is_none_or(|(_, value)| !value.is_empty());
    for pair in query.split('&').filter(says_something) {
        let Some((name, _)) = form_urlencoded::parse(pair.as_bytes()).next() else { continue };
        if !known.contains(&&*name) {
            return Err(Problem::bad_request("invalid_query", unknown(&name, known)));
        }
    }
    // What is none would be read as other characters.
    match percent_decode_str(query).decode_utf8() {
        Ok(_) => Ok(()),
        Err(_) => Err(Problem::bad_request("invalid_query", "the query must be UTF-8")),
    }
}

fn unknown(name: &str, known: &[&'static str]) -> String {
    let name = names::shortened(name);
    let [most @ .., last] = known else {
        return format!("{name:?} is not a parameter of this request, which has none");
    };
    let meant = meant(&name, known).map(|meant| format!(": did you mean {meant}?")).unwrap_or_default();
    format!("{name:?} is not a parameter of this request{meant} (it has {} and {last})", most.join(", "))
}

/// The parameter that a name was perhaps meant to be: `Unread`, `unread_only`, `type`.
fn meant(name: &str, known: &[&'static str]) -> Option<&'static str> {
    /// A shorter one is part of many words.
    const PART: usize = 4;
    let is_part = |known: &&&'static str| {
        let (name, known) = (names::plain(name), names::plain(known));
        name.contains(&known) || name.len() >= PART && known.contains(&name)
    };
    names::nearest(name, known).or_else(|| known.iter().find(is_part).copied())
}

#[cfg(test)]
mod tests {
    use axum::extract::FromRequestParts;
    use http::Request;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Filter {
        unread: Option<bool>,
        entity_type: Option<String>,
        limit: Option<u32>,
    }

    impl Parameters for Filter {
        const NAMES: &'static [&'static str] = &["unread", "entityType", "limit"];
    }

    async fn parsed(query: &str) -> Result<Filter, String> {
        let request = Request::builder().uri(format!("/x?{query}")).body(()).unwrap();
        let params = Params::from_request_parts(&mut request.into_parts().0, &()).await;
        params.map(|Params(params)| params).map_err(|problem| problem.detail)
    }

    #[tokio::test]
    async fn a_parameter_without_a_value_is_as_good_as_none() {
        let nothing = Filter { unread: None, entity_type: None, limit: None };
        for query in ["", "&", "unread=&limit=", "limit", "&&entityType=&", "unread", "_=&limit="] {
            assert_eq!(parsed(query).await.as_ref(), Ok(&nothing), "{query}");
        }
        let all = Filter { unread: Some(true), entity_type: Some("a b".into()), limit: Some(2) };
        assert_eq!(parsed("unread=true&entity%54ype=a+b&limit=2").await, Ok(all));
    }

    #[tokio::test]
    async fn what_is_not_understood_is_refused_by_its_name() {
        for (query, meant) in [
            ("Unread=true", "did you mean unread?"),
            ("unread_only=true", "did you mean unread?"),
            ("onlyUnread", "did you mean unread?"),
            ("read=false", "did you mean unread?"),
            ("entity_type=like", "did you mean entityType?"),
            ("type=like", "did you mean entityType?"),
            ("limit=2&Limit=1", "did you mean limit?"),
            ("page_limit=a=", "did you mean limit?"),
            ("page_limit=5", "did you mean limit?"),
            ("unred=true", "did you mean unread?"),
            ("_=1700000000", "\"_\" is not a parameter of this request (it has unread, entityType and limit)"),
            ("tokens%5B%5D=1", "\"tokens[]\" is not a parameter"),
            ("=1", "\"\" is not a parameter"),
            ("unread=True", "unread"),
            ("entityType=%ff", "UTF-8"),
            ("limit=1&limit=2", "limit"),
        ] {
            let detail = parsed(query).await.unwrap_err();
            assert!(detail.contains(meant), "{query}: {detail}");
        }
        let long = parsed(&"x".repeat(4_000)).await.unwrap_err();
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn a_request_without_parameters_takes_none() {
        for fine in ["/api", "/api?", "/api?&", "/api?ttl="] {
            assert_eq!(without_parameters(&fine.parse().unwrap()), Ok(()), "{fine}");
        }
        let detail = without_parameters(&"/api?ttl=5".parse().unwrap()).unwrap_err().detail;
        assert!(detail.contains("\"ttl\"") && detail.contains("none"), "{detail}");
    }
}
