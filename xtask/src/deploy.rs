//! `cargo xtask deploy`: what is in `deploy/` is understood by the programs it is for.
//!
//! `promtool` checks the alerts, runs their tests, and reads the dashboard's expressions and a sample of `/metrics`;
//! `systemd-analyze` reads the units. Where there is no `promtool`, Debian's package is unpacked in the target directory:
//! nothing is installed, and no Prometheus started. That the metrics and labels exist is a test of the command.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::run::{Program, is_installed};
use crate::{docs, python};

const PROMETHEUS: &str = "deploy/prometheus";
const DASHBOARD: &str = "deploy/grafana/tidegate.json";
const UNITS: [&str; 2] = ["tidegate.service", "tidegate.socket"];
/// More than this of systemd's 10 and the service may do things that it does not need.
const MOST_EXPOSED: &str = "--threshold=20";

pub(crate) fn run(root: &Path) -> Result<(), String> {
    let target = python::target(root)?.join("deploy");
    std::fs::create_dir_all(&target).map_err(|e| format!("cannot make {}: {e}", target.display()))?;
    let promtool = promtool(&target)?.display().to_string();
    let directory = root.join(PROMETHEUS);
    let ask = |arguments: &[&'static str]| {
        Program { program: &promtool, arguments: arguments.to_vec(), environment: Vec::new() }.run(&directory)
    };
    ask(&["check", "rules", "alerts.yml"])?;
    ask(&["test", "rules", "alerts_test.yml"])?;
    ask(&["check", "config", "--syntax-only", "scrape.yml"])?;
    dashboard(root, &target, &promtool)?;
    let program = docs::built_command(root)?;
    sample(&program, &promtool)?;
    units(root, &target, &program)
}

/// `promtool` of this machine, or of Debian's package.
fn promtool(target: &Path) -> Result<PathBuf, String> {
    if is_installed("promtool", &["--version"]) {
        return Ok(PathBuf::from("promtool"));
    }
    let unpacked = target.join("usr/bin/promtool");
    if !unpacked.is_file() {
        let debian = |program, arguments: &[&'static str]| {
            Program { program, arguments: arguments.to_vec(), environment: Vec::new() }.run(target)
        };
        let took = debian("apt-get", &["download", "prometheus"])
            .and_then(|()| debian("sh", &["-c", "dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb"]));
        took.map_err(|why| {
            format!(
                "promtool is not installed and could not be fetched: {why}\nhint: on Debian: apt-get install prometheus"
            )
        })?;
    }
    Ok(unpacked)
}

/// The dashboard's expressions, read as rules.
fn dashboard(root: &Path, target: &Path, promtool: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(root.join(DASHBOARD)).map_err(|e| format!("cannot read {DASHBOARD}: {e}"))?;
    let dashboard: Value = serde_json::from_str(&text).map_err(|e| format!("{DASHBOARD} is no JSON: {e}"))?;
    let rules = as_rules(&expressions(&dashboard));
    let file = target.join("dashboard.yml");
    std::fs::write(&file, rules.to_string()).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    Program { program: promtool, arguments: vec!["check", "rules", "dashboard.yml"], environment: Vec::new() }
        .run(target)
}

/// What each panel asks, with what Grafana puts in.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.filter_map(|target| target["expr"].as_str()).map(|asked| asked.replace("$__rate_interval", "5m")).collect()
}

/// JSON is YAML, and a recorded rule needs nothing but a name and its expression.
fn as_rules(expressions: &[String]) -> Value {
    let rule =
        |(number, expression): (usize, &String)| json!({"record": format!("panel:{number}"), "expr": expression});
    json!({"groups": [{"name": "dashboard", "rules": expressions.iter().enumerate().map(rule).collect::<Vec<_>>()}]})
}

/// What `/metrics` looks like, held against the conventions of Prometheus.
fn sample(program: &Path, promtool: &str) -> Result<(), String> {
    let sample = Command::new(program)
        .args(["metrics", "--sample"])
        .output()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start {promtool}: {e}"))?;
    let mut input = check.stdin.take().ok_or("promtool has no standard input")?;
    input.write_all(&sample.stdout).map_err(|e| format!("promtool does not read: {e}"))?;
    drop(input);
    let status = check.wait().map_err(|e| format!("promtool cannot be waited for: {e}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("`tidegate metrics --sample | promtool check metrics` ended with {status}"))
}

/// The units, which name a program that need not be installed here: copies of them name the built one.
fn units(root: &Path, target: &Path, program: &Path) -> Result<(), String> {
    if !is_installed("systemd-analyze", &["--version"]) {
        println!("NOT RUN: there is no systemd-analyze here, so nobody has read the units in deploy/systemd");
        return Ok(());
    }
    for unit in UNITS {
        let from = root.join("deploy/systemd").join(unit);
        let text = std::fs::read_to_string(&from).map_err(|e| format!("cannot read {}: {e}", from.display()))?;
        let text = text.replace("=/usr/bin/tidegate ", &format!("={} ", program.display()));
        let to = target.join(unit);
        std::fs::write(&to, text).map_err(|e| format!("cannot write {}: {e}", to.display()))?;
    }
    let analyze = |arguments: &[&'static str]| {
        Program { program: "systemd-analyze", arguments: arguments.to_vec(), environment: Vec::new() }.run(target)
    };
    analyze(&["verify", "--man=no", "./tidegate.service", "./tidegate.socket"])?;
    analyze(&["security", "--offline=true", "--no-pager", MOST_EXPOSED, "./tidegate.service"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panels_ask_becomes_rules() {
        let dashboard = json!({"panels": [
            {"type": "row"},
            {"targets": [{"expr": "rate(a_total[$__rate_interval])"}, {"expr": "b"}]},
        ]});
        let asked = expressions(&dashboard);
        assert_eq!(asked, ["rate(a_total[5m])", "b"]);
        let rules = as_rules(&asked);
        assert_eq!(rules["groups"][0]["rules"][1], json!({"record": "panel:1", "expr": "b"}));
    }
}
