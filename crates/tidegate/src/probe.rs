//! Where a test looks into an attempt: at what leaves the process.
//!
//! Outside of `testing` nobody does, and each place is one look at an `Option`. What goes to the store is seen by a
//! decorator of the store instead.

use std::fmt;

use async_trait::async_trait;
use tidegate_core::effect::{EffectKey, Reached};
use tidegate_core::message::Message;

/// Looks at both ends of everything that leaves.
#[async_trait]
pub(crate) trait Probe: Send + Sync + fmt::Debug {
    /// It is about to leave. A probe that never returns is a process that died here.
    async fn before(&self, leaving: &Leaving);
    /// It came back; says whether the answer arrives or is lost on its last metre.
    async fn after(&self, leaving: &Leaving) -> Arrival;
}

/// What an attempt makes happen outside of it.
#[derive(Debug, Clone)]
pub(crate) struct Leaving {
    pub(crate) how: How,
    pub(crate) kind: String,
    pub(crate) effect: String,
    pub(crate) key: String,
    pub(crate) policy: &'static str,
}

/// In which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum How {
    /// The closure of an effect is called.
    Send,
    /// The remote is asked what happened.
    LookUp,
    /// A write into the store's own file, together with its confirmation.
    Transaction,
}

impl How {
    /// The word for it in spans.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::LookUp => "look_up",
            Self::Transaction => "transaction",
        }
    }
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    Arrives,
    Lost,
}

impl Leaving {
    pub(crate) fn new(how: How, message: &Message, reached: &Reached, key: &EffectKey) -> Self {
        Self {
            how,
            kind: message.kind.to_string(),
            effect: reached.effect.to_string(),
            key: key.to_string(),
            policy: reached.policy.as_str(),
        }
    }
}
