//! The places at which a run may be interrupted: between any two things that outlive its process.

use std::fmt;

use crate::probe::{How, Leaving};

/// One way to interrupt a run: the process dies before or after something that outlives it, a reply is lost, or the store
/// is lost with what it knew of a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary {
    pub(super) point: Point,
    /// Which of several alike, from 1.
    pub(super) nth: u32,
    pub(super) side: Side,
}

/// On which side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
    /// The process lives on, and never hears the reply.
    Lost,
    /// The store is lost after it, and a backup from before the first claim is put to work in its place. The runs before it
    /// were second attempts, those after it are first ones: nothing of a number of attempts survives that.
    Restored,
}

/// Something that outlives the process: a commit of the store, or a call that leaves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Point {
    Claim { queue: String },
    Intent { kind: String, effect: String },
    Answer { kind: String, effect: String },
    Leaving { how: How, kind: String, effect: String, key: String, policy: &'static str },
    Settle { kind: String },
}

impl Point {
    pub(super) fn of(leaving: &Leaving) -> Self {
        let Leaving { how, kind, effect, key, policy } = leaving.clone();
        Self::Leaving { how, kind, effect, key, policy }
    }
}

impl Boundary {
    /// Whether a backup takes the place of the store there.
    pub(super) fn restores(&self) -> bool {
        self.side == Side::Restored
    }

    /// What happens there, as a clause.
    pub(super) fn event(&self) -> String {
        match self.side {
            Side::Before | Side::After => format!("the process died {self}"),
            Side::Lost => format!("the reply was lost {self}"),
            Side::Restored => format!("the store was restored from a backup {self}"),
        }
    }

    /// What is probably wrong with a handler that does something twice when it is interrupted here.
    pub(super) fn hint(&self) -> String {
        match (&self.point, self.side) {
            (
                Point::Leaving { how: How::Send, effect, policy: "natural", .. },
                Side::After | Side::Lost | Side::Restored,
            ) => format!(
                "effect {effect} is declared natural, which means that the remote takes no notice of a repetition, and this \
                 one did; use .keyed(..), .lookup(..) or .at_most_once(), whichever the remote can honour"
            ),
            (Point::Leaving { how: How::Send, effect, policy, .. }, Side::After | Side::Lost) => format!(
                "the answer of effect {effect} was missing and it was sent again: send the remote exactly the key that the \
                 closure is given, nothing of the attempt in it, and declare {policy} only if the remote keeps that promise"
            ),
            (Point::Leaving { how: How::Send, effect, .. }, Side::Restored) => format!(
                "a backup knows nothing of what was sent after it, so effect {effect} and those before it were made again, \
                 in other attempts and at another time: send the remote exactly the key that the closure is given, nothing \
                 of the attempt, the time or chance in it, and take items from the payload only"
            ),
            (
                Point::Claim { .. }
                | Point::Intent { .. }
                | Point::Answer { .. }
                | Point::Leaving { .. }
                | Point::Settle { .. },
                _,
            ) => "no answer of an effect was missing here, so what was repeated is not behind one: wrap the call in \
                  context.effect(..), whose answer is stored and replayed"
                .to_owned(),
        }
    }
}

impl fmt::Display for Boundary {
    /// The place, as it continues "the process died …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.point, self.side) {
            (Point::Claim { queue }, Side::Before) => write!(f, "before a claim from queue {queue}"),
            (Point::Claim { queue }, Side::After | Side::Lost | Side::Restored) => {
                write!(f, "after a claim from queue {queue}, before its handler began")
            }
            (Point::Intent { kind, effect }, Side::Before) => {
                write!(f, "before the intent of {effect} was stored (kind {kind})")
            }
            (Point::Intent { kind, effect }, Side::After | Side::Lost | Side::Restored) => {
                write!(f, "after the intent of {effect} was stored, before its send (kind {kind})")
            }
            (Point::Answer { kind, effect }, Side::Before) => {
                write!(f, "before the answer of {effect} was stored (kind {kind})")
            }
            (Point::Answer { kind, effect }, Side::After | Side::Lost | Side::Restored) => {
                write!(f, "after the answer of {effect} was stored (kind {kind})")
            }
            (Point::Leaving { how, kind, effect, key, .. }, side) => {
                match (how, side) {
                    (How::Send, Side::Before) => write!(f, "before send of {effect}")?,
                    (How::Send, Side::After) => write!(f, "after send of {effect}, before its answer was stored")?,
                    (How::LookUp, Side::Before) => write!(f, "before look-up of {effect}")?,
                    (How::Send, Side::Lost) => write!(f, "after send of {effect}")?,
                    (How::Send, Side::Restored) => write!(f, "made before send of {effect}")?,
                    (How::LookUp, Side::After | Side::Lost | Side::Restored) => {
                        write!(f, "after look-up of {effect}, before its answer was stored")?
                    }
                    (How::Transaction, Side::Before) => write!(f, "before the transaction of {effect}")?,
                    (How::Transaction, Side::After | Side::Lost | Side::Restored) => {
                        write!(f, "after the transaction of {effect}, before its handler went on")?;
                    }
                }
                write!(f, " (kind {kind}, key {key})")
            }
            (Point::Settle { kind }, Side::Before) => write!(f, "before the settlement of {kind} was stored"),
            (Point::Settle { kind }, Side::After | Side::Lost | Side::Restored) => {
                write!(f, "after the settlement of {kind} was stored")
            }
        }?;
        if self.nth > 1 {
            write!(f, ", time {}", self.nth)?;
        }
        Ok(())
    }
}
