//! The load client. It shares the machine with the server, so it must cost a small fraction of it: one thread, frames and
//! requests written and read by hand, and buffers that are reused, without an allocation a message.

mod http;
mod session;
mod websocket;

pub(crate) use http::HttpConnection;
pub(crate) use session::{Acks, Sessions};

use std::time::Duration;

use memchr::memmem;

/// Nothing takes longer unless something is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What one socket got, or ought to have got: so many messages, and the sum of a hash of their numbers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    hashes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, number: u64) {
        self.messages += 1;
        // The finalizer of splitmix64: one message twice does not make up for another one that is missing.
        let mut hash = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.hashes = self.hashes.wrapping_add(hash ^ (hash >> 31));
    }
}

/// The decimal number that `bytes` begin with.
fn leading_number(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    bytes[..digits].iter().try_fold(0_u64, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}

/// What follows the first `key`.
fn after<'a>(bytes: &'a [u8], key: &memmem::Finder<'_>) -> Option<&'a [u8]> {
    key.find(bytes).map(|at| &bytes[at + key.needle().len()..])
}
