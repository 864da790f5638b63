//! The payments application against its own world: gateway, twin, intake, steps, and real processes that are killed.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

mod file;
mod flow;
mod gateway;
mod idempotent;
mod intake;
mod processes;
mod proof;
mod twin;

use std::path::Path;
use std::time::Duration;

use deposits::gateway::{FaultScript, FaultWindow, Faults, GatewayMode, GatewayOptions, LatencyMs, ScriptStart};
use deposits::service::Service;
use deposits::trace::Scale;

/// Times for tests: everything fast, the quarantine longer than the lateness.
fn scale() -> Scale {
    Scale { call_timeout_ms: 200, greatest_lateness_ms: 100, quarantine_ms: 600, ..Scale::FAST }
}

/// A gateway whose faults never end.
fn gateway(ledger: &Path, mode: GatewayMode, faults: Faults) -> Service {
    let window = FaultWindow { from_ms: 0, to_ms: 3_600_000, faults };
    let script = FaultScript {
        windows: vec![window],
        latency_ms: LatencyMs { min: 0, max: 1 },
        greatest_lateness_ms: scale().greatest_lateness_ms,
        hang_limit_ms: 300,
        drip_ms: 1,
        retry_after_s: 1,
    };
    let options = GatewayOptions { script, script_start: ScriptStart::AtOnce, ..GatewayOptions::new(mode, ledger) };
    deposits::gateway::start(options).unwrap()
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap()
}
