//! Hints between nodes: "inbox T is now at rev N", never the truth.
//!
//! A hint that is lost, doubled, late or forged costs latency at most: whoever gets one reads the table. A bus must not
//! fail or slow down a push, so [`Bus::publish`] neither waits nor returns an error.

use async_trait::async_trait;

use crate::notification::{Event, Token};

/// Carries hints from the node that committed to the nodes that have sessions of the token.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Tells the other nodes that these inboxes moved. Never waits: a bus that cannot keep up drops hints.
    fn publish(&self, events: &[(Token, Event)]);

    /// Returns when hints for this token reach this node. The caller reads the inbox's head only afterwards, so a
    /// commit is either seen by that read or hinted.
    async fn subscribe(&self, token: &Token);
}

/// The bus of a single node: there is nobody to tell, the writer feeds the only hub itself.
#[derive(Debug, Default)]
pub struct LocalBus;

#[async_trait]
impl Bus for LocalBus {
    fn publish(&self, _events: &[(Token, Event)]) {}

    async fn subscribe(&self, _token: &Token) {}
}
