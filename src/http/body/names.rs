//! Names of fields that a push does not have: each is told, with the name that was perhaps meant. Names of parameters are
//! compared in the same way.

use serde::Serialize;
use strsim::damerau_levenshtein;
use utoipa::ToSchema;

use super::{Problem, invalid};

/// The fields of a push.
const KNOWN: [&str; 8] = ["tokens", "entityType", "data", "ttl", "collapseKey", "groupKey", "actor", "deliverAt"];

/// Other words for who gets it, as [`plain`] leaves them.
const RECIPIENTS: [&str; 20] = [
    "tokenid",
    "tokenids",
    "user",
    "users",
    "userid",
    "userids",
    "uid",
    "uids",
    "username",
    "usernames",
    "recipient",
    "recipients",
    "recipientid",
    "recipientids",
    "receiver",
    "receivers",
    "to",
    "target",
    "targets",
    "inbox",
];

/// So many unknown names are looked at and told; of more only the number.
const MAX_NAMES: usize = 16;

/// And so many characters of each.
const MAX_NAME_CHARS: usize = 64;

/// What was not understood of a push that was taken all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct Warning {
    /// Its name as it was sent.
    field: String,
    /// What that led to, and what to do.
    hint: String,
}

/// The names that are not known.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    names: Vec<String>,
    more: usize,
    /// The first of the rest that was meant for the recipients.
    meant_for_tokens: Option<String>,
}

impl Unknown {
    pub(super) fn add(&mut self, name: &str) {
        let shown = shortened(name);
        if self.names.len() < MAX_NAMES {
            return self.names.push(shown);
        }
        self.more += 1;
        if self.meant_for_tokens.is_none() && meant(&shown) == Some("tokens") {
            self.meant_for_tokens = Some(shown);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// One for each name, and one if the push is for nobody.
    ///
    /// # Errors
    /// There are no `tokens`, but a name that must have been meant for them.
    pub(super) fn warnings(self, tokens_are_missing: bool, nobody: bool) -> Result<Vec<Warning>, Problem> {
        if self.names.is_empty() && !nobody {
            return Ok(Vec::new());
        }
        // Perhaps in quotes: encoded twice, or by a shell that leaves them.
        let is_json = |name: &String| name.trim_start_matches(['"', '\'', '\\', ' ']).starts_with(['{', '[']);
        if tokens_are_missing && self.names.iter().any(is_json) {
            return Err(invalid("the body is JSON, but was not sent as JSON: set Content-Type: application/json"));
        }
        let mut names = self.names.iter().chain(&self.meant_for_tokens);
        if tokens_are_missing && let Some(name) = names.find(|name| meant(name) == Some("tokens")) {
            return Err(invalid(format!(
                "{name:?} is not a field of a push and tokens is missing: did you mean tokens?"
            )));
        }
        let warning = |field: String| {
            let hint = meant(&field).map_or_else(
                || "it is not a field of a push and was ignored".to_owned(),
                |name| format!("it is not a field of a push and was ignored: did you mean {name}?"),
            );
            Warning { field, hint }
        };
        let mut warnings: Vec<_> = self.names.into_iter().map(warning).collect();
        if self.more > 0 {
            let hint = format!("more unknown fields were ignored: {}", self.more);
            warnings.push(Warning { field: "…".to_owned(), hint });
        }
        if nobody {
            let what = if tokens_are_missing { "missing" } else { "empty" };
            let hint = format!("it is {what}: the push reached nobody and nothing was stored");
            warnings.push(Warning { field: "tokens".to_owned(), hint });
        }
        Ok(warnings)
    }
}

/// The field that a name was perhaps meant to be: the same letters, other words for a recipient, or a slip of the fingers.
fn meant(name: &str) -> Option<&'static str> {
    if RECIPIENTS.contains(&&*plain(name)) {
        return Some("tokens");
    }
    nearest(name, &KNOWN)
}

/// The one of these names that another was perhaps meant to be: the same letters, or a slip of the fingers.
pub(in crate::http) fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let name = plain(name);
    let distances = known.iter().map(|known| {
        let plain = plain(known);
        (damerau_levenshtein(&plain, &name), plain.len(), *known)
    });
    // A third of the letters may be wrong.
    let (_, _, known) = distances.filter(|(distance, letters, _)| distance * 3 <= *letters).min()?;
    Some(known)
}

/// A name as it is told, however long it is.
pub(in crate::http) fn shortened(name: &str) -> String {
    let mut shown: String = name.chars().take(MAX_NAME_CHARS).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}

/// Its letters and digits in lower case: `entity_type`, `Entity-Type` and `entityType` are one.
pub(in crate::http) fn plain(name: &str) -> String {
    name.chars().filter(|character| character.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found_in_other_spellings() {
        for (meant_to_be, names) in [
            (
                "tokens",
                &["Tokens", "TOKENS", "token", "Token", "tokens[]", "token_ids", "tokenId", "toknes", "userId", "to"][..],
            ),
            ("entityType", &["EntityType", "entity_type", "entity-type", "entitytype", "entityTyp"]),
            ("data", &["Data", "DATA", "date"]),
            ("deliverAt", &["deliver_at", "DeliverAt", "deliveredAt"]),
            ("groupKey", &["group_key", "groupkey"]),
            ("collapseKey", &["collapse_key", "colapseKey"]),
            ("ttl", &["TTL", "ttls"]),
        ] {
            for name in names {
                assert_eq!(meant(name), Some(meant_to_be), "{name}");
            }
        }
        for name in ["socketId", "nested", "message", "id", "", "日本", "priority", "sender"] {
            assert_eq!(meant(name), None, "{name}");
        }
    }

    #[test]
    fn a_name_that_was_meant_for_the_recipients_is_found_behind_many_others() {
        let mut unknown = Unknown::default();
        (0..MAX_NAMES).for_each(|n| unknown.add(&format!("field{n}")));
        ["x", "Tokens", "users"].into_iter().for_each(|name| unknown.add(name));
        assert!(unknown.warnings(true, true).unwrap_err().detail.contains("\"Tokens\""));
    }

    #[test]
    fn many_names_and_long_ones_are_told_in_short() {
        let mut unknown = Unknown::default();
        (0..100).for_each(|n| unknown.add(&format!("{n}{}", "é".repeat(1000))));
        let warnings = unknown.warnings(false, false).unwrap();
        assert_eq!(warnings.len(), MAX_NAMES + 1);
        assert!(warnings.iter().all(|warning| warning.field.chars().count() <= MAX_NAME_CHARS + 1));
        assert_eq!(warnings[MAX_NAMES].hint, "more unknown fields were ignored: 84");
    }
}
