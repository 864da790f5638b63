//! What is hurt: the services, and, where workers of another program make the captures, these and the server between.

use crate::plan::{Amount, Faults};

/// The part that a process plays. Ordered as they end: a worker needs its server to hand back what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    /// A worker of another program, over HTTP.
    CaptureWorker,
    /// `tidegate serve`, through which it works.
    Server,
    /// The deposits application on the store.
    Service,
}

impl Victim {
    /// In a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CaptureWorker => "capture worker",
            Self::Server => "server",
            Self::Service => "service",
        }
    }

    /// How much longer than a service it is left alone before the next fault. An interpreter takes its time to start, and
    /// what every worker dies of at once never ends; behind a server that is hardly ever there no worker does anything.
    pub(crate) fn calm(self) -> u32 {
        match self {
            Self::Service => 1,
            Self::CaptureWorker => 4,
            Self::Server => 6,
        }
    }

    /// Its share of what was asked for the services. A run by the clock has no shares.
    pub(crate) fn share(self, amount: Amount) -> Amount {
        let Amount::Count(faults) = amount else { return amount };
        let Faults { kills, stops, redeploys, terminations, .. } = faults;
        Amount::Count(match self {
            Self::Service => faults,
            // Its connections are the server's.
            Self::CaptureWorker => Faults { terminations: 0, restarts: 0, ..faults },
            // Each at least once, where it is asked for at all.
            Self::Server => Faults {
                kills: kills.div_ceil(5),
                stops: stops.div_ceil(5),
                redeploys: redeploys.div_ceil(5),
                terminations: terminations.div_ceil(5),
                restarts: 0,
            },
        })
    }

    /// Tells the plans of one seed apart.
    pub(crate) fn salt(self) -> u64 {
        match self {
            Self::Service => 0,
            Self::CaptureWorker => 0x00ca_97b5,
            Self::Server => 0x5e27_e200,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_hurt_as_often_as_the_services_and_the_server_a_fifth_as_often_but_never_restarted() {
        let asked = Faults { kills: 50, stops: 4, redeploys: 0, terminations: 11, restarts: 3 };
        let cases = [
            (Victim::Service, asked),
            (Victim::CaptureWorker, Faults { terminations: 0, restarts: 0, ..asked }),
            (Victim::Server, Faults { kills: 10, stops: 1, redeploys: 0, terminations: 3, restarts: 0 }),
        ];
        for (victim, expected) in cases {
            assert_eq!(victim.share(Amount::Count(asked)), Amount::Count(expected), "{victim:?}");
        }
    }
}
