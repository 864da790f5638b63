-- What a message writes into the server's log. Nothing of what is kept goes, and no row is rewritten.

-- A claim that is repeated under its nonce finds its leases: by one row for all of them, instead of an entry of an index for
-- each. It goes when none of them is left. The worker's name stands there as well, and no more in each lease.
create table tidegate.claimed (
    nonce  bytea  primary key,
    at     bigint not null,
    worker text                                 -- null: a claim of before; its leases have it
);
alter table tidegate.lease alter worker drop not null;
insert into tidegate.claimed (nonce, at)
    select distinct nonce, floor(extract(epoch from clock_timestamp()) * 1000)::bigint from tidegate.lease;
drop index tidegate.lease_by_nonce;
alter table tidegate.claimed set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);

-- Counters that most messages have at 0 all their life: a null is one, and takes no place.
alter table tidegate.ready
    alter claims drop not null, alter claims drop default, alter attempt drop not null, alter attempt drop default,
    alter crashes drop not null, alter crashes drop default, alter generation drop not null,
    alter generation drop default, alter round drop not null, alter round drop default;
alter table tidegate.lease
    alter crashes drop not null, alter generation drop not null, alter round drop not null;
alter table tidegate.result
    alter crashes drop not null, alter crashes drop default, alter generation drop not null,
    alter generation drop default, alter round drop not null, alter round drop default;

-- How old a message may become: three days, where there is nothing. A lease has when its message was enqueued, unless that
-- is when it was due.
alter table tidegate.message alter max_age_ms drop not null;
alter table tidegate.lease alter max_age_ms drop not null, alter enqueued_at drop not null;
do $$
begin
    execute replace(pg_get_functiondef('tidegate.take'::regproc), 'p_max_age <> m.max_age_ms',
        'p_max_age <> coalesce(m.max_age_ms, 259200000)');
end $$;
