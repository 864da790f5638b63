-- Enqueueing in anybody's transaction, from any language:
--
--     select * from tidegate.enqueue('deposits', 'capture', 'deposit-17', '{"cents": 1200}');
--
-- The message is stored when the caller's transaction commits, and never was when it rolls back. What the engine does in
-- Rust is done here again: hashes, canonical text of a payload, verdicts. Tests compare the two on random values.
--
-- The two functions that are called from outside run with the rights of the schema's owner: an application needs no right
-- on any table, only `grant usage on schema … to …`, and to execute these, which everybody may.

-- SHA-256 over length-prefixed parts, the first sixteen bytes: id.rs, digest16.
create function tidegate.digest16(variadic parts bytea[]) returns bytea
language sql immutable strict parallel safe as $$
    select substring(sha256(string_agg(
        set_byte(set_byte(set_byte(set_byte('\x0000000000000000'::bytea,
            0, octet_length(part) & 255), 1, octet_length(part) >> 8 & 255),
            2, octet_length(part) >> 16 & 255), 3, octet_length(part) >> 24 & 255) || part,
        ''::bytea order by n)) from 1 for 16)
    from unnest(parts) with ordinality as p (part, n)
$$;

-- A UUID in its canonical form is its own sixteen bytes; anything else is hashed: id.rs, IdempotencyKey::hash.
create function tidegate.key_hash(key text) returns bytea
language sql immutable strict parallel safe as $$
    select case
        when key collate "C" ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
        then decode(replace(key, '-', ''), 'hex')
        else tidegate.digest16(convert_to(key, 'UTF8'))
    end
$$;

-- A message's id as people see it: id.rs, Display of MessageId.
create function tidegate.shown(id bigint) returns text
language sql immutable strict parallel safe as $$
    select 'msg_' || string_agg(
        substr('0123456789abcdefghjkmnpqrstvwxyz', (id >> (5 * place) & 31)::integer + 1, 1), '' order by place desc)
    from generate_series(0, 12) as place
$$;

-- A string with the fewest escapes: canonical.rs, write_string.
create function tidegate.canonical_string(string text) returns text
language plpgsql immutable strict parallel safe as $$
declare
    -- Not written as a literal: how one is read is a setting of the caller's session.
    backslash constant text := chr(92);
begin
    string := replace(replace(string, backslash, backslash || backslash), '"', backslash || '"');
    for control in 1 .. 31 loop
        if strpos(string, chr(control)) > 0 then
            string := replace(string, chr(control), backslash || 'u' || lpad(to_hex(control), 4, '0'));
        end if;
    end loop;
    return '"' || string || '"';
end $$;

-- A number by its exact decimal value: canonical.rs, canonical_number. A fraction or exponent that does not survive a
-- double is refused, because another reader would take it for another number.
create function tidegate.canonical_number(literal text, path text) returns text
language plpgsql immutable strict parallel safe
-- A double is printed with the digits that are needed to read it back.
set extra_float_digits = 1 as $$
declare
    zeros integer;
    exact numeric;
    double numeric;
    digits text;
begin
    if literal ~ '^-?0(\.0+)?([eE][-+]?[0-9]+)?$' then
        return '0';
    end if;
    if literal ~ '^-?[0-9]+$' then
        zeros := length(literal) - length(rtrim(literal, '0'));
        return case when zeros <= 400 then literal else rtrim(literal, '0') || 'e' || zeros end;
    end if;
    double := (literal::float8)::text::numeric;
    exact := trim_scale(literal::numeric);
    digits := ltrim(replace(abs(exact)::text, '.', ''), '0');
    -- With fewer digits than the server prints it is the one number halfway between two doubles that both read alike.
    if double <> exact
        and length(rtrim(digits, '0')) >= length(trim(both '0' from replace(abs(trim_scale(double))::text, '.', '')))
    then
        raise exception 'payload refused: the number % does not survive a double at %', left(literal, 60), path
            using errcode = 'TGINV', hint = 'send it as a string';
    end if;
    if abs(exact) < 1e-21 then
        return case when exact < 0 then '-' else '' end || digits || 'e-' || scale(exact);
    end if;
    return exact::text;
end $$;

-- One text for one JSON value: canonical.rs, canonicalize.
create function tidegate.canonical(value json, path text default '$', depth integer default 0) returns text
language plpgsql immutable strict parallel safe as $$
declare
    twice text;
    deeper boolean := false;
    written text;
begin
    case json_typeof(value)
        when 'null' then
            return 'null';
        when 'boolean' then
            return value #>> '{}';
        when 'string' then
            return tidegate.canonical_string(value #>> '{}');
        when 'number' then
            return tidegate.canonical_number(value #>> '{}', path);
        when 'array' then
            select count(*) > 0, '[' || coalesce(string_agg(
                    case when depth < 64 then tidegate.canonical(item, path || '[' || n - 1 || ']', depth + 1) end,
                    ',' order by n), '') || ']'
                into deeper, written
                from json_array_elements(value) with ordinality as items (item, n);
        when 'object' then
            select member.name into twice
                from json_each(value) as member (name, item) group by member.name having count(*) > 1 limit 1;
            if twice is not null then
                raise exception 'payload refused: member "%" appears twice at %.%', twice, path, twice
                    using errcode = 'TGINV';
            end if;
            -- Ordered by bytes, in any encoding and under any collation of the database.
            select count(*) > 0, '{' || coalesce(string_agg(
                    case when depth < 64 then tidegate.canonical_string(member.name) || ':'
                        || tidegate.canonical(member.item, path || '.' || member.name, depth + 1) end,
                    ',' order by convert_to(member.name, 'UTF8')), '') || '}'
                into deeper, written
                from json_each(value) as member (name, item);
    end case;
    if deeper and depth >= 64 then
        raise exception 'payload refused: nested deeper than 64 levels at %', path using errcode = 'TGINV';
    end if;
    return written;
end $$;

-- A commit that is answered before it is on the disk would make "stored" untrue: this transaction's is not.
create function tidegate.durably() returns void
language plpgsql volatile as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end $$;

-- Stores one message, or finds what its key means already: enqueue.rs. The verdict is new, existing, replayed, stale,
-- late, full or key_conflict. A new message gets the id that is given, if one is.
create function tidegate.take(
    p_tenant text, p_queue text, p_kind text, p_version bigint, p_priority integer,
    p_key text, p_hash bytea, p_fingerprint bytea, p_payload text, p_headers text,
    p_due_at bigint, p_due_in bigint, p_deadline bigint, p_max_age bigint, p_key_time bigint,
    p_retention bigint, p_now bigint, p_id bigint,
    out verdict text, out message bigint, out state text, out body text, out code text, out ignored text[]
)
language plpgsql volatile as $$
declare
    queue_id bigint;
    most bigint;
    lane_id bigint;
    due constant bigint := greatest(p_now, coalesce(p_due_at, p_now + p_due_in, p_now));
    is_late constant boolean := coalesce(p_deadline <= due, false);
    is_stale constant boolean := coalesce(p_key_time < p_now - p_retention, false);
    is_full boolean := false;
    known record;
    place record;
    first record;
    kept boolean;
    taken boolean := false;
begin
    ignored := array[]::text[];
    -- Names are made once; who makes one is waited for by those who want the same one.
    select q.id, q.max_depth into queue_id, most from tidegate.queue q where q.tenant = p_tenant and q.name = p_queue;
    if queue_id is null then
        insert into tidegate.queue (tenant, name) values (p_tenant, p_queue) on conflict do nothing;
        select q.id, q.max_depth into queue_id, most from tidegate.queue q where q.tenant = p_tenant and q.name = p_queue;
    end if;
    if most is not null then
        -- One at a time where there is a limit, and nowhere else.
        perform pg_advisory_xact_lock(hashtextextended('tidegate.queue', queue_id));
        select coalesce(sum(d.ready + d.scheduled + d.leased), 0) >= most into is_full
            from tidegate.depth d where d.queue = queue_id;
    end if;
    message := null;
    -- A message that is deleted between two of these statements leaves its key free: once more.
    for tries in 1 .. 10 loop
        -- A known key is answered whatever else is the matter; only an unknown one can be too old or one too many.
        if not (is_full or is_stale or is_late) then
            message := coalesce(message, p_id);
            if message is null then
                message := tidegate.next_ids(1, p_now);
            end if;
            insert into tidegate.key (queue, hash, id, fingerprint) values (queue_id, p_hash, message, p_fingerprint)
                on conflict (queue, hash) do nothing;
            taken := found;
            exit when taken;
        end if;
        select k.id, k.fingerprint into known from tidegate.key k where k.queue = queue_id and k.hash = p_hash;
        if known.id is null then
            if is_full or is_stale or is_late then
                verdict := case when is_stale then 'stale' when is_late then 'late' else 'full' end;
                if verdict = 'full' then
                    insert into tidegate.tally (queue, kind, what, code, n) values (queue_id, p_kind, 'queue_full', '', 1);
                    code := most::text;
                end if;
                message := null;
                return;
            end if;
            continue;
        end if;
        -- One statement, one moment: it stands in exactly one of these.
        select * into place from (
            select 'ready' as state, r.lane, null as code, null as body, r.flags from tidegate.ready r where r.id = known.id
            union all select 'ready', s.lane, null, null, s.flags from tidegate.sched s where s.id = known.id
            union all select 'leased', l.lane, null, null, l.flags from tidegate.lease l where l.id = known.id
            union all select e.state, e.lane, e.code, e.body, e.flags from tidegate.result e where e.id = known.id
            union all select h.state, h.lane, null, null, h.flags from tidegate.held h where h.id = known.id
        ) as places;
        if place.state is null then
            continue;
        end if;
        select l.kind, l.priority into first from tidegate.lane l where l.id = place.lane;
        message := known.id;
        state := place.state;
        -- 256: that there was an answer is known; what it was is not.
        kept := place.state in ('completed', 'failed') and place.flags & 256 = 0;
        verdict := case when known.fingerprint <> p_fingerprint then 'key_conflict' when kept then 'replayed' else 'existing' end;
        insert into tidegate.tally (queue, kind, what, code, n) values (queue_id, first.kind, case verdict
            when 'key_conflict' then 'key_conflicts' when 'replayed' then 'replayed' else 'deduplicated' end, '', 1);
        if verdict = 'replayed' then
            body := place.body;
            code := place.code;
        elsif verdict = 'existing' then
            -- Options of the first one won; those of this one that differ are told.
            select array_remove(array[
                case when p_priority <> first.priority then 'priority' end,
                case when p_due_in is not null and coalesce(m.first_due_at, m.enqueued_at) - m.enqueued_at <> p_due_in
                    or p_due_at is not null and coalesce(m.first_due_at, m.enqueued_at) <> greatest(p_due_at, m.enqueued_at)
                    then 'due' end,
                case when p_deadline is not null and p_deadline is distinct from m.deadline then 'deadline' end,
                case when p_max_age is not null and p_max_age <> m.max_age_ms then 'max_age' end
            ], null) into ignored from tidegate.message m where m.id = known.id;
        end if;
        return;
    end loop;
    if not taken then
        raise exception 'key "%" comes and goes', p_key using errcode = '40001', hint = 'repeat the transaction';
    end if;

    verdict := 'new';
    state := 'ready';
    select l.id into lane_id from tidegate.lane l
        where l.queue = queue_id and l.kind = p_kind and l.version = p_version and l.priority = p_priority;
    if lane_id is null then
        insert into tidegate.lane (queue, kind, version, priority) values (queue_id, p_kind, p_version, p_priority)
            on conflict do nothing;
        select l.id into lane_id from tidegate.lane l
            where l.queue = queue_id and l.kind = p_kind and l.version = p_version and l.priority = p_priority;
    end if;
    insert into tidegate.message
        (id, lane, key, payload, enqueued_at, first_due_at, deadline, max_age_ms, headers)
        values (message, lane_id, p_key, p_payload, p_now, case when due > p_now then due end, p_deadline,
            -- three days
            coalesce(p_max_age, p_deadline - due, 259200000), p_headers);
    if due > p_now then
        insert into tidegate.sched (lane, due_at, id) values (lane_id, due, message);
    else
        insert into tidegate.ready (lane, pos, due_at, id) values (lane_id, p_now, due, message);
    end if;
    insert into tidegate.depth (queue, ready, scheduled, leased, parked, dead)
        values (queue_id, (due <= p_now)::integer, (due > p_now)::integer, 0, 0, 0);
    insert into tidegate.tally (queue, kind, what, code, n) values (queue_id, p_kind, 'enqueued', '', 1);
end $$;

-- What an adapter calls: one document in, one out, so that a driver needs to know no type but text (enqueue_in.rs). Keys
-- are taken in one order, so that two batches that share some wait for each other and do not deadlock.
create function tidegate.enqueue_batch(request text) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- A key that another transaction is about to take is waited for this long.
set lock_timeout = '2s' as $$
declare
    asked constant json := request::json;
    ours constant text := (select encode(s.uuid, 'hex') from tidegate.store s);
    now_ms constant bigint := coalesce((asked ->> 'now')::bigint, floor(extract(epoch from clock_timestamp()) * 1000)::bigint);
    many constant integer := json_array_length(asked -> 'messages');
    -- In the order of the batch, whatever the order of the keys is.
    ids constant bigint[] := array(select tidegate.next_ids(many, now_ms));
    item record;
    verdict record;
    verdicts json[] := array[]::json[];
begin
    if asked ->> 'store' <> ours then
        return '{"refused": "store"}';
    end if;
    perform tidegate.durably();
    for item in
        select n, m ->> 'tenant' as tenant, m ->> 'queue' as queue, m ->> 'kind' as kind, (m ->> 'version')::bigint as version,
            (m ->> 'priority')::integer as priority, m ->> 'key' as key, decode(m ->> 'hash', 'hex') as hash,
            decode(m ->> 'fingerprint', 'hex') as fingerprint, m ->> 'payload' as payload, m ->> 'headers' as headers,
            (m ->> 'due_at')::bigint as due_at, (m ->> 'due_in')::bigint as due_in, (m ->> 'deadline')::bigint as deadline,
            (m ->> 'max_age')::bigint as max_age, (m ->> 'key_time')::bigint as key_time
        from json_array_elements(asked -> 'messages') with ordinality as messages (m, n)
            left join tidegate.queue q on q.tenant = m ->> 'tenant' and q.name = m ->> 'queue'
        -- Where there is a limit the first of the batch are taken, and its lock is the one that counts.
        order by q.id nulls last, case when q.max_depth is null then m ->> 'hash' end collate "C", n
    loop
        select * into verdict from tidegate.take(
            item.tenant, item.queue, item.kind, item.version, item.priority, item.key, item.hash, item.fingerprint,
            item.payload, item.headers, item.due_at, item.due_in, item.deadline, item.max_age, item.key_time,
            (asked ->> 'retention')::bigint, now_ms, ids[item.n]);
        verdicts[item.n::integer] := row_to_json(verdict);
    end loop;
    return json_build_object('verdicts', to_json(verdicts))::text;
end $$;

-- For every language that can send a statement. What is refused is an error with a hint and a code of the class TG:
-- TGINV the call is wrong, TGKEY the key is known with another payload, TGFUL the queue is full, TGSTA the key is unknown and
-- older than what is kept. Another transaction that holds the key for two seconds is 55P03, as any lock is.
create function tidegate.enqueue(
    queue text, kind text, key text, payload text,
    version bigint default 1,               -- of the payload's shape
    priority integer default 5,             -- 0 is claimed first, 9 last
    due_at timestamptz default null,        -- not claimed before; at once if null
    due_in interval default null,           -- the same, from now
    deadline timestamptz default null,      -- no attempt begins after it
    max_age interval default null,          -- bounds waiting, retries and holds; three days if null
    key_time timestamptz default null,      -- when the key was made
    headers json default null,              -- an object of strings, carried along
    tenant text default '',
    retention interval default '7 days',    -- how long this store keeps answers
    -- An id as the command prints it; whether this call made the message; where it stands; and of one that has its answer
    -- the result of a completed one (JSON), the code and the detail of a failed one; options the first call decided.
    out id text, out is_new boolean, out state text, out result text, out failed_code text, out failed_detail text,
    out ignored text[]
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s' as $$
declare
    now_ms constant bigint := floor(extract(epoch from clock_timestamp()) * 1000)::bigint;
    name constant text := '^[A-Za-z0-9._-]{1,100}$';
    names constant text := '1 to 100 of the characters A-Z a-z 0-9 . _ -';
    canonical text;
    verdict record;
begin
    if queue is null or queue collate "C" !~ name then
        raise exception 'invalid queue name "%"', queue using errcode = 'TGINV', hint = names;
    elsif kind is null or kind collate "C" !~ name then
        raise exception 'invalid kind "%"', kind using errcode = 'TGINV', hint = names;
    elsif tenant is null or tenant <> '' and tenant collate "C" !~ name then
        raise exception 'invalid tenant "%"', tenant using errcode = 'TGINV', hint = names;
    elsif key is null or key collate "C" !~ '^[!-~]{1,255}$' then
        raise exception 'invalid idempotency key "%"', key using errcode = 'TGINV',
            hint = '1 to 255 visible ASCII characters, no spaces; hash anything longer';
    elsif payload is null then
        raise exception 'no payload' using errcode = 'TGINV', hint = 'a JSON text; ''null'' if there is nothing to say';
    elsif octet_length(payload) > 1048576 then
        raise exception 'payload of % bytes is over the limit of 1048576', octet_length(payload) using errcode = 'TGINV',
            hint = 'store the document elsewhere and enqueue a reference to it';
    elsif version is null or version not between 1 and 4294967295 then
        raise exception 'invalid payload version %', version using errcode = 'TGINV', hint = 'versions are counted from 1';
    elsif priority is null or priority not between 0 and 9 then
        raise exception 'invalid priority %', priority using errcode = 'TGINV',
            hint = '0 (claimed first) to 9 (claimed last)';
    elsif due_at is not null and due_in is not null then
        raise exception 'due_at and due_in' using errcode = 'TGINV', hint = 'one of them';
    elsif max_age <= interval '0' then
        raise exception 'invalid max_age of %', max_age using errcode = 'TGINV', hint = 'leave it out for the default of 3 days';
    end if;
    perform tidegate.durably();
    if headers is not null then
        if json_typeof(headers) <> 'object'
            or exists (select from json_each(headers) as h (name, value) where json_typeof(h.value) <> 'string')
        then
            raise exception 'headers are no object of strings' using errcode = 'TGINV';
        elsif (select coalesce(sum(octet_length(h.name) + octet_length(h.value)), 0) from json_each_text(headers) as h (name, value)) > 16384 then
            raise exception 'headers are over the limit of 16384 bytes' using errcode = 'TGINV';
        end if;
    end if;
    begin
        canonical := tidegate.canonical(payload::json);
    exception when invalid_text_representation or untranslatable_character or numeric_value_out_of_range then
        raise exception 'payload refused: %', sqlerrm using errcode = 'TGINV',
            hint = 'a JSON text that every reader understands alike: no member twice, no number beyond a double, no \u0000';
    end;
    select * into verdict from tidegate.take(
        tenant, queue, kind, version, priority, key, tidegate.key_hash(key),
        tidegate.digest16(convert_to(kind, 'UTF8'), convert_to(canonical, 'UTF8')), payload,
        case when headers is not null and exists (select from json_each(headers)) then headers::text end,
        floor(extract(epoch from due_at) * 1000)::bigint, floor(extract(epoch from due_in) * 1000)::bigint,
        floor(extract(epoch from deadline) * 1000)::bigint, floor(extract(epoch from max_age) * 1000)::bigint,
        floor(extract(epoch from key_time) * 1000)::bigint, floor(extract(epoch from retention) * 1000)::bigint, now_ms, null);
    case verdict.verdict
        when 'key_conflict' then
            raise exception 'key "%" is known in queue % with another payload: %', key, queue, tidegate.shown(verdict.message)
                using errcode = 'TGKEY', detail = tidegate.shown(verdict.message),
                hint = 'a key names one intended effect for as long as it is kept; give another operation a key of its own';
        when 'full' then
            raise exception 'queue % holds its % messages', queue, verdict.code using errcode = 'TGFUL',
                hint = 'slow down and repeat it under the same key, or raise the limit: tidegate queue limit';
        when 'stale' then
            raise exception 'key "%" was made at % and is unknown: it may have been done and forgotten', key, key_time
                using errcode = 'TGSTA', hint = 'find out what became of it before a new key is given to it';
        when 'late' then
            raise exception 'the deadline % is over before the message is due', deadline using errcode = 'TGINV',
                hint = 'give it a later deadline, or none';
        else
            null;
    end case;
    id := tidegate.shown(verdict.message);
    is_new := verdict.verdict = 'new';
    state := verdict.state;
    ignored := verdict.ignored;
    if verdict.verdict = 'replayed' then
        result := case when verdict.state = 'completed' then coalesce(verdict.body, '') end;
        failed_code := case when verdict.state = 'failed' then verdict.code end;
        failed_detail := case when verdict.state = 'failed' then coalesce(verdict.body, '') end;
    end if;
end $$;

-- The same for a payload that is a value of SQL, as `jsonb_build_object(…)` makes one.
create function tidegate.enqueue(
    queue text, kind text, key text, payload jsonb,
    version bigint default 1, priority integer default 5, due_at timestamptz default null, due_in interval default null,
    deadline timestamptz default null, max_age interval default null, key_time timestamptz default null,
    headers json default null, tenant text default '', retention interval default '7 days',
    out id text, out is_new boolean, out state text, out result text, out failed_code text, out failed_detail text,
    out ignored text[]
)
language sql volatile as $$
    select * from tidegate.enqueue(queue, kind, key, payload::text, version, priority, due_at, due_in, deadline, max_age,
        key_time, headers, tenant, retention)
$$;
