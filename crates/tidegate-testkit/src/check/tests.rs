use super::*;
use crate::model::{ModelEngine, Mutation};

#[test]
fn the_model_agrees_with_itself() {
    assert_agrees(&ModelEngine::default(), &Check { scripts: 60, ..Check::default() });
}

#[test]
fn a_seed_always_makes_the_same_script() {
    assert_eq!(script(7, 200), script(7, 200));
    assert_ne!(script(7, 200), script(8, 200));
}

/// A check that catches nothing proves nothing: each broken rule must be noticed, and shown in a short script.
#[test]
fn every_broken_rule_is_noticed_and_shown_in_a_short_script() {
    for mutation in Mutation::ALL {
        let found = crate::run(check(
            &ModelEngine::broken(mutation),
            &Check { scripts: 200, commands: 120, ..Check::default() },
        ));
        let Err(disagreement) = found else { panic!("{mutation:?} went unnoticed") };
        println!("{mutation:?}: {} commands, seed {}", disagreement.script.len(), disagreement.seed);
        assert!(disagreement.script.len() <= 20, "{mutation:?}: {disagreement}");
    }
}

#[test]
fn a_disagreement_is_found_again_from_its_seed() {
    let engine = ModelEngine::broken(Mutation::NoFence);
    let Err(first) = crate::run(check(&engine, &Check::default())) else { panic!("it went unnoticed") };
    let seed = first.seed.to_string();
    let Err(again) = crate::run(check(&engine, &Check::asked(Some(&seed), None))) else { panic!("not found again") };
    assert_eq!((first.seed, first.script, first.difference), (again.seed, again.script, again.difference));
}
