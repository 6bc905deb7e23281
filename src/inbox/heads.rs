//! Reads heads for many logins with one query: all that ask while a query runs share the next.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::notification::{Head, Token};
use crate::store::{Error, Store};

/// A query asks for at most this many heads.
const MAX_BATCH: usize = 1_000;

type Request = (Token, oneshot::Sender<Result<(Head, Arc<str>), Error>>);

/// The handle to ask with.
pub(super) struct Heads {
    requests: mpsc::Sender<Request>,
}

/// The worker half, to be run by one task.
pub struct HeadsTask {
    requests: mpsc::Receiver<Request>,
    store: Arc<dyn Store>,
}

impl Heads {
    pub(super) fn new(store: Arc<dyn Store>) -> (Self, HeadsTask) {
        // About 100 bytes a request; when it is full the login waits here, which only its own socket feels.
        let (sender, receiver) = mpsc::channel(MAX_BATCH);
        (Self { requests: sender }, HeadsTask { requests: receiver, store })
    }

    /// The head of an inbox and the epoch it belongs to, as they are after this call was made.
    pub(super) async fn read(&self, token: &Token) -> Result<(Head, Arc<str>), Error> {
        let (sender, answer) = oneshot::channel();
        let stopped = || Error::Unavailable("the service is stopping".into());
        self.requests.send((token.clone(), sender)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl HeadsTask {
    /// Runs until nobody can ask any more.
    pub async fn run(mut self) {
        let mut batch: Vec<Request> = Vec::new();
        while self.requests.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let tokens: Vec<_> = batch.iter().map(|(token, _)| token.clone()).collect();
            let heads = self.store.heads(&tokens).await;
            for (token, answer) in batch.drain(..) {
                answer.send(heads.as_ref().map(|heads| heads.get(&token)).map_err(Clone::clone)).ok();
            }
        }
    }
}
