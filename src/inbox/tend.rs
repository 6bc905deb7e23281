//! What time does to inboxes: pushes for later come due, rows expire, and what is old goes.
//!
//! It works in small transactions through the writer, so that pushes have their turn in between; what to do is found out
//! beside it, on a reading connection. Several nodes may do this at once: whoever comes second finds nothing left.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Inbox;
use crate::notification::{Rev, Token};
use crate::store::{self, Edit, Keep, Place, Stale, WriterError};

/// How often to look for what is due: the most that a push for later is late, and that an expired row is still counted.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

/// So many rows are moved or removed in one transaction, between which pushes have their turn.
const TEND_ROWS: u32 = 500;

/// The history of so many revs is removed in one transaction.
const TEND_REVS: Rev = 2_000;

/// So many inboxes are looked at in one read for what is too old, but fewer if many rows of each are kept: where the oldest
/// of those is has to be counted.
const RETAIN_INBOXES: u32 = 200;

/// So many rows are counted in one read.
const RETAIN_COUNTED_ROWS: u32 = 200_000;

/// So many rows, and as many changes, are looked at in one read.
const RETAIN_ROWS: u32 = 5_000;

/// Between two of these reads.
const RETAIN_PAUSE: Duration = Duration::from_millis(50);

/// What is kept for how long; without a value for ever.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// How often to look.
    pub interval: Duration,
    /// Rows after they were read.
    pub read: Option<TimeDelta>,
    /// Rows that are unread.
    pub unread: Option<TimeDelta>,
    /// Changes, and rows that were retracted.
    pub history: Option<TimeDelta>,
    /// Rows of one inbox, the newest.
    pub rows: Option<u32>,
}

impl Inbox {
    /// Looks every second for rows whose time is over and for pushes whose time has come, until `stop`.
    pub async fn tend(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TEND_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut release_rows, mut expire_rows) = (TEND_ROWS, TEND_ROWS);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let due = match self.store.due(Utc::now()).await {
                Ok(due) => due,
                Err(error) => {
                    warn!(%error, "Cannot look for what is due, retrying");
                    continue;
                }
            };
            // In turns, so that much of one holds up nothing of the other.
            let (mut scheduled, mut expired) = (due.scheduled, due.expired);
            while (scheduled || expired) && !stop.is_cancelled() {
                scheduled = scheduled && self.do_some(|limit| Edit::Release { limit }, &mut release_rows).await;
                expired = expired && self.do_some(|limit| Edit::Expire { limit }, &mut expire_rows).await;
            }
        }
    }

    /// Does so many rows of what is due and returns whether there may be more. After a failure it is fewer: the database may
    /// be too slow for them.
    async fn do_some(&self, edit: fn(u32) -> Edit, rows: &mut u32) -> bool {
        match self.writer.edit(edit(*rows), None).await {
            Ok(done) => {
                let is_full = done >= u64::from(*rows);
                *rows = rows.saturating_mul(2).min(TEND_ROWS);
                is_full
            }
            // It goes on without being asked.
            Err(WriterError::Unfinished) => false,
            Err(error) => {
                *rows = (*rows / 4).max(1);
                warn!(%error, "Cannot process what is due, retrying");
                false
            }
        }
    }

    /// Removes what is not to be kept, again and again until `stop`.
    pub async fn retain(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.settings.retention.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let mut after = Some(Place::default());
            while let Some(place) = after
                && !stop.is_cancelled()
            {
                after = match self.retain_after(&place).await {
                    Ok(next) => next,
                    Err(error) => {
                        warn!(%error, "Retention failed, the next run retries");
                        None
                    }
                };
                tokio::time::sleep(RETAIN_PAUSE).await;
            }
        }
    }

    /// Looks at what follows a place, and returns the one to go on after. What cannot be removed holds up nothing behind it.
    async fn retain_after(&self, after: &Place) -> Result<Option<Place>, store::Error> {
        let (now, retention) = (Utc::now(), &self.settings.retention);
        let before = |age: Option<TimeDelta>| age.and_then(|age| now.checked_sub_signed(age));
        let keep = Keep {
            read_before: before(retention.read),
            unread_before: before(retention.unread),
            history_before: before(retention.history),
            rows: retention.rows,
        };
        let inboxes =
            retention.rows.map_or(RETAIN_INBOXES, |rows| (RETAIN_COUNTED_ROWS / rows).clamp(1, RETAIN_INBOXES));
        let stale = self.store.stale(after, inboxes, RETAIN_ROWS, &keep);
        let Stale { rows, history, next } = self.reading(stale).await?;
        for edit in purges(&rows, history, TEND_REVS, now) {
            match self.writer.edit(edit, None).await {
                Ok(removed) => debug!(rows = removed, "Retention removed rows"),
                Err(error) => {
                    warn!(%error, "Retention failed for some inboxes, the next run retries them");
                    return Ok(next);
                }
            }
        }
        Ok(next)
    }
}

/// The rows and the history in as many edits as it takes that none has more than [`TEND_ROWS`] rows, or goes through more
/// than `limit` revs.
fn purges(rows: &[(Token, Rev)], history: Vec<(Token, Rev, Rev)>, limit: Rev, seen: DateTime<Utc>) -> Vec<Edit> {
    let some = rows.chunks(TEND_ROWS as usize).map(<[_]>::to_vec);
    let mut edits: Vec<Edit> = some.map(|rows| Edit::Purge { rows, history: Vec::new(), seen }).collect();
    let (mut some, mut left) = (Vec::new(), limit);
    for (token, mut purged, upto) in history {
        while purged < upto {
            let step = left.min(upto - purged);
            (purged, left) = (purged + step, left - step);
            some.push((token.clone(), purged));
            if left == 0 {
                edits.push(Edit::Purge { rows: Vec::new(), history: std::mem::take(&mut some), seen });
                left = limit;
            }
        }
    }
    if !some.is_empty() {
        edits.push(Edit::Purge { rows: Vec::new(), history: some, seen });
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_purge_goes_through_more_revs_than_the_limit() {
        let token = |text: &str| Token::parse(text, 256).unwrap();
        let rows = vec![(token("1"), 7)];
        let history = vec![(token("1"), 100, 130), (token("2"), 0, 3), (token("3"), 5, 5), (token("4"), 0, 9)];
        let purges = purges(&rows, history, 10, Utc::now());
        let shown = purges.iter().map(|edit| match edit {
            Edit::Purge { rows, history, .. } => {
                let shown = |list: &[(Token, Rev)]| {
                    list.iter().map(|(token, rev)| format!("{} {rev}", token.as_str())).collect::<Vec<_>>().join(", ")
                };
                format!("{}; {}", shown(rows), shown(history))
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(shown.collect::<Vec<_>>(), ["1 7; ", "; 1 110", "; 1 120", "; 1 130", "; 2 3, 4 7", "; 4 9"]);
        assert!(super::purges(&[], Vec::new(), 10, Utc::now()).is_empty());
        let many: Vec<_> = (1..=1_100).map(|seq| (token("1"), seq)).collect();
        let rows = super::purges(&many, Vec::new(), 10, Utc::now()).into_iter().map(|edit| match edit {
            Edit::Purge { rows, .. } => rows.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(rows.collect::<Vec<_>>(), [500, 500, 100]);
    }
}
