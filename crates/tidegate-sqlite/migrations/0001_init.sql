-- `seal` is a checksum over the columns before it (seal.rs): SQLite's pages carry none. What a row says is served or
-- decided upon only if its seal agrees. Counters that every commit changes stand behind it and are recounted by the doctor.

-- One row: what the whole store agrees on. Read and written only inside write transactions.
create table tide_store (
    one          integer primary key check (one = 1),
    uuid         blob    not null,              -- this file's identity; enqueue_in compares it
    created_at   integer not null,
    incarnation  integer not null,              -- one more for every copy that `backup` made
    copied_at    integer,                       -- a copy: when the first of the copies between it and the original was made
    copied_id    integer,                       -- the last id it was copied with: flows up to it may have gone on elsewhere
    begun_at     integer,                       -- when the copy was first put to work
    seal         integer not null,
    last_id      integer not null default 0,    -- ids only grow, whatever the clock does
    last_tick    integer not null default 0,    -- store time of the last sweep
    steady_since integer not null default 0     -- when the wall clock was last set; 0: never
) strict;

-- How often and how far the wall clock was set: each process learns here what another one put right already, and
-- retention counts the time that passed without the jumps ahead.
create table tide_jump (
    seq   integer primary key autoincrement,
    at    integer not null,                     -- by the clock as it was after
    by_ms integer not null,
    seal  integer not null
) strict;

-- A queue of a tenant: the scope of keys. Its counts are increments of the commits that caused them.
create table tide_queue (
    id        integer primary key,
    tenant    text    not null,
    name      text    not null,
    paused    integer not null default 0,
    max_depth integer,
    seal      integer not null,
    ready     integer not null default 0,
    scheduled integer not null default 0,
    leased    integer not null default 0,
    parked    integer not null default 0,
    dead      integer not null default 0,
    unique (tenant, name)
) strict;

-- Lanes: what a worker chooses between. A paused queue, an unknown kind, a newer version is a lane nobody asks.
create table tide_lane (
    id       integer primary key,
    queue    integer not null references tide_queue (id),
    kind     text    not null,
    version  integer not null,
    priority integer not null,
    seal     integer not null,
    unique (queue, kind, version, priority)
) strict;

-- Immutable bodies.
create table tide_message (
    id           integer primary key,
    lane         integer not null,
    key          text    not null,
    payload      text    not null,
    enqueued_at  integer not null,
    first_due_at integer,                       -- null: due at once
    deadline     integer,
    max_age_ms   integer not null,
    flow         integer,                       -- null: the first of its flow
    parent       integer,
    headers      text,                          -- null: none; else a JSON object
    seal         integer not null
) strict;
create index tide_message_by_flow on tide_message (flow) where flow is not null;

-- Known keys. A UUID is its own sixteen bytes, so that time-ordered keys are neighbours.
create table tide_key (
    queue       integer not null,
    hash        blob    not null,
    id          integer not null,
    fingerprint blob    not null,
    seal        integer not null,
    primary key (queue, hash)
) strict, without rowid;

-- Claimable now: the state ready, in the order of claims within a lane.
create table tide_ready (
    lane        integer not null,
    due_at      integer not null,
    id          integer not null,
    claims      integer not null default 0,
    attempt     integer not null default 0,
    crashes     integer not null default 0,
    generation  integer not null default 0,
    round       integer not null default 0,
    flags       integer not null default 0,     -- 1 journaled, 2 suspect, 4 cancel requested, 32 release its key then,
                                                -- 64 copied and not run since, 128 payload erased, 256 answer
                                                -- erased, 512 compensated
    expires_at  integer,                        -- set by redrive and resolve: max_age starts anew, the deadline is waived
    last_nonce  blob,                           -- who settled it last, and how: a repeated settlement is recognised
    last_digest blob,
    seal        integer not null,
    primary key (lane, due_at, id)
) strict, without rowid;

-- Due later: the state ready as well. Kept apart, so that a claim never steps over what is not due; keyed by lane, so that
-- a claim makes due only what it serves and finds the next due time of its lanes with one seek each.
create table tide_sched (
    lane        integer not null,
    due_at      integer not null,
    id          integer not null,
    claims      integer not null default 0,
    attempt     integer not null default 0,
    crashes     integer not null default 0,
    generation  integer not null default 0,
    round       integer not null default 0,
    flags       integer not null default 0,
    expires_at  integer,
    last_nonce  blob,
    last_digest blob,
    seal        integer not null,
    primary key (lane, due_at, id)
) strict, without rowid;

-- Running: the state leased. As many rows as there are running handlers.
create table tide_lease (
    id          integer primary key,
    lane        integer not null,
    due_at      integer not null,
    claims      integer not null,
    attempt     integer not null,
    crashes     integer not null,
    generation  integer not null,
    round       integer not null,
    flags       integer not null,               -- as above, 8 alone, 16 reconciling
    expires_at  integer,
    nonce       blob    not null,
    until       integer not null,
    worker      text    not null,
    enqueued_at integer not null,
    flow        integer,
    seal        integer not null
) strict;
-- A claim that is repeated under its nonce finds its leases.
create index tide_lease_by_nonce on tide_lease (nonce);

-- Ended with an answer, or called off: the states completed, failed, cancelled. Goes after its retention.
create table tide_result (
    id          integer primary key,
    state       text    not null check (state in ('completed', 'failed', 'cancelled')),
    at          integer not null,
    lane        integer not null,
    claims      integer not null,
    attempt     integer not null,
    crashes     integer not null default 0,
    generation  integer not null default 0,
    round       integer not null default 0,
    flags       integer not null default 0,
    code        text,
    body        text,                           -- completed: the result; failed: the detail
    last_nonce  blob,
    last_digest blob,
    expires_at  integer,
    seal        integer not null
) strict;
create index tide_result_by_time on tide_result (at);

-- Waits for a person: the states parked and dead. Expires only when it was discarded.
create table tide_held (
    id          integer primary key,
    state       text    not null check (state in ('parked', 'dead')),
    at          integer not null,
    lane        integer not null,
    claims      integer not null,
    attempt     integer not null,
    crashes     integer not null,
    generation  integer not null,
    round       integer not null,
    flags       integer not null,
    reason      text    not null,
    code        text,
    detail      text,
    last_nonce  blob,
    last_digest blob,
    expires_at  integer,
    fgroup      integer not null,               -- what it has in common with other failures
    effect      text,                           -- the effect it failed at
    discarded_at integer,                       -- dead: given up for good; its retention counts from here
    seal        integer not null
) strict;
create index tide_held_parked on tide_held (lane, at) where state = 'parked';
create index tide_held_dead on tide_held (lane, at) where state = 'dead' and discarded_at is null;
create index tide_held_by_group on tide_held (state, lane, fgroup, at) where discarded_at is null;
create index tide_held_discarded on tide_held (discarded_at) where discarded_at is not null;

-- The journal: one row for each intent of an effect, with all its sends.
create table tide_effect (
    message            integer not null,
    name               text    not null,
    item               text    not null,        -- '' without an item, '=' and the item with one
    seq                integer not null,
    policy             text    not null,        -- JSON
    key                text    not null,
    request_hash       blob    not null,
    round              integer not null,
    claims             integer not null,
    nonce              blob    not null,
    sends              integer not null,
    first_intent_at    integer not null,
    last_possible_send integer not null,
    valid_until        integer,
    quarantine_ms      integer not null,
    reconcile_until    integer not null,
    state              text    not null,
    value              text,                    -- confirmed: the value; rejected: the code; unknown: what was seen
    detail             text,
    seal               integer not null,
    primary key (message, name, item, seq)
) strict, without rowid;
create index tide_effect_open on tide_effect (message) where state in ('intent', 'unknown');

-- Confirmations under a lost lease: never applied, kept for whoever resolves.
create table tide_evidence (
    seq     integer primary key,
    message integer not null,
    at      integer not null,
    name    text    not null,
    item    text    not null,
    value   text    not null,
    seal    integer not null
) strict;
create index tide_evidence_by_message on tide_evidence (message);

-- How runs ended, but for those that completed (their result is the record), and what operators did.
create table tide_history (
    message    integer not null,
    seq        integer not null,
    at         integer not null,
    attempt    integer not null,
    generation integer not null,
    outcome    text    not null,
    state      text    not null,
    code       text    not null,
    detail     text    not null,
    due_at     integer,
    seal       integer not null,
    primary key (message, seq)
) strict, without rowid;

-- Acts of operators, in the commit of the act.
create table tide_audit (
    seq     integer primary key autoincrement,
    at      integer not null,
    actor   text    not null,
    act     text    not null,
    reason  text    not null,
    message integer,
    queue   integer,
    detail  text    not null,
    seal    integer not null
) strict;

-- Which messages an operation redrove: repeating a chunk does nothing twice.
create table tide_redriven (
    message   integer not null,
    operation text    not null,
    ended     text,                             -- null: under way; well, badly, refused; unwatched: nobody wants to know
    primary key (message, operation)
) strict, without rowid;
create index tide_redriven_under_way on tide_redriven (operation, message) where ended is null;

-- Redrives of many: all that is needed to drive one on, whoever began it.
create table tide_operation (
    name              text    primary key,
    selection         text    not null,         -- JSON
    again             integer not null,
    canary            integer not null,
    per_second        integer,
    stop_over_percent integer,
    state             text    not null,
    selected          integer not null,
    redriven          integer not null default 0,
    refused           integer not null default 0,
    ended_well        integer not null default 0,
    ended_badly       integer not null default 0,
    actor             text    not null,
    reason            text    not null,
    created_at        integer not null,
    canary_until      integer not null,         -- so many redriven end before the next; 0: the canary is over
    judged_from       integer not null default 0,   -- ended and ended badly when it was last allowed to go on
    judged_badly_from integer not null default 0,
    last_id           integer not null,         -- the last message it came to
    watched_id        integer not null,         -- the last message it looked after
    next_at           integer not null,         -- its rate allows the next step then
    seal              integer not null
) strict;

-- Counters that survive, as increments of the commits that caused them.
create table tide_tally (
    queue integer not null,
    kind  text    not null,
    what  text    not null,
    code  text    not null,
    n     integer not null,
    primary key (queue, kind, what, code)
) strict, without rowid;

-- What each kind allows, as its workers declared it: read by every process's sweep.
create table tide_policy (
    kind        text    primary key,
    policy      text    not null,               -- JSON
    declared_at integer not null,
    seal        integer not null
) strict, without rowid;
