//! Redrives many, step by step: a canary first, no faster than asked, stopping by itself when too many end badly.
//!
//! Everything about an operation is in its row, so that whoever names it drives it on, from any process and after any
//! crash. A step is one commit, and the row is locked in it: it looks what became of the messages under way, judges,
//! and redrives the next ones. [`redriven`](crate::redrive) keeps each message from being redriven twice by one operation.

use tidegate_core::clock::Timestamp;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::group::GroupId;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::State;
use tidegate_core::store::{
    Act, Filter, JUDGED_FROM, MOST_NAMED, NewOperation, Operate, Operation, OperationState, Pace, REDRIVE_CHUNK,
    Redrive, Selection, Stepped, Waits,
};
use tokio_postgres::Row;

use crate::discard::reason_of;
use crate::group::Group;
use crate::list;
use crate::read::Snapshot;
use crate::redrive::{self, Watch};
use crate::row;
use crate::trouble::Trouble;

/// A row of `operation`.
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
pub(crate) async fn operate(group: &mut Group, request: &Operate) -> Result<Stepped, Trouble> {
    match request {
        Operate::Begin(new) => begin(group, new).await,
        Operate::Step { name } => {
            let known = load(group, name).await?;
            step(group, known).await
        }
        Operate::Cancel { name, act } => {
            let known = load(group, name).await?;
            cancel(group, known, act).await
        }
        Operate::Resume { name, act } => {
            let known = load(group, name).await?;
            resume(group, known, act).await
        }
    }
}

fn answer(known: Known, waits: Option<Waits>) -> Stepped {
    Stepped { operation: known.shown, refused: Vec::new(), waits }
}

// --- begin, cancel, resume -------------------------------------------------------------------------------------------

async fn begin(group: &mut Group, new: &NewOperation) -> Result<Stepped, Trouble> {
    check(new)?;
    let mut selection = new.selection.clone();
    selection.ids.sort_unstable();
    selection.ids.dedup();
    if let Some(known) = find(group, &new.name).await? {
        if known.shown.selection == selection && known.shown.again == new.again {
            return Ok(answer(known, None));
        }
        let what = format!("operation {:?} was begun with another selection", new.name);
        return Err(StoreError::conflict(what).hint("give it another name").into());
    }
    let NewOperation { name, again, pace, act, .. } = new;
    let operation = Operation {
        name: name.clone(),
        selected: selected(group, &selection).await?,
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
    if write(group, &known, How::Begin).await? == 0 {
        // Somebody else began it meanwhile; now it can be read.
        return Err(Trouble::Again("an operation was begun twice at once"));
    }
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

async fn cancel(group: &mut Group, mut known: Known, act: &Act) -> Result<Stepped, Trouble> {
    match known.shown.state {
        OperationState::Running | OperationState::Stopped => {
            known.shown.state = OperationState::Cancelled;
            store(group, &known).await?;
            note(group, act, &known, "cancelled");
            Ok(answer(known, None))
        }
        OperationState::Cancelled => Ok(answer(known, None)),
        OperationState::Done => Err(over(&known).into()),
    }
}

async fn resume(group: &mut Group, mut known: Known, act: &Act) -> Result<Stepped, Trouble> {
    match known.shown.state {
        OperationState::Running => Ok(answer(known, None)),
        OperationState::Stopped => {
            reason_of(act, "going on after a stop")?;
            watch(group, &mut known).await?;
            let shown = &mut known.shown;
            shown.state = OperationState::Running;
            known.judged_from = (shown.ended_well + shown.ended_badly, shown.ended_badly);
            known.canary_until = match shown.pace.canary {
                0 => 0,
                canary => shown.redriven + u64::from(canary),
            };
            store(group, &known).await?;
            note(group, act, &known, "resumed");
            Ok(answer(known, None))
        }
        OperationState::Cancelled | OperationState::Done => Err(over(&known).into()),
    }
}

fn over(known: &Known) -> StoreError {
    let Operation { name, state, .. } = &known.shown;
    StoreError::conflict(format!("operation {name:?} is {}", state.as_str())).hint("begin another one")
}

fn note(group: &mut Group, act: &Act, known: &Known, what: &str) {
    group.audit(act, "operation", None, None, &format!("operation {}: {what}", known.shown.name));
}

// --- step ------------------------------------------------------------------------------------------------------------

async fn step(group: &mut Group, mut known: Known) -> Result<Stepped, Trouble> {
    watch(group, &mut known).await?;
    if known.shown.state != OperationState::Running {
        store(group, &known).await?;
        return Ok(answer(known, None));
    }
    let under_way = is_any_under_way(group, &known).await?;
    if may_be_judged(&known, under_way)
        && let Some(verdict) = condemned(&known)
    {
        return stop(group, known, &verdict).await;
    }
    let mut most = REDRIVE_CHUNK as u64;
    if known.canary_until > 0 {
        let missing = known.canary_until.saturating_sub(known.shown.redriven);
        if missing > 0 {
            most = most.min(missing);
        } else if under_way {
            store(group, &known).await?;
            return Ok(answer(known, Some(Waits::Canary)));
        } else {
            known.canary_until = 0;
        }
    }
    if let Some(rate) = known.shown.pace.per_second {
        if group.now < known.next_at {
            let until = known.next_at;
            store(group, &known).await?;
            return Ok(answer(known, Some(Waits::Until(until))));
        }
        most = most.min(rate.into());
    }
    let ids = next(group, &known, most).await?;
    let Some(last) = ids.last().copied() else {
        // Fewer than the canary was to be: they are watched to their end all the same.
        let waits = (known.canary_until > 0 && under_way).then_some(Waits::Canary);
        match (waits, condemned(&known)) {
            (None, Some(verdict)) if !under_way => return stop(group, known, &verdict).await,
            (None, _) => known.shown.state = OperationState::Done,
            (Some(_), _) => {}
        }
        store(group, &known).await?;
        return Ok(answer(known, waits));
    };
    let act = Act { actor: known.shown.actor.clone(), reason: known.shown.reason.clone() };
    let request = Redrive { ids, again: known.shown.again, operation: known.shown.name.clone(), act };
    let mut refused = Vec::new();
    for (id, verdict) in request.ids.iter().zip(redrive::chunk(group, &request, Watch::Ends).await?) {
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
    store(group, &known).await?;
    Ok(Stepped { operation: known.shown, refused, waits: None })
}

/// So many are looked after in one step; the next step goes on behind them.
const WATCHED: usize = 5000;

/// Counts what ended since it was last looked at.
async fn watch(group: &Group, known: &mut Known) -> Result<(), Trouble> {
    const UNDER_WAY: &str = "-- operate: what became of those under way; who is in neither table still is
        select r.message, (select state from tidegate.result where id = r.message) answered,
          (select state from tidegate.held where id = r.message) held
        from tidegate.redriven r where r.operation = $1 and r.ended is null and r.message > $2
        order by r.message limit $3";
    const ENDED: &str = "-- operate: seen to their end
        update tidegate.redriven set ended = case when message = any($3) then 'well' else 'badly' end
        where message = any($2) and operation = $1";
    let most = i64::try_from(WATCHED).unwrap_or(i64::MAX);
    let rows = group.conn.query(UNDER_WAY, &[&known.shown.name, &known.watched.as_i64(), &most]).await?;
    let (mut ended, mut ended_well) = (Vec::new(), Vec::new());
    for row in &rows {
        let answered: Option<&str> = row::column(row, "answered", "result")?;
        let held: Option<&str> = row::column(row, "held", "held")?;
        if answered.is_none() && held.is_none() {
            continue;
        }
        let well =
            answered.is_some_and(|state| [State::Completed, State::Cancelled].map(State::as_str).contains(&state));
        *(if well { &mut known.shown.ended_well } else { &mut known.shown.ended_badly }) += 1;
        let id: i64 = row::column(row, "message", "redriven")?;
        ended.push(id);
        ended_well.extend(well.then_some(id));
    }
    known.watched = match rows.last() {
        Some(last) if rows.len() == WATCHED => row::message_id(last, "message", "redriven")?,
        Some(_) | None => MessageId::from_i64(i64::MIN),
    };
    if !ended.is_empty() {
        group.conn.execute(ENDED, &[&known.shown.name, &ended, &ended_well]).await?;
    }
    Ok(())
}

async fn is_any_under_way(group: &Group, known: &Known) -> Result<bool, Trouble> {
    const ANY: &str = "-- operate: whether all that was redriven has ended
        select true from tidegate.redriven where operation = $1 and ended is null limit 1";
    row::first_bool(&group.conn.query(ANY, &[&known.shown.name]).await?)
}

async fn stop(group: &mut Group, mut known: Known, verdict: &str) -> Result<Stepped, Trouble> {
    known.shown.state = OperationState::Stopped;
    store(group, &known).await?;
    let act = Act { actor: known.shown.actor.clone(), reason: known.shown.reason.clone() };
    note(group, &act, &known, &format!("stopped: {verdict}"));
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
async fn next(group: &Group, known: &Known, most: u64) -> Result<Vec<MessageId>, Trouble> {
    const IN_ITS_ORDER: &str = "-- operate: a page of an index is read in its order, not all of it and then sorted
        select set_config('enable_bitmapscan', $1, true)";
    const NEXT: &str = "-- operate: in the order of ids, so that every message is come to once; died before it began
        -- Only the id may be looked up: by anything else, each step would come to all that are left and sort them.
        select id from tidegate.held where id > $1 and state || '' = 'dead' and coalesce(discarded_at, 0) = 0
          and at <= $2 and lane = any($3) and ($4::text is null or reason = $4 or code = $4)
          and ($5::bigint is null or fgroup = $5) order by id limit $6";
    let selection = &known.shown.selection;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    if !selection.ids.is_empty() {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        return Ok(selection.ids.iter().copied().filter(|id| *id > known.last).take(most).collect());
    }
    let lanes = list::lanes(&group.conn, &filter(selection)).await?;
    let (created, failures) = (known.shown.created_at.as_millis(), selection.group.map(GroupId::as_i64));
    let last = known.last.as_i64();
    let answers = group
        .conn
        .many(&[
            (IN_ITS_ORDER, &[&"off"]),
            (NEXT, &[&last, &created, &lanes, &selection.code, &failures, &most]),
            (IN_ITS_ORDER, &[&"on"]),
        ])
        .await?;
    let [_, page, _] = &answers[..] else { unreachable!("an answer for each statement") };
    page.iter().map(|row| row::message_id(row, "id", "held")).collect()
}

async fn selected(group: &Group, selection: &Selection) -> Result<u64, Trouble> {
    const SELECTED: &str = "-- operate: how many there are as it begins
        select count(*) from tidegate.held where state = 'dead' and discarded_at is null
          and lane = any($1) and ($2::text is null or reason = $2 or code = $2)
          and ($3::bigint is null or fgroup = $3)";
    if !selection.ids.is_empty() {
        return Ok(selection.ids.len() as u64);
    }
    let lanes = list::lanes(&group.conn, &filter(selection)).await?;
    let failures = selection.group.map(GroupId::as_i64);
    let count = row::first_i64(&group.conn.query(SELECTED, &[&lanes, &selection.code, &failures]).await?)?;
    Ok(u64::try_from(count).unwrap_or_default())
}

// --- rows ------------------------------------------------------------------------------------------------------------

async fn load(group: &Group, name: &str) -> Result<Known, Trouble> {
    find(group, name).await?.ok_or_else(|| {
        StoreError::new(StoreErrorKind::NotFound, format!("no operation {name:?}"))
            .hint("operations are listed by: tidegate dead operations")
            .into()
    })
}

async fn find(group: &Group, name: &str) -> Result<Option<Known>, Trouble> {
    const FIND: &str = "-- operate: whoever drives it has it to himself
        select * from tidegate.operation where name = $1 for update";
    group.conn.query_opt(FIND, &[&name]).await?.as_ref().map(known).transpose()
}

/// Operations, the newest first.
pub(crate) async fn operations(snapshot: &Snapshot, name: Option<&str>, limit: u32) -> Result<Vec<Operation>, Trouble> {
    const OPERATIONS: &str = "-- operations
        select * from tidegate.operation where $1::text is null or name = $1
        order by created_at desc, name collate \"C\" limit $2";
    let rows = snapshot.conn.query(OPERATIONS, &[&name, &i64::from(limit)]).await?;
    rows.iter().map(read).collect()
}

/// A row of `operation`, as it is shown.
pub(crate) fn read(row: &Row) -> Result<Operation, Trouble> {
    Ok(known(row)?.shown)
}

fn known(row: &Row) -> Result<Known, Trouble> {
    let table = "operation";
    let name: String = row::column(row, "name", table)?;
    let corrupt = |column: &str, what: &str| StoreError::corrupt(&format!("{table}.{column}, {name:?}"), what);
    let count = |column: &'static str| row::unsigned::<u64, _>(row, column, table);
    let maybe = |column: &'static str| {
        let value: Option<i64> = row::column(row, column, table)?;
        value.map(u32::try_from).transpose().map_err(|e| Trouble::Item(corrupt(column, &e.to_string())))
    };
    let selection: &str = row::column(row, "selection", table)?;
    let selection = serde_json::from_str(selection).map_err(|e| corrupt("selection", &e.to_string()))?;
    let state: &str = row::column(row, "state", table)?;
    let state = OperationState::ALL.into_iter().find(|known| known.as_str() == state);
    let state = state.ok_or_else(|| corrupt("state", "no such state"))?;
    let shown = Operation {
        selection,
        again: row::column(row, "again", table)?,
        pace: Pace {
            canary: row::unsigned(row, "canary", table)?,
            per_second: maybe("per_second")?,
            stop_over_percent: maybe("stop_over_percent")?,
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
        last: row::message_id(row, "last_id", table)?,
        watched: row::message_id(row, "watched_id", table)?,
        next_at: row::time(row, "next_at", table)?,
    })
}

/// Whether there is a row of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Begin,
    Change,
}

async fn store(group: &Group, known: &Known) -> Result<(), Trouble> {
    write(group, known, How::Change).await.map(drop)
}

async fn write(group: &Group, known: &Known, how: How) -> Result<u64, Trouble> {
    const BEGIN: &str = "-- operate: one of its name
        insert into tidegate.operation (name, selection, again, canary, per_second, stop_over_percent, state, selected,
          redriven, refused, ended_well, ended_badly, actor, reason, created_at, canary_until, judged_from,
          judged_badly_from, last_id, watched_id, next_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
        on conflict (name) do nothing";
    const CHANGE: &str = "-- operate: what a step, a stop or a person changes
        update tidegate.operation set state = $2, redriven = $3, refused = $4, ended_well = $5, ended_badly = $6,
          canary_until = $7, judged_from = $8, judged_badly_from = $9, last_id = $10, watched_id = $11, next_at = $12
        where name = $1";
    let Known { shown, canary_until, judged_from, last, watched, next_at } = known;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let (state, next_at) = (shown.state.as_str(), next_at.as_millis());
    let (redriven, refused) = (number(shown.redriven), number(shown.refused));
    let (well, badly) = (number(shown.ended_well), number(shown.ended_badly));
    let (canary_until, from, badly_from) = (number(*canary_until), number(judged_from.0), number(judged_from.1));
    let (last, watched) = (last.as_i64(), watched.as_i64());
    if how == How::Change {
        let changed = group
            .conn
            .execute(
                CHANGE,
                &[
                    &shown.name,
                    &state,
                    &redriven,
                    &refused,
                    &well,
                    &badly,
                    &canary_until,
                    &from,
                    &badly_from,
                    &last,
                    &watched,
                    &next_at,
                ],
            )
            .await?;
        return Ok(changed);
    }
    let selection = serde_json::to_string(&shown.selection).expect("a selection is plain data");
    let (canary, selected) = (i64::from(shown.pace.canary), number(shown.selected));
    let (per_second, percent) = (shown.pace.per_second.map(i64::from), shown.pace.stop_over_percent.map(i64::from));
    let (actor, reason) = (row::storable(&shown.actor).into_owned(), row::storable(&shown.reason).into_owned());
    let begun = group
        .conn
        .execute(
            BEGIN,
            &[
                &shown.name,
                &selection,
                &shown.again,
                &canary,
                &per_second,
                &percent,
                &state,
                &selected,
                &redriven,
                &refused,
                &well,
                &badly,
                &actor,
                &reason,
                &shown.created_at.as_millis(),
                &canary_until,
                &from,
                &badly_from,
                &last,
                &watched,
                &next_at,
            ],
        )
        .await?;
    Ok(begun)
}
