//! A store of the step before, with messages in it, that is brought up to date: what was in it goes on.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::id::IdempotencyKey;
use tidegate_core::lifecycle::State;
use tidegate_core::message::Answer;
use tidegate_core::store::Enqueued;
use tidegate_core::{Nonce, Store as _, StoreErrorKind};
use tidegate_pgcluster::Cluster;
use tidegate_postgres::{Migrate, Options, PostgresStore, migration_sql};
use tidegate_testkit::ManualClock;

use crate::engine::{DATABASE, Schema, database, sql};
use crate::fixture::{Place, claim, claim_request, completion, connect_to, is_well, kind_of, message, run};

/// The first steps of a store: what programs know that cannot live with those after them.
fn three_steps(schema: &str) -> String {
    let all = migration_sql(schema);
    let (fourth, _) = all.match_indices("\nbegin;\n").nth(2).expect("each step is a transaction");
    assert!(all[..fourth].contains("0003_tokens") && !all[..fourth].contains("0004_less_log"));
    all[..fourth].to_owned()
}

/// Those that are missing then.
const MISSING: [&str; 2] = ["0004_less_log", "0005_older_fail"];

/// The nonce of the claim that was made before.
const NONCE: [u8; 16] = [9; 16];

/// Rows as the program of that step wrote them: of each counter there is a number.
fn inhabited(schema: &str) -> String {
    let hash = |key: &str| {
        let bytes = IdempotencyKey::new(key).unwrap().hash();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let fingerprint: String = message("any").fingerprint().0.iter().map(|byte| format!("{byte:02x}")).collect();
    let nonce = "09".repeat(16);
    let mut text = format!(
        "set search_path = {schema};
         insert into queue (tenant, name) values ('', 'work');
         insert into lane (queue, kind, version, priority) select id, 'work', 1, 5 from queue;
         create temporary table now_ms as select (extract(epoch from clock_timestamp()) * 1000)::bigint as ms;
         select setval('message_id', 1000);"
    );
    for (id, key) in [(1, "waits"), (2, "was-retried"), (3, "runs"), (4, "is-done")] {
        text.push_str(&format!(
            "insert into key select id, '\\x{}', {id}, '\\x{fingerprint}' from queue;
             insert into message (id, lane, key, payload, enqueued_at, max_age_ms)
                select {id}, l.id, '{key}', '{{\"cents\": 1200}}', ms, 259200000 from lane l, now_ms;",
            hash(key)
        ));
    }
    text.push_str(&format!(
        "insert into ready (lane, pos, due_at, id) select l.id, ms, ms, 1 from lane l, now_ms;
         insert into ready (lane, pos, due_at, id, claims, attempt, crashes) select l.id, ms, ms, 2, 3, 2, 1 from lane l, now_ms;
         insert into lease (id, lane, due_at, until, enqueued_at, max_age_ms, claims, attempt, crashes, generation, round, flags,
                nonce, worker)
            select 3, l.id, ms, ms + 3600000, ms, 259200000, 1, 1, 0, 0, 0, 0, '\\x{nonce}', 'worker' from lane l, now_ms;
         insert into result (id, at, lane, claims, attempt, state, body)
            select 4, ms, l.id, 1, 1, 'completed', '\"done\"' from lane l, now_ms;
         insert into tally (queue, kind, what, code, n) select id, 'work', 'enqueued', '', 4 from queue;
         insert into tally (queue, kind, what, code, n) select id, 'work', 'completed', '', 1 from queue;
         insert into depth (queue, ready, scheduled, leased, parked, dead) select id, 2, 0, 1, 0, 0 from queue;"
    ));
    text
}

#[test]
fn a_store_of_the_step_before_goes_on_where_it_was() {
    run(async {
        let schema = Schema::new();
        database();
        sql(&three_steps(schema.name()));
        sql(&inhabited(schema.name()));
        let refused = PostgresStore::open(&schema.url(), Options::default()).await;
        assert_eq!(kind_of(refused), StoreErrorKind::Conflict, "its tables are changed by nobody unasked");
        let migrate = Options { migrate: Migrate::OlderBeside, ..Options::default() };
        let store =
            PostgresStore::open(&schema.url(), migrate).await.expect("it was said to be taken beside what runs");

        // The reply to a claim that was made before was lost.
        let repeated = store.claim(claim_request(Nonce::from_bytes(NONCE), 5)).await.unwrap().leases;
        let ids: Vec<i64> = repeated.iter().map(|lease| lease.message.id.as_i64()).collect();
        assert_eq!(ids, [3], "it gets its lease, and nothing more");
        let settled = store.settle(vec![completion(&repeated[0])]).await.unwrap().remove(0);
        assert_eq!(settled.unwrap().state, State::Completed);

        let leases = claim(&store, 5).await;
        let counters: Vec<_> = leases
            .iter()
            .map(|l| (l.message.id.as_i64(), l.counters.claims, l.counters.attempt, l.counters.crashes))
            .collect();
        assert_eq!(counters, [(1, 1, 1, 0), (2, 4, 3, 1)]);
        let settles = leases.iter().map(completion).collect();
        assert!(store.settle(settles).await.unwrap().iter().all(Result::is_ok));

        let again = store.enqueue(vec![message("is-done")]).await.unwrap().remove(0).unwrap();
        let Enqueued::Replayed { id, answer } = again else { panic!("it has an answer: {again:?}") };
        assert_eq!((id.as_i64(), answer), (4, Answer::Completed("\"done\"".into())));
        // The function for other languages knows what is not stored of a message.
        let ask = |age: &str| {
            sql(&format!(
                "select array_to_string(ignored, ' ') from {}.enqueue('work', 'work', 'new', '{{\"cents\": 1200}}'::text,
                    max_age => interval '{age}')",
                schema.name()
            ))
        };
        let stored = store.enqueue(vec![message("new")]).await.unwrap().remove(0).unwrap();
        assert!(matches!(stored, Enqueued::New { .. }));
        assert_eq!((ask("3 days").trim(), ask("4 days").trim()), ("", "max_age"));
        store.close().await;
        is_well(&schema).await;
    });
}

#[test]
fn what_is_printed_for_a_person_to_run_is_what_a_program_does() {
    run(async {
        let schema = Schema::new();
        database();
        sql(&three_steps(schema.name()));
        let steps = PostgresStore::migrations(&schema.url(), Options::default()).await.unwrap();
        let missing: Vec<_> = steps.iter().filter(|step| step.applied_at.is_none()).collect();
        assert_eq!(missing.iter().map(|step| step.name).collect::<Vec<_>>(), MISSING);
        sql(&inhabited(schema.name()));
        let refused = Cluster::shared().sql(DATABASE, &missing[0].sql).expect_err("somebody runs a message");
        assert!(refused.to_string().contains("older programs are at work on schema"), "{refused}");
        sql(&format!("update {}.lease set until = 0", schema.name()));
        missing.iter().for_each(|step| drop(sql(&step.sql)));
        let store = PostgresStore::open(&schema.url(), Options { migrate: Migrate::Never, ..Options::default() }).await;
        store.unwrap().close().await;
    });
}

/// The names of the steps that a store lacks.
async fn missing(schema: &Schema) -> Vec<&'static str> {
    let steps = PostgresStore::migrations(&schema.url(), Options::default()).await.unwrap();
    steps.iter().filter(|step| step.applied_at.is_none()).map(|step| step.name).collect()
}

fn migrating() -> Options {
    Options { migrate: Migrate::Older, ..Options::default() }
}

#[test]
fn a_step_that_older_programs_cannot_live_with_waits_for_the_end_of_their_workers() {
    run(async {
        let schema = Schema::new();
        database();
        sql(&three_steps(schema.name()));
        sql(&inhabited(schema.name()));
        let refused = PostgresStore::open(&schema.url(), migrating()).await.expect_err("somebody runs a message");
        assert_eq!(refused.kind(), StoreErrorKind::Conflict);
        let runs = format!(
            "programs of step 3 are at work on schema {}: worker worker holds 1 message until 20",
            schema.name()
        );
        for said in ["cannot live with step 5 (0005_older_fail)", &runs, "tidegate migrate up --beside-older"] {
            assert!(refused.to_string().contains(said), "{refused}");
        }
        assert_eq!(missing(&schema).await, MISSING, "nothing was changed");

        // That lease is over; whoever is left of the fleet sweeps, by a clock that stands still.
        let clock = Arc::new(ManualClock::default());
        let at_clock = || Options { clock: Some(clock.clone()), ..migrating() };
        sql(&format!(
            "update {0}.lease set until = 0;
             update {0}.duty set holder = 'process 4711', until = {1} where name = 'sweep'",
            schema.name(),
            ManualClock::START
        ));
        let refused = PostgresStore::open(&schema.url(), at_clock()).await.expect_err("somebody sweeps");
        assert!(refused.what().contains("process 4711 swept it at 2026-01-01T00:00:00"), "{refused}");
        assert_eq!(missing(&schema).await, MISSING, "nothing was changed");

        clock.advance(Duration::from_secs(4));
        let store = PostgresStore::open(&schema.url(), at_clock()).await.expect("nobody is at work any more");
        let sessions =
            format!("select count(*) from pg_stat_activity where application_name = 'tidegate 5 {}'", schema.name());
        assert_ne!(sql(&sessions).trim(), "0", "the next step knows whom to wait for");
        store.close().await;
        assert!(missing(&schema).await.is_empty());
    });
}

#[test]
fn older_programs_are_known_by_what_their_sessions_call_themselves() {
    run(async {
        // Before step 5 they said nothing of their schema: nobody else may be in this database.
        const ALONE: &str = "tidegate_migrated";
        let schema = Schema::new();
        let database = Cluster::shared().database(ALONE).unwrap();
        Cluster::shared().sql(ALONE, &three_steps(schema.name())).unwrap();
        let url = format!("{database}?schema={}", schema.name());
        let session =
            async |name: &str| connect_to(&format!("{database}?application_name={}", name.replace(' ', "%20"))).await;
        let of = |step: u32| format!("tidegate {step} {}", schema.name());
        for older in ["tidegate".to_owned(), of(3), of(4)] {
            let _at_work = session(&older).await;
            let refused = PostgresStore::open(&url, migrating()).await.expect_err("an older program is there");
            assert!(refused.what().contains(" session"), "{older}: {refused}");
        }
        let mut others = Vec::new();
        for other in ["shop", "tidegate-application", "tidegate 3 shop", "tidegate of old"] {
            others.push(session(other).await);
        }
        for step in [5, 12] {
            others.push(session(&of(step)).await);
        }
        let store = PostgresStore::open(&url, migrating()).await.expect("those are no older programs of this store");
        store.close().await;
        drop(others);
        Cluster::shared().sql(ALONE, &format!("drop schema {} cascade", schema.name())).unwrap();
    });
}

/// What a program does whose store was migrated beside it, or before it came back from wherever it was.
#[test]
fn a_program_that_a_store_was_migrated_beside_claims_nothing_and_sets_nothing_aside() {
    run(async {
        let place = Place::new().await;
        place.store.enqueue(vec![message("a")]).await.unwrap().remove(0).unwrap();
        // The next program has another name for what every claim reads.
        sql(&format!("alter table {} rename column age_limit_ms to anything", place.name("message")));
        let refused = place
            .store
            .claim(claim_request(Nonce::from_bytes(NONCE), 1))
            .await
            .expect_err("it does not know these tables");
        assert_eq!(refused.kind(), StoreErrorKind::Unavailable);
        assert!(refused.to_string().contains("the tables are not those of this program"), "{refused}");
        let left = format!(
            "select count(*) from {} union all select count(*) from {}",
            place.name("ready"),
            place.name("held")
        );
        assert_eq!(sql(&left).split_whitespace().collect::<Vec<_>>(), ["1", "0"]);
    });
}
