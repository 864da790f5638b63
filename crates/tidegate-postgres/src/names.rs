//! Queues and lanes by their names. They only ever grow, so that their numbers may be remembered; whether a queue is
//! paused, and how much it takes, may not.
//!
//! A new one is made by a statement of its own before the transaction that needs it: no transaction of a group holds a
//! lock that every other enqueue of the queue would wait for.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, QueueName, Tenant};
use tidegate_core::message::{NewMessage, Priority};

use crate::conn::Conn;
use crate::row;
use crate::trouble::Trouble;

/// A row of `lane` with the names of its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) id: i64,
    pub(crate) queue_id: i64,
    pub(crate) tenant: Tenant,
    pub(crate) queue: QueueName,
    pub(crate) kind: Kind,
    pub(crate) version: u32,
    pub(crate) priority: Priority,
}

/// A row of `queue`.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub(crate) id: i64,
    pub(crate) tenant: Tenant,
    pub(crate) name: QueueName,
    pub(crate) paused: bool,
    pub(crate) max_depth: Option<i64>,
}

/// What a lane is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LaneName {
    pub(crate) tenant: Tenant,
    pub(crate) queue: QueueName,
    pub(crate) kind: Kind,
    pub(crate) version: u32,
    pub(crate) priority: Priority,
}

impl LaneName {
    pub(crate) fn of(message: &NewMessage) -> Self {
        Self {
            tenant: message.tenant.clone(),
            queue: message.queue.clone(),
            kind: message.kind.clone(),
            version: message.version,
            priority: message.priority,
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    by_name: HashMap<LaneName, Arc<Lane>>,
    by_id: HashMap<i64, Arc<Lane>>,
}

/// What this process remembers of names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: Mutex<Known>,
}

/// Columns of a lane and its queue.
macro_rules! lane_columns {
    () => {
        "l.id, l.queue, l.kind, l.version, l.priority, q.tenant, q.name"
    };
}

impl Names {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server is another one, or was restored: numbers may mean other names.
    pub(crate) fn forget(&self) {
        *self.known() = Known::default();
    }

    fn remember(&self, lane: Lane) -> Arc<Lane> {
        let lane = Arc::new(lane);
        let mut known = self.known();
        let name = LaneName {
            tenant: lane.tenant.clone(),
            queue: lane.queue.clone(),
            kind: lane.kind.clone(),
            version: lane.version,
            priority: lane.priority,
        };
        known.by_name.insert(name, Arc::clone(&lane));
        known.by_id.insert(lane.id, Arc::clone(&lane));
        lane
    }

    /// The lane of this name, if it was made or looked up here before.
    pub(crate) fn get(&self, name: &LaneName) -> Option<Arc<Lane>> {
        self.known().by_name.get(name).cloned()
    }

    /// Makes the lanes that are not known, and their queues, outside of any transaction.
    pub(crate) async fn ensure(&self, conn: &Conn, wanted: impl Iterator<Item = LaneName>) -> Result<(), Trouble> {
        const QUEUES: &str = "-- names: queues, made when they are new
            insert into tidegate.queue (tenant, name) select * from unnest($1::text[], $2::text[])
            on conflict (tenant, name) do nothing";
        const LANES: &str = "-- names: lanes, made when they are new
            insert into tidegate.lane (queue, kind, version, priority)
            select q.id, u.kind, u.version, u.priority
            from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::integer[])
                as u(tenant, name, kind, version, priority)
            join tidegate.queue q on q.tenant = u.tenant and q.name = u.name
            on conflict (queue, kind, version, priority) do nothing";
        const READ: &str = concat!(
            "-- names: what the new ones are\n select ",
            lane_columns!(),
            " from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::integer[])
                as u(tenant, name, kind, version, priority)
            join tidegate.queue q on q.tenant = u.tenant and q.name = u.name
            join tidegate.lane l on l.queue = q.id and l.kind = u.kind and l.version = u.version
                and l.priority = u.priority"
        );
        let wanted: HashSet<LaneName> = {
            let known = self.known();
            wanted.filter(|name| !known.by_name.contains_key(name)).collect()
        };
        if wanted.is_empty() {
            return Ok(());
        }
        // In order, so that two processes that make the same ones do not wait for each other in a circle.
        let mut wanted: Vec<LaneName> = wanted.into_iter().collect();
        wanted.sort_unstable();
        let tenants: Vec<&str> = wanted.iter().map(|name| name.tenant.as_str()).collect();
        let queues: Vec<&str> = wanted.iter().map(|name| name.queue.as_str()).collect();
        let kinds: Vec<&str> = wanted.iter().map(|name| name.kind.as_str()).collect();
        let versions: Vec<i64> = wanted.iter().map(|name| i64::from(name.version)).collect();
        let priorities: Vec<i32> = wanted.iter().map(|name| i32::from(name.priority.get())).collect();
        let rows = conn.query(READ, &[&tenants, &queues, &kinds, &versions, &priorities]).await?;
        let rows = if rows.len() == wanted.len() {
            rows
        } else {
            let mut pairs: Vec<(&str, &str)> = tenants.iter().copied().zip(queues.iter().copied()).collect();
            pairs.dedup();
            let (of, names): (Vec<&str>, Vec<&str>) = pairs.into_iter().unzip();
            conn.execute(QUEUES, &[&of, &names]).await?;
            conn.execute(LANES, &[&tenants, &queues, &kinds, &versions, &priorities]).await?;
            conn.query(READ, &[&tenants, &queues, &kinds, &versions, &priorities]).await?
        };
        for row in &rows {
            self.remember(row::lane(row)?);
        }
        Ok(())
    }

    /// A lane by its number.
    pub(crate) async fn lane(&self, conn: &Conn, id: i64) -> Result<Arc<Lane>, Trouble> {
        self.lanes(conn, &[id]).await?;
        let lane = self.known().by_id.get(&id).cloned();
        lane.ok_or_else(|| StoreError::corrupt(&format!("lane, row {id}"), "no such lane").into())
    }

    /// Lanes by their numbers, read together where they are not known; those that are not there are left out.
    pub(crate) async fn lanes(&self, conn: &Conn, ids: &[i64]) -> Result<HashMap<i64, Arc<Lane>>, Trouble> {
        const LANES: &str = concat!(
            "-- names: lanes by their numbers\n select ",
            lane_columns!(),
            " from tidegate.lane l join tidegate.queue q on q.id = l.queue where l.id = any($1)"
        );
        let unknown: Vec<i64> = {
            let known = self.known();
            let mut unknown: Vec<i64> = ids.iter().copied().filter(|id| !known.by_id.contains_key(id)).collect();
            unknown.sort_unstable();
            unknown.dedup();
            unknown
        };
        if !unknown.is_empty() {
            for row in &conn.query(LANES, &[&unknown]).await? {
                self.remember(row::lane(row)?);
            }
        }
        let known = self.known();
        Ok(ids.iter().filter_map(|id| Some((*id, Arc::clone(known.by_id.get(id)?)))).collect())
    }

    /// A lane that was read with others.
    pub(crate) fn note(&self, row: &tokio_postgres::Row) -> Result<Arc<Lane>, Trouble> {
        let id: i64 = row::column(row, "id", "lane")?;
        let known = self.known().by_id.get(&id).cloned();
        match known {
            Some(lane) => Ok(lane),
            None => Ok(self.remember(row::lane(row)?)),
        }
    }
}

/// A queue as it is now, if anybody ever used it. Read in the transaction that goes by it.
pub(crate) async fn find_queue(conn: &Conn, tenant: &Tenant, name: &QueueName) -> Result<Option<Queue>, Trouble> {
    const FIND: &str = "-- names: a queue as it is now
        select id, tenant, name, paused, max_depth from tidegate.queue where tenant = $1 and name = $2";
    let row = conn.query_opt(FIND, &[&tenant.as_str(), &name.as_str()]).await?;
    row.as_ref().map(row::queue).transpose()
}

/// A queue by its number.
pub(crate) async fn queue(conn: &Conn, id: i64) -> Result<Queue, Trouble> {
    const QUEUE: &str = "-- names: a queue by its number
        select id, tenant, name, paused, max_depth from tidegate.queue where id = $1";
    match conn.query_opt(QUEUE, &[&id]).await? {
        Some(row) => row::queue(&row),
        None => Err(StoreError::corrupt(&format!("queue, row {id}"), "no such queue").into()),
    }
}
