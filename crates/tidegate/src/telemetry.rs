//! Every metric there is, with its name, its labels and its unit. No other file knows one.
//!
//! Counters and depths come from the store at the moment of a scrape: they are increments of the very commits that caused
//! them, so they survive restarts and are the same in every process. Histograms, slots and store calls are this process's
//! own. Labels are names of queues and kinds, and codes that handlers chose; after [`MOST_CODES`] different codes of a
//! queue and kind the rest is counted under `_OTHER`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, QueueName, Tenant, WorkerId};
use tidegate_core::message::Message;
use tidegate_core::store::{Counted, QueueStats, Settled, Stats, Tally};

use crate::trace::{self, Exported};

/// The prefix of every name.
pub const PREFIX: &str = "tidegate";
/// The most different codes that a queue and kind have as label values of one counter.
pub const MOST_CODES: usize = 50;

/// In seconds: a message may wait for a millisecond or for half an hour.
const BUCKETS: [f64; 18] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

type Labels = Vec<(&'static str, String)>;
type Histograms<L = Labels> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

fn histograms<L: Clone + Eq + Hash>() -> Histograms<L> {
    Family::new_with_constructor(histogram)
}

/// The labels of what is observed twice for each message: names are shared, so that nothing is allocated for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OfMessage {
    queue: QueueName,
    kind: Kind,
}

impl OfMessage {
    fn of(message: &Message) -> Self {
        Self { queue: message.queue.clone(), kind: message.kind.clone() }
    }
}

impl EncodeLabelSet for OfMessage {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("queue", self.queue.as_str()).encode(encoder.encode_label())?;
        ("kind", self.kind.as_str()).encode(encoder.encode_label())
    }
}

/// What this process measures, and how it is shown together with what the store counts.
pub struct Metrics {
    registry: Registry,
    wait: Histograms<OfMessage>,
    run: Histograms<OfMessage>,
    end_to_end: Histogram,
    store_calls: Histograms,
    store_errors: Family<Labels, Counter>,
    taken_over: Family<Labels, Counter>,
    slots: Family<Labels, Gauge>,
    disk_bytes: Family<Labels, Gauge>,
    disk_room: Family<Labels, Gauge>,
    spans: Family<Labels, Counter>,
    pub(crate) overdue: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            wait: histograms(),
            run: histograms(),
            end_to_end: histogram(),
            store_calls: histograms(),
            store_errors: Family::default(),
            taken_over: Family::default(),
            slots: Family::default(),
            disk_bytes: Family::default(),
            disk_room: Family::default(),
            spans: Family::default(),
            overdue: Counter::default(),
        };
        let registry = &mut metrics.registry;
        let help = "From due to the start of the handler, each run";
        registry.register("wait_seconds", help, metrics.wait.clone());
        registry.register("run_seconds", "Time in the handler, each run", metrics.run.clone());
        let help = "From the first enqueue of a flow to the end of its last message";
        registry.register("end_to_end_seconds", help, metrics.end_to_end.clone());
        registry.register("store_call_seconds", "Calls of the store by verb", metrics.store_calls.clone());
        registry.register("store_errors", "Failed calls of the store by verb and kind", metrics.store_errors.clone());
        let help = "Leases that this process's housekeeping took over";
        registry.register("taken_over", help, metrics.taken_over.clone());
        registry.register("worker_slots", "Handlers that run, and that could", metrics.slots.clone());
        let help = "Bytes free on the disk of the store, and in the reserve beside it, as last looked at";
        registry.register("disk_bytes", help, metrics.disk_bytes.clone());
        let help = "1 for what the disk of the store has room for: accepting, only claiming, or only settling";
        registry.register("disk_room", help, metrics.disk_room.clone());
        let help = "Spans of traces: sent to a collector, or dropped because none took them in time";
        registry.register("trace_spans", help, metrics.spans.clone());
        let help = "Handlers over their time-out that did not yield their thread";
        registry.register("handlers_overdue", help, metrics.overdue.clone());
        metrics
    }

    /// A run starts; its message had waited so long.
    pub fn started(&self, message: &Message, wait: Duration) {
        self.wait.get_or_create(&OfMessage::of(message)).observe(wait.as_secs_f64());
    }

    /// A handler was at work for so long.
    pub fn ran(&self, message: &Message, run: Duration) {
        self.run.get_or_create(&OfMessage::of(message)).observe(run.as_secs_f64());
    }

    /// A run was settled.
    pub fn settled(&self, _message: &Message, settled: &Settled) {
        if let Some(took) = settled.flow_took.filter(|_| !settled.repeated) {
            self.end_to_end.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn taken_over(&self, queue: &QueueName) {
        self.taken_over.get_or_create(&vec![("queue", queue.to_string())]).inc();
    }

    pub(crate) fn slots(&self, worker: &WorkerId, running: usize, most: usize) {
        let set = |state: &str, n: usize| {
            let labels = vec![("worker", worker.to_string()), ("state", state.to_owned())];
            self.slots.get_or_create(&labels).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set("busy", running);
        set("free", most.saturating_sub(running));
    }

    pub(crate) fn disk(&self, free: u64, reserve: u64, room_for: &str) {
        for (what, bytes) in [("free", free), ("reserve", reserve)] {
            let labels = vec![("what", what.to_owned())];
            self.disk_bytes.get_or_create(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        for known in ["accepting", "claiming", "settling"] {
            let labels = vec![("for", known.to_owned())];
            self.disk_room.get_or_create(&labels).set(i64::from(known == room_for));
        }
    }

    fn spans(&self, exported: Exported) {
        for (fate, n) in [("sent", exported.sent), ("dropped", exported.dropped)] {
            self.spans.get_or_create(&vec![("fate", fate.to_owned())]).inner().store(n, Ordering::Relaxed);
        }
    }

    /// What is counted elsewhere in this process.
    fn look(&self) {
        if let Some(exported) = trace::exported() {
            self.spans(exported);
        }
    }

    pub(crate) fn store_call(&self, verb: &'static str, took: Duration, error: Option<&StoreError>) {
        self.store_calls.get_or_create(&vec![("verb", verb.to_owned())]).observe(took.as_secs_f64());
        if let Some(error) = error {
            let labels = vec![("verb", verb.to_owned()), ("kind", error.kind().as_str().to_owned())];
            self.store_errors.get_or_create(&labels).inc();
        }
    }

    /// What this process measured, without what the store knows: for when the store cannot be asked.
    #[must_use]
    pub fn encode_own(&self) -> String {
        self.look();
        let mut text = String::new();
        let written = encode_registry(&mut text, &self.registry).and_then(|()| encode_eof(&mut text));
        written.expect("a String takes whatever is written to it");
        text
    }

    /// All of it in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self, stats: &Stats) -> String {
        self.look();
        let mut text = String::new();
        let written = encode_registry(&mut text, &of_store(stats))
            .and_then(|()| encode_registry(&mut text, &self.registry))
            .and_then(|()| encode_eof(&mut text));
        written.expect("a String takes whatever is written to it");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// One of each metric there is, in the OpenMetrics text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Specimen {
    /// What the store counts: the same whichever process is asked, and kept over restarts.
    pub of_store: String,
    /// What a process measures of itself.
    pub of_process: String,
}

/// One of each metric. A registry shows nothing of a metric that has no value yet; pages, dashboards and alerts are made
/// from this and compared with it.
#[must_use]
pub fn specimen() -> Specimen {
    const PLAIN: &str = "made of characters that a name may have";
    let queue = QueueName::new("payments").expect(PLAIN);
    let kind = Kind::new("capture").expect(PLAIN);
    let metrics = Metrics::new();
    let labels = OfMessage { queue: queue.clone(), kind: kind.clone() };
    metrics.wait.get_or_create(&labels).observe(0.0);
    metrics.run.get_or_create(&labels).observe(0.0);
    metrics.end_to_end.observe(0.0);
    metrics.store_call("enqueue", Duration::ZERO, Some(&StoreError::unavailable("the store is away")));
    metrics.taken_over(&queue);
    metrics.slots(&WorkerId::new("worker").expect(PLAIN), 0, 1);
    metrics.disk(1 << 30, 16 << 20, "accepting");
    metrics.spans(Exported::default());
    let tally = |what| Tally { queue: queue.clone(), kind: kind.clone(), what, code: "timeout".to_owned(), n: 1 };
    let stats = Stats {
        tallies: Counted::ALL.into_iter().map(tally).collect(),
        queues: vec![QueueStats {
            tenant: Tenant::default(),
            queue: queue.clone(),
            paused: false,
            max_depth: Some(1),
            ready: 0,
            scheduled: 0,
            leased: 0,
            parked: 0,
            dead: 0,
            oldest_ready: None,
            oldest_leased: None,
            oldest_parked: None,
            oldest_dead: None,
        }],
        ..Stats::default()
    };
    let encode = |registry: &Registry| {
        let mut text = String::new();
        encode_registry(&mut text, registry).expect("a String takes whatever is written to it");
        text
    };
    Specimen { of_store: encode(&of_store(&stats)), of_process: encode(&metrics.registry) }
}

/// What the store knows, as metrics.
fn of_store(stats: &Stats) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    queues(&mut registry, &stats.queues);
    let open = Gauge::<i64>::default();
    open.set(i64::try_from(stats.open_effects).unwrap_or(i64::MAX));
    registry.register("open_effects", "Effects whose answer is missing", open);
    for what in Counted::ALL {
        let counter: Family<Labels, Counter> = Family::default();
        for (labels, n) in capped(what, &stats.tallies) {
            counter.get_or_create(&labels).inc_by(n);
        }
        let (name, help) = counted(what);
        registry.register(name, help, counter);
    }
    registry
}

fn queues(registry: &mut Registry, queues: &[QueueStats]) {
    let messages: Family<Labels, Gauge> = Family::default();
    let paused: Family<Labels, Gauge> = Family::default();
    let most: Family<Labels, Gauge> = Family::default();
    let oldest: Family<Labels, Gauge<f64, AtomicU64>> = Family::default();
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    for queue in queues {
        // Two tenants may each have a queue of one name. The counters are the store's, which counts them together.
        let labels = |state: Option<&str>| -> Labels {
            let own = [("queue", queue.queue.to_string()), ("tenant", queue.tenant.as_str().to_owned())];
            own.into_iter().chain(state.map(|state| ("state", state.to_owned()))).collect()
        };
        let states = [
            ("ready", queue.ready),
            ("scheduled", queue.scheduled),
            ("leased", queue.leased),
            ("parked", queue.parked),
            ("dead", queue.dead),
        ];
        for (state, n) in states {
            messages.get_or_create(&labels(Some(state))).set(whole(n));
        }
        paused.get_or_create(&labels(None)).set(i64::from(queue.paused));
        if let Some(limit) = queue.max_depth {
            most.get_or_create(&labels(None)).set(whole(limit));
        }
        let ages = [
            ("ready", queue.oldest_ready),
            ("leased", queue.oldest_leased),
            ("parked", queue.oldest_parked),
            ("dead", queue.oldest_dead),
        ];
        for (state, age) in ages {
            oldest.get_or_create(&labels(Some(state))).set(age.unwrap_or_default().as_secs_f64());
        }
    }
    registry.register("queue_messages", "Messages that have not ended, and dead letters, by state", messages);
    registry.register("queue_paused", "1 while nothing is claimed from the queue", paused);
    registry.register("queue_max_depth", "The most ready, scheduled and leased messages", most);
    let help =
        "Age of the oldest message: since it was due (ready, leased), since it was parked or dead; 0 without one";
    registry.register("queue_oldest_seconds", help, oldest);
}

/// The values of one counter, with the rarest codes together under `_OTHER`.
fn capped(what: Counted, tallies: &[Tally]) -> HashMap<Labels, u64> {
    let mut codes: HashMap<(&str, &str), Vec<&Tally>> = HashMap::new();
    for tally in tallies.iter().filter(|tally| tally.what == what) {
        codes.entry((tally.queue.as_str(), tally.kind.as_str())).or_default().push(tally);
    }
    let mut values = HashMap::new();
    for ((queue, kind), mut tallies) in codes {
        tallies.sort_by(|a, b| b.n.cmp(&a.n).then_with(|| a.code.cmp(&b.code)));
        for (place, tally) in tallies.into_iter().enumerate() {
            let mut labels = vec![("queue", queue.to_owned()), ("kind", kind.to_owned())];
            if let Some(label) = code_label(what) {
                let code = if place < MOST_CODES { tally.code.as_str() } else { "_OTHER" };
                labels.push((label, code.to_owned()));
            }
            match values.entry(labels) {
                Entry::Occupied(mut n) => *n.get_mut() += tally.n,
                Entry::Vacant(n) => drop(n.insert(tally.n)),
            }
        }
    }
    values
}

/// What a counter's code is called, if it has one.
fn code_label(what: Counted) -> Option<&'static str> {
    match what {
        Counted::Attempts => Some("outcome"),
        Counted::Retries | Counted::Failures | Counted::Failed => Some("code"),
        Counted::Dead | Counted::Parked => Some("reason"),
        Counted::Enqueued
        | Counted::Deduplicated
        | Counted::Replayed
        | Counted::KeyConflicts
        | Counted::QueueFull
        | Counted::Completed
        | Counted::Cancelled
        | Counted::Redriven
        | Counted::Resolved
        | Counted::LostLeases
        | Counted::RejectedLateWrites
        | Counted::Deleted => None,
    }
}

/// The name of a counter, to which the format adds `_total`, and what it counts.
fn counted(what: Counted) -> (&'static str, &'static str) {
    match what {
        Counted::Enqueued => ("enqueued", "Messages stored, follow-ups included"),
        Counted::Deduplicated => ("deduplicated", "Enqueues of a known key that has no answer"),
        Counted::Replayed => ("replayed", "Enqueues of a known key that got its answer"),
        Counted::KeyConflicts => ("key_conflicts", "Enqueues refused for another payload under the key"),
        Counted::QueueFull => ("queue_full", "Enqueues refused for the queue's limit"),
        Counted::Attempts => ("attempts", "Runs that ended, by outcome"),
        Counted::Retries => ("retries", "Runs after which the message became ready again"),
        Counted::Failures => ("failures", "Runs that ended in a failure of any sort"),
        Counted::Completed => ("completed", "Messages completed"),
        Counted::Failed => ("failed", "Messages whose handler said never"),
        Counted::Dead => ("dead", "Messages given up"),
        Counted::Parked => ("parked", "Messages that had to wait for a person"),
        Counted::Cancelled => ("cancelled", "Messages called off"),
        Counted::Redriven => ("redriven", "Messages put back by an operator"),
        Counted::Resolved => ("resolved", "Parked messages that were resolved"),
        Counted::LostLeases => ("lost_leases", "Leases taken over"),
        Counted::RejectedLateWrites => ("rejected_late_writes", "Writes refused because their lease was lost"),
        Counted::Deleted => ("deleted", "Messages deleted after their retention"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(code: &str, n: u64) -> Tally {
        let (queue, kind) = (QueueName::new("q").unwrap(), Kind::new("k").unwrap());
        Tally { queue, kind, what: Counted::Failures, code: code.into(), n }
    }

    #[test]
    fn the_text_ends_once_and_holds_both_what_the_store_and_what_the_process_knows() {
        let metrics = Metrics::new();
        metrics.store_call("claim", Duration::from_millis(3), None);
        let stats = Stats { tallies: vec![tally("timeout", 7)], open_effects: 2, ..Stats::default() };
        let text = metrics.encode(&stats);
        assert_eq!(text.matches("# EOF").count(), 1);
        for line in [
            "tidegate_failures_total{queue=\"q\",kind=\"k\",code=\"timeout\"} 7",
            "tidegate_open_effects 2",
            "tidegate_store_call_seconds_count{verb=\"claim\"} 1",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn two_tenants_with_queues_of_one_name_are_told_apart() {
        let of = |tenant: &str, ready: u64| QueueStats {
            tenant: Tenant::new(tenant).unwrap(),
            queue: QueueName::new("pay").unwrap(),
            paused: !tenant.is_empty(),
            max_depth: Some(ready * 10),
            ready,
            scheduled: 0,
            leased: 0,
            parked: 0,
            dead: 0,
            oldest_ready: Some(Duration::from_secs(ready)),
            oldest_leased: None,
            oldest_parked: None,
            oldest_dead: None,
        };
        let stats = Stats { queues: vec![of("", 1), of("acme", 2), of("zeta", 3)], ..Stats::default() };
        let text = Metrics::new().encode(&stats);
        for line in [
            "tidegate_queue_messages{queue=\"pay\",tenant=\"\",state=\"ready\"} 1",
            "tidegate_queue_messages{queue=\"pay\",tenant=\"acme\",state=\"ready\"} 2",
            "tidegate_queue_messages{queue=\"pay\",tenant=\"zeta\",state=\"ready\"} 3",
            "tidegate_queue_paused{queue=\"pay\",tenant=\"\"} 0",
            "tidegate_queue_paused{queue=\"pay\",tenant=\"acme\"} 1",
            "tidegate_queue_max_depth{queue=\"pay\",tenant=\"zeta\"} 30",
            "tidegate_queue_oldest_seconds{queue=\"pay\",tenant=\"acme\",state=\"ready\"} 2.0",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }

    /// A registry shows no metric before its first value, so the names are taken from this file, the one that has them.
    #[test]
    fn the_specimen_has_every_metric_there_is() {
        let source = include_str!("telemetry.rs").split("mod tests {").next().unwrap();
        let Specimen { of_store, of_process } = specimen();
        let mut there = 0;
        for rest in source.split("register(\"").skip(1) {
            let name = rest.split('"').next().unwrap();
            let announced = format!("# TYPE {PREFIX}_{name} ");
            assert!(of_store.contains(&announced) || of_process.contains(&announced), "no {name} in the specimen");
            there += 1;
        }
        assert!(there > 10, "only {there} were found: are they registered otherwise now?");
        for (name, _) in Counted::ALL.map(counted) {
            assert!(of_store.contains(&format!("# TYPE {PREFIX}_{name} counter\n")), "{name}");
        }
    }

    #[test]
    fn beyond_the_cap_the_rarest_codes_are_counted_together() {
        let many: Vec<Tally> = (0..60).map(|n| tally(&format!("c{n:02}"), 100 - n)).collect();
        let values = capped(Counted::Failures, &many);
        assert_eq!(values.len(), MOST_CODES + 1);
        let other = vec![("queue", "q".to_owned()), ("kind", "k".to_owned()), ("code", "_OTHER".to_owned())];
        assert_eq!(values[&other], (50..60).map(|n| 100 - n).sum::<u64>());
    }
}
