//! The reference model passes what every engine must.

use tidegate_testkit::model::ModelEngine;

mod conformance {
    tidegate_testkit::conformance!(crate::ModelEngine::default());
}
