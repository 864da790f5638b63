//! Stores messages, once per key.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::MessageId;
use tidegate_core::message::{DEFAULT_MAX_AGE, Due, NewMessage};
use tidegate_core::store::{Counted, Enqueued, Verdicts};

use crate::group::{Group, Lane};
use crate::many::{Cell, Many, unmade};
use crate::place;
use crate::room;
use crate::row::{self, Life};
use crate::seal::{self, Literal};
use crate::trouble::{Trouble, verdict};

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

    /// Bytes of the disk that it may take.
    fn needs(&self) -> u64 {
        room::needs(self.message.payload.text().len() + self.headers.as_ref().map_or(0, String::len))
    }
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy)]
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
pub(crate) fn enqueue(
    group: &mut Group<'_>,
    batch: &[Result<Prepared, StoreError>],
) -> Result<Verdicts<Enqueued>, Trouble> {
    group.items += batch.len();
    let mut verdicts = Vec::with_capacity(batch.len());
    let mut left = batch;
    while let Some((first, others)) = left.split_first() {
        let run = run(group, left)?;
        if let Some(Run { lane, messages, needed }) = run.filter(|run| run.messages.len() > 1) {
            left = &left[messages.len()..];
            several(group, &lane, &messages, &mut verdicts)?;
            group.allowance = group.allowance.saturating_sub(needed);
            continue;
        }
        left = others;
        verdicts.push(match first {
            Ok(prepared) => verdict(one(group, prepared, Origin::Outside))?,
            Err(refused) => Err(refused.clone()),
        });
    }
    failpoint::reach("enqueue.before_commit");
    Ok(verdicts)
}

/// Messages one after another in a batch that differ in nothing but id, key and payload, and that no limit is going to hold back.
struct Run<'b> {
    lane: Arc<Lane>,
    messages: Vec<&'b Prepared>,
    needed: u64,
}

/// The messages at the head of a batch that are stored together, if they can be.
fn run<'b>(group: &mut Group<'_>, batch: &'b [Result<Prepared, StoreError>]) -> Result<Option<Run<'b>>, Trouble> {
    let Some(Ok(first)) = batch.first() else { return Ok(None) };
    let Some(lane) = group.known_lane(&first.message) else { return Ok(None) };
    // Each message may be the one too many.
    match group.depth(lane.queue_id) {
        Ok((_, None)) => {}
        // What cannot be read is told to each.
        Ok((_, Some(_))) | Err(Trouble::Item(_)) => return Ok(None),
        Err(trouble) => return Err(trouble),
    }
    let max_age = max_age(first, group.now);
    let mut run = Run { lane, messages: Vec::with_capacity(batch.len()), needed: 0 };
    for prepared in batch {
        let Ok(prepared) = prepared else { break };
        let message = &prepared.message;
        let alike = matches!(message.due, Due::Now)
            && (message.deadline, message.key_time) == (None, None)
            && prepared.headers.is_none()
            && max_age == self::max_age(prepared, group.now)
            && run.lane.takes(message);
        let needed = run.needed + prepared.needs();
        if !alike || needed > group.allowance {
            break;
        }
        run.needed = needed;
        run.messages.push(prepared);
    }
    Ok(Some(run))
}

/// Stores the messages of a run, and says what became of each.
fn several(
    group: &mut Group<'_>,
    lane: &Lane,
    run: &[&Prepared],
    verdicts: &mut Verdicts<Enqueued>,
) -> Result<(), Trouble> {
    static KEYS: Many<1, 3> = Many {
        sealed: seal::KEY,
        sql: "-- enqueue: the keys are the gate, one row for as long as its message is kept
            insert or fail into tide_key values (?1, ?2, ?3, ?4, ?5)
            on conflict (queue, hash) do nothing",
        shared: [0],
        each: [1, 2, 3],
        literal: &[],
        made: unmade(),
    };
    static BODIES: Many<3, 3> = Many {
        sealed: seal::MESSAGE,
        sql: "-- enqueue: bodies of what is due at once, has no deadline, and follows from nothing
            insert or fail into tide_message values (?4, ?1, ?5, ?6, ?2, null, null, ?3, null, null, null, ?7)",
        shared: [1, 4, 7],
        each: [0, 2, 3],
        literal: &[(5, Cell::Null), (6, Cell::Null), (8, Cell::Null), (9, Cell::Null), (10, Cell::Null)],
        made: unmade(),
    };
    let mut ids = Vec::with_capacity(run.len());
    for _ in run {
        ids.push(group.next_id()?);
    }
    let keys: Vec<_> = (run.iter().zip(&ids))
        .map(|(new, id)| [Cell::Blob(&new.hash), Cell::Int(id.as_i64()), Cell::Blob(&new.fingerprint)])
        .collect();
    let taken = KEYS.insert(group, [Cell::Int(lane.queue_id)], &keys)?;
    failpoint::reach("enqueue.after_key");
    let is_new = if taken == run.len() { vec![true; taken] } else { which_are_new(group, lane.queue_id, run, &ids)? };
    let new = || run.iter().zip(&ids).zip(&is_new).filter_map(|(message, is_new)| is_new.then_some(message));
    let bodies: Vec<_> = new()
        .map(|(new, id)| {
            let message = &new.message;
            [Cell::Int(id.as_i64()), Cell::Text(message.key.as_str()), Cell::Text(message.payload.text())]
        })
        .collect();
    let (now, max_age) = (group.now, max_age(run[0], group.now));
    BODIES.insert(group, [Cell::Int(lane.id), Cell::Int(now.as_millis()), Cell::Int(row::millis(max_age))], &bodies)?;
    place::put_all_ready(group, lane, new().map(|(_, id)| *id))?;
    group.tally_many(lane, Counted::Enqueued, "", bodies.len());
    for ((new, id), is_new) in run.iter().zip(&ids).zip(is_new) {
        verdicts.push(if is_new { Ok(Enqueued::New { id: *id }) } else { verdict(answer(group, lane.queue_id, new))? });
    }
    Ok(())
}

/// Which of these messages took their keys, where not all of them did.
fn which_are_new(group: &Group<'_>, queue_id: i64, run: &[&Prepared], ids: &[MessageId]) -> Result<Vec<bool>, Trouble> {
    let is_new = |(new, id): (&&Prepared, &MessageId)| match key_row(group.conn, queue_id, new.hash) {
        Ok(row) => Ok(row.is_some_and(|(holder, _)| holder == *id)),
        // One that cannot be read is none of these, which were written just now; whoever asks for it is told.
        Err(Trouble::Item(_)) => Ok(false),
        Err(trouble) => Err(trouble),
    };
    run.iter().zip(ids).map(is_new).collect()
}

/// What a key means that was taken already.
fn answer(group: &mut Group<'_>, queue_id: i64, new: &Prepared) -> Result<Enqueued, Trouble> {
    match known(group, queue_id, new)? {
        Some(known) => Ok(known),
        None => Err(StoreError::corrupt("tide_key", "a key is taken and cannot be read").into()),
    }
}

/// Stores one message, or finds what its key means already.
pub(crate) fn one(group: &mut Group<'_>, new: &Prepared, origin: Origin) -> Result<Enqueued, Trouble> {
    const TAKE_KEY: &str = "-- enqueue: the key is the gate, one row for as long as its message is kept
        insert into tide_key values (?1, ?2, ?3, ?4, ?5)
        on conflict (queue, hash) do nothing";
    let message = &new.message;
    let queue_id = group.queue(&message.tenant, &message.queue)?;
    let outside = matches!(origin, Origin::Outside);
    let (depth, limit) = if outside { group.depth(queue_id)? } else { (0, None) };
    let full = limit.is_some_and(|limit| depth >= limit);
    let needed = new.needs();
    let no_room = outside && needed > group.allowance;
    let retained_from = group.now.before(group.limits.retention);
    let stale = message.key_time.is_some_and(|made| made < retained_from) && !canary::is(Canary::StaleKeyExecuted);
    let due_at = due_at(group.now, message.due);
    let late = message.deadline.is_some_and(|deadline| deadline <= due_at);
    // A known key is answered whatever else is the matter; only an unknown one can be too old or one too many.
    if full || stale || late || no_room {
        if let Some(known) = known(group, queue_id, new)? {
            return Ok(known);
        }
        if stale {
            return Ok(Enqueued::Stale);
        }
        if let Some(deadline) = message.deadline.filter(|_| late) {
            let what = format!("the deadline {deadline} is over before the message is due at {due_at}");
            return Err(StoreError::invalid(what).hint("give it a later deadline, or none").into());
        }
        // A refusal for want of room writes nothing, not even that it happened.
        return Err(if full { refuse_full(group, message, limit.unwrap_or_default())? } else { room::refuse() }.into());
    }
    let id = group.next_id()?;
    let key = params![queue_id, new.hash, id.as_i64(), new.fingerprint];
    let taken = seal::execute(&mut group.sql(TAKE_KEY)?, seal::KEY, key)?;
    if taken == 0 {
        return answer(group, queue_id, new);
    }
    failpoint::reach("enqueue.after_key");
    let lane = group.lane_for(&message.tenant, &message.queue, &message.kind, message.version, message.priority)?;
    insert(group, new, &lane, id, due_at, origin)?;
    group.allowance = group.allowance.saturating_sub(needed);
    Ok(Enqueued::New { id })
}

fn insert(
    group: &mut Group<'_>,
    new: &Prepared,
    lane: &Lane,
    id: MessageId,
    due_at: Timestamp,
    origin: Origin,
) -> Result<(), Trouble> {
    const BODY: &str = "-- enqueue: the body, written once
        insert into tide_message values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    const PLAIN: &str = "-- enqueue: the same for what is due at once, has no deadline, and follows from nothing
        insert into tide_message values (?1, ?2, ?3, ?4, ?5, null, null, ?6, null, null, null, ?7)";
    const PLAIN_LITERAL: Literal = Literal::at(&[5, 6, 8, 9, 10]);
    let message = &new.message;
    let max_age = max_age(new, due_at);
    let (flow, parent) = match origin {
        Origin::Outside => (None, None),
        Origin::Follows { flow, parent } => (Some(flow.as_i64()), Some(parent.as_i64())),
    };
    let body = params![
        id.as_i64(),
        lane.id,
        message.key.as_str(),
        message.payload.text(),
        group.now.as_millis(),
        (due_at > group.now).then_some(due_at.as_millis()),
        message.deadline.map(Timestamp::as_millis),
        row::millis(max_age),
        flow,
        parent,
        new.headers,
    ];
    let plain =
        due_at <= group.now && message.deadline.is_none() && (flow, parent) == (None, None) && new.headers.is_none();
    let (sql, literal) = if plain { (PLAIN, PLAIN_LITERAL) } else { (BODY, Literal::NONE) };
    seal::execute_but(&mut group.sql(sql)?, seal::MESSAGE, body, literal)?;
    place::put_ready(group, lane, id, &Life::unbegun(lane.id, due_at))?;
    group.tally(lane, Counted::Enqueued, "");
    Ok(())
}

/// How long a message may wait and be retried, from when it is due.
fn max_age(new: &Prepared, due_at: Timestamp) -> Duration {
    let message = &new.message;
    message.max_age.unwrap_or_else(|| message.deadline.map_or(DEFAULT_MAX_AGE, |deadline| deadline.since(due_at)))
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
pub(crate) fn whose(group: &mut Group<'_>, new: &Prepared) -> Result<Option<MessageId>, Trouble> {
    let Some(queue_id) = group.known_queue(&new.message.tenant, &new.message.queue)? else { return Ok(None) };
    Ok(key_row(group.conn, queue_id, new.hash)?.map(|(id, _)| id))
}

/// The row of a key: its message, and the fingerprint of the payload it came with.
pub(crate) fn key_row(
    conn: &Connection,
    queue_id: i64,
    hash: [u8; 16],
) -> Result<Option<(MessageId, [u8; 16])>, Trouble> {
    const KEY: &str = "-- enqueue, settle repeated, redrive, find: whose key it is
        select * from tide_key where queue = ?1 and hash = ?2";
    let mut statement = conn.prepare_cached(KEY)?;
    let mut rows = statement.query(params![queue_id, hash])?;
    rows.next()?.map(row::known_key).transpose()
}

/// What a known key means for this call.
fn known(group: &mut Group<'_>, queue_id: i64, new: &Prepared) -> Result<Option<Enqueued>, Trouble> {
    let Some((id, fingerprint)) = key_row(group.conn, queue_id, new.hash)? else { return Ok(None) };
    let Some(found) = place::find(group.conn, id)? else {
        let what = "the key names a message that is not there";
        return Err(StoreError::corrupt(&format!("tide_key, message {}", id.as_i64()), what).message_id(id).into());
    };
    let lane = group.lane(found.lane())?;
    if fingerprint != new.fingerprint && !canary::is(Canary::KeyConflictIgnored) {
        group.tally(&lane, Counted::KeyConflicts, "");
        let what = format!("key {:?} is known in queue {} with another payload: {id}", new.message.key, lane.queue);
        return Err(StoreError::new(StoreErrorKind::KeyConflict, what)
            .hint("a key names one intended effect for as long as it is kept; give another operation a key of its own")
            .message_id(id)
            .into());
    }
    let answer = match &found {
        place::Found::Ended(ended) => ended.answer(),
        place::Found::Ready { .. } | place::Found::Leased(_) => None,
    };
    if let Some(answer) = answer {
        group.tally(&lane, Counted::Replayed, "");
        return Ok(Some(Enqueued::Replayed { id, answer }));
    }
    group.tally(&lane, Counted::Deduplicated, "");
    let ignored = ignored(group, id, &lane, &new.message)?;
    Ok(Some(Enqueued::Existing { id, state: found.state(), ignored }))
}

/// Options of a repeated enqueue that differ from the first ones, which won.
fn ignored(group: &Group<'_>, id: MessageId, lane: &Lane, message: &NewMessage) -> Result<Vec<&'static str>, Trouble> {
    let first = place::body(group.conn, id, lane)?;
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
    Ok(differs.into_iter().filter_map(|(option, differs)| differs.then_some(option)).collect())
}

fn refuse_full(group: &mut Group<'_>, message: &NewMessage, limit: i64) -> Result<StoreError, Trouble> {
    let lane = group.lane_for(&message.tenant, &message.queue, &message.kind, message.version, message.priority)?;
    group.tally(&lane, Counted::QueueFull, "");
    Ok(StoreError::new(StoreErrorKind::QueueFull, format!("queue {} holds its {limit} messages", message.queue))
        .hint("slow down and repeat it under the same key, or raise the limit: tidegate queue limit")
        .retry_after(FULL_RETRY))
}
