//! Reads of an inbox in steps, so that none takes longer than what it returns, whatever lies in between: rows that are
//! retracted, expired, delivered or read.
//!
//! A step looks at the rows of [`STEP_REVS`] revs and takes its own turn among the readers, so other logins and lists come
//! in between. A step in which there was nothing is remembered as a gap, since what was retracted or delivered stays so;
//! the next read seeks to its end.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Inbox;
use crate::notification::{Head, Notification, Rev, Token};
use crate::store::{self, Entry, ListQuery, MAX_TYPES, TypeCount, Undelivered};

/// One step looks at the rows of so many revs: 2 to 4 ms.
pub(super) const STEP_REVS: Rev = if cfg!(test) { 8 } else { 2_000 };

/// A list takes at most so many steps. Then its page is shorter than asked for, and says where to go on.
const LIST_STEPS: usize = if cfg!(test) { 3 } else { 50 };

/// Gaps that are remembered, about 150 bytes each. When there are more all are forgotten, and found again.
const MAX_GAPS: usize = 10_000;

/// Types that are counted apart while an inbox is counted in steps. When there are more, those with the fewest rows are
/// given up.
const MAX_COUNTED_TYPES: usize = 10_000;

/// For whom there is nothing in a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    /// A replay: every row is delivered or no longer to be seen.
    Replay,
    /// A list: no row is to be seen any more.
    List,
}

/// Stretches of inboxes without anything for a reader.
#[derive(Default)]
pub(super) struct Gaps(Mutex<State>);

#[derive(Default)]
struct State {
    inboxes: HashMap<(Reader, Token), InboxGaps>,
    total: usize,
}

struct InboxGaps {
    /// Of the data set and the generation of the inbox.
    epoch: Arc<str>,
    /// By the rev before the first that is in it.
    gaps: BTreeMap<Rev, Gap>,
}

/// Nothing up to and including `upto`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gap {
    upto: Rev,
    /// The newest row in it. If the table has another one there, it went back to an earlier state since.
    newest: (Rev, Uuid),
}

impl Gaps {
    /// The gap that holds `rev`, with the rev before its first.
    fn holding(&self, reader: Reader, token: &Token, epoch: &str, rev: Rev) -> Option<(Rev, Gap)> {
        let state = self.state();
        let inbox = state.inboxes.get(&(reader, token.clone())).filter(|inbox| *inbox.epoch == *epoch)?;
        let (after, gap) = inbox.gaps.range(..rev).next_back()?;
        (rev <= gap.upto).then(|| (*after, gap.clone()))
    }

    /// Adds a gap, as one with those that it touches.
    fn note(&self, reader: Reader, token: &Token, epoch: &Arc<str>, mut after: Rev, mut gap: Gap) {
        let mut state = self.state();
        if state.total >= MAX_GAPS {
            *state = State::default();
        }
        let State { inboxes, total } = &mut *state;
        let new = || InboxGaps { epoch: Arc::clone(epoch), gaps: BTreeMap::new() };
        let inbox = inboxes.entry((reader, token.clone())).or_insert_with(new);
        if inbox.epoch != *epoch {
            *total -= inbox.gaps.len();
            *inbox = new();
        }
        let touching: Vec<Rev> = inbox
            .gaps
            .range(..=gap.upto)
            .rev()
            .take_while(|(_, known)| known.upto >= after)
            .map(|(at, _)| *at)
            .collect();
        for at in touching {
            if let Some(known) = inbox.gaps.remove(&at) {
                *total -= 1;
                after = after.min(at);
                gap.upto = gap.upto.max(known.upto);
                gap.newest = gap.newest.max(known.newest);
            }
        }
        inbox.gaps.insert(after, gap);
        *total += 1;
    }

    fn forget(&self, reader: Reader, token: &Token) {
        let mut state = self.state();
        if let Some(inbox) = state.inboxes.remove(&(reader, token.clone())) {
            state.total -= inbox.gaps.len();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one step of a replay found.
pub(super) struct Step {
    pub(super) rows: Vec<Notification>,
    /// Where to go on, if there may be more.
    pub(super) next: Option<Rev>,
}

/// A page of an inbox.
#[derive(Debug)]
pub struct Listed {
    /// The inbox when the page was read, or before.
    pub head: Head,
    /// What its rev belongs to.
    pub epoch: Arc<str>,
    /// Newest first.
    pub rows: Vec<Entry>,
    /// The next page has what is below, if there is one.
    pub next: Option<Rev>,
}

impl Inbox {
    /// One step of a replay: the first undelivered rows with `after < seq <= upto`, as far as it looks.
    pub(super) async fn undelivered_step(
        &self,
        readers: &Semaphore,
        token: &Token,
        epoch: &Arc<str>,
        after: Rev,
        upto: Rev,
    ) -> Result<Step, store::Error> {
        let after = self.beyond_gap(Reader::Replay, token, epoch, after).await?;
        if after >= upto {
            return Ok(Step { rows: Vec::new(), next: None });
        }
        let end = upto.min(after + STEP_REVS);
        let page = Undelivered { token, after, upto: end, limit: self.settings.page, now: Utc::now() };
        let page = turn(readers, self.store.undelivered(&page)).await?;
        if page.rows.is_empty() {
            self.note_gap(Reader::Replay, token, epoch, after, end).await?;
        }
        let next = page.rows.last().filter(|_| page.more).map_or(end, |row| row.seq);
        Ok(Step { rows: page.rows, next: Some(next).filter(|next| *next < upto) })
    }

    /// How many undelivered rows there are with `after < seq <= upto`.
    pub(super) async fn count_undelivered(
        &self,
        readers: &Semaphore,
        token: &Token,
        epoch: &Arc<str>,
        mut after: Rev,
        upto: Rev,
    ) -> Result<u64, store::Error> {
        let mut count = 0;
        loop {
            after = self.beyond_gap(Reader::Replay, token, epoch, after).await?;
            if after >= upto {
                return Ok(count);
            }
            let end = upto.min(after + STEP_REVS);
            let page = Undelivered { token, after, upto: end, limit: 0, now: Utc::now() };
            match turn(readers, self.store.count_undelivered(&page)).await? {
                0 => self.note_gap(Reader::Replay, token, epoch, after, end).await?,
                found => count += found,
            }
            after = end;
        }
    }

    /// Rows of an inbox, newest first. There may be fewer than asked for though there are more.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`] if the database does not answer.
    pub async fn list(&self, query: &ListQuery<'_>) -> Result<Listed, store::Error> {
        let token = query.token;
        // The head first: a client that goes on from its rev then misses nothing, and may see a row twice.
        let (head, epoch) = self.heads.read(token).await?;
        let mut listed = Listed { head, epoch, rows: Vec::new(), next: None };
        let mut above = query.above;
        if query.unread == Some(true) {
            // What is unread begins behind the watermark; where nothing is, there is nothing to look for.
            let Some((read_upto, _)) = self.store.unread_span(token).await? else { return Ok(listed) };
            above = above.max(read_upto);
        }
        let (mut before, mut bytes) = (query.before.min(head.rev.saturating_add(1)), 0);
        for _ in 0..LIST_STEPS {
            before = self.below_gap(token, &listed.epoch, before).await?;
            if before <= above + 1 {
                return Ok(listed);
            }
            let end = above.max(before - 1 - STEP_REVS);
            let limit = query.limit - u32::try_from(listed.rows.len()).unwrap_or(query.limit);
            let page = self.reading(self.store.list(&ListQuery { before, above: end, limit, ..*query })).await?;
            if page.rows.is_empty() && query.unread.is_none() && query.entity_type.is_none() {
                self.note_gap(Reader::List, token, &listed.epoch, end, before - 1).await?;
            }
            before = page.rows.last().filter(|_| page.more).map_or(end + 1, |entry| entry.notification.seq);
            bytes += page.rows.iter().map(|entry| entry.notification.content.data.get().len()).sum::<usize>();
            listed.rows.extend(page.rows);
            listed.next = Some(before).filter(|before| *before > above + 1);
            if page.more || listed.rows.len() >= query.limit as usize || bytes >= self.settings.page_bytes {
                break;
            }
        }
        Ok(listed)
    }

    /// The unread rows of an inbox by type.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`] if the database does not answer.
    pub async fn counts(&self, token: &Token) -> Result<Vec<TypeCount>, store::Error> {
        let Some((mut after, upto)) = self.store.unread_span(token).await? else { return Ok(Vec::new()) };
        let mut counts: HashMap<String, i64> = HashMap::new();
        while after < upto {
            let end = upto.min(after + STEP_REVS);
            for TypeCount { entity_type, unread } in
                self.reading(self.store.counts(token, after, end, Utc::now())).await?
            {
                *counts.entry(entity_type).or_default() += unread;
            }
            if counts.len() > MAX_COUNTED_TYPES {
                counts =
                    most(counts, MAX_COUNTED_TYPES / 2).into_iter().map(|one| (one.entity_type, one.unread)).collect();
            }
            after = end;
        }
        Ok(most(counts, usize::try_from(MAX_TYPES).unwrap_or(usize::MAX)))
    }

    /// Where a read that goes up from `after` finds something.
    async fn beyond_gap(
        &self,
        reader: Reader,
        token: &Token,
        epoch: &Arc<str>,
        after: Rev,
    ) -> Result<Rev, store::Error> {
        match self.gaps.holding(reader, token, epoch, after + 1) {
            Some((_, gap)) if self.still_holds(reader, token, &gap).await? => Ok(gap.upto),
            _ => Ok(after),
        }
    }

    /// Where a list that goes down from `before` finds something.
    async fn below_gap(&self, token: &Token, epoch: &Arc<str>, before: Rev) -> Result<Rev, store::Error> {
        match self.gaps.holding(Reader::List, token, epoch, before - 1) {
            Some((after, gap)) if self.still_holds(Reader::List, token, &gap).await? => Ok(after + 1),
            _ => Ok(before),
        }
    }

    /// Whether the table still has the rows that a gap was found among. If not, those of the inbox are forgotten.
    async fn still_holds(&self, reader: Reader, token: &Token, gap: &Gap) -> Result<bool, store::Error> {
        let holds = self.store.newest_row(token, gap.upto).await? == Some(gap.newest);
        if !holds {
            self.gaps.forget(reader, token);
        }
        Ok(holds)
    }

    /// Remembers that a whole step found nothing.
    async fn note_gap(
        &self,
        reader: Reader,
        token: &Token,
        epoch: &Arc<str>,
        after: Rev,
        upto: Rev,
    ) -> Result<(), store::Error> {
        if upto - after < STEP_REVS {
            return Ok(());
        }
        // Where there are no rows at all a step costs nothing.
        if let Some(newest) = self.store.newest_row(token, upto).await?.filter(|(seq, _)| *seq > after) {
            self.gaps.note(reader, token, epoch, after, Gap { upto, newest });
        }
        Ok(())
    }
}

/// The types with the most rows, the most frequent first.
fn most(counts: HashMap<String, i64>, limit: usize) -> Vec<TypeCount> {
    let counts = counts.into_iter().map(|(entity_type, unread)| TypeCount { entity_type, unread });
    let mut counts: Vec<TypeCount> = counts.collect();
    counts.sort_unstable_by(|one, other| {
        other.unread.cmp(&one.unread).then_with(|| one.entity_type.cmp(&other.entity_type))
    });
    counts.truncate(limit);
    counts
}

/// Runs a read when it is its turn.
pub(super) async fn turn<T>(
    readers: &Semaphore,
    read: impl Future<Output = Result<T, store::Error>>,
) -> Result<T, store::Error> {
    let _turn = readers.acquire().await.expect("the semaphore is never closed");
    read.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_that_touch_become_one_and_others_do_not() {
        let (gaps, token, epoch) = (Gaps::default(), Token::parse("1", 8).unwrap(), Arc::from("epoch"));
        let row = |seq: Rev| (seq, Uuid::from_u128(seq.unsigned_abs().into()));
        let note = |after, upto| gaps.note(Reader::Replay, &token, &epoch, after, Gap { upto, newest: row(upto) });
        let holding = |rev| gaps.holding(Reader::Replay, &token, "epoch", rev).map(|(after, gap)| (after, gap.upto));
        note(10, 20);
        note(40, 50);
        assert_eq!([10, 11, 20, 21, 45].map(holding), [None, Some((10, 20)), Some((10, 20)), None, Some((40, 50))]);
        // From below and from above.
        note(20, 30);
        note(5, 10);
        assert_eq!([6, 30, 31].map(holding), [Some((5, 30)), Some((5, 30)), None]);
        note(28, 42);
        assert_eq!([6, 35, 50].map(holding), [Some((5, 50)); 3]);
        assert_eq!(gaps.holding(Reader::Replay, &token, "epoch", 7).unwrap().1.newest, row(50));
        assert_eq!(gaps.state().total, 1);
        // Of another reader, inbox or generation.
        assert!(gaps.holding(Reader::List, &token, "epoch", 7).is_none());
        assert!(gaps.holding(Reader::Replay, &token, "epoch.1", 7).is_none());
        gaps.note(Reader::Replay, &token, &Arc::from("epoch.1"), 0, Gap { upto: 3, newest: row(3) });
        assert_eq!(holding(7), None);
        assert_eq!(gaps.state().total, 1);
    }

    #[test]
    fn there_are_never_more_gaps_than_the_limit() {
        let (gaps, epoch) = (Gaps::default(), Arc::from("epoch"));
        for n in 0..MAX_GAPS + 10 {
            let token = Token::parse(&format!("{n}"), 8).unwrap();
            gaps.note(Reader::List, &token, &epoch, 0, Gap { upto: 8, newest: (8, Uuid::nil()) });
        }
        assert_eq!(gaps.state().total, 10);
    }

    #[test]
    fn the_most_frequent_types_come_first() {
        let counts = [("b", 2), ("a", 2), ("c", 9), ("d", 1)].map(|(name, unread)| (name.to_owned(), unread));
        let names = most(counts.into(), 3).into_iter().map(|count| count.entity_type);
        assert_eq!(names.collect::<Vec<_>>(), ["c", "a", "b"]);
    }
}
