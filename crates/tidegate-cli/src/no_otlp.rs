//! No traces: what stands for `otlp.rs` in a program that is built without the feature `otlp`.

use tracing_subscriber::layer::Identity;

use crate::exit::Problem;
use crate::settings::Settings;

/// Lets nothing out.
pub(crate) type Traces = Identity;

#[expect(clippy::unnecessary_wraps, reason = "with traces there is something that can go wrong")]
pub(crate) fn begin(_settings: &Settings) -> Result<Option<Traces>, Problem> {
    Ok(None)
}

pub(crate) fn end() {}

pub(crate) fn give_up() {}
