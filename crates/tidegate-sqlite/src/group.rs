//! One group: the calls that share a transaction, and what they accumulate until its commit.
//!
//! Ids, counts and counters are read or incremented in SQL inside the transaction, never taken from a memory that another
//! process could have made stale. What is interned (queues, lanes) only ever grows, so that it may be remembered, and the
//! leases that this process gave are remembered for as long as nobody else wrote; all of it is forgotten whenever another
//! process committed or a group was rolled back.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, MessageId, QueueName, Tenant};
use tidegate_core::message::{NewMessage, Priority};
use tidegate_core::retry::Policy;
use tidegate_core::store::{self, Act, Counted, News};

use crate::room::RoomFor;
use crate::row::{self, LeaseRow};
use crate::seal;
use crate::statements::{Lent, Statements};
use crate::trouble::Trouble;

/// A row of `tide_lane` with the names of its queue.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    pub(crate) id: i64,
    pub(crate) queue_id: i64,
    pub(crate) tenant: Tenant,
    pub(crate) queue: QueueName,
    pub(crate) kind: Kind,
    pub(crate) version: u32,
    pub(crate) priority: Priority,
}

impl Lane {
    /// Whether it is the lane of a new message.
    pub(crate) fn takes(&self, message: &NewMessage) -> bool {
        (self.version, self.priority) == (message.version, message.priority)
            && (&self.kind, &self.queue, &self.tenant) == (&message.kind, &message.queue, &message.tenant)
    }
}

/// The most leases that are remembered.
const MOST_LEASES: usize = 16_384;

/// Interned names and leases, remembered between groups.
#[derive(Debug, Default)]
pub(crate) struct Interned {
    /// Leases as this process wrote them; each is handed out once.
    leases: BTreeMap<MessageId, LeaseRow>,
    queues: HashMap<(Tenant, QueueName), i64>,
    lanes: HashMap<i64, Arc<Lane>>,
    /// Queues all of whose lanes are in `lanes`.
    complete: HashSet<i64>,
}

impl Interned {
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Another process may have made lanes: names keep their numbers, but a queue's list of lanes may have grown.
    pub(crate) fn others_wrote(&mut self) {
        self.complete.clear();
        // And a lease may be anything by now.
        self.leases.clear();
    }
}

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
    pub(crate) retention: std::time::Duration,
}

/// A transaction under way.
pub(crate) struct Group<'c> {
    pub(crate) conn: &'c Connection,
    pub(crate) now: Timestamp,
    pub(crate) limits: Limits,
    pub(crate) news: News,
    /// What there is room for on the disk.
    pub(crate) room_for: RoomFor,
    /// How many bytes of new messages there is room for.
    pub(crate) allowance: u64,
    /// How much was done: messages, leases, settlements and so on.
    pub(crate) items: usize,
    statements: Statements<'c>,
    interned: &'c mut Interned,
    /// The lane of the last message that was enqueued: the next one's is most often the same.
    last_lane: Option<Arc<Lane>>,
    last_id: Option<MessageId>,
    first_last_id: Option<MessageId>,
    counts: BTreeMap<i64, Counts>,
    tallies: BTreeMap<(i64, Counted, Cow<'static, str>), Tallied>,
    /// Depth and limit of queues as stored when this transaction began; nobody else writes while it runs.
    depths: HashMap<i64, (i64, Option<i64>)>,
    policies: HashMap<Kind, Option<Policy>>,
    /// The lane of the last message that completed, and what its kind allows.
    last_policy: Option<(i64, Policy)>,
}

impl<'c> Group<'c> {
    pub(crate) fn new(conn: &'c Connection, now: Timestamp, limits: Limits, interned: &'c mut Interned) -> Self {
        Self {
            conn,
            now,
            limits,
            news: News::default(),
            room_for: RoomFor::Accepting,
            allowance: u64::MAX,
            items: 0,
            statements: Statements::of(conn),
            interned,
            last_lane: None,
            last_id: None,
            first_last_id: None,
            counts: BTreeMap::new(),
            tallies: BTreeMap::new(),
            depths: HashMap::new(),
            policies: HashMap::new(),
            last_policy: None,
        }
    }

    /// A statement that is run for every item, kept at hand for as long as the group lasts.
    pub(crate) fn sql(&self, sql: &'static str) -> Result<Lent<'_, 'c>, rusqlite::Error> {
        self.statements.get(sql)
    }

    /// How many steps SQLite took for the items of this group so far.
    pub(crate) fn take_steps(&self) -> u64 {
        self.statements.take_steps()
    }

    /// Runs a step that writes more than once, so that its refusal leaves nothing behind.
    pub(crate) fn atomically<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let (counts, tallies, last_id) = (self.counts.clone(), self.tallies.clone(), self.last_id);
        let (ready, ended) = (self.news.ready.len(), self.news.ended.len());
        self.conn.prepare_cached("savepoint step")?.execute([])?;
        let outcome = step(self);
        if let Err(Trouble::Item(_)) = outcome {
            self.conn.prepare_cached("rollback to step")?.execute([])?;
            (self.counts, self.tallies, self.last_id) = (counts, tallies, last_id);
            self.news.ready.truncate(ready);
            self.news.ended.truncate(ended);
            // A lane or queue made inside the step is gone with it.
            self.interned.forget();
            self.last_lane = None;
        }
        if !matches!(outcome, Err(Trouble::Group(_))) {
            self.conn.prepare_cached("release step")?.execute([])?;
        }
        outcome
    }

    /// Lets somebody else write on this transaction as another process would between two: what this group knows of the
    /// store is written down before, and read again after. `enqueue_in` inside a transactional effect makes ids and lanes.
    pub(crate) fn lend<T>(&mut self, work: impl FnOnce(&Connection) -> T) -> Result<T, Trouble> {
        self.write_last_id()?;
        let made = work(self.conn);
        (self.last_id, self.first_last_id) = (None, None);
        self.depths.clear();
        self.interned.others_wrote();
        self.last_lane = None;
        Ok(made)
    }

    fn write_last_id(&mut self) -> Result<(), rusqlite::Error> {
        if let (Some(last), true) = (self.last_id, self.last_id != self.first_last_id) {
            self.conn.prepare_cached("update tide_store set last_id = ?1")?.execute([last.as_i64()])?;
            self.first_last_id = self.last_id;
        }
        Ok(())
    }

    /// The id of the next message.
    pub(crate) fn next_id(&mut self) -> Result<MessageId, Trouble> {
        let last = match self.last_id {
            Some(last) => last,
            None => {
                let last: i64 =
                    self.conn.prepare_cached("select last_id from tide_store")?.query_row([], |row| row.get(0))?;
                self.first_last_id = Some(MessageId::from_i64(last));
                MessageId::from_i64(last)
            }
        };
        let id = MessageId::next_after(last, self.now);
        self.last_id = Some(id);
        Ok(id)
    }

    /// The queue's row, made when it is new.
    pub(crate) fn queue(&mut self, tenant: &Tenant, queue: &QueueName) -> Result<i64, Trouble> {
        if let Some(id) = self.known_queue(tenant, queue)? {
            return Ok(id);
        }
        const INSERT: &str = "insert into tide_queue (tenant, name, seal) values (?1, ?2, 0) returning id";
        // The row's number is under its seal, and not known before there is a row.
        const SEAL: &str = "update tide_queue set seal = ?2 where id = ?1";
        let (tenant_name, name) = (tenant.as_str(), queue.as_str());
        let id: i64 = self.conn.prepare_cached(INSERT)?.query_row([tenant_name, name], |row| row.get(0))?;
        let seal = seal::of(seal::QUEUE, params![id, tenant_name, name, 0, None::<i64>])?;
        self.conn.prepare_cached(SEAL)?.execute([id, seal])?;
        self.interned.queues.insert((tenant.clone(), queue.clone()), id);
        Ok(id)
    }

    /// The queue's row, if anybody ever used it.
    pub(crate) fn known_queue(&mut self, tenant: &Tenant, queue: &QueueName) -> Result<Option<i64>, Trouble> {
        let name = (tenant.clone(), queue.clone());
        if let Some(id) = self.interned.queues.get(&name) {
            return Ok(Some(*id));
        }
        let id = find_queue(self.conn, tenant, queue)?;
        if let Some(id) = id {
            self.interned.queues.insert(name, id);
        }
        Ok(id)
    }

    /// The lane of a new message.
    pub(crate) fn lane_for(
        &mut self,
        tenant: &Tenant,
        queue: &QueueName,
        kind: &Kind,
        version: u32,
        priority: Priority,
    ) -> Result<Arc<Lane>, Trouble> {
        if let Some(lane) = &self.last_lane
            && (lane.version, lane.priority) == (version, priority)
            && (&lane.kind, &lane.queue, &lane.tenant) == (kind, queue, tenant)
        {
            return Ok(Arc::clone(lane));
        }
        let lane = self.interned_lane(tenant, queue, kind, version, priority)?;
        self.last_lane = Some(Arc::clone(&lane));
        Ok(lane)
    }

    fn interned_lane(
        &mut self,
        tenant: &Tenant,
        queue: &QueueName,
        kind: &Kind,
        version: u32,
        priority: Priority,
    ) -> Result<Arc<Lane>, Trouble> {
        let queue_id = self.queue(tenant, queue)?;
        let fits = |lane: &&Arc<Lane>| {
            lane.queue_id == queue_id && lane.version == version && lane.priority == priority && lane.kind == *kind
        };
        if let Some(lane) = self.interned.lanes.values().find(fits) {
            return Ok(Arc::clone(lane));
        }
        const KNOWN: &str = "-- another process may have made it
            select id from tide_lane where queue = ?1 and kind = ?2 and version = ?3 and priority = ?4";
        const INSERT: &str = "insert into tide_lane (queue, kind, version, priority, seal) values (?1, ?2, ?3, ?4, 0)
            returning id";
        const SEAL: &str = "update tide_lane set seal = ?2 where id = ?1";
        let columns = params![queue_id, kind.as_str(), version, priority.get()];
        let known = self.conn.prepare_cached(KNOWN)?.query_row(columns, |row| row.get(0)).optional()?;
        if let Some(id) = known {
            let lane = self.lane(id)?;
            if fits(&&lane) {
                return Ok(lane);
            }
            let what = "the index of lanes leads to another lane";
            return Err(Trouble::Item(StoreError::corrupt(&format!("tide_lane, row {id}"), what)));
        }
        let id: i64 = self.conn.prepare_cached(INSERT)?.query_row(columns, |row| row.get(0))?;
        let seal = seal::of(seal::LANE, params![id, queue_id, kind.as_str(), version, priority.get()])?;
        self.conn.prepare_cached(SEAL)?.execute([id, seal])?;
        let (tenant, queue, kind) = (tenant.clone(), queue.clone(), kind.clone());
        let lane = Arc::new(Lane { id, queue_id, tenant, queue, kind, version, priority });
        self.interned.lanes.insert(id, Arc::clone(&lane));
        Ok(lane)
    }

    /// A lane by its number.
    pub(crate) fn lane(&mut self, id: i64) -> Result<Arc<Lane>, Trouble> {
        if let Some(lane) = self.interned.lanes.get(&id) {
            return Ok(Arc::clone(lane));
        }
        let lane = Arc::new(load_lane(self.conn, id)?);
        self.interned.lanes.insert(id, Arc::clone(&lane));
        Ok(lane)
    }

    /// All lanes of a queue.
    pub(crate) fn lanes_of(&mut self, queue_id: i64) -> Result<Vec<Arc<Lane>>, Trouble> {
        if self.interned.complete.insert(queue_id) {
            let ids: Vec<i64> = self
                .conn
                .prepare_cached("select id from tide_lane where queue = ?1")?
                .query_map([queue_id], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for id in ids {
                self.lane(id)?;
            }
        }
        Ok(self.interned.lanes.values().filter(|lane| lane.queue_id == queue_id).cloned().collect())
    }

    /// What a kind allows; `None` when no worker ever declared it.
    pub(crate) fn policy(&mut self, kind: &Kind) -> Result<Option<Policy>, Trouble> {
        if let Some(policy) = self.policies.get(kind) {
            return Ok(policy.clone());
        }
        let policy = policy(self.conn, kind)?;
        self.policies.insert(kind.clone(), policy.clone());
        Ok(policy)
    }

    /// The same for the kind of a lane; the default when no worker ever declared it.
    pub(crate) fn policy_of_lane(&mut self, lane: i64) -> Result<Policy, Trouble> {
        if let Some((of, policy)) = &self.last_policy
            && *of == lane
        {
            return Ok(policy.clone());
        }
        let kind = self.lane(lane)?.kind.clone();
        let policy = self.policy(&kind)?.unwrap_or_default();
        self.last_policy = Some((lane, policy.clone()));
        Ok(policy)
    }

    /// A call of this group changed limits or policies: the next one reads them again.
    pub(crate) fn settings_changed(&mut self) {
        self.depths.clear();
        self.policies.clear();
        self.last_policy = None;
    }

    /// The lane of a new message if there is such a lane and this process knows it.
    pub(crate) fn known_lane(&mut self, message: &NewMessage) -> Option<Arc<Lane>> {
        if let Some(lane) = self.last_lane.as_ref().filter(|lane| lane.takes(message)) {
            return Some(Arc::clone(lane));
        }
        let lane = self.interned.lanes.values().find(|lane| lane.takes(message)).cloned()?;
        self.last_lane = Some(Arc::clone(&lane));
        Some(lane)
    }

    /// A remembered lease, which stays remembered.
    pub(crate) fn remembered_lease(&self, id: MessageId) -> Option<&LeaseRow> {
        self.interned.leases.get(&id)
    }

    /// Whether a remembered lease lies between these two.
    pub(crate) fn remembers_between(&self, after: MessageId, before: MessageId) -> bool {
        use std::ops::Bound::Excluded;
        after < before && self.interned.leases.range((Excluded(after), Excluded(before))).next().is_some()
    }

    /// Remembers a lease that was just written. Whoever writes to it again takes it out before.
    pub(crate) fn remember_lease(&mut self, id: MessageId, lease: LeaseRow) {
        if self.interned.leases.len() >= MOST_LEASES {
            self.interned.leases.clear();
        }
        self.interned.leases.insert(id, lease);
    }

    /// A lease as it stands in its row, if this process wrote it last and nobody wrote to the store since: the group began by
    /// asking SQLite for that, and holds the write lock. From now on the row has to be read.
    pub(crate) fn take_lease(&mut self, id: MessageId) -> Option<LeaseRow> {
        self.interned.leases.remove(&id)
    }

    /// Notes that a message came to a place (+1) or left it (-1).
    pub(crate) fn count(&mut self, queue_id: i64, place: Place, by: i64) {
        self.counts.entry(queue_id).or_default().0[place as usize] += by;
    }

    /// Ready, scheduled and leased messages of a queue, and its limit.
    pub(crate) fn depth(&mut self, queue_id: i64) -> Result<(i64, Option<i64>), Trouble> {
        let known = self.depths.get(&queue_id).copied();
        let (stored, limit) = match known {
            Some(known) => known,
            None => {
                const DEPTH: &str = "select ready + scheduled + leased from tide_queue where id = ?1";
                let depth: i64 = self.conn.prepare_cached(DEPTH)?.query_row([queue_id], |row| row.get(0))?;
                let read = (depth, queue_row(self.conn, queue_id)?.max_depth);
                self.depths.insert(queue_id, read);
                read
            }
        };
        let here = self.counts.get(&queue_id).map_or(0, |counts| counts.0[..3].iter().sum());
        Ok((stored + here, limit))
    }

    /// Counts what metrics show.
    pub(crate) fn tally(&mut self, lane: &Lane, what: Counted, code: impl Into<Cow<'static, str>>) {
        let first = || Tallied { queue_id: lane.queue_id, kind: lane.kind.clone(), n: 0 };
        self.tallies.entry((lane.id, what, code.into())).or_insert_with(first).n += 1;
    }

    /// Counts the same for several.
    pub(crate) fn tally_many(&mut self, lane: &Lane, what: Counted, code: &'static str, n: usize) {
        let first = || Tallied { queue_id: lane.queue_id, kind: lane.kind.clone(), n: 0 };
        self.tallies.entry((lane.id, what, code.into())).or_insert_with(first).n +=
            i64::try_from(n).unwrap_or(i64::MAX);
    }

    /// Tells this process's workers that the queue has something for them.
    pub(crate) fn announce(&mut self, queue: &QueueName) {
        if !self.news.ready.contains(queue) {
            self.news.ready.push(queue.clone());
        }
    }

    /// Writes an operator's act.
    pub(crate) fn audit(
        &self,
        act: &Act,
        what: &str,
        message: Option<MessageId>,
        queue_id: Option<i64>,
        detail: &str,
    ) -> Result<(), Trouble> {
        const AUDIT: &str = "insert into tide_audit (at, actor, act, reason, message, queue, detail, seal)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let entry = params![
            self.now.as_millis(),
            act.actor,
            what,
            act.reason,
            message.map(MessageId::as_i64),
            queue_id,
            detail
        ];
        seal::execute(&mut self.conn.prepare_cached(AUDIT)?, seal::AUDIT, entry)?;
        Ok(())
    }

    /// Writes what was accumulated; the commit follows.
    pub(crate) fn finish(&mut self) -> Result<News, rusqlite::Error> {
        self.write_last_id()?;
        for (queue, Counts([ready, scheduled, leased, parked, dead])) in std::mem::take(&mut self.counts) {
            const COUNT: &str = "update tide_queue set ready = ready + ?2, scheduled = scheduled + ?3,
                leased = leased + ?4, parked = parked + ?5, dead = dead + ?6 where id = ?1";
            if [ready, scheduled, leased, parked, dead] != [0; 5] {
                self.conn.prepare_cached(COUNT)?.execute([queue, ready, scheduled, leased, parked, dead])?;
            }
        }
        for ((_, what, code), Tallied { queue_id, kind, n }) in std::mem::take(&mut self.tallies) {
            const TALLY: &str =
                "-- a code is what a handler says: a number in it must not make a row, and a metric, for each
                insert into tide_tally (queue, kind, what, code, n)
                select ?1, ?2, ?3, case
                    when ?4 = '' or exists (select 1 from tide_tally
                        where queue = ?1 and kind = ?2 and what = ?3 and code = ?4) then ?4
                    when (select count(*) from tide_tally where queue = ?1 and kind = ?2 and what = ?3) < ?6 then ?4
                    else ?7 end, ?5
                where true
                on conflict (queue, kind, what, code) do update set n = n + excluded.n";
            let tally = params![queue_id, kind.as_str(), what.as_str(), code, n, store::MOST_CODES, store::OTHER_CODES];
            self.conn.prepare_cached(TALLY)?.execute(tally)?;
        }
        Ok(std::mem::take(&mut self.news))
    }
}

/// Reads a lane with the names of its queue.
pub(crate) fn load_lane(conn: &Connection, id: i64) -> Result<Lane, Trouble> {
    const LANE: &str = "select * from tide_lane where id = ?1";
    let mut statement = conn.prepare_cached(LANE)?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else {
        return Err(Trouble::Item(StoreError::corrupt(&format!("tide_lane, row {id}"), "no such lane")));
    };
    let table = "tide_lane";
    seal::check(row, seal::LANE)?;
    let queue_id = row::column(row, "queue", table)?;
    let queue = queue_row(conn, queue_id)?;
    let priority: u8 = row::column(row, "priority", table)?;
    Ok(Lane {
        id,
        queue_id,
        tenant: queue.tenant,
        queue: queue.name,
        kind: row::parsed(row, "kind", table)?,
        version: row::column(row, "version", table)?,
        priority: Priority::new(priority)?,
    })
}

/// What is under the seal of a row of `tide_queue`.
pub(crate) struct QueueRow {
    pub(crate) tenant: Tenant,
    pub(crate) name: QueueName,
    pub(crate) paused: bool,
    pub(crate) max_depth: Option<i64>,
}

/// A queue by its number.
pub(crate) fn queue_row(conn: &Connection, id: i64) -> Result<QueueRow, Trouble> {
    const QUEUE: &str = "select * from tide_queue where id = ?1";
    let table = "tide_queue";
    let mut statement = conn.prepare_cached(QUEUE)?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else {
        return Err(Trouble::Item(StoreError::corrupt(&format!("{table}, row {id}"), "no such queue")));
    };
    seal::check(row, seal::QUEUE)?;
    let tenant: String = row::column(row, "tenant", table)?;
    Ok(QueueRow {
        tenant: Tenant::new(&tenant)?,
        name: row::parsed(row, "name", table)?,
        paused: row::column(row, "paused", table)?,
        max_depth: row::column(row, "max_depth", table)?,
    })
}

/// The number of a queue, if anybody ever used it.
pub(crate) fn find_queue(conn: &Connection, tenant: &Tenant, name: &QueueName) -> Result<Option<i64>, Trouble> {
    const FIND: &str = "select id from tide_queue where tenant = ?1 and name = ?2";
    let names = params![tenant.as_str(), name.as_str()];
    let id: Option<i64> = conn.prepare_cached(FIND)?.query_row(names, |row| row.get(0)).optional()?;
    let Some(id) = id else { return Ok(None) };
    let found = queue_row(conn, id)?;
    if found.tenant == *tenant && found.name == *name {
        return Ok(Some(id));
    }
    let what = "the index of queues leads to another queue";
    Err(Trouble::Item(StoreError::corrupt(&format!("tide_queue, row {id}"), what)))
}

/// What a kind allows; `None` when no worker ever declared it.
pub(crate) fn policy(conn: &Connection, kind: &Kind) -> Result<Option<Policy>, Trouble> {
    let mut statement = conn.prepare_cached("select * from tide_policy where kind = ?1")?;
    let mut rows = statement.query([kind.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    seal::check(row, seal::POLICY)?;
    let text: String = row::column(row, "policy", "tide_policy")?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Trouble::Item(StoreError::corrupt(&format!("tide_policy.policy, kind {kind}"), &e.to_string())))
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
