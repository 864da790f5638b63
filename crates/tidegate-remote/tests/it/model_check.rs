//! Random commands on this store and on the reference model: over HTTP nothing of a verdict is lost or made up.

use tidegate_testkit::check::{Check, assert_agrees};

use crate::conformance::Remote;

#[test]
#[expect(clippy::disallowed_methods, reason = "how a tester asks for one seed again, or for more than usual")]
fn a_store_over_http_agrees_with_the_reference_model_on_random_commands() {
    let seed = std::env::var("TIDEGATE_CHECK_SEED").ok();
    let scripts = std::env::var("TIDEGATE_CHECK_SCRIPTS").ok();
    let asked = Check::asked(seed.as_deref(), scripts.as_deref());
    // The engine beneath has a check of its own; what is between needs fewer.
    let scripts = if asked == Check::default() { 6 } else { asked.scripts };
    assert_agrees(&Remote::default(), &Check { scripts, ..asked });
}
