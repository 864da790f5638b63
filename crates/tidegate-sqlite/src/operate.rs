//! Redrives many, step by step: a canary first, no faster than asked, stopping by itself when too many end badly.
//!
//! Everything about an operation is in its row, so that whoever names it drives it on, from any process and after any
//! crash. A step is one commit: it looks what became of the messages under way, judges, and redrives the next ones.
//! [`tide_redriven`](crate::redrive) keeps each message from being redriven twice by one operation.

use rusqlite::{Row, params};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::group::GroupId;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::State;
use tidegate_core::store::{
    Act, Filter, JUDGED_FROM, MOST_NAMED, NewOperation, Operate, Operation, OperationState, Pace, REDRIVE_CHUNK,
    Redrive, Selection, Stepped, Waits,
};

use crate::discard::reason_of;
use crate::group::Group;
use crate::inspect;
use crate::redrive::{self, Watch};
use crate::row;
use crate::seal;
use crate::trouble::Trouble;

/// A row of `tide_operation`.
struct Known {
    shown: Operation,
    /// So many redriven have to end before the next; 0 when the canary is over.
    canary_until: u64,
    /// Ended, and ended badly, when it was last allowed to go on.
    judged_from: (u64, u64),
    last: MessageId,
    watched: MessageId,
    next_at: Timestamp,
}

/// Carries out one act on an operation.
pub(crate) fn operate(group: &mut Group<'_>, request: &Operate) -> Result<Stepped, Trouble> {
    crate::copied::begin(group)?;
    match request {
        Operate::Begin(new) => begin(group, new),
        Operate::Step { name } => step(group, load(group, name)?),
        Operate::Cancel { name, act } => cancel(group, load(group, name)?, act),
        Operate::Resume { name, act } => resume(group, load(group, name)?, act),
    }
}

fn answer(known: Known, waits: Option<Waits>) -> Stepped {
    Stepped { operation: known.shown, refused: Vec::new(), waits }
}

// --- begin, cancel, resume -------------------------------------------------------------------------------------------

fn begin(group: &mut Group<'_>, new: &NewOperation) -> Result<Stepped, Trouble> {
    check(new)?;
    let mut selection = new.selection.clone();
    selection.ids.sort_unstable();
    selection.ids.dedup();
    if let Some(known) = find(group, &new.name)? {
        if known.shown.selection == selection && known.shown.again == new.again {
            return Ok(answer(known, None));
        }
        let what = format!("operation {:?} was begun with another selection", new.name);
        return Err(StoreError::conflict(what).hint("give it another name").into());
    }
    let NewOperation { name, again, pace, act, .. } = new;
    let operation = Operation {
        name: name.clone(),
        selected: selected(group, &selection)?,
        selection,
        again: *again,
        pace: *pace,
        state: OperationState::Running,
        redriven: 0,
        refused: 0,
        ended_well: 0,
        ended_badly: 0,
        actor: act.actor.clone(),
        reason: act.reason.clone(),
        created_at: group.now,
    };
    let known = Known {
        canary_until: pace.canary.into(),
        judged_from: (0, 0),
        last: MessageId::from_i64(i64::MIN),
        watched: MessageId::from_i64(i64::MIN),
        next_at: group.now,
        shown: operation,
    };
    // No audit row: its own row says who and why, and each of its chunks has one.
    store(group, &known)?;
    Ok(answer(known, None))
}

fn check(new: &NewOperation) -> Result<(), StoreError> {
    let named = new.selection.ids.len();
    if named > MOST_NAMED {
        return Err(StoreError::invalid(format!("{named} named messages in one operation; at most {MOST_NAMED}"))
            .hint("select them by queue, kind, code or group"));
    }
    if new.name.is_empty() {
        return Err(StoreError::invalid("an operation needs a name").hint("any text that no other operation has"));
    }
    if new.again {
        reason_of(&new.act, "a redrive of failed messages")?;
        if named == 0 {
            return Err(StoreError::invalid("failed messages are redriven by their ids only")
                .hint("their answers were given; name those that may be replaced"));
        }
    }
    if new.pace.per_second == Some(0) {
        return Err(StoreError::invalid("a rate of 0 messages per second").hint("cancel the operation instead"));
    }
    if let Some(percent) = new.pace.stop_over_percent.filter(|percent| *percent > 100) {
        return Err(StoreError::invalid(format!("a stop over {percent} %")).hint("give 0 to 100"));
    }
    Ok(())
}

fn cancel(group: &mut Group<'_>, mut known: Known, act: &Act) -> Result<Stepped, Trouble> {
    match known.shown.state {
        OperationState::Running | OperationState::Stopped => {
            known.shown.state = OperationState::Cancelled;
            store(group, &known)?;
            note(group, act, &known, "cancelled")?;
            Ok(answer(known, None))
        }
        OperationState::Cancelled => Ok(answer(known, None)),
        OperationState::Done => Err(over(&known).into()),
    }
}

fn resume(group: &mut Group<'_>, mut known: Known, act: &Act) -> Result<Stepped, Trouble> {
    match known.shown.state {
        OperationState::Running => Ok(answer(known, None)),
        OperationState::Stopped => {
            reason_of(act, "going on after a stop")?;
            watch(group, &mut known)?;
            let shown = &mut known.shown;
            shown.state = OperationState::Running;
            known.judged_from = (shown.ended_well + shown.ended_badly, shown.ended_badly);
            known.canary_until = match shown.pace.canary {
                0 => 0,
                canary => shown.redriven + u64::from(canary),
            };
            store(group, &known)?;
            note(group, act, &known, "resumed")?;
            Ok(answer(known, None))
        }
        OperationState::Cancelled | OperationState::Done => Err(over(&known).into()),
    }
}

fn over(known: &Known) -> StoreError {
    let Operation { name, state, .. } = &known.shown;
    StoreError::conflict(format!("operation {name:?} is {}", state.as_str())).hint("begin another one")
}

fn note(group: &Group<'_>, act: &Act, known: &Known, what: &str) -> Result<(), Trouble> {
    group.audit(act, "operation", None, None, &format!("operation {}: {what}", known.shown.name))
}

// --- step ------------------------------------------------------------------------------------------------------------

fn step(group: &mut Group<'_>, mut known: Known) -> Result<Stepped, Trouble> {
    watch(group, &mut known)?;
    if known.shown.state != OperationState::Running {
        store(group, &known)?;
        return Ok(answer(known, None));
    }
    let under_way = is_any_under_way(group, &known)?;
    if may_be_judged(&known, under_way)
        && let Some(verdict) = condemned(&known)
    {
        return stop(group, known, &verdict);
    }
    let mut most = REDRIVE_CHUNK as u64;
    if known.canary_until > 0 {
        let missing = known.canary_until.saturating_sub(known.shown.redriven);
        if missing > 0 {
            most = most.min(missing);
        } else if under_way {
            store(group, &known)?;
            return Ok(answer(known, Some(Waits::Canary)));
        } else {
            known.canary_until = 0;
        }
    }
    if let Some(rate) = known.shown.pace.per_second {
        if group.now < known.next_at {
            let until = known.next_at;
            store(group, &known)?;
            return Ok(answer(known, Some(Waits::Until(until))));
        }
        most = most.min(rate.into());
    }
    let ids = next(group, &known, most)?;
    let Some(last) = ids.last().copied() else {
        // Fewer than the canary was to be: they are watched to their end all the same.
        let waits = (known.canary_until > 0 && under_way).then_some(Waits::Canary);
        match (waits, condemned(&known)) {
            (None, Some(verdict)) if !under_way => return stop(group, known, &verdict),
            (None, _) => known.shown.state = OperationState::Done,
            (Some(_), _) => {}
        }
        store(group, &known)?;
        return Ok(answer(known, waits));
    };
    let act = Act { actor: known.shown.actor.clone(), reason: known.shown.reason.clone() };
    let request = Redrive { ids, again: known.shown.again, operation: known.shown.name.clone(), act };
    let mut refused = Vec::new();
    for (id, verdict) in request.ids.iter().zip(redrive::chunk(group, &request, Watch::Ends)?) {
        match verdict {
            Ok(_) => known.shown.redriven += 1,
            Err(error) => refused.push((*id, error)),
        }
    }
    known.shown.refused += refused.len() as u64;
    known.last = last;
    if let Some(rate) = known.shown.pace.per_second {
        let spent = request.ids.len() as u64 * 1000 / u64::from(rate);
        known.next_at = group.now.after(std::time::Duration::from_millis(spent));
    }
    store(group, &known)?;
    Ok(Stepped { operation: known.shown, refused, waits: None })
}

/// So many are looked after in one step; the next step goes on behind them.
const WATCHED: u32 = 5000;

/// Counts what ended since it was last looked at.
fn watch(group: &Group<'_>, known: &mut Known) -> Result<(), Trouble> {
    const UNDER_WAY: &str = "-- operate: what became of those under way; who is in neither table still is
        select r.message, (select state from tide_result where id = r.message) answered,
          (select state from tide_held where id = r.message) held
        from tide_redriven r where r.operation = ?1 and r.ended is null and r.message > ?2
        order by r.message limit ?3";
    const ENDED: &str = "-- operate: seen to its end
        update tide_redriven set ended = ?3 where message = ?1 and operation = ?2";
    let mut ended: Vec<(i64, bool)> = Vec::new();
    let (mut looked, mut last) = (0, known.watched);
    {
        let mut statement = group.conn.prepare_cached(UNDER_WAY)?;
        let mut rows = statement.query(params![known.shown.name, known.watched.as_i64(), WATCHED])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row::column(row, "message", "tide_redriven")?;
            let answered: Option<String> = row::column(row, "answered", "tide_result")?;
            let held: Option<String> = row::column(row, "held", "tide_held")?;
            (looked, last) = (looked + 1, MessageId::from_i64(id));
            if answered.is_some() || held.is_some() {
                let well = [State::Completed, State::Cancelled].map(State::as_str);
                ended.push((id, answered.is_some_and(|state| well.contains(&state.as_str()))));
            }
        }
    }
    known.watched = if looked < WATCHED { MessageId::from_i64(i64::MIN) } else { last };
    for (id, well) in ended {
        let word = if well { "well" } else { "badly" };
        group.conn.prepare_cached(ENDED)?.execute(params![id, known.shown.name, word])?;
        *(if well { &mut known.shown.ended_well } else { &mut known.shown.ended_badly }) += 1;
    }
    Ok(())
}

fn is_any_under_way(group: &Group<'_>, known: &Known) -> Result<bool, Trouble> {
    const ANY: &str = "-- operate: whether all that was redriven has ended
        select 1 from tide_redriven where operation = ?1 and ended is null limit 1";
    Ok(group.conn.prepare_cached(ANY)?.exists([&known.shown.name])?)
}

fn stop(group: &Group<'_>, mut known: Known, verdict: &str) -> Result<Stepped, Trouble> {
    known.shown.state = OperationState::Stopped;
    store(group, &known)?;
    let act = Act { actor: known.shown.actor.clone(), reason: known.shown.reason.clone() };
    note(group, &act, &known, &format!("stopped: {verdict}"))?;
    Ok(answer(known, None))
}

/// A canary is judged as a whole; without one, a few that ended early say nothing yet.
fn may_be_judged(known: &Known, under_way: bool) -> bool {
    match (known.canary_until, known.shown.pace.canary) {
        (0, 0) => !under_way || ended(known) >= JUDGED_FROM,
        (0, _) => true,
        (until, _) => !under_way && known.shown.redriven >= until,
    }
}

/// How many ended since it was last allowed to go on.
fn ended(known: &Known) -> u64 {
    known.shown.ended_well + known.shown.ended_badly - known.judged_from.0
}

/// Why it is not to go on, if too many ended badly.
fn condemned(known: &Known) -> Option<String> {
    let most = u64::from(known.shown.pace.stop_over_percent?);
    let badly = known.shown.ended_badly - known.judged_from.1;
    let ended = ended(known);
    (badly * 100 > most * ended).then(|| format!("{badly} of {ended} ended badly, more than {most} %"))
}

// --- what is selected ------------------------------------------------------------------------------------------------

fn filter(selection: &Selection) -> Filter {
    let Selection { tenant, queue, kind, .. } = selection.clone();
    Filter { tenant, queue, kind, ..Filter::default() }
}

/// The next messages, by ascending id.
fn next(group: &Group<'_>, known: &Known, most: u64) -> Result<Vec<MessageId>, Trouble> {
    const NEXT: &str = "-- operate: in the order of ids, so that every message is come to once; died before it began
        select id from tide_held where id > ?1 and state = 'dead' and discarded_at is null and at <= ?2
          and +lane in (select value from json_each(?3)) and (?4 is null or reason = ?4 or code = ?4)
          and (?5 is null or fgroup = ?5) order by id limit ?6";
    let selection = &known.shown.selection;
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    if !selection.ids.is_empty() {
        return Ok(selection.ids.iter().copied().filter(|id| *id > known.last).take(most as usize).collect());
    }
    let lanes = inspect::lanes(group.conn, &filter(selection))?;
    let (created, failures) = (known.shown.created_at.as_millis(), selection.group.map(GroupId::as_i64));
    let mut statement = group.conn.prepare_cached(NEXT)?;
    let ids = statement
        .query_map(params![known.last.as_i64(), created, lanes, selection.code, failures, most], |row| {
            row.get(0).map(MessageId::from_i64)
        })?;
    Ok(ids.collect::<Result<_, _>>()?)
}

fn selected(group: &Group<'_>, selection: &Selection) -> Result<u64, Trouble> {
    const SELECTED: &str = "-- operate: how many there are as it begins
        select count(*) from tide_held where id > ?1 and state = 'dead' and discarded_at is null
          and +lane in (select value from json_each(?2)) and (?3 is null or reason = ?3 or code = ?3)
          and (?4 is null or fgroup = ?4)";
    if !selection.ids.is_empty() {
        return Ok(selection.ids.len() as u64);
    }
    let lanes = inspect::lanes(group.conn, &filter(selection))?;
    let failures = selection.group.map(GroupId::as_i64);
    let count: u32 = group
        .conn
        .prepare_cached(SELECTED)?
        .query_row(params![i64::MIN, lanes, selection.code, failures], |row| row.get(0))?;
    Ok(count.into())
}

// --- rows ------------------------------------------------------------------------------------------------------------

fn load(group: &Group<'_>, name: &str) -> Result<Known, Trouble> {
    find(group, name)?.ok_or_else(|| {
        StoreError::new(StoreErrorKind::NotFound, format!("no operation {name:?}"))
            .hint("operations are listed by: tidegate dead operations")
            .into()
    })
}

fn find(group: &Group<'_>, name: &str) -> Result<Option<Known>, Trouble> {
    const FIND: &str = "-- operate
        select * from tide_operation where name = ?1";
    let mut statement = group.conn.prepare_cached(FIND)?;
    let mut rows = statement.query([name])?;
    rows.next()?.map(known).transpose()
}

/// Operations, the newest first.
pub(crate) fn operations(
    conn: &rusqlite::Connection,
    name: Option<&str>,
    limit: u32,
) -> Result<Vec<Operation>, Trouble> {
    const OPERATIONS: &str = "-- operations
        select * from tide_operation where ?1 is null or name = ?1 order by created_at desc, name limit ?2";
    let mut statement = conn.prepare_cached(OPERATIONS)?;
    let mut rows = statement.query(params![name, limit])?;
    let mut operations = Vec::new();
    while let Some(row) = rows.next()? {
        operations.push(known(row)?.shown);
    }
    Ok(operations)
}

fn known(row: &Row<'_>) -> Result<Known, Trouble> {
    let table = "tide_operation";
    seal::check(row, seal::OPERATION)?;
    let name: String = row::column(row, "name", table)?;
    let corrupt = |column: &str, what: &str| StoreError::corrupt(&format!("{table}.{column}, {name:?}"), what);
    let count = |column: &'static str| row::column::<i64>(row, column, table).map(|n| u64::try_from(n).unwrap_or(0));
    let id = |column: &'static str| row::column::<i64>(row, column, table).map(MessageId::from_i64);
    let selection: String = row::column(row, "selection", table)?;
    let selection = serde_json::from_str(&selection).map_err(|e| corrupt("selection", &e.to_string()))?;
    let state: String = row::column(row, "state", table)?;
    let state = OperationState::ALL.into_iter().find(|known| known.as_str() == state);
    let state = state.ok_or_else(|| corrupt("state", "no such state"))?;
    let shown = Operation {
        selection,
        again: row::column(row, "again", table)?,
        pace: Pace {
            canary: row::column(row, "canary", table)?,
            per_second: row::column(row, "per_second", table)?,
            stop_over_percent: row::column(row, "stop_over_percent", table)?,
        },
        state,
        selected: count("selected")?,
        redriven: count("redriven")?,
        refused: count("refused")?,
        ended_well: count("ended_well")?,
        ended_badly: count("ended_badly")?,
        actor: row::column(row, "actor", table)?,
        reason: row::column(row, "reason", table)?,
        created_at: row::time(row, "created_at", table)?,
        name: name.clone(),
    };
    Ok(Known {
        shown,
        canary_until: count("canary_until")?,
        judged_from: (count("judged_from")?, count("judged_badly_from")?),
        last: id("last_id")?,
        watched: id("watched_id")?,
        next_at: row::time(row, "next_at", table)?,
    })
}

fn store(group: &Group<'_>, known: &Known) -> Result<(), Trouble> {
    const STORE: &str = "-- operate: all of it, read and written in one transaction
        insert or replace into tide_operation (name, selection, again, canary, per_second, stop_over_percent, state,
          selected, redriven, refused, ended_well, ended_badly, actor, reason, created_at, canary_until, judged_from,
          judged_badly_from, last_id, watched_id, next_at, seal)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)";
    let Known { shown, canary_until, judged_from, last, watched, next_at } = known;
    let selection = serde_json::to_string(&shown.selection).expect("a selection is plain data");
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let operation = params![
        shown.name,
        selection,
        shown.again,
        shown.pace.canary,
        shown.pace.per_second,
        shown.pace.stop_over_percent,
        shown.state.as_str(),
        number(shown.selected),
        number(shown.redriven),
        number(shown.refused),
        number(shown.ended_well),
        number(shown.ended_badly),
        shown.actor,
        shown.reason,
        shown.created_at.as_millis(),
        number(*canary_until),
        number(judged_from.0),
        number(judged_from.1),
        last.as_i64(),
        watched.as_i64(),
        next_at.as_millis(),
    ];
    seal::execute(&mut group.conn.prepare_cached(STORE)?, seal::OPERATION, operation)?;
    Ok(())
}
