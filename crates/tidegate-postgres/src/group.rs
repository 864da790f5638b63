//! One group: the calls that share a transaction, and what they accumulate until its commit.
//!
//! A verb locks and reads what its decisions need, lets the core decide, and leaves what is to be written in
//! [`Writes`]; depths, counters and news gather beside it. All of it is sent together: after a verb whose writes the next
//! one must see, and at the end. Ids of queues and lanes may be remembered between groups, nothing else is.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::Timestamp;
use tidegate_core::id::{Kind, MessageId, QueueName};
use tidegate_core::retry::Policy;
use tidegate_core::store::{Act, Counted, News};
use tokio_postgres::Row;

use crate::conn::{Conn, Step};
use crate::names::{Lane, Names};
use crate::row::{self, LeaseRow};
use crate::shared::Shared;
use crate::trouble::Trouble;
use crate::watch::Hands;
use crate::writes::{self, Mark, NewAudit, Part, Writes, part};

/// Which count of a queue a message is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Ready,
    Scheduled,
    Leased,
    Parked,
    Dead,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts([i64; 5]);

/// How often something happened in a lane, with the names under which it is counted.
#[derive(Debug, Clone)]
struct Tallied {
    queue_id: i64,
    kind: Kind,
    n: i64,
}

/// Limits a store was opened with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_payload: usize,
    pub(crate) retention: Duration,
}

/// A step of a group that awaits.
pub(crate) type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, Trouble>> + Send + 'a>>;

/// A transaction under way.
pub(crate) struct Group {
    pub(crate) conn: Conn,
    pub(crate) now: Timestamp,
    pub(crate) limits: Limits,
    pub(crate) news: News,
    pub(crate) writes: Writes,
    /// How much was done: messages, leases, settlements and so on.
    pub(crate) items: usize,
    /// Leases whose runs end in this group and whose rows were taken away for it, until their ends are sent.
    pub(crate) ending: HashMap<MessageId, LeaseRow>,
    /// It was begun before, and somebody was in its way.
    pub(crate) again: bool,
    /// Answers of statements that were sent with its beginning.
    pub(crate) first: Vec<(&'static str, Vec<Row>)>,
    /// The clock as it was when the transaction began.
    pub(crate) hands: Hands,
    pub(crate) shared: Arc<Shared>,
    counts: BTreeMap<i64, Counts>,
    tallies: BTreeMap<(i64, Counted, Cow<'static, str>), Tallied>,
    policies: Option<HashMap<Kind, Policy>>,
}

/// A place to which a step can be taken back.
#[derive(Debug)]
pub(crate) struct Saved {
    mark: Mark,
    counts: BTreeMap<i64, Counts>,
    tallies: BTreeMap<(i64, Counted, Cow<'static, str>), Tallied>,
    ready: usize,
    ended: usize,
}

impl Group {
    pub(crate) fn new(conn: Conn, hands: Hands, shared: Arc<Shared>) -> Self {
        Self {
            conn,
            now: hands.wall,
            limits: shared.limits,
            news: News::default(),
            writes: Writes::default(),
            items: 0,
            ending: HashMap::new(),
            again: false,
            first: Vec::new(),
            hands,
            shared,
            counts: BTreeMap::new(),
            tallies: BTreeMap::new(),
            policies: None,
        }
    }

    pub(crate) fn names(&self) -> &Names {
        &self.shared.names
    }

    /// Notes where the group stands, so that a refused item can be taken back. Only what was not sent yet is: a step that
    /// sends something itself uses [`Group::save`].
    pub(crate) fn mark(&self) -> Saved {
        Saved {
            mark: self.writes.mark(),
            counts: self.counts.clone(),
            tallies: self.tallies.clone(),
            ready: self.news.ready.len(),
            ended: self.news.ended.len(),
        }
    }

    /// Takes back what came after a mark.
    pub(crate) fn undo(&mut self, saved: Saved) {
        self.writes.undo(saved.mark);
        self.counts = saved.counts;
        self.tallies = saved.tallies;
        self.news.ready.truncate(saved.ready);
        self.news.ended.truncate(saved.ended);
    }

    /// The same for a step that sends something itself: what was collected before it is sent first.
    pub(crate) async fn save(&mut self) -> Result<Saved, Trouble> {
        self.send().await?;
        self.conn.client().batch_execute("savepoint step").await?;
        Ok(self.mark())
    }

    /// Takes back what was sent and collected since.
    pub(crate) async fn take_back(&mut self, saved: Saved) -> Result<(), Trouble> {
        self.undo(saved);
        self.conn.forget_what_was_put_off();
        Ok(self.conn.client().batch_execute("rollback to step; release step").await?)
    }

    /// Keeps it.
    pub(crate) async fn keep(&mut self) -> Result<(), Trouble> {
        self.conn.send().await?;
        Ok(self.conn.client().batch_execute("release step").await?)
    }

    /// What was collected is sent in front of whatever is sent next, which reads it.
    pub(crate) fn flush(&mut self) {
        if !self.writes.is_empty() {
            self.conn.put_off(std::mem::take(&mut self.writes));
        }
    }

    /// Sends what was collected, and waits for it.
    pub(crate) async fn send(&mut self) -> Result<(), Trouble> {
        self.flush();
        Ok(self.conn.send().await?)
    }

    /// Reads with the group's first statements: their answers are here if they were sent with its beginning.
    pub(crate) async fn first_of_all(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<Row>>, Trouble> {
        let sent =
            self.first.len() >= steps.len() && self.first.iter().zip(steps).all(|((known, _), (sql, _))| known == sql);
        if sent {
            return Ok(self.first.drain(..steps.len()).map(|(_, rows)| rows).collect());
        }
        Ok(self.conn.many(steps).await?)
    }

    /// A lane by its number.
    pub(crate) async fn lane(&self, id: i64) -> Result<Arc<Lane>, Trouble> {
        self.shared.names.lane(&self.conn, id).await
    }

    /// Lanes by their numbers, read together where they are not known.
    pub(crate) async fn lanes(&self, ids: &[i64]) -> Result<HashMap<i64, Arc<Lane>>, Trouble> {
        self.shared.names.lanes(&self.conn, ids).await
    }

    /// What a kind allows; `None` when no worker ever declared it. Read once in a group.
    pub(crate) async fn policy(&mut self, kind: &Kind) -> Result<Option<Policy>, Trouble> {
        if self.policies.is_none() {
            self.policies = Some(policies(&self.conn).await?);
        }
        Ok(self.policies.as_ref().and_then(|policies| policies.get(kind)).cloned())
    }

    /// Whether what kinds allow was read in this group.
    pub(crate) fn knows_policies(&self) -> bool {
        self.policies.is_some()
    }

    /// What kinds allow, read together with something else.
    pub(crate) fn remember_policies(&mut self, policies: HashMap<Kind, Policy>) {
        self.policies = Some(policies);
    }

    /// A call of this group changed policies: the next one reads them again.
    pub(crate) fn settings_changed(&mut self) {
        self.policies = None;
    }

    /// Notes that messages came to a place (+) or left it (-).
    pub(crate) fn count(&mut self, queue_id: i64, place: Place, by: i64) {
        self.counts.entry(queue_id).or_default().0[place as usize] += by;
    }

    /// Ready, scheduled and leased messages that this group added to a queue so far.
    pub(crate) fn added(&self, queue_id: i64) -> i64 {
        self.counts.get(&queue_id).map_or(0, |counts| counts.0[..3].iter().sum())
    }

    /// Counts what metrics show.
    pub(crate) fn tally(&mut self, lane: &Lane, what: Counted, code: impl Into<Cow<'static, str>>) {
        self.tally_n(lane, what, code, 1);
    }

    /// The same several times.
    pub(crate) fn tally_n(&mut self, lane: &Lane, what: Counted, code: impl Into<Cow<'static, str>>, n: i64) {
        let first = || Tallied { queue_id: lane.queue_id, kind: lane.kind.clone(), n: 0 };
        self.tallies.entry((lane.id, what, code.into())).or_insert_with(first).n += n;
    }

    /// Tells this process's workers that the queue has something for them.
    pub(crate) fn announce(&mut self, queue: &QueueName) {
        if !self.news.ready.contains(queue) {
            self.news.ready.push(queue.clone());
        }
    }

    /// Notes an operator's act.
    pub(crate) fn audit(
        &mut self,
        act: &Act,
        what: &str,
        message: Option<MessageId>,
        queue_id: Option<i64>,
        detail: &str,
    ) {
        self.writes.audits.push(NewAudit {
            at: self.now,
            act: act.clone(),
            what: what.to_owned(),
            message,
            queue: queue_id,
            detail: detail.to_owned(),
        });
    }

    /// Sends what is left, with what was counted, and the commit, together.
    pub(crate) async fn commit(mut self) -> (Conn, Ended) {
        let writes = std::mem::take(&mut self.writes);
        let (rows, mut parts) = writes.parts(self.conn.copies());
        self.totals(&mut parts);
        let params = writes::bound(&parts);
        let (sent, ended) = self.conn.all_then(&writes::sent(&rows, &parts, &params), "commit").await;
        let ended = match (sent, ended) {
            (Ok(()), Some(Ok(()))) => Ended::Committed(self.news),
            // A commit that comes after an error is none; one that was never sent neither.
            (Err(error), Some(Ok(()))) => Ended::Undone(error),
            (Err(error), None) => Ended::Open(error),
            (Err(error), Some(Err(_))) if error.code().is_some() => Ended::Undone(error),
            (Err(error), Some(Err(_))) | (Ok(()), Some(Err(error))) => Ended::Unanswered(error),
            (Ok(()), None) => unreachable!("only an error keeps the commit from being sent"),
        };
        (self.conn, ended)
    }

    /// What was counted, one row for each queue and each counter.
    fn totals<'a>(&self, parts: &mut Vec<Part<'a>>) {
        const DEPTHS: &str = "-- depths: what this commit changes, one row for each queue
            insert into tidegate.depth (queue, ready, scheduled, leased, parked, dead)
            select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])";
        const TALLIES: &str = "-- counters: what this commit counted
            insert into tidegate.tally (queue, kind, what, code, n)
            select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[])";
        let counts: Vec<_> = self.counts.iter().filter(|(_, counts)| counts.0 != [0; 5]).collect();
        if !counts.is_empty() {
            let of = |at: usize| counts.iter().map(|(_, Counts(counts))| counts[at]).collect::<Vec<i64>>();
            let queues: Vec<i64> = counts.iter().map(|(queue, _)| **queue).collect();
            part!(parts, DEPTHS, queues, of(0), of(1), of(2), of(3), of(4));
        }
        if !self.tallies.is_empty() {
            part!(
                parts,
                TALLIES,
                self.tallies.values().map(|tallied| tallied.queue_id).collect::<Vec<_>>(),
                self.tallies.values().map(|tallied| tallied.kind.as_str().to_owned()).collect::<Vec<_>>(),
                self.tallies.keys().map(|(_, what, _)| what.as_str()).collect::<Vec<_>>(),
                self.tallies.keys().map(|(.., code)| row::storable(code).into_owned()).collect::<Vec<_>>(),
                self.tallies.values().map(|tallied| tallied.n).collect::<Vec<_>>(),
            );
        }
    }
}

/// How a transaction ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It is durable.
    Committed(News),
    /// It was rolled back.
    Undone(tokio_postgres::Error),
    /// Its commit was not sent.
    Open(tokio_postgres::Error),
    /// Its commit was sent, and nobody knows.
    Unanswered(tokio_postgres::Error),
}

/// Everything that workers declared.
pub(crate) const POLICIES: &str = "-- policies: as many as there are kinds
    select kind, policy from tidegate.policy";

/// What workers declared, by kind: [`POLICIES`].
pub(crate) async fn policies(conn: &Conn) -> Result<HashMap<Kind, Policy>, Trouble> {
    conn.query(POLICIES, &[]).await?.iter().map(row::policy).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_places_are_numbered_as_the_counts_are_written() {
        use super::Place;
        assert_eq!(
            [Place::Ready, Place::Scheduled, Place::Leased, Place::Parked, Place::Dead].map(|p| p as usize),
            [0, 1, 2, 3, 4]
        );
    }
}
