//! What holds for everything that comes over a bus, whoever sent it.

use super::{Hint, postgres, redis};

/// Takes any bytes as a message: for Postgres as they are, for Redis as a channel, a line break and a payload.
///
/// # Panics
/// If a token that is none is taken.
pub fn hint(message: &[u8]) {
    let Ok(message) = str::from_utf8(message) else { return };
    let (channel, payload) = message.split_once('\n').unwrap_or(("tidings:1", message));
    for hint in postgres::hints_in(message).into_iter().chain(redis::hint("tidings:", channel, payload)) {
        match hint {
            Hint::Moved(token, _) | Hint::Passing(token, _) | Hint::Cut(token) => {
                assert!(!token.as_str().is_empty() && !token.as_str().contains('\0'));
            }
            Hint::Gap => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_message_makes_a_hint_about_nobody() {
        crate::fuzzed::briefly("hint", super::hint);
    }
}
