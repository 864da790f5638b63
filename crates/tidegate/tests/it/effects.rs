use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::journal::{EffectId, EffectState};
use tidegate::lifecycle::Resolution;
use tidegate::store::Resolve;
use tidegate::{Answer, Context, EffectAnswer, EffectKey, EffectName, Found, HandlerError, State};

use crate::stage::{Count, SOON, Stage, Work, act, at_once};

const DAY: Duration = Duration::from_secs(24 * 3600);
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// A remote that answers by script and remembers what it was sent.
#[derive(Debug, Clone, Default)]
struct Remote(Arc<Mutex<Vec<String>>>);

impl Remote {
    fn sent(&self, key: &EffectKey) -> usize {
        let mut sent = self.0.lock().unwrap();
        sent.push(key.to_string());
        sent.len()
    }

    fn keys(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_lost_reply_of_a_keyed_effect_is_answered_by_the_same_key() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, _: Work| {
        let remote = shared.clone();
        async move {
            let charge = context
                .effect("capture")
                .keyed(LONG)
                .call(|key| async move {
                    match remote.sent(&key) {
                        1 => EffectAnswer::unknown("the reply was lost"),
                        n => EffectAnswer::confirmed(u32::try_from(n).unwrap()),
                    }
                })
                .await?;
            Ok(charge)
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(2)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(2));
    let keys = remote.keys();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
    let view = stage.view(sent.id()).await;
    assert_eq!((view.journal.len(), view.journal[0].sends), (1, 2));
    assert_eq!(view.counters.attempt, 2, "the run that reconciled went on as an attempt of its own");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_confirmed_effect_is_replayed_when_the_handler_fails_after_it() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, _: Work| {
        let remote = shared.clone();
        async move {
            let effect = context.effect("capture").keyed(LONG);
            let n = effect.call(|key| async move { EffectAnswer::confirmed(remote.sent(&key)) }).await?;
            if context.attempt() == 1 {
                return Err(HandlerError::retryable("stumbled", "after the effect"));
            }
            Ok(u32::try_from(n).unwrap())
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(3)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    assert_eq!(remote.keys().len(), 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_lookup_is_believed_only_after_the_quarantine_and_what_it_finds_is_not_sent_again() {
    let quarantine = Duration::from_millis(80);
    for found in [true, false] {
        let stage = Stage::new().await;
        let (remote, asked) = (Remote::default(), Count::default());
        let (shared, counted) = (remote.clone(), asked.clone());
        let handler = move |context: Context, _: Work| {
            let (remote, asked) = (shared.clone(), counted.clone());
            async move {
                let find = move |_: EffectKey| async move {
                    asked.up();
                    if found { Found::Confirmed(99) } else { Found::NotFound }
                };
                let send = |key: EffectKey| async move {
                    match remote.sent(&key) {
                        1 => EffectAnswer::unknown("time-out"),
                        _ => EffectAnswer::confirmed(2_u32),
                    }
                };
                let effect = context.effect("capture").send_within(Duration::from_millis(200));
                effect.lookup(quarantine, find).call(send).await
            }
        };
        let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
        let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
        let answer = sent.answer(SOON).await.unwrap();
        // One attempt was allowed and was used: found, the message goes on; not found, there is none left to send it again.
        let expected = if found { Answer::Completed(99) } else { Answer::Dead { reason: "exhausted".into() } };
        assert_eq!(answer, expected, "{:?}", stage.view(sent.id()).await);
        assert_eq!((remote.keys().len(), asked.get()), (1, 1));
        let view = stage.view(sent.id()).await;
        let row = &view.journal[0];
        assert!(view.ended_at.unwrap() >= row.quarantined_until(), "asked too early");
        worker.stop().await.unwrap();
    }
}

#[tokio::test]
async fn an_unknown_answer_of_an_at_most_once_effect_waits_for_a_person() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, _: Work| {
        let remote = shared.clone();
        async move {
            let effect = context.effect("capture").quarantine(Duration::ZERO).at_most_once();
            let send = |key: EffectKey| async move {
                remote.sent(&key);
                EffectAnswer::<u32>::unknown("reset")
            };
            effect.call(send).await
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(5)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Parked { reason: "outcome_unknown".into() });
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
    let resolution = Resolution::Happened { value: "41".into() };
    stage.tide.resolve(Resolve { id: sent.id(), effect, resolution, act: act() }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(41));
    assert_eq!(remote.keys().len(), 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_was_not_done_costs_no_attempt() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, _: Work| {
        let remote = shared.clone();
        async move {
            let send = |key: EffectKey| async move {
                match remote.sent(&key) {
                    n @ 1..=4 => EffectAnswer::not_done(format!("503 number {n}")),
                    _ => EffectAnswer::confirmed(5_u32),
                }
            };
            context.effect("capture").at_most_once().call(send).await
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(5));
    let view = stage.view(sent.id()).await;
    assert_eq!((view.counters.attempt, view.counters.claims), (1, 5));
    assert!(remote.keys().windows(2).all(|pair| pair[0] == pair[1]));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_rejection_passed_on_is_the_answer_under_the_remotes_code() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, work: Work| {
        let remote = shared.clone();
        async move {
            let effect = context.effect("capture").keyed(LONG);
            let send = |key: EffectKey| async move {
                remote.sent(&key);
                EffectAnswer::<u32>::rejected("card_declined", "no funds")
            };
            match effect.call(send).await {
                // What the remote said can be looked at, and answered otherwise.
                Err(error) if work.n == 2 && error.rejection().is_some_and(|said| said.code == "card_declined") => {
                    Ok(0)
                }
                other => other,
            }
        }
    };
    let worker = stage.tide.worker().handle(handler).start().await.unwrap();
    let answer = stage.tide.enqueue(Work { n: 1 }).await.unwrap().answer(SOON).await.unwrap();
    assert_eq!(answer, Answer::Failed(tidegate::Failure::new("card_declined", "no funds")));
    let answer = stage.tide.enqueue(Work { n: 2 }).await.unwrap().answer(SOON).await.unwrap();
    assert_eq!(answer, Answer::Completed(0));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn no_handler_can_make_a_success_or_a_failure_of_a_missing_answer() {
    for permanent in [true, false] {
        let stage = Stage::new().await;
        let handler = move |context: Context, _: Work| async move {
            let effect = context.effect("capture").at_most_once();
            let swallowed = effect.call(|_| async { EffectAnswer::<u32>::unknown("time-out") }).await;
            assert!(swallowed.is_err());
            if permanent { Err(HandlerError::permanent("gave_up", "money is gone")) } else { Ok(1) }
        };
        let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
        let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
        assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Parked { reason: "outcome_unknown".into() });
        worker.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_handler_that_is_cut_off_in_the_middle_of_a_send_leaves_an_open_effect() {
    let stage = Stage::new().await;
    let handler = |context: Context, _: Work| async move {
        let effect = context.effect("capture").at_most_once();
        effect.call(|_| std::future::pending::<EffectAnswer<u32>>()).await
    };
    let policy = tidegate::Policy { timeout: Duration::from_millis(50), ..at_once(5) };
    let worker = stage.tide.worker().handle_with(handler, policy).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Parked { reason: "outcome_unknown".into() });
    let view = stage.view(sent.id()).await;
    assert_eq!((view.journal[0].state.clone(), view.history[0].code.as_str()), (EffectState::Intent, "timeout"));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_send_that_is_not_answered_in_time_may_have_happened() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, _: Work| {
        let remote = shared.clone();
        async move {
            let effect = context.effect("capture").send_within(Duration::from_millis(30)).at_most_once();
            let send = |key: EffectKey| async move {
                if remote.sent(&key) == 1 {
                    std::future::pending::<()>().await;
                }
                EffectAnswer::confirmed(1_u32)
            };
            effect.call(send).await
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(3)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Parked { reason: "outcome_unknown".into() });
    assert_eq!(remote.keys().len(), 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_effect_name_may_be_used_once_in_an_attempt_unless_an_item_tells_them_apart() {
    let stage = Stage::new().await;
    let handler = |context: Context, work: Work| async move {
        for line in 0..2 {
            let effect = context.effect("mail");
            let effect = if work.n == 1 { effect } else { effect.item(line.to_string()) };
            effect.keyed(LONG).call(|_| async { EffectAnswer::confirmed(()) }).await?;
        }
        Ok(0)
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let twice = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(twice.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    assert_eq!(stage.view(twice.id()).await.history[0].code, "effect_repeated");
    let told_apart = stage.tide.enqueue(Work { n: 2 }).await.unwrap();
    assert_eq!(told_apart.answer(SOON).await.unwrap(), Answer::Completed(0));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_window_shorter_than_the_messages_age_is_refused_without_a_lookup() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, work: Work| {
        let remote = shared.clone();
        async move {
            let effect = context.effect("capture").keyed(DAY);
            let find = |_| async { Found::NotFound };
            let effect = if work.n == 1 { effect } else { effect.or_lookup(DAY, find) };
            effect.call(|key| async move { EffectAnswer::confirmed(u32::try_from(remote.sent(&key)).unwrap()) }).await
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let refused = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(refused.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    assert_eq!(stage.view(refused.id()).await.history[0].code, "window_too_short");
    assert!(remote.keys().is_empty(), "refused before anything was sent");
    let asked = stage.tide.enqueue(Work { n: 2 }).await.unwrap();
    assert_eq!(asked.answer(SOON).await.unwrap(), Answer::Completed(1));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_transactional_effect_is_written_once_however_often_its_handler_runs() {
    let stage = Stage::new().await;
    let sqlite = Arc::clone(stage.tide.sqlite().unwrap());
    let books = tidegate::sqlite::rusqlite::Connection::open(sqlite.path()).unwrap();
    books.busy_timeout(SOON).unwrap();
    books.execute_batch("create table entries (cents integer not null)").unwrap();
    let handler = move |context: Context, work: Work| {
        let sqlite = Arc::clone(&sqlite);
        async move {
            let cents = work.n;
            let effect = context.effect("credit").transactional();
            let credit = move |tx: &tidegate::sqlite::rusqlite::Connection| {
                tx.execute("insert into entries values (?1)", [cents]).map(|_| cents)
            };
            let credited = effect.in_store(&sqlite, credit).await?;
            if context.attempt() < 3 {
                return Err(HandlerError::retryable("stumbled", "after the write"));
            }
            Ok(credited)
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(5)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 250 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(250));
    let rows: u32 = books.query_row("select count(*) from entries", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_transactional_effect_that_fails_leaves_nothing() {
    let stage = Stage::new().await;
    let sqlite = Arc::clone(stage.tide.sqlite().unwrap());
    let books = tidegate::sqlite::rusqlite::Connection::open(sqlite.path()).unwrap();
    books.busy_timeout(SOON).unwrap();
    books.execute_batch("create table entries (cents integer not null)").unwrap();
    let handler = move |context: Context, _: Work| {
        let sqlite = Arc::clone(&sqlite);
        async move {
            let effect = context.effect("credit").transactional();
            let credit = |tx: &tidegate::sqlite::rusqlite::Connection| {
                tx.execute("insert into entries values (1)", [])?;
                tx.execute("insert into no_such_table values (1)", []).map(|_| 0_u32)
            };
            effect.in_store(&sqlite, credit).await
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(2)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    let rows: u32 = books.query_row("select count(*) from entries", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 0);
    let view = stage.view(sent.id()).await;
    assert!(view.history[0].detail.contains("no_such_table") && view.state == State::Dead);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn two_effects_at_once_are_refused_and_nothing_parks_for_it() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, _: Work| {
        let remote = shared.clone();
        async move {
            let send = |key: EffectKey| {
                let remote = remote.clone();
                async move {
                    tokio::task::yield_now().await;
                    EffectAnswer::confirmed(remote.sent(&key))
                }
            };
            let first = context.effect("first").keyed(LONG).call(send);
            let second = context.effect("second").keyed(LONG).call(send);
            let (first, second) = tokio::join!(first, second);
            first?;
            second?;
            Ok(0)
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    assert_eq!(stage.view(sent.id()).await.history[0].code, "effect_concurrent");
    assert_eq!(remote.keys().len(), 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_effect_that_its_handler_gives_up_waiting_for_ends_the_attempt_as_unknown() {
    let stage = Stage::new().await;
    let remote = Remote::default();
    let shared = remote.clone();
    let handler = move |context: Context, _: Work| {
        let remote = shared.clone();
        async move {
            let send = |key: EffectKey| {
                let n = remote.sent(&key);
                async move {
                    if n == 1 {
                        std::future::pending::<()>().await;
                    }
                    EffectAnswer::confirmed(n)
                }
            };
            let capture = context.effect("capture").keyed(LONG).call(send);
            let in_time = tokio::time::timeout(Duration::from_millis(20), capture).await;
            let notified = context.effect("notify").keyed(LONG).call(|_| async { EffectAnswer::confirmed(()) }).await;
            // A handler that ignores both cannot make a completion of them.
            if in_time.is_err() {
                assert!(notified.is_err(), "another effect began beside one whose answer is missing");
                return Ok(0);
            }
            Ok(u32::try_from(in_time??).unwrap())
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(2));
    assert_eq!(stage.view(sent.id()).await.history[0].code, "cut_off");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_remote_says_and_how_an_item_is_named_is_bounded_in_the_journal() {
    let stage = Stage::new().await;
    let handler = |context: Context, work: Work| async move {
        let effect = context.effect("notify").item("i".repeat(if work.n == 1 { 256 } else { 255 })).at_most_once();
        let said = effect.call(|_| async { EffectAnswer::<u32>::rejected("c".repeat(5000), "d".repeat(50_000)) }).await;
        said.map_err(
            |error| if error.rejection().is_some() { error } else { HandlerError::permanent("item", "too long") },
        )
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let said = stage.tide.enqueue(Work { n: 2 }).await.unwrap();
    said.answer(SOON).await.unwrap();
    let EffectState::Rejected { code, detail } = &stage.view(said.id()).await.journal[0].state else {
        panic!("no answer")
    };
    assert_eq!((code.len(), detail.len()), (100, 2048));
    let named = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    named.answer(SOON).await.unwrap();
    let view = stage.view(named.id()).await;
    assert!(view.journal.is_empty() && view.failure.as_ref().unwrap().detail.contains("256 bytes"), "{view:?}");
    worker.stop().await.unwrap();
}
