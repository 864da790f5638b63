-- The names of this file are those of the default schema; a store in another one has them replaced. Times are
-- milliseconds since 1970, payloads and answers are text and never jsonb: what was stored is answered byte for byte.

-- One row: what the whole store agrees on. Nothing here is hot: a tick is written every few seconds at most.
create table tidegate.store (
    one          integer primary key check (one = 1),
    uuid         bytea   not null,              -- this store's identity
    created_at   bigint  not null,
    incarnation  integer not null,              -- one more for every copy that was put to work
    copied_at    bigint,                        -- a copy: when it was made
    copied_id    bigint,                        -- the last id it was copied with: flows up to it may have gone on elsewhere
    begun_at     bigint,                        -- when the copy was first put to work
    system_id    bigint,                        -- of the cluster it worked on last: a restored store runs on another one
    timeline     integer,                       -- and of its history: a promoted store begins a new one
    home         bigint,                        -- the number of this table: one that was dumped and restored has another
    last_tick    bigint  not null default 0,    -- store time of the last sweep
    steady_since bigint  not null default 0     -- when the wall clock was last set; 0: never
);

-- How often and how far the wall clock was set: each process learns here what another one put right already, and
-- retention counts the time that passed without the jumps ahead.
create table tidegate.jump (
    seq   bigint generated always as identity primary key,
    at    bigint not null,                      -- by the clock as it was after
    by_ms bigint not null
);

-- Ids only grow, whatever the clock does.
create sequence tidegate.message_id;

-- So many new ids, which follow the clock to within a second. The sequence is set ahead by one session at a time, and
-- only over a gap that no other one can have filled meanwhile; a duplicate would be refused by the primary key.
create function tidegate.next_ids(how_many integer, now_ms bigint) returns setof bigint
language plpgsql volatile as $$
declare
    -- 43 bits of milliseconds reach the year 2248; twenty bits leave a million ids a millisecond.
    wanted constant bigint := least(now_ms, (1::bigint << 43) - 1) << 20;
    behind constant bigint := 1000::bigint << 20;
begin
    if (select last_value from tidegate.message_id) < wanted - behind
        and pg_try_advisory_xact_lock(hashtextextended('tidegate.message_id', 0))
        and (select last_value from tidegate.message_id) < wanted - behind
    then
        perform setval('tidegate.message_id', wanted);
    end if;
    return query select nextval('tidegate.message_id') from generate_series(1, how_many);
end $$;

-- A queue of a tenant: the scope of keys. Its depths stand in tidegate.depth.
create table tidegate.queue (
    id        bigint generated always as identity primary key,
    tenant    text    not null,
    name      text    not null,
    paused    boolean not null default false,
    max_depth bigint,
    unique (tenant, name)
);

-- Lanes: what a worker chooses between. A paused queue, an unknown kind, a newer version is a lane nobody asks.
create table tidegate.lane (
    id       bigint  generated always as identity primary key,
    queue    bigint  not null references tidegate.queue (id),
    kind     text    not null,
    version  bigint  not null,
    priority integer not null,
    unique (queue, kind, version, priority)
);

-- Immutable bodies.
create table tidegate.message (
    id           bigint primary key,
    lane         bigint not null,
    key          text   not null,
    payload      text   not null,
    enqueued_at  bigint not null,
    first_due_at bigint,                        -- null: due at once
    deadline     bigint,
    max_age_ms   bigint not null,
    flow         bigint,                        -- null: the first of its flow
    parent       bigint,
    headers      text                           -- null: none; else a JSON object
);
create index message_by_flow on tidegate.message (flow) where flow is not null;

-- Known keys. A UUID is its own sixteen bytes, so that time-ordered keys are neighbours.
create table tidegate.key (
    queue       bigint not null,
    hash        bytea  not null,
    id          bigint not null,
    fingerprint bytea  not null,
    primary key (queue, hash)
);

-- Claimable now: the state ready, in the order of claims within a lane. `pos` is the store time at which it became
-- claimable, which is that at which it became due: rows appear only near a lane's end, so that a claim need not step over
-- what is gone before it.
create table tidegate.ready (
    lane        bigint  not null,
    pos         bigint  not null,
    due_at      bigint  not null,
    id          bigint  not null,
    expires_at  bigint,                         -- set by redrive and resolve: max_age starts anew, the deadline is waived
    claims      integer not null default 0,
    attempt     integer not null default 0,
    crashes     integer not null default 0,
    generation  integer not null default 0,
    round       integer not null default 0,
    flags       integer not null default 0,     -- 1 journaled, 2 suspect, 4 cancel requested, 32 release its key then,
                                                -- 64 copied and not run since, 128 payload erased, 256 answer
                                                -- erased, 512 compensated
    last_nonce  bytea,                          -- who settled it last, and how: a repeated settlement is recognised
    last_digest bytea,
    primary key (lane, pos, due_at, id)
);
create unique index ready_by_id on tidegate.ready (id);

-- Due later: the state ready as well. Kept apart, so that a claim never steps over what is not due; keyed by lane, so that
-- a claim makes due only what it serves and finds the next due time of its lanes with one seek each.
create table tidegate.sched (
    lane        bigint  not null,
    due_at      bigint  not null,
    id          bigint  not null,
    expires_at  bigint,
    claims      integer not null default 0,
    attempt     integer not null default 0,
    crashes     integer not null default 0,
    generation  integer not null default 0,
    round       integer not null default 0,
    flags       integer not null default 0,
    last_nonce  bytea,
    last_digest bytea,
    primary key (lane, due_at, id)
);
create unique index sched_by_id on tidegate.sched (id);

-- Running: the state leased. As many rows as there are running handlers.
create table tidegate.lease (
    id           bigint  primary key,
    lane         bigint  not null,
    due_at       bigint  not null,
    expires_at   bigint,
    until        bigint  not null,
    enqueued_at  bigint  not null,
    flow         bigint,
    first_due_at bigint,                        -- as its body has them: a settlement reads the lease and no body
    deadline     bigint,
    max_age_ms   bigint  not null,
    claims       integer not null,
    attempt      integer not null,
    crashes      integer not null,
    generation   integer not null,
    round        integer not null,
    flags        integer not null,              -- as above, 8 alone, 16 reconciling
    nonce        bytea   not null,
    worker       text    not null
);
-- A claim that is repeated under its nonce finds its leases.
create index lease_by_nonce on tidegate.lease (nonce);

-- Ended with an answer, or called off: the states completed, failed, cancelled. Goes after its retention.
create table tidegate.result (
    id          bigint  primary key,
    at          bigint  not null,
    lane        bigint  not null,
    expires_at  bigint,
    claims      integer not null,
    attempt     integer not null,
    crashes     integer not null default 0,
    generation  integer not null default 0,
    round       integer not null default 0,
    flags       integer not null default 0,
    state       text    not null check (state in ('completed', 'failed', 'cancelled')),
    code        text,
    body        text,                           -- completed: the result; failed: the detail
    last_nonce  bytea,
    last_digest bytea
);
create index result_by_time on tidegate.result (at);

-- Waits for a person: the states parked and dead. Expires only when it was discarded.
create table tidegate.held (
    id           bigint  primary key,
    at           bigint  not null,
    lane         bigint  not null,
    expires_at   bigint,
    fgroup       bigint  not null,              -- what it has in common with other failures
    discarded_at bigint,                        -- dead: given up for good; its retention counts from here
    claims       integer not null,
    attempt      integer not null,
    crashes      integer not null,
    generation   integer not null,
    round        integer not null,
    flags        integer not null,
    state        text    not null check (state in ('parked', 'dead')),
    reason       text    not null,
    code         text,
    detail       text,
    effect       text,                          -- the effect it failed at
    last_nonce   bytea,
    last_digest  bytea
);
create index held_parked on tidegate.held (lane, at) where state = 'parked';
create index held_dead on tidegate.held (lane, at) where state = 'dead' and discarded_at is null;
create index held_by_group on tidegate.held (state, lane, fgroup, at) where discarded_at is null;
create index held_discarded on tidegate.held (discarded_at) where discarded_at is not null;

-- The journal: one row for each intent of an effect, with all its sends.
create table tidegate.effect (
    message            bigint  not null,
    name               text    not null,
    item               text    not null,        -- '' without an item, '=' and the item with one
    seq                bigint  not null,
    policy             text    not null,        -- JSON
    key                text    not null,
    request_hash       bytea   not null,
    round              integer not null,
    claims             integer not null,
    nonce              bytea   not null,
    sends              bigint  not null,
    first_intent_at    bigint  not null,
    last_possible_send bigint  not null,
    valid_until        bigint,
    quarantine_ms      bigint  not null,
    reconcile_until    bigint  not null,
    state              text    not null,
    value              text,                    -- confirmed: the value; rejected: the code; unknown: what was seen
    detail             text,
    primary key (message, name, item, seq)
);
create index effect_open on tidegate.effect (message) where state in ('intent', 'unknown');

-- Confirmations under a lost lease: never applied, kept for whoever resolves.
create table tidegate.evidence (
    seq     bigint generated always as identity primary key,
    message bigint not null,
    at      bigint not null,
    name    text   not null,
    item    text   not null,
    value   text   not null
);
create index evidence_by_message on tidegate.evidence (message);

-- How runs ended, but for those that completed (their result is the record), and what operators did.
create table tidegate.history (
    message    bigint  not null,
    seq        bigint  not null,
    at         bigint  not null,
    due_at     bigint,
    attempt    integer not null,
    generation integer not null,
    outcome    text    not null,
    state      text    not null,
    code       text    not null,
    detail     text    not null,
    primary key (message, seq)
);

-- Acts of operators, in the commit of the act.
create table tidegate.audit (
    seq     bigint generated always as identity primary key,
    at      bigint not null,
    actor   text   not null,
    act     text   not null,
    reason  text   not null,
    message bigint,
    queue   bigint,
    detail  text   not null
);

-- Which messages an operation redrove: repeating a chunk does nothing twice.
create table tidegate.redriven (
    message   bigint not null,
    operation text   not null,
    ended     text,                             -- null: under way; well, badly, refused; unwatched: nobody wants to know
    primary key (message, operation)
);
create index redriven_under_way on tidegate.redriven (operation, message) where ended is null;

-- Redrives of many: all that is needed to drive one on, whoever began it.
create table tidegate.operation (
    name              text    primary key,
    selection         text    not null,         -- JSON
    again             boolean not null,
    canary            bigint  not null,
    per_second        bigint,
    stop_over_percent bigint,
    state             text    not null,
    selected          bigint  not null,
    redriven          bigint  not null default 0,
    refused           bigint  not null default 0,
    ended_well        bigint  not null default 0,
    ended_badly       bigint  not null default 0,
    actor             text    not null,
    reason            text    not null,
    created_at        bigint  not null,
    canary_until      bigint  not null,         -- so many redriven end before the next; 0: the canary is over
    judged_from       bigint  not null default 0,   -- ended and ended badly when it was last allowed to go on
    judged_badly_from bigint  not null default 0,
    last_id           bigint  not null,         -- the last message it came to
    watched_id        bigint  not null,         -- the last message it looked after
    next_at           bigint  not null          -- its rate allows the next step then
);

-- How many messages of a queue are where, as differences: each commit adds what it changed, the sweep folds, readers sum.
-- A row that every commit updates would be one that every commit waits for.
create table tidegate.depth (
    seq       bigint generated always as identity primary key,
    queue     bigint not null,
    ready     bigint not null,
    scheduled bigint not null,
    leased    bigint not null,
    parked    bigint not null,
    dead      bigint not null
);
create index depth_by_queue on tidegate.depth (queue);

-- Counters that survive, likewise as differences.
create table tidegate.tally (
    seq   bigint generated always as identity primary key,
    queue bigint not null,
    kind  text   not null,
    what  text   not null,
    code  text   not null,
    n     bigint not null
);

-- What each kind allows, as its workers declared it: read by every process's sweep.
create table tidegate.policy (
    kind        text   primary key,
    policy      text   not null,                -- JSON
    declared_at bigint not null
);

-- What one process of the fleet does for all of them, and until when it does.
create table tidegate.duty (
    name   text   primary key,
    holder text   not null,
    token  bytea  not null,
    until  bigint not null
);
insert into tidegate.duty (name, holder, token, until) values ('sweep', '', '', 0), ('retention', '', '', 0);

-- Tables whose rows come and go: what is gone from them is cleared away at once, however many rows stand.
alter table tidegate.ready set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
alter table tidegate.sched set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
alter table tidegate.lease set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
alter table tidegate.depth set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
alter table tidegate.tally set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
