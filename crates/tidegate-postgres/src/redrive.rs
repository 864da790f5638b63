//! Puts ended messages back to ready, at most once under one operation.
//!
//! A chunk costs a handful of round trips however many messages it has: their rows are locked and read together,
//! decided about one by one in memory, and written together. What SQLite's single writer gives for nothing is the lock
//! here, and that what this operation did before is looked up after it: a repeat that waited for the lock then sees the
//! first one.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::effect::{EffectRow, JournalFacts};
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{self, Counters, Redriving, State};
use tidegate_core::message::Payload;
use tidegate_core::store::{self, Counted, REDRIVE_CHUNK, Redrive, Verdicts};

use crate::cancel;
use crate::erase;
use crate::group::Group;
use crate::names::Lane;
use crate::place::{self, Each, Found};
use crate::row::{self, COMPENSATED, JOURNALED, Life};
use crate::trouble::{Trouble, verdict};

/// Redrives one chunk.
pub(crate) async fn redrive(group: &mut Group, request: &Redrive) -> Result<Verdicts<MessageId>, Trouble> {
    check(request)?;
    chunk(group, request, Watch::Nothing).await
}

/// Whether anybody wants to know what becomes of what is redriven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// An operation looks after it until it ended.
    Ends,
    /// Nobody.
    Nothing,
}

/// Redrives the messages of one commit, with one audit row for all.
pub(crate) async fn chunk(group: &mut Group, request: &Redrive, watch: Watch) -> Result<Verdicts<MessageId>, Trouble> {
    let found = place::find_each(&group.conn, &request.ids).await?;
    let known = Known {
        // Only now, with the rows locked: a repeat that waited for the first one sees what that one noted.
        done: done(group, request).await?,
        journals: place::journals_found(&group.conn, &found).await?,
        ages: max_ages(group, &request.ids).await?,
        found,
    };
    let mut decided: HashMap<MessageId, Result<bool, StoreError>> = HashMap::with_capacity(request.ids.len());
    let (mut redriven, mut refused) = (Vec::new(), 0_u32);
    let mut verdicts = Vec::with_capacity(request.ids.len());
    for id in &request.ids {
        let did = match decided.get(id) {
            // Named twice: done before by then, or refused as before.
            Some(before) => before.clone().map(|_| false),
            None => verdict(one(group, request, *id, &known).await)?,
        };
        match &did {
            Ok(true) => redriven.push(*id),
            Ok(false) => {}
            Err(_) => refused += 1,
        }
        verdicts.push(did.clone().map(|_| *id));
        decided.insert(*id, did);
    }
    if !redriven.is_empty() {
        note(group, request, watch, &redriven).await?;
        // A message that was acted on alone is found by its id; more are found by the operation.
        let alone = match &request.ids[..] {
            [id] => Some(*id),
            [..] => None,
        };
        let detail = format!("operation {}: {} redriven, {refused} refused", request.operation, redriven.len());
        group.audit(&request.act, "redrive", alone, None, &detail);
    }
    Ok(verdicts)
}

fn check(request: &Redrive) -> Result<(), StoreError> {
    if request.ids.len() > REDRIVE_CHUNK {
        let what = format!("{} messages in one redrive; at most {REDRIVE_CHUNK}", request.ids.len());
        return Err(StoreError::invalid(what).hint("repeat it in chunks under the same operation id"));
    }
    if request.operation.is_empty() {
        return Err(
            StoreError::invalid("a redrive needs an operation id").hint("any text, the same for all its chunks")
        );
    }
    if request.again && request.act.reason.trim().is_empty() {
        return Err(StoreError::invalid("a redrive of failed messages needs a reason")
            .hint("their answers were given; say why they are replaced"));
    }
    Ok(())
}

/// What is known of the messages of a chunk.
struct Known {
    found: Each,
    journals: HashMap<MessageId, Result<Vec<EffectRow>, StoreError>>,
    /// The span of time that each gets anew.
    ages: HashMap<MessageId, Duration>,
    /// Redriven by this operation before.
    done: HashSet<MessageId>,
}

async fn done(group: &Group, request: &Redrive) -> Result<HashSet<MessageId>, Trouble> {
    const DONE: &str = "-- redrive: once under an operation
        select message from tidegate.redriven where message = any($1) and operation = $2";
    if canary::is(Canary::RedriveRepeated) {
        return Ok(HashSet::new());
    }
    let rows = group.conn.query(DONE, &[&row::id_list(&request.ids), &request.operation]).await?;
    rows.iter().map(|row| row::message_id(row, "message", "redriven")).collect()
}

async fn max_ages(group: &Group, ids: &[MessageId]) -> Result<HashMap<MessageId, Duration>, Trouble> {
    const AGES: &str = "-- redrive: each gets the whole of its time again
        select id, age_limit_ms from tidegate.message where id = any($1)";
    let rows = group.conn.query(AGES, &[&row::id_list(ids)]).await?;
    let mut ages = HashMap::with_capacity(rows.len());
    for row in &rows {
        ages.insert(row::message_id(row, "id", "message")?, row::max_age(row, "age_limit_ms", "message")?);
    }
    Ok(ages)
}

/// Notes what was redriven under the operation, in the commit that does it.
async fn note(group: &Group, request: &Redrive, watch: Watch, redriven: &[MessageId]) -> Result<(), Trouble> {
    const NOTE: &str = "-- redrive: once under an operation
        insert into tidegate.redriven (message, operation, ended) select unnest($1::bigint[]), $2, $3";
    let ended = match watch {
        Watch::Ends => None,
        Watch::Nothing => Some("unwatched"),
    };
    group.conn.execute(NOTE, &[&row::id_list(redriven), &request.operation, &ended]).await?;
    Ok(())
}

/// Whether it was redriven now; if not, it had been before. Its refusal has written nothing.
async fn one(group: &mut Group, request: &Redrive, id: MessageId, known: &Known) -> Result<bool, Trouble> {
    if known.done.contains(&id) {
        return Ok(false);
    }
    let found = place::known(known.found.get(&id), id)?;
    let lane = group.lane(found.lane()).await?;
    let facts = JournalFacts::of(place::rows_known(known.journals.get(&id))?, group.now);
    erase::refuse_erased(found, id)?;
    let how = Redriving { again: request.again, compensated: found.flags() & COMPENSATED != 0 };
    let counters = lifecycle::redrive(found.state(), found.counters(), &facts, how)?;
    let Some(max_age) = known.ages.get(&id) else { return Err(place::bodiless(id).into()) };
    if found.state() == State::Cancelled {
        take_key_back(group, &lane, id).await?;
    }
    place::remove(group, &lane, id, found);
    put_back(group, &lane, id, counters, found, *max_age);
    let line = store::Ending {
        at: group.now,
        attempt: found.counters().attempt,
        generation: counters.generation,
        outcome: "redriven".to_owned(),
        state: State::Ready,
        code: String::new(),
        detail: request.act.reason.clone(),
        due_at: Some(group.now),
    };
    place::history(group, id, line);
    group.tally(&lane, Counted::Redriven, "");
    Ok(true)
}

fn put_back(group: &mut Group, lane: &Lane, id: MessageId, counters: Counters, found: &Found, max_age: Duration) {
    let life = Life {
        lane: lane.id,
        due_at: group.now,
        counters,
        flags: found.flags() & JOURNALED,
        // It gets the whole of its span of time again.
        expires_at: Some(group.now.after(max_age)),
        // Every earlier token is worth nothing from here on.
        last: None,
    };
    place::put_ready(group, lane, id, &life);
}

/// A cancelled message may have given its key away; two live messages never share one.
async fn take_key_back(group: &Group, lane: &Lane, id: MessageId) -> Result<(), Trouble> {
    const OWNER: &str = "-- redrive: whose the key is
        select id from tidegate.key where queue = $1 and hash = $2";
    const TAKE: &str = "-- redrive: waits for an enqueue of the key that is under way
        insert into tidegate.key (queue, hash, id, fingerprint) values ($1, $2, $3, $4)
        on conflict (queue, hash) do nothing";
    let hash = cancel::key(group, id).await?.hash();
    if let Some(owner) = group.conn.query_opt(OWNER, &[&lane.queue_id, &hash]).await? {
        let owner = row::message_id(&owner, "id", "key")?;
        if owner == id {
            return Ok(());
        }
        let what = format!("cannot be redriven: its key was released and is now that of {owner}");
        return Err(StoreError::conflict(what).message_id(owner).into());
    }
    let message = place::body(&group.conn, id, lane).await?;
    let payload = Payload::from_json(message.payload)?;
    let fingerprint = tidegate_core::canonical::Fingerprint::of(&lane.kind, payload.canonical()).0;
    match group.conn.execute(TAKE, &[&lane.queue_id, &hash, &id.as_i64(), &fingerprint]).await? {
        0 => Err(Trouble::Again("the key of a message that is redriven was taken meanwhile")),
        _ => Ok(()),
    }
}
