//! Stores messages, once per key.
//!
//! The key is the gate: one row for as long as its message is kept, inserted before anything else of a message, or, where
//! there are many, copied behind it. A batch inserts its keys in their order, in one statement, so that two batches never
//! wait for each other in a circle.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::MessageId;
use tidegate_core::message::{DEFAULT_MAX_AGE, Due, Message, NewMessage};
use tidegate_core::store::{Counted, Enqueued, Verdicts};

use crate::conn::Conn;
use crate::copy::MANY;
use crate::group::Group;
use crate::names::{Lane, LaneName};
use crate::place::{self, Found, Lock};
use crate::row::{self, Life};
use crate::trouble::Trouble;
use crate::writes::{Body, NewKey};

/// New ids, in their order.
const NEXT_IDS: &str = "-- enqueue: ids only grow
    select * from tidegate.next_ids($1, $2)";

/// How long a caller waits before it tries a full queue again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// A message that was checked and hashed, on its caller's thread: the writer's time is everybody's.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    message: NewMessage,
    hash: [u8; 16],
    fingerprint: [u8; 16],
    headers: Option<String>,
}

impl Prepared {
    pub(crate) fn of(message: NewMessage, max_payload: usize) -> Result<Self, StoreError> {
        message.check(max_payload)?;
        let headers = (!message.headers.is_empty())
            .then(|| serde_json::to_string(&message.headers).expect("a map of strings is plain data"));
        Ok(Self { hash: message.key.hash(), fingerprint: message.fingerprint().0, headers, message })
    }

    /// How much text it is.
    pub(crate) fn size(&self) -> usize {
        self.message.payload.text().len() + self.headers.as_ref().map_or(0, String::len)
    }

    /// Its lane.
    pub(crate) fn lane(&self) -> LaneName {
        LaneName::of(&self.message)
    }
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From outside: the first of its flow, held back by its queue's limit.
    Outside,
    /// It follows from another message: its work was accepted already.
    Follows {
        /// The first message of the flow.
        flow: MessageId,
        /// The message it follows from.
        parent: MessageId,
    },
}

/// Stores a batch; what was refused while it was prepared keeps its place among the verdicts.
pub(crate) async fn enqueue(
    group: &mut Group,
    batch: &[&Result<Prepared, StoreError>],
) -> Result<Verdicts<Enqueued>, Trouble> {
    let good: Vec<(&Prepared, Origin)> =
        batch.iter().filter_map(|prepared| Some((prepared.as_ref().ok()?, Origin::Outside))).collect();
    let mut verdicts = many(group, &good).await?.into_iter();
    let all = batch.iter().map(|prepared| match prepared {
        Ok(_) => verdicts.next().unwrap_or_else(|| Err(StoreError::unavailable("no verdict on the message"))),
        Err(refused) => Err(refused.clone()),
    });
    Ok(all.collect())
}

/// What is known of a message before its key is looked at.
struct Looked<'a> {
    new: &'a Prepared,
    origin: Origin,
    lane: Arc<Lane>,
    due_at: Timestamp,
    /// Why an unknown key is not stored.
    refusal: Option<Refusal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Stale,
    Late(Timestamp),
    Full(i64),
}

/// The scope of a key, and the key.
type KeyOf = (i64, [u8; 16]);

impl Looked<'_> {
    fn key(&self) -> KeyOf {
        (self.lane.queue_id, self.new.hash)
    }
}

/// Stores messages, or finds what their keys mean already. Their lanes were made before the transaction began. Keys are
/// written at once, everything else is left in the group's writes: [`Group::save`] before it where it must be taken back.
pub(crate) async fn many(group: &mut Group, batch: &[(&Prepared, Origin)]) -> Result<Verdicts<Enqueued>, Trouble> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let looked = look(group, batch)?;
    let (limits, ids) = limits(group, &looked).await?;
    let mut ids = ids.into_iter();
    let mut verdicts: Vec<Option<Result<Enqueued, StoreError>>> = looked.iter().map(|_| None).collect();
    // One after the other where a queue has a limit: each new message counts for the next.
    if limits.values().any(|(limit, _)| limit.is_some()) {
        for (at, mut item) in looked.into_iter().enumerate() {
            if let Some((Some(limit), depth)) = limits.get(&item.lane.queue_id)
                && item.origin == Origin::Outside
                && item.refusal.is_none()
                && depth + group.added(item.lane.queue_id) >= *limit
            {
                item.refusal = Some(Refusal::Full(*limit));
            }
            let mut verdict = [None];
            batch_of(group, std::slice::from_ref(&item), &mut ids, &mut verdict).await?;
            let [verdict] = verdict;
            verdicts[at] = verdict;
        }
    } else {
        batch_of(group, &looked, &mut ids, &mut verdicts).await?;
    }
    let none = || Err(StoreError::unavailable("no verdict on the message"));
    Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(none)).collect())
}

fn look<'a>(group: &Group, batch: &[(&'a Prepared, Origin)]) -> Result<Vec<Looked<'a>>, Trouble> {
    let retained_from = group.now.before(group.limits.retention);
    batch
        .iter()
        .map(|(new, origin)| {
            // Made before the transaction, unless it was forgotten since: then all of it is done again.
            let lane = group.names().get(&new.lane()).ok_or(Trouble::Again("a lane is not known any more"))?;
            let message = &new.message;
            let due_at = due_at(group.now, message.due);
            let stale =
                message.key_time.is_some_and(|made| made < retained_from) && !canary::is(Canary::StaleKeyExecuted);
            let late = message.deadline.filter(|deadline| *deadline <= due_at);
            let refusal = match (stale, late) {
                (true, _) => Some(Refusal::Stale),
                (false, Some(deadline)) => Some(Refusal::Late(deadline)),
                (false, None) => None,
            };
            Ok(Looked { new, origin: *origin, lane, due_at, refusal })
        })
        .collect()
}

/// By queue: its limit, if it has one, and what is in it.
type Depths = HashMap<i64, (Option<i64>, i64)>;

/// Limits of the queues of a batch, and how much is in those that have one; and new ids in their order.
///
/// Whoever adds to a queue with a limit holds its lock until the commit. Without it two processes that each see one place
/// left would both take it.
async fn limits(group: &Group, looked: &[Looked<'_>]) -> Result<(Depths, Vec<MessageId>), Trouble> {
    const LIMITS: &str = "-- enqueue: limits as they are now
        select id, max_depth from tidegate.queue where id = any($1) and max_depth is not null order by id";
    let mut queues: Vec<i64> =
        looked.iter().filter(|item| item.origin == Origin::Outside).map(|item| item.lane.queue_id).collect();
    queues.sort_unstable();
    queues.dedup();
    let how_many = i32::try_from(looked.len()).unwrap_or(i32::MAX);
    let now = group.now.as_millis();
    // As many ids as may be needed; those of duplicates are never used.
    let answers = group.conn.many(&[(LIMITS, &[&queues]), (NEXT_IDS, &[&how_many, &now])]).await?;
    let mut limits = HashMap::new();
    for row in answers.first().into_iter().flatten() {
        let queue: i64 = row::column(row, 0, "queue")?;
        let limit: Option<i64> = row::column(row, 1, "queue")?;
        limits.insert(queue, (limit, depth(&group.conn, queue).await?));
    }
    let ids = answers.get(1).into_iter().flatten().map(|row| row::message_id(row, 0, "message_id"));
    Ok((limits, ids.collect::<Result<_, _>>()?))
}

/// Ready, scheduled and leased messages of a queue, which nobody else adds to until the transaction ends.
async fn depth(conn: &Conn, queue_id: i64) -> Result<i64, Trouble> {
    const LOCK: &str = "-- enqueue: one at a time where a queue has a limit
        select pg_advisory_xact_lock(hashtextextended('tidegate.queue', $1))";
    const DEPTH: &str = "-- enqueue: what is in the queue, by what commits added and the sweep summed up
        select coalesce(sum(ready + scheduled + leased), 0)::bigint from tidegate.depth where queue = $1";
    conn.query(LOCK, &[&queue_id]).await?;
    // A statement of its own: its snapshot is taken when the lock is held.
    row::first_i64(&conn.query(DEPTH, &[&queue_id]).await?)
}

/// Stores those whose keys are new, and answers the others.
async fn batch_of(
    group: &mut Group,
    batch: &[Looked<'_>],
    ids: &mut std::vec::IntoIter<MessageId>,
    verdicts: &mut [Option<Result<Enqueued, StoreError>>],
) -> Result<(), Trouble> {
    // A key that comes twice in one batch: the first one is stored, the others find it.
    let mut first: HashMap<KeyOf, usize> = HashMap::with_capacity(batch.len());
    for (at, item) in batch.iter().enumerate().filter(|(_, item)| item.refusal.is_none()) {
        first.entry(item.key()).or_insert(at);
    }
    let mut firsts: Vec<usize> = first.values().copied().collect();
    firsts.sort_unstable();
    let ids: Vec<MessageId> = ids.take(firsts.len()).collect();
    let stored = take_keys(group, batch, &firsts, ids).await?;
    for (at, id) in &stored {
        insert(group, &batch[*at], *id);
        verdicts[*at] = Some(Ok(Enqueued::New { id: *id }));
    }
    if !stored.is_empty() {
        failpoint::reach("enqueue.after_key");
    }
    let rest: Vec<usize> = (0..batch.len()).filter(|at| verdicts[*at].is_none()).collect();
    if rest.is_empty() {
        return Ok(());
    }
    // What this group stored is found as well: by a twin in the batch, and by the next one.
    group.flush();
    let known = known(group, batch, &rest).await?;
    for at in rest {
        let item = &batch[at];
        // Refused before another one of the batch was stored under its key, it found nothing.
        let before = stored.iter().any(|(of, _)| *of > at && batch[*of].key() == item.key());
        let known = known.get(&item.key()).filter(|_| item.refusal.is_none() || !before);
        verdicts[at] = Some(match (known, item.refusal) {
            // A known key is answered whatever else is the matter; only an unknown one can be too old or one too many.
            (Some(known), _) => answer(group, item, known),
            (None, Some(refusal)) => refuse(group, item, refusal),
            // Taken when it was to be stored, and free now: what had it was deleted or called off meanwhile.
            (None, None) => return Err(Trouble::Again("a key became free while it was looked at")),
        });
    }
    Ok(())
}

/// Inserts keys in their order; answers the items whose keys were new, with their ids.
///
/// That a key may turn out to be taken while it is inserted has its price for every key: the server writes down that it
/// was sure in the end. So what is not known is simply inserted first. Where somebody else was at the same key, that ends the
/// transaction, and it is carried out again, with care.
async fn take_keys(
    group: &mut Group,
    batch: &[Looked<'_>],
    firsts: &[usize],
    ids: Vec<MessageId>,
) -> Result<Vec<(usize, MessageId)>, Trouble> {
    // Two producers of one key: the second waits here for the first one's commit, and then finds its key taken, because
    // the statement looks at what is committed by then. Where the first one rolls back, the second goes on.
    const TAKE: &str = "-- enqueue: the key is the gate, one row for as long as its message is kept
        insert into tidegate.key (queue, hash, id, fingerprint)
        select * from unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[]) as u(queue, hash, id, fingerprint)
        order by u.queue, u.hash
        on conflict (queue, hash) do nothing
        returning id";
    const UNKNOWN: &str = "-- enqueue: which keys are not known; they are taken with all else that is written
        select u.place from unnest($1::bigint[], $2::bytea[]) with ordinality as u(queue, hash, place)
        where not exists (select from tidegate.key k where k.queue = u.queue and k.hash = u.hash)";
    const TAKE_UNKNOWN: &str =
        "-- enqueue: the keys that are not known; somebody else who is about to take one is waited for
        insert into tidegate.key (queue, hash, id, fingerprint)
        select * from unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[]) as u(queue, hash, id, fingerprint)
        where not exists (select from tidegate.key k where k.queue = u.queue and k.hash = u.hash)
        order by u.queue, u.hash
        returning id";
    if firsts.is_empty() {
        return Ok(Vec::new());
    }
    if ids.len() < firsts.len() {
        return Err(Trouble::Again("the server gave fewer ids than were asked for"));
    }
    let queues: Vec<i64> = firsts.iter().map(|at| batch[*at].lane.queue_id).collect();
    let hashes: Vec<[u8; 16]> = firsts.iter().map(|at| batch[*at].new.hash).collect();
    let fingerprints: Vec<[u8; 16]> = firsts.iter().map(|at| batch[*at].new.fingerprint).collect();
    if firsts.len() >= MANY && !group.again && group.conn.copies() {
        if !group.writes.keys.is_empty() {
            // What another verb of this group is about to take is known as well.
            group.flush();
        }
        let rows = group.conn.query(UNKNOWN, &[&queues, &hashes]).await?;
        let mut unknown = vec![false; firsts.len()];
        for row in &rows {
            let place: usize = row::unsigned(row, 0, "key")?;
            if let Some(unknown) = unknown.get_mut(place.saturating_sub(1)) {
                *unknown = true;
            }
        }
        let mut stored = Vec::with_capacity(rows.len());
        for (at, id) in (0..firsts.len()).filter(|at| unknown[*at]).zip(ids) {
            let (queue, hash, fingerprint) = (queues[at], hashes[at], fingerprints[at]);
            group.writes.keys.push(NewKey { queue, hash, id, fingerprint });
            stored.push((firsts[at], id));
        }
        return Ok(stored);
    }
    let take = if group.again { TAKE } else { TAKE_UNKNOWN };
    let taken = group.conn.query(take, &[&queues, &hashes, &row::id_list(&ids), &fingerprints]).await?;
    if taken.len() == firsts.len() {
        return Ok(firsts.iter().copied().zip(ids).collect());
    }
    let taken = taken.iter().map(|row| row::message_id(row, 0, "key")).collect::<Result<Vec<_>, _>>()?;
    let taken: std::collections::HashSet<MessageId> = taken.into_iter().collect();
    Ok(firsts.iter().copied().zip(ids).filter(|(_, id)| taken.contains(id)).collect())
}

fn insert(group: &mut Group, item: &Looked<'_>, id: MessageId) {
    let message = &item.new.message;
    let from_deadline = || message.deadline.map_or(DEFAULT_MAX_AGE, |deadline| deadline.since(item.due_at));
    let (flow, parent) = match item.origin {
        Origin::Outside => (None, None),
        Origin::Follows { flow, parent } => (Some(flow), Some(parent)),
    };
    group.writes.bodies.push(Body {
        id,
        lane: item.lane.id,
        key: message.key.as_str().to_owned(),
        payload: message.payload.text().into(),
        enqueued_at: group.now,
        first_due_at: (item.due_at > group.now).then_some(item.due_at),
        deadline: message.deadline,
        max_age_ms: row::millis(message.max_age.unwrap_or_else(from_deadline)),
        flow,
        parent,
        headers: item.new.headers.clone(),
    });
    place::put_ready(group, &item.lane, id, &Life::unbegun(item.lane.id, item.due_at));
    group.tally(&item.lane, Counted::Enqueued, "");
}

/// When a message may first be claimed; what is past is now.
fn due_at(now: Timestamp, due: Due) -> Timestamp {
    match due {
        Due::Now => now,
        Due::In(delay) => now.after(delay),
        Due::At(at) => at.max(now),
    }
}

/// Which message has the key of this one.
pub(crate) async fn whose(group: &Group, new: &Prepared) -> Result<Option<MessageId>, Trouble> {
    let Some(lane) = group.names().get(&new.lane()) else { return Ok(None) };
    Ok(key_row(&group.conn, lane.queue_id, new.hash).await?.map(|(id, _)| id))
}

/// The row of a key: its message, and the fingerprint of the payload it came with.
pub(crate) async fn key_row(
    conn: &Conn,
    queue_id: i64,
    hash: [u8; 16],
) -> Result<Option<(MessageId, [u8; 16])>, Trouble> {
    Ok(key_rows(conn, &[(queue_id, hash)]).await?.remove(&(queue_id, hash)))
}

async fn key_rows(conn: &Conn, keys: &[KeyOf]) -> Result<HashMap<KeyOf, (MessageId, [u8; 16])>, Trouble> {
    const KEYS: &str = "-- enqueue, settle repeated, redrive, find: whose keys they are
        select k.queue, k.hash, k.id, k.fingerprint from unnest($1::bigint[], $2::bytea[]) as u(queue, hash)
        join tidegate.key k on k.queue = u.queue and k.hash = u.hash";
    let queues: Vec<i64> = keys.iter().map(|(queue, _)| *queue).collect();
    let hashes: Vec<[u8; 16]> = keys.iter().map(|(_, hash)| *hash).collect();
    let table = "key";
    conn.query(KEYS, &[&queues, &hashes])
        .await?
        .iter()
        .map(|row| {
            let key = (row::column(row, 0, table)?, row::bytes16(row, 1, table)?);
            Ok((key, (row::message_id(row, 2, table)?, row::bytes16(row, 3, table)?)))
        })
        .collect()
}

/// What a known key leads to.
struct Known {
    id: MessageId,
    fingerprint: [u8; 16],
    found: Found,
    body: Result<Message, StoreError>,
}

/// What the keys of some items lead to, where they are known.
///
/// Nothing is locked: a duplicate changes nothing, and its answer is that of some moment of the call. A message that is
/// deleted between the key and its state is as good as unknown, and all of it is done again.
async fn known(group: &Group, batch: &[Looked<'_>], asked: &[usize]) -> Result<HashMap<KeyOf, Known>, Trouble> {
    let keys: Vec<KeyOf> = asked.iter().map(|at| batch[*at].key()).collect();
    let rows = key_rows(&group.conn, &keys).await?;
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<MessageId> = rows.values().map(|(id, _)| *id).collect();
    // One that is being settled beside what follows from another has no row at this moment: it runs until that is sent.
    let (ending, elsewhere): (Vec<MessageId>, Vec<MessageId>) =
        ids.iter().copied().partition(|id| group.ending.contains_key(id));
    let mut found = place::find_all(&group.conn, &elsewhere, Lock::Nothing).await?;
    let leased = |id: MessageId| Some((id, Found::Leased(Box::new(group.ending.get(&id)?.clone()))));
    found.extend(ending.into_iter().filter_map(leased));
    let mut bodies = place::bodies(group, &ids).await?;
    let mut known = HashMap::with_capacity(rows.len());
    for (key, (id, fingerprint)) in rows {
        let (Some(found), Some(body)) = (found.remove(&id), bodies.remove(&id)) else {
            return Err(Trouble::Again("a message was deleted while its key was looked at"));
        };
        known.insert(key, Known { id, fingerprint, found, body });
    }
    Ok(known)
}

/// What a known key means for this call.
fn answer(group: &mut Group, item: &Looked<'_>, known: &Known) -> Result<Enqueued, StoreError> {
    let (id, lane) = (known.id, &item.lane);
    if known.fingerprint != item.new.fingerprint && !canary::is(Canary::KeyConflictIgnored) {
        group.tally(lane, Counted::KeyConflicts, "");
        let what =
            format!("key {:?} is known in queue {} with another payload: {id}", item.new.message.key, lane.queue);
        return Err(StoreError::new(StoreErrorKind::KeyConflict, what)
            .hint("a key names one intended effect for as long as it is kept; give another operation a key of its own")
            .message_id(id));
    }
    let answer = match &known.found {
        Found::Ended(ended) => ended.answer(),
        Found::Ready { .. } | Found::Leased(_) => None,
    };
    if let Some(answer) = answer {
        group.tally(lane, Counted::Replayed, "");
        return Ok(Enqueued::Replayed { id, answer });
    }
    group.tally(lane, Counted::Deduplicated, "");
    let ignored = ignored(known.body.as_ref().map_err(Clone::clone)?, &item.new.message);
    Ok(Enqueued::Existing { id, state: known.found.state(), ignored })
}

/// Options of a repeated enqueue that differ from the first ones, which won.
fn ignored(first: &Message, message: &NewMessage) -> Vec<&'static str> {
    let another_due = match message.due {
        Due::Now => false,
        Due::In(delay) => first.first_due_at.since(first.enqueued_at) != delay,
        Due::At(at) => at.max(first.enqueued_at) != first.first_due_at,
    };
    let another_age = message.max_age.is_some_and(|age| first.first_due_at.after(age) != first.expires_at);
    let differs = [
        ("priority", message.priority != first.priority),
        ("due", another_due),
        ("deadline", message.deadline.is_some() && message.deadline != first.deadline),
        ("max_age", another_age),
    ];
    differs.into_iter().filter_map(|(option, differs)| differs.then_some(option)).collect()
}

/// Why an unknown key is not stored.
fn refuse(group: &mut Group, item: &Looked<'_>, refusal: Refusal) -> Result<Enqueued, StoreError> {
    match refusal {
        Refusal::Stale => Ok(Enqueued::Stale),
        Refusal::Late(deadline) => {
            let what = format!("the deadline {deadline} is over before the message is due at {}", item.due_at);
            Err(StoreError::invalid(what).hint("give it a later deadline, or none"))
        }
        Refusal::Full(limit) => {
            group.tally(&item.lane, Counted::QueueFull, "");
            Err(StoreError::new(
                StoreErrorKind::QueueFull,
                format!("queue {} holds its {limit} messages", item.new.message.queue),
            )
            .hint("slow down and repeat it under the same key, or raise the limit: tidegate queue limit")
            .retry_after(FULL_RETRY))
        }
    }
}
