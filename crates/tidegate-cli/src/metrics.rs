//! `tidegate metrics`: every metric that `/metrics` of a server can have, whether it has a value yet or not.

use serde::Serialize;
use tidegate_server::{metrics_specimen, prometheus_text};

use crate::exit::{Code, Problem};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate metrics
  tidegate metrics --json
  tidegate metrics --sample > sample.txt";

/// List every metric of a server: name, type, labels, meaning
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print one of each as /metrics would, to try dashboards and collectors with; the values mean nothing
    #[arg(long)]
    sample: bool,
}

/// A metric, as its announcement and its sample say.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Listed {
    /// As it is asked for; a histogram has `_bucket`, `_sum` and `_count` besides.
    name: String,
    #[serde(rename = "type")]
    sort: String,
    unit: Option<&'static str>,
    labels: Vec<String>,
    help: String,
    /// `store`: the same whichever process is asked; `process`: its own.
    of: &'static str,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<Code, Problem> {
    let specimen = metrics_specimen();
    if args.sample {
        output.data(&prometheus_text(&format!("{}{}", specimen.of_store, specimen.of_process)))?;
        return Ok(Code::Done);
    }
    let mut all = listed(&prometheus_text(&specimen.of_store), "store");
    all.extend(listed(&prometheus_text(&specimen.of_process), "process"));
    if output.json {
        all.iter().try_for_each(|metric| output.object(metric))?;
        return Ok(Code::Done);
    }
    let row = |metric: &Listed| {
        let labels = if metric.labels.is_empty() { output.nothing() } else { metric.labels.join(" ") };
        let Listed { name, sort, help, of, .. } = metric;
        vec![name.clone(), sort.clone(), labels, (*of).to_owned(), help.clone()]
    };
    output.rows(&["metric", "type", "labels", "of", "meaning"], &all.iter().map(row).collect::<Vec<_>>())?;
    Ok(Code::Done)
}

/// What a text in Prometheus' format announces, each with the labels of its first sample.
fn listed(text: &str, of: &'static str) -> Vec<Listed> {
    let mut all: Vec<Listed> = Vec::new();
    let mut help = "";
    for line in text.lines() {
        if let Some((_, told)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = told.trim_end_matches('.');
        } else if let Some((name, sort)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (name, sort, help) = (name.to_owned(), sort.to_owned(), help.to_owned());
            all.push(Listed { unit: unit(&name), name, sort, labels: Vec::new(), help, of });
        } else if let Some(last) = all.last_mut()
            && last.labels.is_empty()
        {
            last.labels = labels(line);
        }
    }
    all
}

fn unit(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix("_total").unwrap_or(name);
    ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit))
}

/// The names of a sample's labels. Values of the specimen have neither quotes nor commas in them.
fn labels(sample: &str) -> Vec<String> {
    let Some((_, inside)) = sample.split_once('{') else { return Vec::new() };
    let inside = inside.rsplit_once('}').map_or(inside, |(inside, _)| inside);
    let names = inside.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name);
    names.filter(|name| *name != "le").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_listed_with_the_labels_of_its_samples() {
        let text = "# HELP t_a_total A thing.\n# TYPE t_a_total counter\nt_a_total{route=\"/v1/{id}\",method=\"GET\"} 1\n\
                    # HELP t_b_seconds B.\n# TYPE t_b_seconds histogram\nt_b_seconds_sum{queue=\"q\"} 0\n\
                    t_b_seconds_bucket{le=\"1.0\",queue=\"q\"} 1\n# HELP t_c C.\n# TYPE t_c gauge\nt_c 1\n";
        let named = |name: &str, sort: &str, unit, labels: &[&str], help: &str| Listed {
            name: name.to_owned(),
            sort: sort.to_owned(),
            unit,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            help: help.to_owned(),
            of: "store",
        };
        let expected = [
            named("t_a_total", "counter", None, &["route", "method"], "A thing"),
            named("t_b_seconds", "histogram", Some("seconds"), &["queue"], "B"),
            named("t_c", "gauge", None, &[], "C"),
        ];
        assert_eq!(listed(text, "store"), expected);
    }
}
