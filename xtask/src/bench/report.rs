//! The rounds side by side: medians, the range, and Tidegate by each of the others in the same round.

use serde_json::{Value, json};

use crate::bench::System;
use crate::bench::disk;
use crate::bench::proof::{LEAST, Waited};
use crate::bench::round::Round;

/// A median with what it lies between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Range {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Range {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        Some(Self { median: values[(values.len() - 1) / 2], min, max })
    }

    fn shown(self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.min, self.max)
    }

    fn json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

/// What an acknowledgement is worth. Only rates of one tier are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// Set to fsync, and counted to do so.
    Fsync,
    /// Set to fsync; nobody counted.
    FsyncUncounted,
    /// Survives the process, not the power.
    Cache,
}

impl Tier {
    fn of(synchronous: i64, waited: Option<Waited>) -> Self {
        match waited {
            _ if synchronous < 2 => Self::Cache,
            Some(waited) if waited.alone < LEAST => Self::Cache,
            Some(_) => Self::Fsync,
            None => Self::FsyncUncounted,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Fsync => "fsync, counted",
            Self::FsyncUncounted => "fsync, not counted",
            Self::Cache => "operating system's cache",
        }
    }
}

/// All rounds of one system.
pub(super) struct Measured<'a> {
    label: &'static str,
    first: &'a Round,
    tier: Tier,
    waited: Option<Waited>,
    lifecycles: Range,
    enqueues: Range,
    /// Nothing where the system does not tell.
    cpu_us: Option<Range>,
    each: Vec<f64>,
    /// Tidegate's rate by its, round by round; nothing across tiers.
    tidegate_by_it: Option<Range>,
    ran_again: u64,
}

/// What the figures were taken under.
pub(super) struct Conditions {
    pub(super) load_before: Option<f64>,
    pub(super) load_after: Option<f64>,
    pub(super) fsyncs: Vec<f64>,
    pub(super) rounds: u32,
}

/// Puts the rounds together; the first system is the one the others are compared with.
pub(super) fn measured<'a>(
    systems: &[System],
    rounds: &'a [Vec<Round>],
    waited: &[Option<Waited>],
) -> Result<Vec<Measured<'a>>, String> {
    let rates = |rounds: &[Round]| rounds.iter().filter_map(|round| round.lifecycles_per_s).collect::<Vec<f64>>();
    let ours = rates(rounds.first().ok_or("nothing was measured")?);
    let mut all: Vec<Measured<'a>> = Vec::new();
    for ((system, rounds), waited) in systems.iter().zip(rounds).zip(waited) {
        let first = rounds.first().ok_or_else(|| format!("no round of {}", system.label))?;
        let each = rates(rounds);
        let weakest = rounds.iter().map(|round| round.synchronous).min().unwrap_or_default();
        let tier = Tier::of(weakest, *waited);
        let is_comparable = all.first().is_none_or(|tidegate| tidegate.tier == tier);
        let ratios = ours.iter().zip(&each).map(|(ours, its)| ours / its);
        all.push(Measured {
            label: system.label,
            first,
            tier,
            waited: *waited,
            lifecycles: Range::of(each.iter().copied()).ok_or_else(|| format!("no rate of {}", system.label))?,
            enqueues: Range::of(rounds.iter().filter_map(|round| round.enqueue_per_s))
                .ok_or_else(|| format!("no enqueue rate of {}", system.label))?,
            cpu_us: Range::of(rounds.iter().filter_map(|round| round.cpu_us)),
            tidegate_by_it: Range::of(ratios).filter(|_| is_comparable),
            each,
            ran_again: rounds.iter().map(|round| round.ran_again).sum(),
        });
    }
    Ok(all)
}

/// As Markdown, so that it can be put into the page as it is.
pub(super) fn table(all: &[Measured<'_>], conditions: &Conditions) -> String {
    let mut lines = vec![
        "| Queue | Lifecycles/s | Tidegate ÷ it | Enqueues/s, alone | CPU µs a message | Acknowledged after \
         | Fsyncs a message, alone → loaded |"
            .to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for one in all {
        let ratio = one.tidegate_by_it.map_or_else(|| "another tier".to_owned(), |ratio| ratio.shown(1));
        let waited = one
            .waited
            .map_or_else(|| "not counted".to_owned(), |waited| format!("{:.2} → {:.4}", waited.alone, waited.loaded));
        let cpu = one.cpu_us.map_or_else(|| "not told".to_owned(), |cpu| cpu.shown(0));
        lines.push(format!(
            "| {} {} | {} | {ratio} | {} | {cpu} | {} | {waited} |",
            one.label,
            one.first.text("version"),
            one.lifecycles.shown(0),
            one.enqueues.shown(0),
            one.tier.as_str()
        ));
    }
    let load = |load: Option<f64>| load.map_or_else(|| "not told".to_owned(), |load| format!("{load:.1}"));
    lines.push(format!(
        "\nMedian (lowest–highest) of {} rounds by turns. {}; load average {} before, {} after. \
         The disk takes {} ms for a page and its fdatasync.",
        conditions.rounds,
        disk::processor().unwrap_or_else(|| "Processor not told".to_owned()),
        load(conditions.load_before),
        load(conditions.load_after),
        Range::of(conditions.fsyncs.iter().copied()).map_or_else(|| "no".to_owned(), |range| range.shown(2)),
    ));
    lines.join("\n")
}

/// Everything, the contracts and settings included.
pub(super) fn json(all: &[Measured<'_>], conditions: &Conditions) -> Value {
    let systems = all.iter().map(|one| {
        let line = &one.first.line;
        let passed_on = |name: &str| line[name].clone();
        json!({
            "label": one.label,
            "name": passed_on("name"),
            "version": passed_on("version"),
            "sqlite_version": passed_on("sqlite_version"),
            "contract": passed_on("contract"),
            "acknowledged": passed_on("acknowledged"),
            "pragmas": passed_on("pragmas"),
            "settings": passed_on("settings"),
            "messages": passed_on("messages"),
            "preloaded": passed_on("preloaded"),
            "keys": passed_on("keys"),
            "tier": one.tier.as_str(),
            "fsyncs_per_message": one.waited.map(|waited| json!({"alone": waited.alone, "loaded": waited.loaded})),
            "lifecycles_per_s": one.lifecycles.json(),
            "lifecycles_per_s_by_round": one.each,
            "enqueue_per_s": one.enqueues.json(),
            "cpu_us_per_message": one.cpu_us.map(Range::json),
            "tidegate_by_it": one.tidegate_by_it.map(Range::json),
            "lost": 0,
            "duplicates": 0,
            "ran_again": one.ran_again,
        })
    });
    json!({
        "rounds": conditions.rounds,
        "processor": disk::processor(),
        "load_before": conditions.load_before,
        "load_after": conditions.load_after,
        "fdatasync_ms": Range::of(conditions.fsyncs.iter().copied()).map(Range::json),
        "systems": systems.collect::<Vec<Value>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::round::tests::line;

    const SYSTEMS: [System; 2] = [
        System { label: "ours", program: "ours", arguments: &[], one_in: 1 },
        System { label: "theirs", program: "theirs", arguments: &[], one_in: 1 },
    ];

    fn rounds(name: &str, rates: [f64; 3], synchronous: i64) -> Vec<Round> {
        let round = |rate: f64| {
            let mut line = line(name, rate);
            line["pragmas"]["synchronous"] = json!(synchronous);
            Round::parse(&line.to_string()).unwrap()
        };
        rates.map(round).into()
    }

    const ENOUGH: Option<Waited> = Some(Waited { alone: 3.0, loaded: 0.01 });

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        // By medians it would be 200 / 40 = 5; the middle of the rounds' own ratios 10, 2 and 6 is 6.
        let rounds = [rounds("ours", [100.0, 200.0, 240.0], 2), rounds("theirs", [10.0, 100.0, 40.0], 2)];
        let all = measured(&SYSTEMS, &rounds, &[ENOUGH, ENOUGH]).unwrap();
        assert_eq!(all[0].lifecycles, Range { median: 200.0, min: 100.0, max: 240.0 });
        assert_eq!(all[1].tidegate_by_it, Some(Range { median: 6.0, min: 2.0, max: 10.0 }));
        let conditions = Conditions { load_before: Some(1.0), load_after: None, fsyncs: vec![0.5], rounds: 3 };
        let table = table(&all, &conditions);
        assert!(table.contains("| theirs 1.0.0 | 40 (10–100) | 6.0 (2.0–10.0) |"), "{table}");
        assert!(
            table.contains("| 50 (50–50) | fsync, counted | 3.00 → 0.0100 |") && table.contains("0.50 (0.50–0.50) ms"),
            "{table}"
        );
        let json = json(&all, &conditions);
        assert_eq!(json["systems"][1]["tidegate_by_it"]["median"], 6.0);
        assert_eq!(json["systems"][1]["ran_again"], 3);
        assert_eq!(json["systems"][0]["pragmas"]["synchronous"], 2);
    }

    #[test]
    fn what_is_not_as_durable_is_not_compared() {
        let rounds = [rounds("ours", [9.0; 3], 2), rounds("theirs", [3.0; 3], 1)];
        let all = measured(&SYSTEMS, &rounds, &[ENOUGH, ENOUGH]).unwrap();
        assert_eq!((all[1].tier, all[1].tidegate_by_it), (Tier::Cache, None));
        let conditions = Conditions { load_before: None, load_after: None, fsyncs: Vec::new(), rounds: 3 };
        assert!(table(&all, &conditions).contains("| another tier |"));
    }

    #[test]
    fn a_setting_is_not_believed_when_the_count_says_otherwise() {
        #[rustfmt::skip]
        let table = [
            (2, ENOUGH,                                       Tier::Fsync),
            (2, Some(Waited { alone: 1.0, loaded: 0.0 }),     Tier::Cache),
            (2, None,                                         Tier::FsyncUncounted),
            (1, ENOUGH,                                       Tier::Cache),
            (0, None,                                         Tier::Cache),
        ];
        for (synchronous, waited, tier) in table {
            assert_eq!(Tier::of(synchronous, waited), tier, "{synchronous} {waited:?}");
        }
    }

    #[test]
    fn no_round_is_an_error_and_no_figure() {
        assert!(measured(&SYSTEMS, &[], &[]).is_err());
        assert!(measured(&SYSTEMS, &[Vec::new()], &[None]).is_err());
        assert_eq!(Range::of([]), None);
    }
}
