use std::collections::BTreeSet;
use std::time::Duration;

use tidegate_core::effect::{EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate_core::lifecycle::{Outcome, ParkReason, Resolution};
use tidegate_core::message::{Failure, Payload};
use tidegate_core::store::{Act, JournalWrite, Lease, NewOperation, Pace, QueueChange, QueueSlots, Selection};
use tidegate_core::token::{Glob, TokenChange, TokenHash};
use tidegate_core::{EffectName, Nonce, StoreErrorKind, TokenName, WorkerId};

use super::*;
use crate::ManualClock;
use crate::model::Model;

/// A store in which every verb has something to do.
struct Scene {
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
    leased: Lease,
    dead: MessageId,
    parked: MessageId,
    waiting: MessageId,
}

fn queue() -> QueueName {
    QueueName::new("q").unwrap()
}

fn kind() -> Kind {
    Kind::new("k").unwrap()
}

fn message(key: &str) -> NewMessage {
    let payload = Payload::from_json("1").unwrap();
    NewMessage::new(queue(), kind(), IdempotencyKey::new(key).unwrap(), payload)
}

fn act() -> Act {
    Act { actor: "t".into(), reason: "r".into() }
}

fn claim(nonce: u8) -> ClaimRequest {
    ClaimRequest {
        worker: WorkerId::new("w").unwrap(),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: queue(), slots: 1 }],
        kinds: vec![(kind(), 1)],
        nonce: Nonce::from_bytes([nonce; 16]),
        lease: Duration::from_secs(30),
    }
}

fn settle(lease: &Lease, outcome: Outcome) -> Settle {
    Settle {
        id: lease.message.id,
        token: lease.token,
        outcome,
        journal: Vec::new(),
        then: vec![message("next")],
        compensate: Vec::new(),
        unit: 0.0,
    }
}

fn intent(lease: &Lease) -> Journal {
    let effect = EffectId { name: EffectName::new("e").unwrap(), item: None };
    let policy = EffectPolicy::AtMostOnce;
    let reached = Reached { effect, policy, request_hash: [0; 16], quarantine: Duration::ZERO };
    let second = Duration::from_secs(1);
    let times = IntentTimes { send_within: second, reconcile_for: second };
    let write = JournalWrite::Intent { reached, times };
    Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write }
}

async fn scene() -> Scene {
    let clock = Arc::new(ManualClock::default());
    let store: Arc<dyn Store> = Arc::new(Model::new(clock.clone()));
    let mut leases = Vec::new();
    for (n, key) in ["dead", "parked", "leased"].into_iter().enumerate() {
        store.enqueue(vec![message(key)]).await.unwrap();
        leases.push(store.claim(claim(u8::try_from(n).unwrap())).await.unwrap().leases.remove(0));
    }
    let failure = || Failure::new("x", "");
    store.settle(vec![settle(&leases[0], Outcome::Undecodable { failure: failure() })]).await.unwrap();
    store.journal(vec![intent(&leases[1])]).await.unwrap();
    let park = Outcome::Park { reason: ParkReason::OutcomeUnknown, failure: failure() };
    store.settle(vec![settle(&leases[1], park)]).await.unwrap();
    store.enqueue(vec![message("waiting")]).await.unwrap();
    let waiting =
        store.find(Tenant::default(), queue(), IdempotencyKey::new("waiting").unwrap()).await.unwrap().unwrap();
    let leased = leases.remove(2);
    Scene { store, clock, leased, dead: leases[0].message.id, parked: leases[1].message.id, waiting }
}

impl Scene {
    /// One call of a verb that has something to do, or to look at.
    async fn call(&self, store: &dyn Store, verb: Verb) -> Result<(), StoreError> {
        match verb {
            Verb::Enqueue => store.enqueue(vec![message("new")]).await.map(drop),
            Verb::Claim => store.claim(claim(9)).await.map(drop),
            Verb::Declare => store.declare(vec![(kind(), Policy::default())]).await,
            Verb::Extend => {
                let (id, token, lease) = (self.leased.message.id, self.leased.token, Duration::from_secs(90));
                store.extend(vec![Extend { id, token, lease, alone: true }]).await.map(drop)
            }
            Verb::Journal => store.journal(vec![intent(&self.leased)]).await.map(drop),
            Verb::Settle => {
                let outcome = Outcome::Completed { result: "1".into(), orphans: false };
                store.settle(vec![settle(&self.leased, outcome)]).await.map(drop)
            }
            Verb::Sweep => {
                let request = SweepRequest { take_over: true, retention: None, limit: 10, unit: 0.0 };
                store.sweep(request).await.map(drop)
            }
            Verb::Redrive => {
                let request = Redrive { ids: vec![self.dead], again: false, operation: "o".into(), act: act() };
                store.redrive(request).await.map(drop)
            }
            Verb::Operate => {
                let selection = Selection { ids: vec![self.dead], ..Selection::default() };
                let (name, pace) = ("o".to_owned(), Pace::default());
                let new = NewOperation { name, selection, again: false, pace, act: act() };
                store.operate(Operate::Begin(Box::new(new))).await.map(drop)
            }
            Verb::Operations => store.operations(None, 9).await.map(drop),
            Verb::Edit => {
                let payload = Payload::from_json("{\"repaired\":true}").unwrap();
                store.edit(Edit { id: self.dead, payload, act: act() }).await.map(drop)
            }
            Verb::Discard => store.discard(Discard { ids: vec![self.dead], act: act() }).await.map(drop),
            Verb::Cancel => {
                let request = Cancel { ids: vec![self.waiting], release_key: false, act: act() };
                store.cancel(request).await.map(drop)
            }
            Verb::Pause => {
                let (tenant, change) = (Tenant::default(), QueueChange::Pause);
                store.pause(ChangeQueue { tenant, queue: queue(), change, act: act() }).await
            }
            Verb::Resolve => {
                let effect = EffectId { name: EffectName::new("e").unwrap(), item: None };
                let resolution = Resolution::Happened { value: "1".into() };
                store.resolve(Resolve { id: self.parked, effect, resolution, act: act() }).await.map(drop)
            }
            Verb::Inspect => store.inspect(vec![self.waiting]).await.map(drop),
            Verb::Find => {
                let key = IdempotencyKey::new("waiting").unwrap();
                store.find(Tenant::default(), queue(), key).await.map(drop)
            }
            Verb::Progress => store.progress(vec![self.waiting]).await.map(drop),
            Verb::Flow => store.flow(self.waiting).await.map(drop),
            Verb::List => store.list(Filter { limit: 9, ..Filter::default() }).await.map(drop),
            Verb::Groups => store.groups(Filter { limit: 9, ..Filter::default() }).await.map(drop),
            Verb::Explain => store.explain(self.waiting).await.map(drop),
            Verb::Audit => store.audit(0, 9).await.map(drop),
            Verb::Note => {
                let note =
                    Note { what: "reveal".into(), messages: vec![self.waiting], detail: String::new(), act: act() };
                store.note(note).await
            }
            Verb::Tokens => store.tokens().await.map(drop),
            Verb::ChangeToken => {
                let (hash, scopes) = (TokenHash::of("tg_x"), vec!["work".parse().unwrap()]);
                let change = TokenChange::Add { hash, scopes, tenant: Glob::all(), expires_at: None };
                let name = TokenName::new("t").unwrap();
                store.change_token(ChangeToken { name, change, act: act() }).await.map(drop)
            }
            Verb::Stats => store.stats().await.map(drop),
        }
    }

    /// Whether the verb changes anything here.
    fn writes(verb: Verb) -> bool {
        !matches!(
            verb,
            Verb::Inspect
                | Verb::Find
                | Verb::Progress
                | Verb::Flow
                | Verb::List
                | Verb::Groups
                | Verb::Operations
                | Verb::Explain
                | Verb::Audit
                | Verb::Tokens
                | Verb::Stats
        )
    }

    /// Everything that can be seen, counters aside: a repeat is counted.
    async fn seen(&self) -> String {
        let views = crate::recount::every_view(&*self.store).await.unwrap();
        let facts = self.store.explain(self.waiting).await.unwrap().unwrap();
        let stats = self.store.stats().await.unwrap();
        let operations = self.store.operations(None, 9).await.unwrap();
        let tokens = self.store.tokens().await.unwrap();
        // Which acts there are, and not how often they were noted: a note that is repeated is one more.
        let acts = self.store.audit(0, 99).await.unwrap();
        let acts: BTreeSet<_> = acts.into_iter().map(|row| (row.act, row.message)).collect();
        let queues = &stats.queues;
        format!("{views:#?} {facts:#?} {operations:#?} {tokens:#?} {acts:#?} {queues:#?} {}", stats.open_effects)
    }
}

/// A scene before the call, and what is seen before and after one that nothing spoils.
async fn prepared(verb: Verb) -> (Scene, String, String) {
    let twin = scene().await;
    let scene = scene().await;
    // So that the sweep finds a lapsed lease, and only it.
    if verb == Verb::Sweep {
        for clock in [&twin.clock, &scene.clock] {
            clock.advance(Duration::from_secs(31));
        }
    }
    let before = twin.seen().await;
    twin.call(&*twin.store, verb).await.unwrap();
    let after = twin.seen().await;
    assert_eq!(before != after, Scene::writes(verb), "{verb:?} has something to do exactly if it writes");
    (scene, before, after)
}

#[test]
fn a_request_that_is_lost_changes_nothing_whatever_the_verb() {
    crate::run(async {
        for verb in Verb::ALL {
            let (scene, before, after) = prepared(verb).await;
            let store = FaultyStore::new(scene.store.clone());
            store.spoil(verb, Fault::FailBefore);
            let error = scene.call(&*store, verb).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{verb:?}");
            assert_eq!(scene.seen().await, before, "{verb:?}");
            scene.call(&*store, verb).await.unwrap();
            assert_eq!(scene.seen().await, after, "{verb:?}: the next call is not spoilt");
        }
    });
}

#[test]
fn a_reply_that_is_lost_leaves_the_call_done_whatever_the_verb() {
    crate::run(async {
        for verb in Verb::ALL {
            let (scene, _, after) = prepared(verb).await;
            let store = FaultyStore::new(scene.store.clone());
            store.spoil(verb, Fault::FailAfter);
            let error = scene.call(&*store, verb).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{verb:?}");
            assert_eq!(scene.seen().await, after, "{verb:?}");
        }
    });
}

#[test]
fn a_delayed_call_is_carried_out_when_it_is_let_go_whatever_the_verb() {
    crate::run(async {
        for verb in Verb::ALL {
            let (scene, before, after) = prepared(verb).await;
            let store = FaultyStore::new(scene.store.clone());
            store.spoil(verb, Fault::Delay);
            let release = async {
                store.holds_one().await;
                assert_eq!(scene.seen().await, before, "{verb:?}: not yet");
                store.release();
            };
            let (reply, ()) = tokio::join!(scene.call(&*store, verb), release);
            reply.unwrap();
            assert_eq!(scene.seen().await, after, "{verb:?}");
        }
    });
}

#[test]
fn an_overtaken_call_is_carried_out_after_the_next_whatever_the_verb() {
    crate::run(async {
        for verb in Verb::ALL {
            let (scene, before, after) = prepared(verb).await;
            let store = FaultyStore::new(scene.store.clone());
            store.spoil(verb, Fault::Reorder);
            let overtake = async {
                store.holds_one().await;
                assert_eq!(scene.seen().await, before, "{verb:?}: not yet");
                store.stats().await.unwrap();
            };
            let (reply, ()) = tokio::join!(scene.call(&*store, verb), overtake);
            reply.unwrap();
            assert_eq!(scene.seen().await, after, "{verb:?}");
        }
    });
}

#[test]
fn a_call_that_arrives_twice_is_done_once_whatever_the_verb() {
    crate::run(async {
        for verb in Verb::ALL {
            let (scene, _, after) = prepared(verb).await;
            let store = FaultyStore::new(scene.store.clone());
            store.spoil(verb, Fault::Duplicate);
            scene.call(&*store, verb).await.unwrap();
            assert_eq!(scene.seen().await, after, "{verb:?}: every verb is safe to repeat");
        }
    });
}

#[test]
fn a_script_spoils_the_calls_of_its_verbs_one_after_another() {
    crate::run(async {
        let scene = scene().await;
        let store = FaultyStore::new(scene.store.clone());
        store.spoil(Verb::Stats, Fault::FailBefore);
        store.spoil(Verb::List, Fault::FailBefore);
        store.spoil(Verb::Stats, Fault::FailAfter);
        assert!(scene.call(&*store, Verb::List).await.is_err());
        let stats: Vec<bool> =
            [store.stats().await, store.stats().await, store.stats().await].iter().map(Result::is_ok).collect();
        assert_eq!(stats, [false, false, true]);
        let spoilt =
            [(Verb::List, Fault::FailBefore), (Verb::Stats, Fault::FailBefore), (Verb::Stats, Fault::FailAfter)];
        assert_eq!(store.spoilt(), spoilt);
    });
}

#[test]
fn a_seed_spoils_the_same_calls_every_time() {
    crate::run(async {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let scene = scene().await;
            let faults = [Fault::FailBefore, Fault::FailAfter, Fault::Duplicate];
            let store = FaultyStore::seeded(scene.store.clone(), 5, 0.3, &faults);
            for verb in Verb::ALL.into_iter().cycle().take(100) {
                scene.call(&*store, verb).await.ok();
            }
            runs.push(store.spoilt());
        }
        assert_eq!(runs[0], runs[1]);
        assert!((10..60).contains(&runs[0].len()), "{} of 100 at a rate of 0.3", runs[0].len());
    });
}
