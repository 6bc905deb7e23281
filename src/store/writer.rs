//! The one way in for writes: group commit.
//!
//! Handlers send jobs into a bounded queue; the worker takes all that is queued, runs one transaction, answers every
//! job and hands the events to the hub. The commit in flight is the window in which the next batch gathers; only acks
//! wait for company. It must not answer a job before the transaction is durable, nor publish events out of `rev` order.
//!
//! A change of many rows is done in [`Steps`], between which the queue has its turn.
//!
//! An ack that nobody waits for is no job: it is added to [`PendingAcks`], which cost a lock and 32 bytes each.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde_json::value::RawValue;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info};
use uuid::Uuid;

mod steps;

use steps::{EditSteps, FEW_MARKED_ROWS, ReceiptSteps, Step, Steps};

use super::pending::{ACKS_PER_COMMIT, PendingAcks};
use super::{
    Batch, Committed, Committer, Edit, Edited, Error, IdempotencyKey, KeyName, KeyedPush, PushOutcome, Receipt,
};
use crate::limits::log_due;
use crate::metrics;
use crate::notification::{Event, Head, NewPush, Options, Payload, ReceiptKind, Rev, Selection, Token};

/// Acks wait this many times as long as the last transaction with acks took, for more of them to share one with. Nobody
/// looks at the clock for them, and clients that catch up together ack together: a transaction for each few would cost
/// more than their replay, this way acks take at most a fifth of the writer's time.
const ACK_LINGER: u32 = 4;

/// However short that transaction was, acks wait so long.
const MIN_ACK_LINGER: Duration = Duration::from_millis(20);

/// However long it took, acks wait no longer than this.
const MAX_ACK_LINGER: Duration = Duration::from_millis(250);

/// A transaction of so many rows or less takes no longer than its receipts up to a rev.
const FEW_ROWS: usize = 1_000;

/// A push to so many tokens is a wide one.
const WIDE: usize = 100;

/// So long after a transaction failed one is tried that nobody asked for: without pushes nobody would notice that the
/// database works again, and while the service is not ready it gets none.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// The caller of a large change waits so many times the timeout, as long as it goes on.
const PATIENCE: u32 = 6;

/// Why a write was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriterError {
    /// The queue is full: try again in a moment. Nothing was written.
    #[error("the write queue is full")]
    Busy,
    /// The service is stopping. Nothing was written.
    #[error("the service is stopping")]
    Stopped,
    /// It is large and goes on; the same again tells when it is done.
    #[error("the change is still in progress")]
    Unfinished,
    /// The database did not do it.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The handle that everything writes through; cheap to clone.
#[derive(Clone)]
pub struct Writer {
    /// One a committer. What is about a token goes to the same one, but for pushes to others before it and wide ones, so that
    /// they share transactions instead of waiting for each other's lock.
    queues: Arc<[mpsc::Sender<Job>]>,
    /// One a committer: whether its last transaction failed; an edit's may for reasons of its own.
    failing: Arc<[Arc<AtomicBool>]>,
    /// One a committer: how many steps of large changes it did.
    steps: Arc<[Arc<AtomicU64>]>,
    /// For the last of the committers. If there are several it takes nothing but acks, so that neither they nor pushes wait
    /// for each other.
    acks: Arc<PendingAcks>,
    max_bytes: usize,
    timeout: Duration,
}

enum Job {
    Push(KeyedPush, Caller<PushOutcome>),
    Receipt(Receipt, Caller<Option<Head>>),
    /// Has a transaction of its own.
    Edit(Edit, Caller<u64>),
}

impl Job {
    /// The key of a keyed push. Two with the same must not meet in one batch: the second has to find the first's answer.
    fn key(&self) -> Option<KeyName> {
        match self {
            Self::Push(KeyedPush { key: Some(key), .. }, _) => Some(key.name()),
            _ => None,
        }
    }

    fn is_ack(&self) -> bool {
        matches!(self, Self::Receipt(Receipt { kind: ReceiptKind::Ack, .. }, _))
    }

    fn rows(&self) -> usize {
        match self {
            Self::Push(keyed, _) => keyed.push.tokens.len(),
            Self::Receipt(receipt, _) if receipt.is_mark() => {
                let rows = receipt.upto().saturating_sub(receipt.after).clamp(1, FEW_MARKED_ROWS.into());
                usize::try_from(rows).unwrap_or(1)
            }
            Self::Receipt(Receipt { selection, .. }, _) => selection.ids().max(1),
            Self::Edit(..) => 1,
        }
    }

    /// Bytes of `data` that it has stored.
    fn bytes(&self) -> usize {
        match self {
            Self::Push(keyed, _) => stored_bytes(&keyed.push),
            Self::Receipt(..) | Self::Edit(..) => 0,
        }
    }

    /// Whether it may share a transaction with those before it: in one the reads come first, so none may follow an unread
    /// that it is to undo. Nor may an unread follow a read of many rows in the same inbox (`read`), which may need more
    /// steps: it waits for them.
    fn fits(&self, unread: bool, read: &HashSet<Token>) -> bool {
        match self {
            Self::Push(..) => true,
            Self::Receipt(receipt, _) => match receipt.kind {
                ReceiptKind::Unread => !read.contains(&receipt.token),
                ReceiptKind::Ack | ReceiptKind::Read => !unread,
            },
            Self::Edit(..) => false,
        }
    }

    /// The inbox of which it may mark so many rows read that it takes more than one step.
    fn reads_many(&self) -> Option<&Token> {
        match self {
            Self::Receipt(receipt, _) if receipt.kind == ReceiptKind::Read && receipt.is_mark() => Some(&receipt.token),
            _ => None,
        }
    }

    fn is_unread(&self) -> bool {
        matches!(self, Self::Receipt(Receipt { kind: ReceiptKind::Unread, .. }, _))
    }
}

/// Takes the events of a transaction after its commit.
type Publish = Arc<dyn Fn(Vec<(Token, Event)>) + Send + Sync>;

/// One of the workers of a [`Writer`], to be run by one task.
pub struct WriterTask {
    jobs: mpsc::Receiver<Job>,
    committer: Box<dyn Committer>,
    publish: Publish,
    /// A commit writes each page once however many of its rows changed, so large ones are cheap; but the jobs behind one
    /// wait for it.
    max_rows: usize,
    /// Bytes of `data` that a transaction stores.
    max_bytes: usize,
    /// Acks that nobody waits for, if this worker is the one that stores them.
    pending: Option<Arc<PendingAcks>>,
    /// Acks that wait for company; at most as many as the queue holds, and little more rows than a transaction takes.
    acks: Vec<Job>,
    ack_rows: usize,
    /// When they have waited long enough, if there are any.
    acks_due: Option<Instant>,
    /// How long the last transaction with acks took.
    acks_took: Duration,
    failing: Arc<AtomicBool>,
    /// While it fails: when to try whether it still does.
    probe_at: Option<Instant>,
    /// What the last transaction did and nobody was told yet.
    finished: Option<Finished>,
    /// Large changes in progress.
    steps: Steps,
    steps_done: Arc<AtomicU64>,
}

/// A transaction that is durable, and who is to hear of it.
struct Finished {
    events: Vec<(Token, Event)>,
    pushes: Vec<(Caller<PushOutcome>, PushOutcome)>,
    receipts: Vec<(Caller<Option<Head>>, Option<Head>)>,
}

/// Who waits for a job.
type Caller<T> = oneshot::Sender<Result<T, Error>>;

impl Finished {
    /// Live delivery first: it is what the sessions wait for.
    fn tell(self, publish: &Publish) {
        publish(self.events);
        self.pushes.into_iter().for_each(|(to, outcome)| drop(to.send(Ok(outcome))));
        self.receipts.into_iter().for_each(|(to, head)| drop(to.send(Ok(head))));
    }
}

/// Bytes of `data` that a push has stored, with all its rows.
fn stored_bytes(push: &NewPush) -> usize {
    let rows = if push.data.is_shared() { 1 } else { push.tokens.len() };
    push.data.as_str().len().saturating_mul(rows)
}

impl Writer {
    /// Makes a writer with one worker a committer, whose queues hold `queue` jobs each, whose transactions take `max_rows` rows (more only if one push has
    /// more) and `max_bytes` bytes of `data` (more only if one push has more in one row), and whose callers wait at most
    /// `timeout` for an answer. What one caller wants holds up the others for about a `step` at a time; a large change is
    /// done in several, and its caller waits longer.
    ///
    /// `publish` gets the events of each transaction after its commit, in `rev` order per token.
    #[must_use]
    pub fn new(
        committers: Vec<Box<dyn Committer>>,
        queue: usize,
        max_rows: usize,
        max_bytes: usize,
        timeout: Duration,
        step: Duration,
        publish: impl Fn(Vec<(Token, Event)>) + Send + Sync + 'static,
    ) -> (Self, Vec<WriterTask>) {
        // A job is a checked body (at most the body limit, 1 MiB unless configured) and about 200 bytes; when the queue
        // is full the caller is told `Busy` at once.
        let publish: Publish = Arc::new(publish);
        let (acks, last) = (Arc::new(PendingAcks::default()), committers.len().saturating_sub(1));
        let worker = |(at, committer)| {
            let (sender, jobs) = mpsc::channel(queue);
            let (publish, failing) = (Arc::clone(&publish), Arc::default());
            let task = WriterTask {
                jobs,
                committer,
                publish,
                max_rows,
                max_bytes,
                pending: (at == last).then(|| Arc::clone(&acks)),
                acks: Vec::new(),
                ack_rows: 0,
                acks_due: None,
                acks_took: Duration::ZERO,
                failing,
                probe_at: None,
                finished: None,
                steps: Steps::new(step),
                steps_done: Arc::default(),
            };
            (sender, task)
        };
        let (queues, tasks): (Vec<_>, Vec<WriterTask>) = committers.into_iter().enumerate().map(worker).unzip();
        let failing = tasks.iter().map(|task| Arc::clone(&task.failing)).collect();
        let steps = tasks.iter().map(|task| Arc::clone(&task.steps_done)).collect();
        (Self { queues: queues.into(), failing, steps, acks, max_bytes, timeout }, tasks)
    }

    /// Whether the last transaction of a worker failed, and none that wrote something has succeeded since.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.iter().any(|failing| failing.load(Ordering::Relaxed))
    }

    /// Stores one row per token and returns after they are durable.
    ///
    /// # Errors
    /// [`WriterError::Busy`] and [`WriterError::Stopped`] at once; [`Error::OutcomeUnknown`] if the answer does not come
    /// in time.
    pub async fn push(&self, mut push: KeyedPush) -> Result<PushOutcome, WriterError> {
        if push.push.tokens.len() > 1 && stored_bytes(&push.push) > self.max_bytes {
            push.push.data = push.push.data.shared();
        }
        let (sender, answer) = oneshot::channel();
        // By the first token alone: one that many connections push to at once is mostly pushed to alone. Wide ones meet in
        // many inboxes, so they share transactions, and not with the edits that are about no inbox.
        let tokens = &push.push.tokens;
        let queue = if tokens.len() < WIDE { self.queue(tokens.first()) } else { self.push_queues() - 1 };
        self.send(queue, Job::Push(push, sender))?;
        self.wait(answer).await
    }

    /// Marks rows delivered, read or unread. After the commit a read or unread returns the inbox's head, an ack nothing.
    ///
    /// # Errors
    /// As for [`Writer::push`]; [`WriterError::Unfinished`] if there are so many rows that it takes much longer.
    pub async fn receipt(&self, receipt: Receipt) -> Result<Option<Head>, WriterError> {
        let (sender, answer) = oneshot::channel();
        let queue = self.queue(Some(&receipt.token));
        self.send(queue, Job::Receipt(receipt, sender))?;
        self.wait_long(queue, answer).await
    }

    /// Runs an edit, which may be about one inbox, and returns how many rows it changed, after they are durable.
    ///
    /// # Errors
    /// As for [`Writer::receipt`].
    pub async fn edit(&self, edit: Edit, token: Option<&Token>) -> Result<u64, WriterError> {
        let (sender, answer) = oneshot::channel();
        let queue = self.queue(token);
        self.send(queue, Job::Edit(edit, sender))?;
        self.wait_long(queue, answer).await
    }

    /// Marks rows delivered soon, in one transaction with other acks, and says nothing of what became of it: a row whose
    /// ack was not stored is sent again at the next login. Returns false if too many wait already.
    #[must_use]
    pub fn ack(&self, token: &Token, ids: &[Uuid]) -> bool {
        self.acks.add(token, ids)
    }

    /// Has the watermark of an inbox moved over what is delivered up to a rev that was seen there. It is a lower bound, so
    /// it does not matter when, nor whether.
    pub fn advance(&self, token: &Token, upto: Rev) {
        self.acks.advance(token, upto);
    }

    /// The place of the queue for what is about an inbox, or about none.
    fn queue(&self, token: Option<&Token>) -> usize {
        let hash = token.map_or(0, |token| BuildHasherDefault::<DefaultHasher>::new().hash_one(token));
        usize::try_from(hash % self.push_queues() as u64).unwrap_or(0)
    }

    /// The queues that take pushes.
    fn push_queues(&self) -> usize {
        (self.queues.len() - 1).max(1)
    }

    fn send(&self, queue: usize, job: Job) -> Result<(), WriterError> {
        self.queues[queue].try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => WriterError::Busy,
            TrySendError::Closed(_) => WriterError::Stopped,
        })
    }

    async fn wait<T>(&self, answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, WriterError> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(_)) => Err(Error::OutcomeUnknown("the writer stopped".into()).into()),
            Err(_) => Err(Error::OutcomeUnknown("the database did not answer in time".into()).into()),
        }
    }

    /// Waits longer while the worker does steps: what is asked for is then one of them, or comes in between.
    async fn wait_long<T>(
        &self,
        queue: usize,
        mut answer: oneshot::Receiver<Result<T, Error>>,
    ) -> Result<T, WriterError> {
        let done = || self.steps[queue].load(Ordering::Relaxed);
        for _ in 0..PATIENCE {
            let before = done();
            match tokio::time::timeout(self.timeout, &mut answer).await {
                Ok(Ok(result)) => return Ok(result?),
                Ok(Err(_)) => return Err(Error::OutcomeUnknown("the writer stopped".into()).into()),
                Err(_) if done() == before => {
                    return Err(Error::OutcomeUnknown("the database did not answer in time".into()).into());
                }
                Err(_) => {}
            }
        }
        Err(WriterError::Unfinished)
    }
}

impl WriterTask {
    /// Has each step of a large change take no more rows than this.
    #[cfg(test)]
    pub(super) fn limit_steps(&mut self, rows: u32) {
        self.steps.limit(rows);
    }

    /// Runs until every [`Writer`] is gone or `stop` is cancelled, then commits what is still queued.
    pub async fn run(mut self, stop: tokio_util::sync::CancellationToken) {
        let mut held = None;
        loop {
            if self.probe_at.is_some_and(|at| at <= Instant::now()) {
                let (job, _answer) = probe();
                self.commit(Batch::default(), vec![job], 0).await;
            }
            if !self.steps.is_empty() && self.steps.next_at <= Instant::now() {
                self.step().await;
            }
            let step_at = (!self.steps.is_empty()).then_some(self.steps.next_at);
            let due = [self.probe_at, self.acks_due, step_at].into_iter().flatten().min();
            // Before it may sleep: after a step comes whatever waits.
            let mut waiting = held.take().or_else(|| self.steps.released());
            if !self.steps.is_empty() && !stop.is_cancelled() {
                waiting = waiting.or_else(|| self.jobs.try_recv().ok());
                if self.pending.as_deref().is_some_and(PendingAcks::is_any) {
                    self.linger();
                }
            }
            let mut next = match waiting {
                Some(job) => Some(job),
                None => tokio::select! {
                    job = self.jobs.recv() => match job {
                        Some(job) => Some(job),
                        None => break,
                    },
                    () = stop.cancelled(), if !self.jobs.is_closed() => {
                        self.jobs.close();
                        continue;
                    }
                    () = added(self.pending.as_deref()) => {
                        self.linger();
                        None
                    }
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
                },
            };
            self.steps.others_came |= next.is_some();
            next = next.and_then(|job| self.steps.keep_back(job));
            if let Some(Job::Edit(edit, answer)) = next {
                // They are about the inbox as it was before, which may be erased.
                if !self.acks.is_empty() {
                    self.commit_acks().await;
                }
                self.tell();
                self.edit(edit, answer).await;
                continue;
            }
            let (mut jobs, mut rows, mut bytes, mut unread, mut keys) = (Vec::new(), 0, 0, false, HashSet::new());
            let mut read = HashSet::new();
            while let Some(job) = next {
                if job.is_ack() {
                    self.put_aside(job);
                    if self.acks_are_due() {
                        break;
                    }
                } else {
                    let repeated = job.key().is_some_and(|key| !keys.insert(key));
                    let is_full = rows + job.rows() > self.max_rows || bytes + job.bytes() > self.max_bytes;
                    if repeated || !job.fits(unread, &read) || (rows > 0 && is_full) {
                        held = Some(job);
                        break;
                    }
                    rows += job.rows();
                    bytes += job.bytes();
                    unread |= job.is_unread();
                    read.extend(job.reads_many().cloned());
                    jobs.push(job);
                }
                next = self.next_job();
            }
            let mut batch = Batch::default();
            if self.acks_are_due() {
                if rows + self.ack_rows + ACKS_PER_COMMIT > self.max_rows {
                    self.commit_acks().await;
                } else {
                    rows += self.take_acks(&mut jobs, &mut batch);
                }
            }
            self.commit(batch, jobs, rows).await;
            if self.jobs.is_empty() && held.is_none() {
                self.tell();
            }
        }
        while self.acks_due.is_some() || self.pending.as_deref().is_some_and(PendingAcks::is_any) {
            self.commit_acks().await;
        }
        self.tell();
        self.committer.close().await;
        info!("Writer stopped with an empty queue");
    }

    /// The next job that waits, if it need not wait for a change in progress.
    fn next_job(&mut self) -> Option<Job> {
        loop {
            let job = self.steps.released().or_else(|| self.jobs.try_recv().ok())?;
            if let Some(job) = self.steps.keep_back(job) {
                return Some(job);
            }
        }
    }

    /// Has acks wait for company from now on, unless some do already or are enough for a transaction.
    fn linger(&mut self) {
        let linger = (self.acks_took * ACK_LINGER).clamp(MIN_ACK_LINGER, MAX_ACK_LINGER);
        self.acks_due.get_or_insert_with(|| Instant::now() + linger);
        if self.pending.as_deref().is_some_and(PendingAcks::is_full) {
            self.acks_due = Some(Instant::now());
        }
    }

    /// Puts an ack aside. Pushes and other receipts may come before or after it, to the same end.
    fn put_aside(&mut self, ack: Job) {
        self.linger();
        self.ack_rows += ack.rows();
        self.acks.push(ack);
        if self.acks.len() >= self.jobs.max_capacity() || self.ack_rows >= self.max_rows {
            self.acks_due = Some(Instant::now());
        }
    }

    fn acks_are_due(&self) -> bool {
        self.acks_due.is_some_and(|due| due <= Instant::now())
    }

    /// Moves the acks that waited into a transaction and returns how many rows they are.
    fn take_acks(&mut self, jobs: &mut Vec<Job>, batch: &mut Batch) -> usize {
        self.acks_due = None;
        jobs.append(&mut self.acks);
        let mut rows = std::mem::take(&mut self.ack_rows);
        if let Some(pending) = &self.pending {
            let more = pending.take(batch);
            rows += batch.acked.len();
            if more {
                self.acks_due = Some(Instant::now());
            }
        }
        rows
    }

    async fn commit_acks(&mut self) {
        let (mut jobs, mut batch) = (Vec::new(), Batch::default());
        let rows = self.take_acks(&mut jobs, &mut batch);
        self.commit(batch, jobs, rows).await;
    }

    /// Tells what the last transaction did.
    fn tell(&mut self) {
        if let Some(finished) = self.finished.take() {
            finished.tell(&self.publish);
        }
    }

    fn fails(&mut self) {
        metrics::commit_failed();
        self.failing.store(true, Ordering::Relaxed);
        self.probe_at = Some(Instant::now() + PROBE_AFTER);
    }

    /// Runs an edit, or the first step of a large one.
    async fn edit(&mut self, edit: Edit, answer: Caller<u64>) {
        if let Edit::Erase { token, .. } = &edit {
            self.steps.forget_receipts(token);
        }
        let Some((edit, answer)) = self.steps.join(edit, answer) else { return };
        let (result, took) = self.edit_step(&edit, self.steps.first_rows()).await;
        match result {
            Ok((rows, None)) => drop(answer.send(Ok(rows))),
            Ok((rows, Some(next))) => self.steps.begin_edit(next, rows, took, answer),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Runs one step of an edit and returns how many rows it changed, what is left to be done, and how long it took.
    async fn edit_step(&mut self, edit: &Edit, rows: u32) -> (Result<(u64, Option<Edit>), Error>, Duration) {
        let started = Instant::now();
        let result = self.committer.edit(edit, rows, now_millis()).await;
        let took = started.elapsed();
        let result = match result {
            Ok(Edited { rows, events, next }) => {
                debug!(edit.rows = rows, edit.goes_on = next.is_some(), duration_ms = took.as_millis(), "Edited");
                metrics::committed(1, created(&events), took);
                (self.publish)(events);
                Ok((rows, next))
            }
            Err(error) => {
                self.failed_apart("Edit failed", &error);
                Err(error)
            }
        };
        (result, took)
    }

    /// Notes that something failed that no push was part of.
    fn failed_apart(&mut self, what: &str, error: &Error) {
        metrics::commit_failed();
        // It may be the fault of what it changes. Whether pushes fail too is to be seen.
        self.probe_at.get_or_insert_with(Instant::now);
        if let Some(left_out) = log_due("edit_failed") {
            error!(%error, left_out, "{what}");
        }
    }

    /// Does the next step of the large changes in progress.
    async fn step(&mut self) {
        self.tell();
        let started = Instant::now();
        match self.steps.next() {
            Some(Step::Edit(steps)) => {
                // They are about the inbox as it was before, which may be gone then.
                if matches!(steps.edit, Edit::Erase { .. }) && !self.acks.is_empty() {
                    self.commit_acks().await;
                    self.tell();
                }
                self.step_edit(steps).await;
            }
            Some(Step::Receipts(steps)) => self.step_receipts(steps).await,
            None => return,
        }
        let failed = self.steps.next_at > Instant::now();
        if !failed {
            self.steps_done.fetch_add(1, Ordering::Relaxed);
            self.steps.stepped(started.elapsed());
        }
    }

    async fn step_edit(&mut self, mut steps: EditSteps) {
        let (result, took) = self.edit_step(&steps.edit, steps.rows()).await;
        match result {
            Ok((rows, next)) => {
                steps.done += rows;
                if let Some(next) = next {
                    steps.edit = next;
                    return self.steps.again(steps, took);
                }
                if let Edit::Erase { token, .. } = &steps.edit {
                    self.steps.forget_receipts(token);
                }
                steps.callers.into_iter().for_each(|caller| drop(caller.send(Ok(steps.done))));
            }
            Err(error) => self.steps.retry_edit(steps, &error),
        }
    }

    async fn step_receipts(&mut self, steps: Vec<ReceiptSteps>) {
        let (mut batch, mut rest) = (Batch::default(), Vec::new());
        for steps in steps {
            let receipt = &steps.receipt;
            let selection = Selection::UpTo(receipt.upto());
            let Receipt { kind, after, origin, life, .. } = *receipt;
            batch.receipts.push(Receipt { token: receipt.token.clone(), kind, selection, after, origin, life });
            rest.push(steps);
        }
        self.steps.limit_marks(&mut batch);
        let started = Instant::now();
        let result = self.committer.commit(&batch, now_millis()).await;
        let took = started.elapsed();
        let Committed { receipts, events, unfinished, .. } = match result {
            Ok(committed) => committed,
            Err(error) => {
                self.failed_apart("A step of receipts failed", &error);
                return self.steps.retry_receipts(rest, &error);
            }
        };
        debug!(
            batch.receipts = receipts.len(),
            batch.unfinished = unfinished.len(),
            duration_ms = took.as_millis(),
            "Step"
        );
        metrics::committed(receipts.len(), 0, took);
        self.steps.learn_marks(took, !unfinished.is_empty());
        (self.publish)(events);
        let mut unfinished = unfinished.into_iter().peekable();
        for (at, (mut steps, head)) in rest.into_iter().zip(receipts).enumerate() {
            if let Some((_, left)) = unfinished.next_if(|(place, _)| *place == at) {
                steps.receipt = left;
                self.steps.again_receipt(steps);
                continue;
            }
            steps.callers.drain(..).for_each(|caller| drop(caller.send(Ok(head))));
            self.steps.finished(steps);
        }
    }

    async fn commit(&mut self, mut batch: Batch, jobs: Vec<Job>, rows: usize) {
        let (mut push_answers, mut receipt_answers) = (Vec::new(), Vec::new());
        for job in jobs {
            match job {
                // Nobody waits for it any more and nothing was written yet: leave it out.
                Job::Push(_, answer) if answer.is_closed() => {}
                Job::Push(push, answer) => {
                    batch.pushes.push(push);
                    push_answers.push(answer);
                }
                Job::Receipt(receipt, answer) => {
                    batch.receipts.push(receipt);
                    receipt_answers.push(answer);
                }
                Job::Edit(..) => unreachable!("an edit fits into no batch"),
            }
        }
        if batch.is_empty() {
            return self.tell();
        }
        self.steps.limit_marks(&mut batch);
        let (pushes, receipts) = (batch.pushes.len(), batch.receipts.len() + batch.acked.len());
        let started = Instant::now();
        // While the database works on this one, those of the last one are told.
        let (finished, publish) = (self.finished.take(), &self.publish);
        let tell = async { finished.into_iter().for_each(|finished| finished.tell(publish)) };
        let (result, ()) = tokio::join!(biased; self.committer.commit(&batch, now_millis()), tell);
        let took = started.elapsed();
        if !batch.acked.is_empty() || batch.receipts.iter().any(|receipt| receipt.kind == ReceiptKind::Ack) {
            self.acks_took = took;
        }
        if result.is_err() && batch.mark_rows.is_some() {
            self.steps.try_fewer_marks();
        }
        match result {
            Ok(committed) => {
                let duration_ms = took.as_millis();
                debug!(batch.pushes = pushes, batch.receipts = receipts, batch.rows = rows, duration_ms, "Committed");
                // Else it may be the others that took so long.
                if batch.mark_rows.is_some() && rows <= FEW_ROWS {
                    self.steps.learn_marks(took, !committed.unfinished.is_empty());
                }
                self.committed(pushes, receipts, took, committed, push_answers, receipt_answers);
            }
            Err(Error::Unavailable(why)) if batch.is_mixed() => {
                if let Some(left_out) = log_due("commit_failed_apart") {
                    error!(
                        batch.pushes = pushes,
                        batch.receipts = receipts,
                        error = %why,
                        left_out,
                        "Commit failed, trying its pushes alone"
                    );
                }
                self.commit_apart(batch, push_answers, receipt_answers).await;
            }
            Err(error) => {
                self.fails();
                if let Some(left_out) = log_due("commit_failed") {
                    error!(batch.pushes = pushes, batch.receipts = receipts, %error, left_out, "Commit failed");
                }
                push_answers.into_iter().for_each(|to| drop(to.send(Err(error.clone()))));
                receipt_answers.into_iter().for_each(|to| drop(to.send(Err(error.clone()))));
            }
        }
    }

    /// Commits the pushes of a batch that failed, and then the rest of it: nobody's push fails for what others want.
    async fn commit_apart(
        &mut self,
        mut batch: Batch,
        push_answers: Vec<Caller<PushOutcome>>,
        receipt_answers: Vec<Caller<Option<Head>>>,
    ) {
        let pushes = Batch { pushes: std::mem::take(&mut batch.pushes), ..Batch::default() };
        let started = Instant::now();
        match self.committer.commit(&pushes, now_millis()).await {
            Ok(committed) => {
                self.committed(pushes.pushes.len(), 0, started.elapsed(), committed, push_answers, Vec::new());
                self.tell();
            }
            Err(error) => {
                self.fails();
                if let Some(left_out) = log_due("commit_failed") {
                    error!(batch.pushes = pushes.pushes.len(), %error, left_out, "Commit failed");
                }
                push_answers.into_iter().for_each(|to| drop(to.send(Err(error.clone()))));
                return receipt_answers.into_iter().for_each(|to| drop(to.send(Err(error.clone()))));
            }
        }
        let receipts = batch.receipts.len() + batch.acked.len();
        let started = Instant::now();
        match self.committer.commit(&batch, now_millis()).await {
            Ok(committed) => self.committed(0, receipts, started.elapsed(), committed, Vec::new(), receipt_answers),
            Err(error) => {
                self.failed_apart("Receipts failed", &error);
                receipt_answers.into_iter().for_each(|to| drop(to.send(Err(error.clone()))));
            }
        }
    }

    /// Takes what a transaction did, to be told during the next one.
    fn committed(
        &mut self,
        pushes: usize,
        receipts: usize,
        took: Duration,
        committed: Committed,
        push_answers: Vec<Caller<PushOutcome>>,
        receipt_answers: Vec<Caller<Option<Head>>>,
    ) {
        metrics::committed(pushes + receipts, created(&committed.events), took);
        // One without pushes may have had nothing to write, and then says nothing of the disk.
        if pushes > 0 && self.probe_at.take().is_some() {
            self.failing.store(false, Ordering::Relaxed);
        }
        let mut unfinished = committed.unfinished.into_iter().peekable();
        let mut done = Vec::with_capacity(receipt_answers.len());
        for (at, (answer, head)) in receipt_answers.into_iter().zip(committed.receipts).enumerate() {
            match unfinished.next_if(|(place, _)| *place == at) {
                Some((_, left)) => self.steps.begin_receipt(left, answer),
                None => done.push((answer, head)),
            }
        }
        let finished = Finished {
            events: committed.events,
            pushes: push_answers.into_iter().zip(committed.pushes).collect(),
            receipts: done,
        };
        self.finished = Some(finished);
        // Nothing waits, so there will be no next one to tell them during.
        if self.jobs.is_empty() {
            self.tell();
        }
    }
}

/// Returns when acks wait that did not before, if this worker is to store them.
async fn added(pending: Option<&PendingAcks>) {
    match pending {
        Some(pending) => pending.added().await,
        None => std::future::pending().await,
    }
}

/// A push to nobody: its key, which is none that a producer can have, is the least that has to reach the disk.
fn probe() -> (Job, oneshot::Receiver<Result<PushOutcome, Error>>) {
    let nothing = RawValue::from_string("null".to_owned()).ok().and_then(|null| Payload::parse(null, 4, 1).ok());
    let data = nothing.expect("null is JSON that any database can hold");
    let push = NewPush { tokens: Vec::new(), entity_type: String::new(), data, options: Options::default() };
    let key = format!("is it ready? {}", Uuid::now_v7());
    let key = Some(IdempotencyKey { owner: String::new(), key, body_sha256: String::new() });
    let (sender, answer) = oneshot::channel();
    (Job::Push(KeyedPush { push, key }, sender), answer)
}

fn created(events: &[(Token, Event)]) -> usize {
    events.iter().filter(|(_, event)| matches!(event, Event::New(_))).count()
}

/// Now in whole milliseconds, so that what is sent live is what the table will say.
#[must_use]
pub fn now_millis() -> DateTime<Utc> {
    let now = Utc::now();
    now.duration_trunc(TimeDelta::milliseconds(1)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::store::Committed;

    const STEP: Duration = Duration::from_millis(100);

    /// A database whose next transactions fail.
    struct Failing(u32);

    #[async_trait]
    impl Committer for Failing {
        async fn commit(&mut self, batch: &Batch, _now: DateTime<Utc>) -> Result<Committed, Error> {
            if let Some(left) = self.0.checked_sub(1) {
                self.0 = left;
                return Err(Error::StorageFull);
            }
            let pushes = batch.pushes.iter().map(|_| PushOutcome::KeyMismatch).collect();
            let receipts = vec![None; batch.receipts.len()];
            Ok(Committed { pushes, receipts, events: Vec::new(), unfinished: Vec::new() })
        }

        async fn edit(&mut self, _edit: &Edit, _rows: u32, _now: DateTime<Utc>) -> Result<Edited, Error> {
            Ok(Edited::default())
        }

        async fn close(&mut self) {}
    }

    /// How many pushes and receipts each transaction had.
    struct Recording(Arc<std::sync::Mutex<Vec<(usize, usize)>>>);

    #[async_trait]
    impl Committer for Recording {
        async fn commit(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
            self.0.lock().unwrap().push((batch.pushes.len(), batch.receipts.len()));
            Failing(0).commit(batch, now).await
        }

        async fn edit(&mut self, _edit: &Edit, _rows: u32, _now: DateTime<Utc>) -> Result<Edited, Error> {
            Ok(Edited::default())
        }

        async fn close(&mut self) {}
    }

    /// How many bytes of `data` each transaction stored.
    struct Weighing(Arc<std::sync::Mutex<Vec<usize>>>);

    #[async_trait]
    impl Committer for Weighing {
        async fn commit(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
            let bytes = batch.pushes.iter().map(|keyed| stored_bytes(&keyed.push)).sum();
            self.0.lock().unwrap().push(bytes);
            Failing(0).commit(batch, now).await
        }

        async fn edit(&mut self, _edit: &Edit, _rows: u32, _now: DateTime<Utc>) -> Result<Edited, Error> {
            Ok(Edited::default())
        }

        async fn close(&mut self) {}
    }

    /// A database with an edit that never ends, of which every third step fails.
    struct Endless(u32);

    #[async_trait]
    impl Committer for Endless {
        async fn commit(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
            Failing(0).commit(batch, now).await
        }

        async fn edit(&mut self, edit: &Edit, _rows: u32, _now: DateTime<Utc>) -> Result<Edited, Error> {
            tokio::time::sleep(STEP).await;
            self.0 += 1;
            if self.0.is_multiple_of(3) {
                return Err(Error::Unavailable("told to fail".into()));
            }
            Ok(Edited { rows: 1, next: Some(edit.clone()), ..Edited::default() })
        }

        async fn close(&mut self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_of_what_does_not_end_hears_that_it_goes_on() {
        let timeout = Duration::from_secs(5);
        let committer: Box<dyn Committer> = Box::new(Endless(0));
        let (writer, mut tasks) = Writer::new(vec![committer], 3, 10, 100, timeout, STEP, |_| {});
        let stop = CancellationToken::new();
        let task = tokio::spawn(tasks.remove(0).run(stop.clone()));
        let erase = || Edit::erase(Token::parse("1", 8).unwrap());
        let began = Instant::now();
        let (first, second) = tokio::join!(writer.edit(erase(), None), writer.edit(erase(), None));
        assert!(matches!(first, Err(WriterError::Unfinished)), "{first:?}");
        assert!(matches!(second, Err(WriterError::Unfinished)), "the same again joins it: {second:?}");
        assert_eq!(began.elapsed(), timeout * PATIENCE);
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_of_a_large_change_hears_that_the_service_stops() {
        let committer: Box<dyn Committer> = Box::new(Endless(0));
        let (writer, mut tasks) = Writer::new(vec![committer], 3, 10, 100, Duration::from_secs(5), STEP, |_| {});
        let stop = CancellationToken::new();
        let task = tokio::spawn(tasks.remove(0).run(stop.clone()));
        let (erased, ()) = tokio::join!(writer.edit(Edit::erase(Token::parse("1", 8).unwrap()), None), async {
            tokio::time::sleep(STEP * 2).await;
            stop.cancel();
        });
        assert!(matches!(erased, Err(WriterError::Store(Error::OutcomeUnknown(_)))), "{erased:?}");
        task.await.unwrap();
    }

    fn receipt(kind: ReceiptKind) -> Receipt {
        let selection = Selection::UpTo(1);
        Receipt { token: Token::parse("1", 8).unwrap(), kind, selection, after: 0, origin: None, life: None }
    }

    #[tokio::test(start_paused = true)]
    async fn acks_gather_while_pushes_go_on_and_none_is_left_behind() {
        let transactions = Arc::new(std::sync::Mutex::new(Vec::new()));
        let committer: Box<dyn Committer> = Box::new(Recording(Arc::clone(&transactions)));
        let (writer, mut tasks) = Writer::new(vec![committer], 3, 10, 100, Duration::from_secs(5), STEP, |_| {});
        let stop = CancellationToken::new();
        let task = tokio::spawn(tasks.remove(0).run(stop.clone()));
        let push = || {
            let Job::Push(push, _) = probe().0 else { unreachable!() };
            push
        };
        let (first, second, pushes) =
            tokio::join!(writer.receipt(receipt(ReceiptKind::Ack)), writer.receipt(receipt(ReceiptKind::Ack)), async {
                writer.push(push()).await.unwrap();
                writer.push(push()).await.unwrap();
                transactions.lock().unwrap().clone()
            });
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(pushes, [(1, 0), (1, 0)]);
        // As many as the queue holds wait for nobody.
        let began = Instant::now();
        let acks = (0..3).map(|_| writer.receipt(receipt(ReceiptKind::Ack)));
        assert!(futures_util::future::join_all(acks).await.iter().all(Result::is_ok));
        assert!(began.elapsed() < MIN_ACK_LINGER);
        // One that waits when the service stops is done before.
        let (last, ()) = tokio::join!(writer.receipt(receipt(ReceiptKind::Ack)), async {
            tokio::task::yield_now().await;
            stop.cancel();
        });
        assert!(last.is_ok());
        task.await.unwrap();
        assert_eq!(*transactions.lock().unwrap(), [(1, 0), (1, 0), (0, 2), (0, 3), (0, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_stores_no_more_bytes_than_the_limit_and_a_large_push_its_data_once() {
        let transactions = Arc::new(std::sync::Mutex::new(Vec::new()));
        let committer: Box<dyn Committer> = Box::new(Weighing(Arc::clone(&transactions)));
        let (writer, mut tasks) = Writer::new(vec![committer], 20, 10_000, 100, Duration::from_secs(5), STEP, |_| {});
        let push = |tokens: usize, bytes: usize| {
            let data = RawValue::from_string(format!("\"{}\"", "x".repeat(bytes - 2))).unwrap();
            let tokens = (0..tokens).map(|n| Token::parse(&n.to_string(), 8).unwrap()).collect();
            let data = Payload::parse(data, 1000, 1).unwrap();
            let push = NewPush { tokens, entity_type: String::new(), data, options: Options::default() };
            writer.push(KeyedPush { push, key: None })
        };
        // 100 bytes in 50 rows fit; 101 would not, and are stored once; 300 in one row have to.
        let pushes = [
            push(50, 2),
            push(1, 40),
            push(1, 40),
            push(1, 40),
            push(101, 60),
            push(500, 60),
            push(1, 300),
            push(1, 2),
        ];
        let task = tokio::spawn(tasks.remove(0).run(CancellationToken::new()));
        assert!(futures_util::future::join_all(pushes).await.iter().all(Result::is_ok));
        assert_eq!(*transactions.lock().unwrap(), [100, 80, 100, 60, 300, 2]);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_tried_again_without_anybody_asking_until_it_works() {
        let committer: Box<dyn Committer> = Box::new(Failing(3));
        let (writer, mut tasks) = Writer::new(vec![committer], 4, 10, 100, Duration::from_secs(5), STEP, |_| {});
        let stop = CancellationToken::new();
        let task = tokio::spawn(tasks.remove(0).run(stop.clone()));
        assert!(!writer.is_failing());
        assert!(writer.receipt(receipt(ReceiptKind::Read)).await.is_err());
        assert!(writer.is_failing());
        tokio::time::sleep(PROBE_AFTER * 3 / 2).await;
        assert!(writer.is_failing(), "it still fails");
        tokio::time::sleep(PROBE_AFTER).await;
        writer.receipt(receipt(ReceiptKind::Read)).await.unwrap();
        assert!(writer.is_failing(), "a receipt may have had nothing to write");
        tokio::time::sleep(PROBE_AFTER * 2).await;
        assert!(!writer.is_failing());
        stop.cancel();
        task.await.unwrap();
    }
}
