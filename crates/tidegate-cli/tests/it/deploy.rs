//! What is in `deploy/` fits the program: alerts and dashboard name metrics, labels and states that there are, every alert has
//! its runbook and its test, units and image start commands that exist. Whether Prometheus and systemd understand the files is
//! what `cargo xtask deploy` asks those; for Grafana, which is asked by nobody, there is `grafana.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use tidegate::StoreErrorKind;

use crate::desk::Desk;
use crate::documents::page;
use crate::grafana::dashboard;

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const RUNBOOKS: &str = "docs/operations/runbooks";

/// Every series there can be, with its labels.
type Known = BTreeMap<String, BTreeSet<String>>;

/// As `/metrics` has them: `tidegate metrics` makes its list of what that one is made of.
fn known() -> Known {
    let mut known = Known::new();
    for line in Desk::new().run(&["metrics", "--json"]).ends(0).out.lines() {
        let metric: Value = serde_json::from_str(line).unwrap();
        let name = metric["name"].as_str().unwrap();
        let labels: BTreeSet<String> =
            metric["labels"].as_array().unwrap().iter().map(|label| label.as_str().unwrap().to_owned()).collect();
        if metric["type"] == "histogram" {
            for part in ["sum", "count", "bucket"] {
                let mut labels = labels.clone();
                labels.extend((part == "bucket").then(|| "le".to_owned()));
                known.insert(format!("{name}_{part}"), labels);
            }
        } else {
            known.insert(name.to_owned(), labels);
        }
    }
    assert!(known.len() > 30, "{known:?}");
    // What Prometheus itself keeps of a target.
    known.insert("up".to_owned(), BTreeSet::new());
    known
}

/// A word or a sign of an expression; what stands in quotes is left out.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(char),
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(c) = rest.next() {
        let is_of_word = |c: &char| c.is_ascii_alphanumeric() || "_:$".contains(*c);
        match c {
            '"' | '\'' => drop(rest.by_ref().take_while(|end| *end != c).count()),
            c if is_of_word(&c) => {
                let mut word = c.to_string();
                while let Some(c) = rest.next_if(is_of_word) {
                    word.push(c);
                }
                // Numbers, times such as 15m, and what Grafana puts in.
                if !c.is_ascii_digit() && c != '$' {
                    tokens.push(Token::Word(word));
                }
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
    }
    tokens
}

/// What an expression speaks of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    /// Each series, with the labels by which it is chosen.
    series: Vec<(String, Vec<String>)>,
    /// Labels by which series are grouped or put together.
    grouping: Vec<String>,
}

fn named(expression: &str) -> Named {
    const OPERATORS: [&str; 6] = ["and", "or", "unless", "offset", "bool", "inf"];
    const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let tokens = tokens(expression);
    let words_until = |from: usize, end: char| {
        let inside = tokens[from..].iter().take_while(|token| **token != Token::Sign(end));
        let words: Vec<Option<String>> =
            inside.map(|token| if let Token::Word(word) = token { Some(word.clone()) } else { None }).collect();
        (words.len(), words.into_iter().flatten().collect::<Vec<String>>())
    };
    let mut named = Named::default();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        let Token::Word(word) = token else { continue };
        let next = tokens.get(at);
        if GROUPING.contains(&word.as_str()) {
            assert_eq!(next, Some(&Token::Sign('(')), "{expression}");
            let (length, words) = words_until(at + 1, ')');
            named.grouping.extend(words);
            at += length + 1;
        } else if next == Some(&Token::Sign('{')) {
            let (length, words) = words_until(at + 1, '}');
            named.series.push((word.clone(), words));
            at += length + 1;
        } else if !OPERATORS.contains(&word.as_str())
            && next != Some(&Token::Sign('('))
            && !matches!(next, Some(Token::Word(next)) if GROUPING.contains(&next.as_str()))
        {
            named.series.push((word.clone(), Vec::new()));
        }
    }
    named
}

/// What an expression names and there is not. Labels of a target are there for every series.
fn unknown(expression: &str, known: &Known, shown: &[String]) -> Vec<String> {
    let named = named(expression);
    let mut unknown = Vec::new();
    let mut all: BTreeSet<&str> = BTreeSet::from(["job", "instance"]);
    for (series, labels) in &named.series {
        match known.get(series) {
            None => unknown.push(series.clone()),
            Some(there) => {
                all.extend(there.iter().map(String::as_str));
                let of_target = |label: &&String| *label == "job" || *label == "instance";
                let missing = labels.iter().filter(|label| !of_target(label) && !there.contains(*label));
                unknown.extend(missing.map(|label| format!("{series}{{{label}}}")));
            }
        }
    }
    if named.series.is_empty() {
        unknown.push(format!("no metric at all in {expression}"));
    }
    let others = named.grouping.iter().chain(shown).filter(|label| !all.contains(label.as_str()));
    unknown.extend(others.cloned());
    unknown
}

#[test]
fn a_metric_or_a_label_that_there_is_not_is_found() {
    let known = known();
    let fine = "sum by (queue) (max by (queue, kind) (rate(tidegate_retries_total{job=~\"a\", code!=\"by {x}\"}[5m])))\n\
                / on (queue) group_left () (tidegate_queue_max_depth offset 15m) > bool 1e3 unless up == 1";
    assert_eq!(unknown(fine, &known, &["queue".to_owned()]), Vec::<String>::new());
    for (expression, wrong) in [
        ("tidegate_retries > 1", "tidegate_retries"),
        ("rate(tidgate_retries_total[5m])", "tidgate_retries_total"),
        ("tidegate_store_up{queue=\"a\"}", "tidegate_store_up{queue}"),
        ("max by (code) (tidegate_queue_messages)", "code"),
        ("tidegate_queue_messages unless on (code) tidegate_queue_paused", "code"),
        ("tidegate_wait_seconds", "tidegate_wait_seconds"),
        ("sum(rate(tidegate_wait_seconds_sum{le=\"1\"}[5m]))", "tidegate_wait_seconds_sum{le}"),
        ("1 > 0", "no metric at all in 1 > 0"),
    ] {
        assert_eq!(unknown(expression, &known, &[]), [wrong], "{expression}");
    }
    assert_eq!(unknown("tidegate_store_up", &known, &["queue".to_owned()]), ["queue"]);
}

/// Values of labels that have a fixed list of them, by series and label.
type Words = BTreeMap<(String, String), BTreeSet<String>>;

/// The lists: of a sample of `/metrics`, which has each state and each sort, and of what has one of each only as it happens.
fn words() -> Words {
    let mut words = Words::new();
    for line in Desk::new().run(&["metrics", "--sample"]).ends(0).out.lines().filter(|line| !line.starts_with('#')) {
        for Choice { series, label, value } in choices(line) {
            if ["state", "what", "for", "fate"].contains(&label.as_str()) {
                words.entry((series, label)).or_default().insert(value);
            }
        }
    }
    let mut add = |series: &str, label: &str, list: &[&str]| {
        let list = list.iter().map(|&word| word.to_owned()).collect();
        words.insert((series.to_owned(), label.to_owned()), list);
    };
    add("tidegate_http_requests_total", "status", &["1xx", "2xx", "3xx", "4xx", "5xx", "gone"]);
    let kinds = [
        StoreErrorKind::Unavailable,
        StoreErrorKind::LeaseLost,
        StoreErrorKind::KeyConflict,
        StoreErrorKind::Conflict,
        StoreErrorKind::QueueFull,
        StoreErrorKind::NotFound,
        StoreErrorKind::Invalid,
        StoreErrorKind::Corrupt,
    ];
    add("tidegate_store_errors_total", "kind", &kinds.map(StoreErrorKind::as_str));
    for part in ["bucket", "sum", "count"] {
        let verbs =
            ["enqueue", "claim", "extend", "journal", "settle", "sweep", "redrive", "cancel", "pause", "resolve"];
        add(&format!("tidegate_store_call_seconds_{part}"), "verb", &verbs);
    }
    words
}

/// Series that are chosen by the value of a label, as an expression and a sample of `/metrics` write it alike.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    series: String,
    label: String,
    value: String,
}

fn choices(text: &str) -> Vec<Choice> {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut choices = Vec::new();
    // The word before a brace is a series, the one before a value a label.
    let (mut series, mut word, mut is_inside, mut was_of_word) = (String::new(), String::new(), false, false);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' | '\'' => {
                let value: String = rest.by_ref().take_while(|end| *end != c).collect();
                if is_inside {
                    choices.push(Choice { series: series.clone(), label: word.clone(), value });
                }
            }
            '{' => (series, is_inside) = (word.clone(), true),
            '}' => is_inside = false,
            c if is_of_word(c) => {
                if !was_of_word {
                    word.clear();
                }
                word.push(c);
            }
            _ => {}
        }
        was_of_word = is_of_word(c);
    }
    choices
}

/// The values by which an expression chooses and that no series can have: it would find nothing, and nobody would know.
fn misspelt(expression: &str, words: &Words) -> Vec<String> {
    let mut misspelt = Vec::new();
    for Choice { series, label, value } in choices(expression) {
        // One of several, but no pattern and nothing that Grafana puts in.
        let is_plain = value.bytes().all(|c| c.is_ascii_alphanumeric() || b"_|".contains(&c));
        if let Some(list) = words.get(&(series.clone(), label.clone())).filter(|_| is_plain) {
            let unknown = value.split('|').filter(|word| !list.contains(*word));
            misspelt.extend(unknown.map(|word| format!("{series}{{{label}={word:?}}}")));
        }
    }
    misspelt
}

#[test]
fn a_state_that_there_is_not_is_found() {
    let words = words();
    let fine = "max by (queue) (tidegate_queue_messages{job=~\"$job\", state=~\"ready|scheduled\"}) > 0\n\
                unless tidegate_disk_room{for=\"claiming\"} or tidegate_http_requests_total{route=~\"/{id}\",status=\"5xx\"}";
    assert_eq!(choices(fine).len(), 5);
    assert_eq!(misspelt(fine, &words), Vec::<String>::new());
    for (series, label, there, missing) in [
        ("tidegate_queue_messages", "state", "scheduled", "parkd"),
        ("tidegate_queue_oldest_seconds", "state", "leased", "scheduled"),
        ("tidegate_worker_slots", "state", "busy", "idle"),
        ("tidegate_disk_bytes", "what", "free", "full"),
        ("tidegate_disk_room", "for", "settling", "settle"),
        ("tidegate_trace_spans_total", "fate", "dropped", "lost"),
        ("tidegate_http_requests_total", "status", "5xx", "500"),
        ("tidegate_store_errors_total", "kind", "corrupt", "corrupted"),
        ("tidegate_store_call_seconds_bucket", "verb", "claim", "poll"),
    ] {
        let expression = format!("rate({series}{{job=~\"$job\", {label}=~\"{there}|{missing}\"}}[5m]) > 0");
        assert_eq!(misspelt(&expression, &words), [format!("{series}{{{label}={missing:?}}}")]);
    }
}

/// The labels that a text shows: `{{ $labels.queue }}` in an alert, `{{queue}}` in a legend; `{{ with $labels.tenant }} of
/// {{ . }}{{ end }}` where one may be empty.
fn shown(text: &str) -> Vec<String> {
    let holes = text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
    let words = holes.map(|hole| hole.split('|').next().unwrap().trim());
    let words = words.map(|word| word.trim_start_matches("with ").trim_start_matches("$labels."));
    words.filter(|word| !["$value", ".", "end"].contains(word)).map(str::to_owned).collect()
}

#[test]
fn the_dashboard_names_metrics_and_labels_that_there_are() {
    let (known, words, dashboard) = (known(), words(), dashboard());
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let (expression, legend) = (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
            used.extend(named(expression).series.into_iter().map(|(series, _)| series));
            for unknown in unknown(expression, &known, &shown(legend)).into_iter().chain(misspelt(expression, &words)) {
                wrong.push(format!("{}: {unknown}", panel["title"]));
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(asked) = variable["definition"].as_str() {
            let inside = asked.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
            let (series, label) = inside.rsplit_once(", ").unwrap();
            wrong.extend(unknown(series, &known, &[label.to_owned()]));
        }
    }
    assert!(wrong.is_empty(), "not there:\n{}", wrong.join("\n"));
    // What nobody would see: a metric that is on no panel should at least be known to be on none.
    let missing: Vec<&String> = known.keys().filter(|series| !used.contains(*series)).collect();
    let missing: Vec<&&String> = (missing.iter())
        .filter(|series| !series.ends_with("_sum") && !series.ends_with("_count") && *series != &"up")
        .collect();
    assert!(missing.is_empty(), "on no panel: {missing:?}");
}

/// An alert as its file says it.
#[derive(Debug, Default)]
struct Alert {
    name: String,
    expression: String,
    summary: String,
    runbook: String,
}

fn alerts() -> Vec<Alert> {
    let text = page(ALERTS);
    let mut alerts: Vec<Alert> = Vec::new();
    let mut inside = false;
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix("- alert: ") {
            alerts.push(Alert { name: name.to_owned(), ..Alert::default() });
            continue;
        }
        let Some(alert) = alerts.last_mut() else { continue };
        // The lines of a block stand further to the right than the members of an alert do.
        inside &= line.starts_with("          ");
        if inside {
            alert.expression.push_str(&format!("{trimmed}\n"));
        } else if let Some(expression) = trimmed.strip_prefix("expr: ") {
            inside = expression == "|";
            if !inside {
                expression.clone_into(&mut alert.expression);
            }
        } else if let Some(summary) = trimmed.strip_prefix("summary: ") {
            summary.clone_into(&mut alert.summary);
        } else if let Some(runbook) = trimmed.strip_prefix("runbook_url: ") {
            runbook.clone_into(&mut alert.runbook);
        }
    }
    assert_eq!(alerts.len(), text.matches("alert:").count(), "each was read");
    assert!(alerts.len() > 15, "{alerts:?}");
    alerts
}

#[test]
fn the_alerts_name_metrics_and_labels_that_there_are() {
    let (known, words) = (known(), words());
    let mut wrong = Vec::new();
    for alert in alerts() {
        assert!(!alert.summary.is_empty(), "{alert:?}");
        let mut unknown = unknown(&alert.expression, &known, &shown(&alert.summary));
        unknown.extend(misspelt(&alert.expression, &words));
        wrong.extend(unknown.into_iter().map(|unknown| format!("{}: {unknown}", alert.name)));
    }
    assert!(wrong.is_empty(), "not there:\n{}", wrong.join("\n"));
}

#[test]
fn every_alert_has_a_runbook_and_a_test_and_every_runbook_an_alert() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (tests, index) = (page("deploy/prometheus/alerts_test.yml"), page(&format!("{RUNBOOKS}/README.md")));
    let mut linked = BTreeSet::new();
    for alert in alerts() {
        let name = &alert.name;
        assert!(root.join(&alert.runbook).is_file(), "{name}: there is no {}", alert.runbook);
        let (directory, file) = alert.runbook.rsplit_once('/').unwrap();
        assert_eq!(directory, RUNBOOKS, "{name}");
        let runbook = page(&alert.runbook);
        assert!(runbook.contains(&format!("`{name}`")), "{} does not name {name}", alert.runbook);
        for heading in ["## Look", "## Do"] {
            assert!(runbook.contains(heading), "{} has no {heading}", alert.runbook);
        }
        let in_index =
            index.lines().any(|line| line.contains(&format!("`{name}`")) && line.contains(&format!("({file})")));
        assert!(in_index, "the index has no {name} with {file}");
        let fires = tests.split("- alertname: ").skip(1).any(|test| {
            test.lines().next() == Some(name) && test.split("alertname:").next().unwrap().contains("runbook_url: ")
        });
        assert!(fires, "no test in which {name} fires");
        linked.insert(file.to_owned());
    }
    let there: BTreeSet<String> = (root.join(RUNBOOKS).read_dir().unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|file| file != "README.md")
        .collect();
    assert_eq!(there, linked, "pages and alerts");
}

/// The value of a line of a unit, or of an image.
fn value<'a>(text: &'a str, before: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(before));
    line.unwrap_or_else(|| panic!("no line {before}"))
}

#[test]
fn the_units_start_what_there_is_and_give_it_the_time_it_takes() {
    let (service, socket) = (page("deploy/systemd/tidegate.service"), page("deploy/systemd/tidegate.socket"));
    assert_eq!(value(&service, "ExecStart="), "/usr/bin/tidegate serve");
    assert_eq!(value(&service, "Type="), "notify");
    let listed = Desk::new().run(&["config", "list", "--json"]).ends(0).out;
    let settings: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let default = |key: &str| {
        let setting = settings.iter().find(|setting| setting["key"] == key).unwrap();
        setting["default"].as_str().unwrap().to_owned()
    };
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    // serve says to systemd that it may take five seconds more than its drain.
    assert!(seconds(value(&service, "TimeoutStopSec=")) >= seconds(&default("drain")) + 5);
    assert_eq!(value(&socket, "ListenStream="), default("listen"));
    let user = value(&service, "User=");
    assert!(page("deploy/systemd/tidegate.sysusers").contains(&format!("u {user} ")));
}

#[test]
fn the_image_runs_as_nobody_in_particular_and_asks_itself_how_it_is() {
    let image = page("deploy/docker/Dockerfile");
    let last = image.rsplit("\nFROM ").next().unwrap();
    assert_eq!(value(last, "USER "), "nonroot:nonroot");
    let probe = last.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
    let command: Vec<String> = serde_json::from_str(probe.split("CMD ").nth(1).unwrap()).unwrap();
    assert_eq!(command, [value(last, "ENTRYPOINT [\"").trim_end_matches("\"]"), "probe"]);
    let listed = Desk::new().run(&["config", "list", "--json"]).ends(0).out;
    for variable in image.split(['=', ' ', '\n']).filter(|word| word.starts_with("TIDEGATE_")) {
        assert!(listed.contains(&format!("\"variable\":\"{variable}\"")), "there is no {variable}");
    }
    for copied in ["-p tidegate-cli", "--locked --release"] {
        assert!(image.contains(copied), "{copied}");
    }
    // Without being told by name that it may, it does not serve beyond loopback in the clear.
    assert!(!last.contains("INSECURE"));
    let listen = last.split("TIDEGATE_LISTEN=").nth(1).unwrap().lines().next().unwrap();
    Desk::new().run(&["serve", "--listen", listen]).ends(2).says("can be reached from other machines");
}
