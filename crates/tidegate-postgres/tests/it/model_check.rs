//! Random commands on this engine and on the reference model.

use tidegate_testkit::check::{Check, assert_agrees};

use crate::engine::Postgres;

#[test]
#[expect(clippy::disallowed_methods, reason = "how a tester asks for one seed again, or for more than usual")]
fn the_engine_agrees_with_the_reference_model_on_random_commands() {
    let seed = std::env::var("TIDEGATE_CHECK_SEED").ok();
    let scripts = std::env::var("TIDEGATE_CHECK_SCRIPTS").ok();
    assert_agrees(&Postgres, &Check::asked(seed.as_deref(), scripts.as_deref()));
}
