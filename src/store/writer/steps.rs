//! Large changes in progress: what is done in steps, between which pushes and receipts have their turn.
//!
//! A change of few rows is one transaction and never comes here. A larger one is begun like any other; what is left of it
//! waits here for its next step. The worker takes one step, then whatever waits in its queue, then the next step, of
//! another change if there are several. A step has as many rows as it is expected to do within its time.
//!
//! After each step everything that must hold does, and what is left can be found again: a change that ends half way, with
//! the process or the database, is completed by the same request again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::{Caller, Job};
use crate::notification::{Head, ReceiptKind, Selection, Token};
use crate::store::{Batch, Edit, Error, Receipt};

/// Rows that a change may have to be done in one step, until it is known how long that takes.
const FIRST_ROWS: u32 = 2_000;

/// Rows that receipts up to a rev may look at in one transaction, until it is known how long that takes.
const FIRST_MARKED_ROWS: u32 = 10_000;

/// The most rows of a step, which bounds its memory.
const MAX_ROWS: u32 = 50_000;

/// A step is no smaller for being slow: it may be the disk that takes so long for each transaction, however small.
const MIN_ROWS: u32 = 250;

/// Rows that each of several receipts in a transaction may look at in any case: most inboxes have no more that is new.
pub(super) const FEW_MARKED_ROWS: u32 = 200;

/// Changes in progress, at some hundred bytes and their callers. One more is told to come again.
const MAX_CHANGES: usize = 4_096;

/// Callers of one change, and receipts that wait for one.
const MAX_WAITING: usize = 1_000;

/// Receipts that share a step.
const SHARED: usize = 64;

/// How often a step that fails is tried again, each time with fewer rows.
const RETRIES: u32 = 3;

/// Between two of these tries.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How many rows make a step of the right length.
#[derive(Clone, Copy)]
struct Pace {
    rows: u32,
}

impl Pace {
    /// Learns how long a step took. Half of what it may take is aimed at, so that one that is slower keeps within it.
    fn learn(&mut self, took: Duration, step: Duration, max_rows: u32) {
        let factor = (step.as_secs_f64() / 2.0 / took.as_secs_f64().max(1e-6)).clamp(0.1, 2.0);
        #[expect(clippy::cast_possible_truncation, reason = "it is within the range")]
        let rows = (f64::from(self.rows) * factor) as u32;
        // One that failed had fewer.
        self.rows = rows.max(self.rows.min(MIN_ROWS)).clamp(1, max_rows);
    }
}

/// An edit in progress.
pub(super) struct EditSteps {
    pub(super) edit: Edit,
    pub(super) callers: Vec<Caller<u64>>,
    /// Rows that it changed so far.
    pub(super) done: u64,
    pace: Pace,
    retries: u32,
}

/// A receipt in progress.
pub(super) struct ReceiptSteps {
    pub(super) receipt: Receipt,
    pub(super) callers: Vec<Caller<Option<Head>>>,
    /// What must come after it.
    behind: Vec<Job>,
    /// A step that it shared failed, perhaps because of another.
    alone: bool,
    retries: u32,
}

/// What is done next.
pub(super) enum Step {
    Edit(EditSteps),
    Receipts(Vec<ReceiptSteps>),
}

/// The changes in progress of one worker.
pub(super) struct Steps {
    edits: VecDeque<EditSteps>,
    receipts: VecDeque<ReceiptSteps>,
    /// Whether the next step is of a receipt, if there are edits too.
    receipts_are_next: bool,
    /// What waited for a change that is done.
    released: VecDeque<Job>,
    marks: Pace,
    /// When the next step may be.
    pub(super) next_at: Instant,
    /// Whether jobs of others were done since the last step.
    pub(super) others_came: bool,
    /// The longest that a step may take.
    step: Duration,
    max_rows: u32,
}

impl Steps {
    pub(super) fn new(step: Duration) -> Self {
        Self {
            edits: VecDeque::new(),
            receipts: VecDeque::new(),
            receipts_are_next: false,
            released: VecDeque::new(),
            marks: Pace { rows: FIRST_MARKED_ROWS },
            next_at: Instant::now(),
            others_came: false,
            step,
            max_rows: MAX_ROWS,
        }
    }

    /// Has each step take no more rows than this.
    #[cfg(test)]
    pub(super) fn limit(&mut self, rows: u32) {
        self.max_rows = rows;
        self.marks.rows = self.marks.rows.min(rows);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.receipts.is_empty()
    }

    /// The rows of the first step of an edit.
    pub(super) fn first_rows(&self) -> u32 {
        FIRST_ROWS.min(self.max_rows)
    }

    /// Takes the next step, those of receipts and of edits by turns.
    pub(super) fn next(&mut self) -> Option<Step> {
        let receipts = self.edits.is_empty() || (self.receipts_are_next && !self.receipts.is_empty());
        self.receipts_are_next = !receipts;
        if !receipts {
            return self.edits.pop_front().map(Step::Edit);
        }
        let mut some = Vec::new();
        let fitting = usize::try_from(self.marks.rows / FEW_MARKED_ROWS).unwrap_or(SHARED).clamp(1, SHARED);
        while let Some(next) = self.receipts.front()
            && some.len() < fitting
            && (some.is_empty() || !next.alone)
        {
            let alone = next.alone;
            some.extend(self.receipts.pop_front());
            if alone {
                break;
            }
        }
        (!some.is_empty()).then_some(Step::Receipts(some))
    }

    /// After a step that took so long. While others come they have as much of the time as the steps.
    pub(super) fn stepped(&mut self, took: Duration) {
        self.next_at = Instant::now() + if std::mem::take(&mut self.others_came) { took } else { Duration::ZERO };
    }

    /// Says how many rows each receipt up to a rev may look at in a batch.
    pub(super) fn limit_marks(&self, batch: &mut Batch) {
        batch.mark_rows = match u32::try_from(batch.marks()).unwrap_or(u32::MAX) {
            0 => None,
            1 => Some(self.marks.rows),
            marks => Some((self.marks.rows / marks).max(FEW_MARKED_ROWS).min(self.max_rows)),
        };
    }

    /// Learns from a transaction with receipts up to a rev, of which some had more rows than they may look at.
    pub(super) fn learn_marks(&mut self, took: Duration, unfinished: bool) {
        if unfinished || took > self.step / 2 {
            self.marks.learn(took, self.step, self.max_rows);
        }
    }

    /// Joins an edit with the same one in progress, if there is one; else gives it back.
    pub(super) fn join(&mut self, edit: Edit, caller: Caller<u64>) -> Option<(Edit, Caller<u64>)> {
        let same = self.edits.iter_mut().find(|steps| match (&steps.edit, &edit) {
            (Edit::Retract { id, .. }, Edit::Retract { id: same, .. }) => id == same,
            (Edit::Erase { token, .. }, Edit::Erase { token: same, .. }) => token == same,
            (Edit::Release { .. }, Edit::Release { .. }) | (Edit::Expire { .. }, Edit::Expire { .. }) => true,
            _ => false,
        });
        let Some(steps) = same else { return Some((edit, caller)) };
        if let Edit::Erase { begun, .. } = &mut steps.edit {
            // What came since it began goes too.
            *begun = None;
        }
        steps.callers.retain(|caller| !caller.is_closed());
        if steps.callers.len() < MAX_WAITING {
            steps.callers.push(caller)
        } else {
            refuse(caller)
        }
        None
    }

    /// Goes on with an edit that was begun.
    pub(super) fn begin_edit(&mut self, edit: Edit, done: u64, took: Duration, caller: Caller<u64>) {
        if self.edits.len() >= MAX_CHANGES {
            return refuse(caller);
        }
        let mut pace = Pace { rows: self.first_rows() };
        pace.learn(took, self.step, self.max_rows);
        self.edits.push_back(EditSteps { edit, callers: vec![caller], done, pace, retries: 0 });
        self.stepped(took);
    }

    /// Goes on with an edit of which a step was done.
    pub(super) fn again(&mut self, mut steps: EditSteps, took: Duration) {
        steps.pace.learn(took, self.step, self.max_rows);
        steps.retries = 0;
        self.edits.push_back(steps);
    }

    /// Tries a step again that failed, with fewer rows; or says that it is not worth it.
    pub(super) fn retry_edit(&mut self, mut steps: EditSteps, error: &Error) {
        steps.retries += 1;
        if steps.retries > RETRIES {
            return steps.callers.into_iter().for_each(|caller| drop(caller.send(Err(error.clone()))));
        }
        steps.pace.rows = (steps.pace.rows / 8).max(1);
        self.next_at = Instant::now() + RETRY_PAUSE;
        self.edits.push_back(steps);
    }

    /// Goes on with what is left of a receipt, together with what is left of others of its kind.
    pub(super) fn begin_receipt(&mut self, receipt: Receipt, caller: Caller<Option<Head>>) {
        let same = self
            .receipts
            .iter_mut()
            .find(|steps| steps.receipt.kind == receipt.kind && steps.receipt.token == receipt.token);
        if let Some(steps) = same {
            steps.join(receipt);
            steps.callers.retain(|caller| !caller.is_closed());
            return if steps.callers.len() < MAX_WAITING { steps.callers.push(caller) } else { refuse(caller) };
        }
        if self.receipts.len() >= MAX_CHANGES {
            return refuse(caller);
        }
        let callers = vec![caller];
        self.receipts.push_back(ReceiptSteps { receipt, callers, behind: Vec::new(), alone: false, retries: 0 });
    }

    /// Goes on with a receipt of which a step was done.
    pub(super) fn again_receipt(&mut self, steps: ReceiptSteps) {
        self.receipts.push_back(ReceiptSteps { retries: 0, ..steps });
    }

    /// What waited for a receipt that is done may be done.
    pub(super) fn finished(&mut self, steps: ReceiptSteps) {
        self.released.extend(steps.behind);
    }

    /// Tries receipts again of which a step failed, each alone and with fewer rows; or says that it is not worth it.
    pub(super) fn retry_receipts(&mut self, steps: Vec<ReceiptSteps>, error: &Error) {
        let shared = steps.len() > 1;
        for mut steps in steps {
            steps.alone = true;
            steps.retries += u32::from(!shared);
            if steps.retries <= RETRIES {
                self.receipts.push_back(steps);
                continue;
            }
            for caller in steps.callers.drain(..) {
                caller.send(Err(error.clone())).ok();
            }
            self.finished(steps);
        }
        self.try_fewer_marks();
        self.next_at = Instant::now() + RETRY_PAUSE;
    }

    /// Has receipts up to a rev look at fewer rows at a time: the database may be too slow for as many.
    pub(super) fn try_fewer_marks(&mut self) {
        self.marks.rows = (self.marks.rows / 8).max(1);
    }

    /// Gives up the receipts of an inbox that is erased: they are not about what comes in its place.
    pub(super) fn forget_receipts(&mut self, token: &Token) {
        let (gone, left): (Vec<_>, Vec<_>) = self.receipts.drain(..).partition(|steps| steps.receipt.token == *token);
        self.receipts = left.into();
        for mut steps in gone {
            for caller in steps.callers.drain(..) {
                caller.send(Err(Error::Unavailable("the inbox is being erased".into()))).ok();
            }
            self.finished(steps);
        }
    }

    /// Keeps a job back that must come after a receipt in progress: a row that is marked unread after all were marked read
    /// stays unread.
    pub(super) fn keep_back(&mut self, job: Job) -> Option<Job> {
        let Job::Receipt(receipt, _) = &job else { return Some(job) };
        let is_unread = match receipt.kind {
            ReceiptKind::Ack => return Some(job),
            ReceiptKind::Read => false,
            ReceiptKind::Unread => true,
        };
        let before = self.receipts.iter_mut().find(|steps| {
            steps.receipt.kind == ReceiptKind::Read
                && steps.receipt.token == receipt.token
                && (is_unread || !steps.behind.is_empty())
        });
        let Some(steps) = before else { return Some(job) };
        if steps.behind.len() < MAX_WAITING {
            steps.behind.push(job);
        } else if let Job::Receipt(_, caller) = job {
            refuse(caller);
        }
        None
    }

    /// A job that waited for a change that is done.
    pub(super) fn released(&mut self) -> Option<Job> {
        self.released.pop_front()
    }
}

impl EditSteps {
    /// The rows of its next step.
    pub(super) fn rows(&self) -> u32 {
        self.pace.rows
    }
}

impl ReceiptSteps {
    /// Makes it the one that goes as far as either, if both are about the same inbox; else the newer.
    fn join(&mut self, other: Receipt) {
        let Receipt { after, origin, life, .. } = self.receipt;
        let (upto, before) = (other.upto(), self.receipt.upto());
        let joined = if life == other.life {
            // Up to the `after` of either all is delivered, so an ack need not look there again.
            let after = if other.kind == ReceiptKind::Ack { after.max(other.after) } else { after.min(other.after) };
            Receipt { after, origin: origin.filter(|_| origin == other.origin), ..other }
        } else {
            other
        };
        let upto = if life == joined.life { upto.max(before) } else { upto };
        self.receipt = Receipt { selection: Selection::UpTo(upto), ..joined };
    }
}

/// Tells a caller that too much is going on.
fn refuse<T>(caller: Caller<T>) {
    let error = Error::Unavailable("too many large changes are in progress, send this again later".into());
    caller.send(Err(error)).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_finds_the_rows_of_a_step_and_stays_within_its_bounds() {
        let step = Duration::from_millis(100);
        let mut pace = Pace { rows: 2_000 };
        // 10 us a row.
        for _ in 0..10 {
            pace.learn(Duration::from_micros(10) * pace.rows, step, MAX_ROWS);
        }
        assert!((4_900..=5_000).contains(&pace.rows), "{}", pace.rows);
        pace.learn(Duration::from_secs(60), step, MAX_ROWS);
        assert!((490..=500).contains(&pace.rows), "no more than to a tenth at once: {}", pace.rows);
        pace.learn(Duration::ZERO, step, MAX_ROWS);
        assert!((980..=1_000).contains(&pace.rows), "no more than to the double: {}", pace.rows);
        for _ in 0..20 {
            pace.learn(Duration::ZERO, step, 3_000);
        }
        assert_eq!(pace.rows, 3_000);
        for _ in 0..20 {
            pace.learn(Duration::from_secs(60), step, MAX_ROWS);
        }
        assert_eq!(pace.rows, MIN_ROWS);
        pace.rows = 7;
        pace.learn(Duration::from_secs(60), step, MAX_ROWS);
        assert_eq!(pace.rows, 7, "one that failed with more");
    }
}
