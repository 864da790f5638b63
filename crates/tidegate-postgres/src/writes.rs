//! What a group is going to write, collected until it is sent together.
//!
//! A verb reads and decides; what it decided is kept here and sent in one round trip, one statement for each table; new rows
//! that are many are copied (`copy.rs`). A refused item takes back what it added. What was locked is still there when it is taken away: each statement counts the
//! rows it took, and divides by zero where they are not as many as expected, so that nothing of the group is committed.

use std::borrow::Cow;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::EffectRow;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::lifecycle::Counters;
use tidegate_core::store::{Act, Ending, MOST_EVIDENCE};

use crate::conn::{Param, Sent, Step};
use crate::copy::{Encoder, MANY, Rows};
use crate::row::{self, LastSettlement, Life, Tid, narrow};

/// A key to be taken, which nobody had when it was looked for.
#[derive(Debug)]
pub(crate) struct NewKey {
    pub(crate) queue: i64,
    pub(crate) hash: [u8; 16],
    pub(crate) id: MessageId,
    pub(crate) fingerprint: [u8; 16],
}

/// A body to be stored.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) id: MessageId,
    pub(crate) lane: i64,
    pub(crate) key: String,
    pub(crate) payload: std::sync::Arc<str>,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) first_due_at: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) max_age_ms: i64,
    pub(crate) flow: Option<MessageId>,
    pub(crate) parent: Option<MessageId>,
    pub(crate) headers: Option<String>,
}

/// A lease to be given.
#[derive(Debug)]
pub(crate) struct NewLease {
    pub(crate) id: MessageId,
    pub(crate) life: Life,
    pub(crate) nonce: [u8; 16],
    pub(crate) until: Timestamp,
    /// None: as its claim says.
    pub(crate) worker: Option<String>,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) flow: Option<MessageId>,
    pub(crate) first_due_at: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) max_age_ms: i64,
}

impl NewLease {
    /// When its message was enqueued, unless that is when it is due.
    fn stored_enqueued_at(&self) -> Option<i64> {
        (self.enqueued_at != self.life.due_at).then(|| self.enqueued_at.as_millis())
    }
}

/// A row of `result` to be stored.
#[derive(Debug)]
pub(crate) struct NewResult {
    pub(crate) id: MessageId,
    pub(crate) state: &'static str,
    pub(crate) at: Timestamp,
    pub(crate) lane: i64,
    pub(crate) counters: Counters,
    pub(crate) flags: i64,
    pub(crate) code: Option<String>,
    pub(crate) body: Option<String>,
    pub(crate) last: Option<LastSettlement>,
    pub(crate) expires_at: Option<Timestamp>,
}

/// A row of `held` to be stored.
#[derive(Debug)]
pub(crate) struct NewHeld {
    pub(crate) id: MessageId,
    pub(crate) state: &'static str,
    pub(crate) at: Timestamp,
    pub(crate) lane: i64,
    pub(crate) counters: Counters,
    pub(crate) flags: i64,
    pub(crate) reason: &'static str,
    pub(crate) code: Option<String>,
    pub(crate) detail: Option<String>,
    pub(crate) last: Option<LastSettlement>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) fgroup: i64,
    pub(crate) effect: Option<String>,
}

/// An operator's act to be noted.
#[derive(Debug)]
pub(crate) struct NewAudit {
    pub(crate) at: Timestamp,
    pub(crate) act: Act,
    pub(crate) what: String,
    pub(crate) message: Option<MessageId>,
    pub(crate) queue: Option<i64>,
    pub(crate) detail: String,
}

/// A late confirmation to be kept.
#[derive(Debug, PartialEq)]
pub(crate) struct NewEvidence {
    pub(crate) message: MessageId,
    pub(crate) at: Timestamp,
    pub(crate) name: String,
    pub(crate) item: String,
    pub(crate) value: String,
}

/// Bits that are set in the flags of a row that stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Flagged {
    /// In `lease`.
    Lease,
    /// In `ready`.
    Ready,
    /// In `sched`.
    Sched,
    /// In `result`, whether it stands already or is written with this.
    Result,
    /// In `held`, likewise.
    Held,
}

/// The writes of a group, in the order of their tables.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    pub(crate) gone_ready: Vec<MessageId>,
    /// The same for rows that a claim has locked in this transaction, by where they lie: nobody can move them.
    pub(crate) claimed_ready: Vec<Tid>,
    pub(crate) gone_sched: Vec<MessageId>,
    pub(crate) gone_lease: Vec<(MessageId, LeaseToken)>,
    pub(crate) gone_result: Vec<MessageId>,
    pub(crate) gone_held: Vec<MessageId>,
    /// Keys to be freed where they still name this message: queue, hash, message.
    pub(crate) gone_keys: Vec<(i64, [u8; 16], MessageId)>,
    pub(crate) keys: Vec<NewKey>,
    pub(crate) bodies: Vec<Body>,
    pub(crate) ready: Vec<(MessageId, Life)>,
    pub(crate) sched: Vec<(MessageId, Life)>,
    pub(crate) leases: Vec<NewLease>,
    /// Nonces of claims that were given leases, and whose they were.
    pub(crate) claims: Vec<([u8; 16], String)>,
    pub(crate) results: Vec<NewResult>,
    pub(crate) held: Vec<NewHeld>,
    pub(crate) effects: Vec<(MessageId, EffectRow)>,
    pub(crate) evidence: Vec<NewEvidence>,
    pub(crate) history: Vec<(MessageId, Ending)>,
    pub(crate) audits: Vec<NewAudit>,
    pub(crate) flags: Vec<(Flagged, MessageId, i64)>,
}

/// How much there was at some moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark([usize; 20]);

/// One statement of what is sent together.
pub(crate) struct Part<'a> {
    pub(crate) sql: &'static str,
    pub(crate) params: Vec<Box<dyn Param + 'a>>,
}

macro_rules! part {
    ($parts:ident, $sql:expr, $($param:expr),+ $(,)?) => {
        $parts.push($crate::writes::Part { sql: $sql, params: vec![$(Box::new($param) as Box<dyn $crate::conn::Param>),+] })
    };
}
pub(crate) use part;

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.mark().0 == [0; 20]
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark([
            self.gone_ready.len(),
            self.gone_sched.len(),
            self.gone_lease.len(),
            self.gone_result.len(),
            self.gone_held.len(),
            self.gone_keys.len(),
            self.bodies.len(),
            self.ready.len(),
            self.sched.len(),
            self.leases.len(),
            self.results.len(),
            self.held.len(),
            self.effects.len(),
            self.evidence.len(),
            self.history.len(),
            self.audits.len(),
            self.flags.len(),
            self.claims.len(),
            self.keys.len(),
            self.claimed_ready.len(),
        ])
    }

    /// Takes back what came after a mark, if nothing was sent since.
    pub(crate) fn undo(&mut self, Mark(to): Mark) {
        self.gone_ready.truncate(to[0]);
        self.gone_sched.truncate(to[1]);
        self.gone_lease.truncate(to[2]);
        self.gone_result.truncate(to[3]);
        self.gone_held.truncate(to[4]);
        self.gone_keys.truncate(to[5]);
        self.bodies.truncate(to[6]);
        self.ready.truncate(to[7]);
        self.sched.truncate(to[8]);
        self.leases.truncate(to[9]);
        self.results.truncate(to[10]);
        self.held.truncate(to[11]);
        self.effects.truncate(to[12]);
        self.evidence.truncate(to[13]);
        self.history.truncate(to[14]);
        self.audits.truncate(to[15]);
        self.flags.truncate(to[16]);
        self.claims.truncate(to[17]);
        self.keys.truncate(to[18]);
        self.claimed_ready.truncate(to[19]);
    }

    /// All of it, in an order in which it can be sent together: new rows that are copied, if rows may be, and statements.
    pub(crate) fn parts(&self, copies: bool) -> (Vec<Rows>, Vec<Part<'_>>) {
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        // What is copied is sent first: it must not be a row that is to go before it comes.
        let copied = |many: usize, goes: bool| copies && many >= MANY && !goes;
        self.taken(&mut parts);
        let copied_keys = copied(self.keys.len(), !self.gone_keys.is_empty());
        if !copied_keys {
            self.taking(&mut parts);
        }
        if copied(self.bodies.len(), false) {
            rows.push(self.copied_bodies());
        } else {
            self.enqueued(&mut parts);
        }
        let unbegun = |life: &Life| *life == Life::unbegun(life.lane, life.due_at);
        let (new, old): (Vec<_>, Vec<_>) = self.ready.iter().partition(|(_, life)| unbegun(life));
        if copied(new.len(), !self.gone_ready.is_empty() || !self.claimed_ready.is_empty()) {
            rows.push(copied_ready(&new));
            self.lives(&mut parts, &[], &old);
        } else {
            self.lives(&mut parts, &new, &old);
        }
        if !self.claims.is_empty() {
            self.claimed(&mut parts);
        }
        if copied(self.leases.len(), !self.gone_lease.is_empty() || canary::is(Canary::CheckActStore)) {
            rows.push(self.copied_leases());
        } else {
            self.leased(&mut parts);
        }
        let copied_results = copied(self.results.len(), !self.gone_result.is_empty());
        if copied_results {
            rows.push(self.copied_results());
        }
        // The last of them: a key that somebody else took meanwhile ends the transaction, and a copy behind it would be refused
        // before it began, which ends the connection as well (`conn.rs`).
        if copied_keys {
            rows.push(self.copied_keys());
        }
        self.ended(&mut parts, !copied_results);
        self.noted(&mut parts);
        self.flagged(&mut parts);
        (rows, parts)
    }

    fn copied_keys(&self) -> Rows {
        const KEYS: &str = "copy tidegate.key (queue, hash, id, fingerprint) from stdin (format binary)";
        let mut rows = Encoder::new();
        for key in self.keys_in_order() {
            rows.row(4).int8(key.queue).bytes(&key.hash).int8(key.id.as_i64()).bytes(&key.fingerprint);
        }
        rows.end(KEYS)
    }

    /// So that two batches with keys in common do not wait for each other in a circle.
    fn keys_in_order(&self) -> Vec<&NewKey> {
        let mut keys: Vec<&NewKey> = self.keys.iter().collect();
        keys.sort_unstable_by_key(|key| (key.queue, key.hash));
        keys
    }

    fn taking<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const KEYS: &str =
            "-- enqueue: keys that nobody had; who is about to take one is waited for, and then all is done again
            insert into tidegate.key (queue, hash, id, fingerprint)
            select * from unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[])";
        let keys = self.keys_in_order();
        if keys.is_empty() {
            return;
        }
        part!(
            parts,
            KEYS,
            keys.iter().map(|key| key.queue).collect::<Vec<_>>(),
            keys.iter().map(|key| key.hash).collect::<Vec<_>>(),
            keys.iter().map(|key| key.id.as_i64()).collect::<Vec<_>>(),
            keys.iter().map(|key| key.fingerprint).collect::<Vec<_>>(),
        );
    }

    fn copied_bodies(&self) -> Rows {
        const BODIES: &str =
            "copy tidegate.message (id, lane, key, payload, enqueued_at, first_due_at, deadline, age_limit_ms, flow,
            parent, headers) from stdin (format binary)";
        let mut rows = Encoder::new();
        for body in &self.bodies {
            rows.row(11)
                .int8(body.id.as_i64())
                .int8(body.lane)
                .text(&body.key)
                .text(&body.payload)
                .int8(body.enqueued_at.as_millis())
                .int8_or_null(body.first_due_at.map(Timestamp::as_millis))
                .int8_or_null(body.deadline.map(Timestamp::as_millis))
                .int8_or_null(row::stored_max_age(body.max_age_ms))
                .int8_or_null(body.flow.map(MessageId::as_i64))
                .int8_or_null(body.parent.map(MessageId::as_i64))
                .text_or_null(body.headers.as_deref());
        }
        rows.end(BODIES)
    }

    fn copied_leases(&self) -> Rows {
        const LEASES: &str =
            "copy tidegate.lease (id, lane, due_at, expires_at, until, enqueued_at, flow, first_due_at, deadline,
            max_age_ms, claims, attempt, crashes, generation, round, flags, nonce, worker) from stdin (format binary)";
        let mut rows = Encoder::new();
        for lease in &self.leases {
            let Life { lane, due_at, counters, flags, expires_at, last: _ } = lease.life;
            rows.row(18)
                .int8(lease.id.as_i64())
                .int8(lane)
                .int8(due_at.as_millis())
                .int8_or_null(expires_at.map(Timestamp::as_millis))
                .int8(lease.until.as_millis())
                .int8_or_null(lease.stored_enqueued_at())
                .int8_or_null(lease.flow.map(MessageId::as_i64))
                .int8_or_null(lease.first_due_at.map(Timestamp::as_millis))
                .int8_or_null(lease.deadline.map(Timestamp::as_millis))
                .int8_or_null(row::stored_max_age(lease.max_age_ms))
                .int4(narrow(counters.claims))
                .int4(narrow(counters.attempt))
                .int4_or_null(some(counters.crashes))
                .int4_or_null(some(counters.generation))
                .int4_or_null(some(counters.round))
                .int4(row::bits(flags))
                .bytes(&lease.nonce)
                .text_or_null(lease.worker.as_deref());
        }
        rows.end(LEASES)
    }

    fn copied_results(&self) -> Rows {
        const RESULTS: &str =
            "copy tidegate.result (id, at, lane, expires_at, claims, attempt, crashes, generation, round, flags, state,
            code, body, last_nonce, last_digest) from stdin (format binary)";
        let mut rows = Encoder::new();
        for result in &self.results {
            let counters = result.counters;
            rows.row(15)
                .int8(result.id.as_i64())
                .int8(result.at.as_millis())
                .int8(result.lane)
                .int8_or_null(result.expires_at.map(Timestamp::as_millis))
                .int4(narrow(counters.claims))
                .int4(narrow(counters.attempt))
                .int4_or_null(some(counters.crashes))
                .int4_or_null(some(counters.generation))
                .int4_or_null(some(counters.round))
                .int4(row::bits(result.flags))
                .text(result.state)
                .text_or_null(result.code.as_deref().map(row::storable).as_deref())
                .text_or_null(result.body.as_deref().map(row::storable).as_deref())
                .bytes_or_null(result.last.as_ref().map(|last| &last.nonce[..]))
                .bytes_or_null(result.last.as_ref().map(|last| &last.digest[..]));
        }
        rows.end(RESULTS)
    }

    fn taken<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const READY: &str = "-- leaves its lane
            with gone as (delete from tidegate.ready where id = any($1) returning 1)
            select 1 / (count(*) = $2)::integer from gone";
        const CLAIMED: &str =
            "-- claim: leaves its lane; the row was locked where it lies, and is found without an index
            with gone as (delete from tidegate.ready where ctid = any($1) returning 1)
            select 1 / (count(*) = $2)::integer from gone";
        const SCHED: &str = "-- leaves what is due later
            with gone as (delete from tidegate.sched where id = any($1) returning 1)
            select 1 / (count(*) = $2)::integer from gone";
        const LEASE: &str = "-- ends runs, each under its lease token
            with gone as (delete from tidegate.lease l using unnest($1::bigint[], $2::integer[], $3::bytea[])
                as u(id, claims, nonce)
                where l.id = u.id and l.claims = u.claims and l.nonce = u.nonce returning 1)
            select 1 / (count(*) = $4)::integer from gone";
        const RESULT: &str = "-- put back from where it had ended
            with gone as (delete from tidegate.result where id = any($1) returning 1)
            select 1 / (count(*) = $2)::integer from gone";
        const HELD: &str = "-- leaves the desk
            with gone as (delete from tidegate.held where id = any($1) returning 1)
            select 1 / (count(*) = $2)::integer from gone";
        const KEYS: &str = "-- frees keys; one may name another message by now
            delete from tidegate.key k using unnest($1::bigint[], $2::bytea[], $3::bigint[]) as u(queue, hash, id)
            where k.queue = u.queue and k.hash = u.hash and k.id = u.id";
        for (ids, sql) in
            [(&self.gone_ready, READY), (&self.gone_sched, SCHED), (&self.gone_result, RESULT), (&self.gone_held, HELD)]
        {
            if !ids.is_empty() {
                part!(parts, sql, row::id_list(ids), size(ids.len()));
            }
        }
        if !self.claimed_ready.is_empty() {
            part!(parts, CLAIMED, self.claimed_ready.clone(), size(self.claimed_ready.len()));
        }
        if !self.gone_lease.is_empty() {
            part!(
                parts,
                LEASE,
                self.gone_lease.iter().map(|(id, _)| id.as_i64()).collect::<Vec<_>>(),
                self.gone_lease.iter().map(|(_, token)| narrow(token.claims)).collect::<Vec<_>>(),
                self.gone_lease.iter().map(|(_, token)| *token.nonce.as_bytes()).collect::<Vec<_>>(),
                size(self.gone_lease.len()),
            );
        }
        if !self.gone_keys.is_empty() {
            part!(
                parts,
                KEYS,
                self.gone_keys.iter().map(|(queue, ..)| *queue).collect::<Vec<_>>(),
                self.gone_keys.iter().map(|(_, hash, _)| *hash).collect::<Vec<_>>(),
                self.gone_keys.iter().map(|(.., id)| id.as_i64()).collect::<Vec<_>>(),
            );
        }
    }

    fn enqueued<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const BODIES: &str = "-- enqueue: the bodies, written once
            insert into tidegate.message
                (id, lane, key, payload, enqueued_at, first_due_at, deadline, age_limit_ms, flow, parent, headers)
            select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
                $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[])";
        let rows = &self.bodies;
        if rows.is_empty() {
            return;
        }
        let times = |time: fn(&Body) -> Option<Timestamp>| -> Vec<Option<i64>> {
            rows.iter().map(|body| time(body).map(Timestamp::as_millis)).collect()
        };
        part!(
            parts,
            BODIES,
            rows.iter().map(|body| body.id.as_i64()).collect::<Vec<_>>(),
            rows.iter().map(|body| body.lane).collect::<Vec<_>>(),
            rows.iter().map(|body| body.key.as_str()).collect::<Vec<_>>(),
            rows.iter().map(|body| &*body.payload).collect::<Vec<_>>(),
            rows.iter().map(|body| body.enqueued_at.as_millis()).collect::<Vec<_>>(),
            times(|body| body.first_due_at),
            times(|body| body.deadline),
            rows.iter().map(|body| row::stored_max_age(body.max_age_ms)).collect::<Vec<_>>(),
            rows.iter().map(|body| body.flow.map(MessageId::as_i64)).collect::<Vec<_>>(),
            rows.iter().map(|body| body.parent.map(MessageId::as_i64)).collect::<Vec<_>>(),
            rows.iter().map(|body| body.headers.as_deref()).collect::<Vec<_>>(),
        );
    }

    fn lives<'a>(&'a self, parts: &mut Vec<Part<'a>>, unbegun: &[&(MessageId, Life)], ready: &[&(MessageId, Life)]) {
        const UNBEGUN: &str = "-- claimable: messages that nothing has happened to yet
            insert into tidegate.ready (lane, pos, due_at, id)
            select u.lane, u.due_at, u.due_at, u.id from unnest($1::bigint[], $2::bigint[], $3::bigint[])
                as u(lane, due_at, id)";
        const READY: &str = "-- claimable: at the place of the moment at which they became so, a run that was given back at
            -- the place it had
            insert into tidegate.ready (lane, pos, due_at, id, expires_at, claims, attempt, crashes, generation, round,
                flags, last_nonce, last_digest)
            select u.lane, u.due_at, u.due_at, u.id, u.expires_at, u.claims, u.attempt, u.crashes, u.generation, u.round,
                u.flags, u.last_nonce, u.last_digest
            from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[], $6::integer[],
                $7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::bytea[], $12::bytea[])
                as u(lane, due_at, id, expires_at, claims, attempt, crashes, generation, round, flags, last_nonce,
                    last_digest)";
        const SCHED: &str = "-- due later
            insert into tidegate.sched (lane, due_at, id, expires_at, claims, attempt, crashes, generation, round,
                flags, last_nonce, last_digest)
            select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[], $6::integer[],
                $7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::bytea[], $12::bytea[])";
        if !unbegun.is_empty() {
            part!(
                parts,
                UNBEGUN,
                unbegun.iter().map(|(_, life)| life.lane).collect::<Vec<_>>(),
                unbegun.iter().map(|(_, life)| life.due_at.as_millis()).collect::<Vec<_>>(),
                unbegun.iter().map(|(id, _)| id.as_i64()).collect::<Vec<_>>(),
            );
        }
        if !ready.is_empty() {
            parts.push(Part { sql: READY, params: life_params(ready) });
        }
        if !self.sched.is_empty() {
            let sched: Vec<_> = self.sched.iter().collect();
            parts.push(Part { sql: SCHED, params: life_params(&sched) });
        }
    }

    fn claimed<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const CLAIMED: &str =
            "-- claim: by which it is known when it is repeated, and by whom, one row for all its leases
            insert into tidegate.claimed (nonce, at, worker)
            select nonce, floor(extract(epoch from clock_timestamp()) * 1000)::bigint, worker
            from unnest($1::bytea[], $2::text[]) as u(nonce, worker)
            on conflict (nonce) do update set at = excluded.at, worker = excluded.worker";
        let mut claims: Vec<&([u8; 16], String)> = self.claims.iter().collect();
        claims.sort_unstable();
        claims.dedup_by_key(|(nonce, _)| *nonce);
        part!(
            parts,
            CLAIMED,
            claims.iter().map(|(nonce, _)| *nonce).collect::<Vec<_>>(),
            claims.iter().map(|(_, worker)| worker.as_str()).collect::<Vec<_>>(),
        );
    }

    fn leased<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const LEASES: &str = "-- claim: the attempt is counted and the token given before the handler starts
            insert into tidegate.lease (id, lane, due_at, expires_at, until, enqueued_at, flow, first_due_at, deadline,
                max_age_ms, claims, attempt, crashes, generation, round, flags, nonce, worker)
            select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::integer[], $12::integer[],
                $13::integer[], $14::integer[], $15::integer[], $16::integer[], $17::bytea[], $18::text[])";
        const WHOEVER: &str = "-- claim, broken: whoever else runs it
            delete from tidegate.lease where id = any($1)";
        let rows = &self.leases;
        if rows.is_empty() {
            return;
        }
        if canary::is(Canary::CheckActStore) {
            part!(parts, WHOEVER, rows.iter().map(|lease| lease.id.as_i64()).collect::<Vec<_>>());
        }
        let count = |count: fn(&Counters) -> u32| -> Vec<i32> {
            rows.iter().map(|lease| narrow(count(&lease.life.counters))).collect()
        };
        let seldom = |count: fn(&Counters) -> u32| -> Vec<Option<i32>> {
            rows.iter().map(|lease| some(count(&lease.life.counters))).collect()
        };
        part!(
            parts,
            LEASES,
            rows.iter().map(|lease| lease.id.as_i64()).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.life.lane).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.life.due_at.as_millis()).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.life.expires_at.map(Timestamp::as_millis)).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.until.as_millis()).collect::<Vec<_>>(),
            rows.iter().map(NewLease::stored_enqueued_at).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.flow.map(MessageId::as_i64)).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.first_due_at.map(Timestamp::as_millis)).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.deadline.map(Timestamp::as_millis)).collect::<Vec<_>>(),
            rows.iter().map(|lease| row::stored_max_age(lease.max_age_ms)).collect::<Vec<_>>(),
            count(|counters| counters.claims),
            count(|counters| counters.attempt),
            seldom(|counters| counters.crashes),
            seldom(|counters| counters.generation),
            seldom(|counters| counters.round),
            rows.iter().map(|lease| row::bits(lease.life.flags)).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.nonce).collect::<Vec<_>>(),
            rows.iter().map(|lease| lease.worker.as_deref()).collect::<Vec<_>>(),
        );
    }

    fn ended<'a>(&'a self, parts: &mut Vec<Part<'a>>, with_results: bool) {
        const RESULTS: &str =
            "-- the commit that stores the result removes the claimable row: nothing with an answer can be claimed, so
            -- no attempt needs to consult the result first
            insert into tidegate.result (id, at, lane, expires_at, claims, attempt, crashes, generation, round, flags,
                state, code, body, last_nonce, last_digest)
            select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[], $6::integer[],
                $7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::text[], $12::text[], $13::text[],
                $14::bytea[], $15::bytea[])";
        const HELD: &str = "-- waits for a person
            insert into tidegate.held (id, at, lane, expires_at, fgroup, claims, attempt, crashes, generation, round,
                flags, state, reason, code, detail, effect, last_nonce, last_digest)
            select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::integer[],
                $7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::integer[], $12::text[], $13::text[],
                $14::text[], $15::text[], $16::text[], $17::bytea[], $18::bytea[])";
        let rows = &self.results;
        if with_results && !rows.is_empty() {
            let count = |count: fn(&Counters) -> u32| -> Vec<i32> {
                rows.iter().map(|result| narrow(count(&result.counters))).collect()
            };
            let seldom = |count: fn(&Counters) -> u32| -> Vec<Option<i32>> {
                rows.iter().map(|result| some(count(&result.counters))).collect()
            };
            part!(
                parts,
                RESULTS,
                rows.iter().map(|result| result.id.as_i64()).collect::<Vec<_>>(),
                rows.iter().map(|result| result.at.as_millis()).collect::<Vec<_>>(),
                rows.iter().map(|result| result.lane).collect::<Vec<_>>(),
                rows.iter().map(|result| result.expires_at.map(Timestamp::as_millis)).collect::<Vec<_>>(),
                count(|counters| counters.claims),
                count(|counters| counters.attempt),
                seldom(|counters| counters.crashes),
                seldom(|counters| counters.generation),
                seldom(|counters| counters.round),
                rows.iter().map(|result| row::bits(result.flags)).collect::<Vec<_>>(),
                rows.iter().map(|result| result.state).collect::<Vec<_>>(),
                texts(rows.iter().map(|result| result.code.as_deref())),
                texts(rows.iter().map(|result| result.body.as_deref())),
                rows.iter().map(|result| result.last.map(|last| last.nonce)).collect::<Vec<_>>(),
                rows.iter().map(|result| result.last.map(|last| last.digest)).collect::<Vec<_>>(),
            );
        }
        let rows = &self.held;
        if !rows.is_empty() {
            let count = |count: fn(&Counters) -> u32| -> Vec<i32> {
                rows.iter().map(|held| narrow(count(&held.counters))).collect()
            };
            part!(
                parts,
                HELD,
                rows.iter().map(|held| held.id.as_i64()).collect::<Vec<_>>(),
                rows.iter().map(|held| held.at.as_millis()).collect::<Vec<_>>(),
                rows.iter().map(|held| held.lane).collect::<Vec<_>>(),
                rows.iter().map(|held| held.expires_at.map(Timestamp::as_millis)).collect::<Vec<_>>(),
                rows.iter().map(|held| held.fgroup).collect::<Vec<_>>(),
                count(|counters| counters.claims),
                count(|counters| counters.attempt),
                count(|counters| counters.crashes),
                count(|counters| counters.generation),
                count(|counters| counters.round),
                rows.iter().map(|held| row::bits(held.flags)).collect::<Vec<_>>(),
                rows.iter().map(|held| held.state).collect::<Vec<_>>(),
                rows.iter().map(|held| held.reason).collect::<Vec<_>>(),
                texts(rows.iter().map(|held| held.code.as_deref())),
                texts(rows.iter().map(|held| held.detail.as_deref())),
                rows.iter().map(|held| held.effect.as_deref()).collect::<Vec<_>>(),
                rows.iter().map(|held| held.last.map(|last| last.nonce)).collect::<Vec<_>>(),
                rows.iter().map(|held| held.last.map(|last| last.digest)).collect::<Vec<_>>(),
            );
        }
    }

    fn noted<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const EVIDENCE: &str = "-- journal: late confirmations, as they came
            insert into tidegate.evidence (message, at, name, item, value)
            select u.message, u.at, u.name, u.item, u.value
            from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[])
                with ordinality as u(message, at, name, item, value, place)
            where exists (select 1 from tidegate.message m where m.id = u.message)
                and not exists (select 1 from tidegate.evidence e where e.message = u.message and e.name = u.name
                    and e.item = u.item and e.value = u.value)
            order by u.place";
        const EVIDENCE_BOUND: &str = "-- journal: of an effect, the first and the latest late confirmations
            delete from tidegate.evidence where seq in (
                select n.seq from (
                    select seq, row_number() over (partition by message, name, item order by seq) as nth,
                        count(*) over (partition by message, name, item) as n
                    from tidegate.evidence where message = any($1::bigint[])) as n
                where n.nth > 1 and n.nth <= n.n - $2)";
        const HISTORY: &str = "-- history: one line behind the last of its message
            insert into tidegate.history
                (message, seq, at, due_at, attempt, generation, outcome, state, code, detail)
            select u.message, u.nth + coalesce(
                    (select h.seq from tidegate.history h where h.message = u.message order by h.seq desc limit 1), 0),
                u.at, u.due_at, u.attempt, u.generation, u.outcome, u.state, u.code, u.detail
            from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[], $6::integer[],
                $7::text[], $8::text[], $9::text[], $10::text[])
                as u(message, nth, at, due_at, attempt, generation, outcome, state, code, detail)";
        const AUDIT_IN_ORDER: &str =
            "-- audit: numbers are seen in their order, so that whoever reads on behind one misses none
            select pg_advisory_xact_lock(hashtextextended('tidegate.audit', $1))";
        const AUDIT: &str = "-- acts of operators, in the commit of the act
            insert into tidegate.audit (at, actor, act, reason, message, queue, detail)
            select u.at, u.actor, u.act, u.reason, u.message, u.queue, u.detail
            from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[])
                with ordinality as u(at, actor, act, reason, message, queue, detail, place) order by u.place";
        self.effects(parts);
        let rows = &self.evidence;
        if !rows.is_empty() {
            part!(
                parts,
                EVIDENCE,
                rows.iter().map(|evidence| evidence.message.as_i64()).collect::<Vec<_>>(),
                rows.iter().map(|evidence| evidence.at.as_millis()).collect::<Vec<_>>(),
                rows.iter().map(|evidence| evidence.name.as_str()).collect::<Vec<_>>(),
                rows.iter().map(|evidence| evidence.item.as_str()).collect::<Vec<_>>(),
                plain(rows.iter().map(|evidence| evidence.value.as_str())),
            );
            let latest = i64::try_from(MOST_EVIDENCE - 1).unwrap_or(i64::MAX);
            part!(
                parts,
                EVIDENCE_BOUND,
                rows.iter().map(|evidence| evidence.message.as_i64()).collect::<Vec<_>>(),
                latest,
            );
        }
        let rows = &self.history;
        if !rows.is_empty() {
            let nth = |at: usize| {
                let before = rows[..at].iter().filter(|(id, _)| *id == rows[at].0).count();
                i64::try_from(before).unwrap_or(i64::MAX).saturating_add(1)
            };
            part!(
                parts,
                HISTORY,
                rows.iter().map(|(id, _)| id.as_i64()).collect::<Vec<_>>(),
                (0..rows.len()).map(nth).collect::<Vec<_>>(),
                rows.iter().map(|(_, line)| line.at.as_millis()).collect::<Vec<_>>(),
                rows.iter().map(|(_, line)| line.due_at.map(Timestamp::as_millis)).collect::<Vec<_>>(),
                rows.iter().map(|(_, line)| narrow(line.attempt)).collect::<Vec<_>>(),
                rows.iter().map(|(_, line)| narrow(line.generation)).collect::<Vec<_>>(),
                rows.iter().map(|(_, line)| line.outcome.as_str()).collect::<Vec<_>>(),
                rows.iter().map(|(_, line)| line.state.as_str()).collect::<Vec<_>>(),
                plain(rows.iter().map(|(_, line)| line.code.as_str())),
                plain(rows.iter().map(|(_, line)| line.detail.as_str())),
            );
        }
        let rows = &self.audits;
        if !rows.is_empty() {
            part!(parts, AUDIT_IN_ORDER, 0_i64);
            part!(
                parts,
                AUDIT,
                rows.iter().map(|audit| audit.at.as_millis()).collect::<Vec<_>>(),
                plain(rows.iter().map(|audit| audit.act.actor.as_str())),
                rows.iter().map(|audit| audit.what.as_str()).collect::<Vec<_>>(),
                plain(rows.iter().map(|audit| audit.act.reason.as_str())),
                rows.iter().map(|audit| audit.message.map(MessageId::as_i64)).collect::<Vec<_>>(),
                rows.iter().map(|audit| audit.queue).collect::<Vec<_>>(),
                plain(rows.iter().map(|audit| audit.detail.as_str())),
            );
        }
    }

    fn effects<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const EFFECTS: &str = "-- journal: one row for each intent, replaced by its own later states
            insert into tidegate.effect (message, name, item, seq, policy, key, request_hash, round, claims, nonce,
                sends, first_intent_at, last_possible_send, valid_until, quarantine_ms, reconcile_until, state, value,
                detail)
            select * from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[],
                $7::bytea[], $8::integer[], $9::integer[], $10::bytea[], $11::bigint[], $12::bigint[], $13::bigint[],
                $14::bigint[], $15::bigint[], $16::bigint[], $17::text[], $18::text[], $19::text[])
            on conflict (message, name, item, seq) do update set
                policy = excluded.policy, key = excluded.key, request_hash = excluded.request_hash,
                round = excluded.round, claims = excluded.claims, nonce = excluded.nonce, sends = excluded.sends,
                first_intent_at = excluded.first_intent_at, last_possible_send = excluded.last_possible_send,
                valid_until = excluded.valid_until, quarantine_ms = excluded.quarantine_ms,
                reconcile_until = excluded.reconcile_until, state = excluded.state, value = excluded.value,
                detail = excluded.detail";
        // A row that changed twice is written as it was left: one statement cannot replace what it inserted itself.
        let mut rows: Vec<&(MessageId, EffectRow)> = Vec::new();
        for row in &self.effects {
            let same = |known: &&mut &(MessageId, EffectRow)| {
                known.0 == row.0 && known.1.seq == row.1.seq && known.1.effect == row.1.effect
            };
            match rows.iter_mut().rev().find(same) {
                Some(known) => *known = row,
                None => rows.push(row),
            }
        }
        if rows.is_empty() {
            return;
        }
        let values: Vec<_> = rows.iter().map(|(_, effect)| row::effect_values(&effect.state)).collect();
        part!(
            parts,
            EFFECTS,
            rows.iter().map(|(id, _)| id.as_i64()).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.effect.name.as_str()).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| row::stored_item(&effect.effect)).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| i64::from(effect.seq)).collect::<Vec<_>>(),
            rows.iter()
                .map(|(_, effect)| serde_json::to_string(&effect.policy).expect("a policy is plain data"))
                .collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.key.as_str()).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.request_hash).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| narrow(effect.round)).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| narrow(effect.token.claims)).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| *effect.token.nonce.as_bytes()).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| i64::from(effect.sends)).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.first_intent_at.as_millis()).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.last_possible_send.as_millis()).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.valid_until.map(Timestamp::as_millis)).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| row::millis(effect.quarantine)).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.reconcile_until.as_millis()).collect::<Vec<_>>(),
            rows.iter().map(|(_, effect)| effect.state.as_str()).collect::<Vec<_>>(),
            texts(values.iter().map(|(value, _)| *value)),
            texts(values.iter().map(|(_, detail)| *detail)),
        );
    }

    fn flagged<'a>(&'a self, parts: &mut Vec<Part<'a>>) {
        const LEASE: &str = "-- flags of a running message
            update tidegate.lease t set flags = t.flags | u.bits from unnest($1::bigint[], $2::integer[]) as u(id, bits)
            where t.id = u.id";
        const READY: &str = "-- flags of a claimable message
            update tidegate.ready t set flags = t.flags | u.bits from unnest($1::bigint[], $2::integer[]) as u(id, bits)
            where t.id = u.id";
        const SCHED: &str = "-- flags of a message that is due later
            update tidegate.sched t set flags = t.flags | u.bits from unnest($1::bigint[], $2::integer[]) as u(id, bits)
            where t.id = u.id";
        const RESULT: &str = "-- flags of an ended message
            update tidegate.result t set flags = t.flags | u.bits from unnest($1::bigint[], $2::integer[]) as u(id, bits)
            where t.id = u.id";
        const HELD: &str = "-- flags of a message that waits for a person
            update tidegate.held t set flags = t.flags | u.bits from unnest($1::bigint[], $2::integer[]) as u(id, bits)
            where t.id = u.id";
        for (which, sql) in [
            (Flagged::Lease, LEASE),
            (Flagged::Ready, READY),
            (Flagged::Sched, SCHED),
            (Flagged::Result, RESULT),
            (Flagged::Held, HELD),
        ] {
            // An update takes one of several new values for a row: all bits of it at once.
            let mut of: Vec<(i64, i32)> = Vec::new();
            for (_, id, bits) in self.flags.iter().filter(|(place, ..)| *place == which) {
                match of.iter_mut().find(|(known, _)| *known == id.as_i64()) {
                    Some((_, known)) => *known |= row::bits(*bits),
                    None => of.push((id.as_i64(), row::bits(*bits))),
                }
            }
            if !of.is_empty() {
                let (ids, bits): (Vec<i64>, Vec<i32>) = of.into_iter().unzip();
                part!(parts, sql, ids, bits);
            }
        }
    }
}

/// What is bound to statements.
pub(crate) fn bound<'p>(parts: &'p [Part<'_>]) -> Vec<Vec<&'p dyn Param>> {
    parts.iter().map(|part| part.params.iter().map(|param| &**param as &dyn Param).collect()).collect()
}

/// The statements with what is bound to them.
pub(crate) fn steps<'p>(parts: &[Part<'_>], params: &'p [Vec<&'p dyn Param>]) -> Vec<Step<'p>> {
    parts.iter().zip(params).map(|(part, params)| (part.sql, &params[..])).collect()
}

/// The rows, and the statements with what is bound to them.
pub(crate) fn sent<'p>(rows: &'p [Rows], parts: &[Part<'_>], params: &'p [Vec<&'p dyn Param>]) -> Vec<Sent<'p>> {
    rows.iter().map(Sent::Rows).chain(steps(parts, params).into_iter().map(Sent::Statement)).collect()
}

/// Claimable messages that nothing has happened to yet.
fn copied_ready(unbegun: &[&(MessageId, Life)]) -> Rows {
    const UNBEGUN: &str = "copy tidegate.ready (lane, pos, due_at, id) from stdin (format binary)";
    let mut rows = Encoder::new();
    for (id, life) in unbegun {
        let due_at = life.due_at.as_millis();
        rows.row(4).int8(life.lane).int8(due_at).int8(due_at).int8(id.as_i64());
    }
    rows.end(UNBEGUN)
}

/// A counter that most rows have at 0: there it takes no place.
fn some(count: u32) -> Option<i32> {
    (count != 0).then(|| narrow(count))
}

/// How many rows a statement must take away: another number divides by zero, which ends the transaction.
fn size(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// What `ready` and `sched` have in common, in the order of `sched`.
fn life_params<'a>(rows: &[&(MessageId, Life)]) -> Vec<Box<dyn Param + 'a>> {
    let count = |count: fn(&Counters) -> u32| -> Box<dyn Param> {
        Box::new(rows.iter().map(|(_, life)| narrow(count(&life.counters))).collect::<Vec<i32>>())
    };
    vec![
        Box::new(rows.iter().map(|(_, life)| life.lane).collect::<Vec<_>>()),
        Box::new(rows.iter().map(|(_, life)| life.due_at.as_millis()).collect::<Vec<_>>()),
        Box::new(rows.iter().map(|(id, _)| id.as_i64()).collect::<Vec<_>>()),
        Box::new(rows.iter().map(|(_, life)| life.expires_at.map(Timestamp::as_millis)).collect::<Vec<_>>()),
        count(|counters| counters.claims),
        count(|counters| counters.attempt),
        count(|counters| counters.crashes),
        count(|counters| counters.generation),
        count(|counters| counters.round),
        Box::new(rows.iter().map(|(_, life)| row::bits(life.flags & row::LASTING)).collect::<Vec<_>>()),
        Box::new(rows.iter().map(|(_, life)| life.last.map(|last| last.nonce)).collect::<Vec<_>>()),
        Box::new(rows.iter().map(|(_, life)| life.last.map(|last| last.digest)).collect::<Vec<_>>()),
    ]
}

/// Texts that somebody said, as PostgreSQL can hold them.
fn plain<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<String> {
    texts.map(row::storable).map(Cow::into_owned).collect()
}

fn texts<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> Vec<Option<String>> {
    texts.map(|text| text.map(row::storable).map(Cow::into_owned)).collect()
}
