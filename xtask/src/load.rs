//! `cargo xtask load`: how much a server takes over HTTP, measured by a load tool that is not ours.
//!
//! `oha` sends enqueues over connections that stay open: first as fast as they are answered, which gives the rate that the
//! server sustains, then open-loop at half of it and at nine tenths. There each request has its moment whatever became of
//! the one before it, and a latency counts from that moment (no coordinated omission). Afterwards the store is counted:
//! every answer of the tool must be a message in it. The tool and the server share the machine's processors.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::run::{Program, is_installed};
use crate::{bench, pg, python};

/// The tool, as it is installed where it is missing.
const TOOL: (&str, &str) = ("oha", "1.16.0");
const CONNECTIONS: &str = "64";
/// What is enqueued: each request is new work, and the server makes its key. A payload of 200 bytes.
const PAYLOAD_BYTES: usize = 200;
const QUEUE: &str = "load";

pub(crate) struct Asked {
    /// `sqlite`, `postgres`, or both.
    stores: Vec<String>,
    /// How long each part takes.
    seconds: u32,
    json: Option<PathBuf>,
    /// A built `tidegate`; without it, one is built.
    program: Option<PathBuf>,
}

impl Asked {
    /// Reads `[--store sqlite|postgres] [--seconds N] [--json FILE] [--program FILE]`.
    pub(crate) fn read(arguments: &[&str]) -> Result<Self, String> {
        let both = vec!["sqlite".to_owned(), "postgres".to_owned()];
        let mut asked = Self { stores: both, seconds: 20, json: None, program: None };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().copied().ok_or_else(|| format!("{argument} wants a value"));
            let path = |value: &str| std::path::absolute(value).map_err(|e| format!("{argument} {value}: {e}"));
            match *argument {
                "--store" => match value()? {
                    store @ ("sqlite" | "postgres") => asked.stores = vec![store.to_owned()],
                    other => return Err(format!("--store {other:?} is neither sqlite nor postgres")),
                },
                "--seconds" => {
                    let text = value()?;
                    asked.seconds = text.parse().map_err(|e| format!("--seconds {text:?}: {e}"))?;
                }
                "--json" => asked.json = Some(path(value()?)?),
                "--program" => asked.program = Some(path(value()?)?),
                other => {
                    return Err(format!(
                        "{other:?} is no argument\nhint: [--store sqlite|postgres] [--seconds N] [--json FILE] [--program FILE]"
                    ));
                }
            }
        }
        Ok(asked)
    }
}

pub(crate) fn run(root: &Path, asked: &Asked) -> Result<(), String> {
    let target = python::target(root)?;
    let tool = tool(root, &target)?;
    let program = match &asked.program {
        Some(program) => program.clone(),
        None => built(root)?,
    };
    let scratch = bench::Scratch::new(&target)?;
    let mut reports = Vec::new();
    for store in &asked.stores {
        reports.push(match store.as_str() {
            "postgres" => {
                let cluster = pg::server()?;
                measure(asked, &tool, &program, store, &cluster.url())?
            }
            _ => measure(asked, &tool, &program, store, &scratch.path().join("load.db").display().to_string())?,
        });
    }
    println!("\n{}", table(&reports));
    if let Some(file) = &asked.json {
        let text = serde_json::to_vec_pretty(&reports).map_err(|e| e.to_string())?;
        std::fs::write(file, text).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    Ok(())
}

/// The tool of this machine, or one that is built into the target directory.
fn tool(root: &Path, target: &Path) -> Result<PathBuf, String> {
    let (name, version) = TOOL;
    if is_installed(name, &["--version"]) {
        return Ok(PathBuf::from(name));
    }
    let home = target.join("load");
    let program = home.join("bin").join(name);
    if !program.is_file() {
        let home = home.display().to_string();
        let install = Program::cargo(&["install", name, "--version", version, "--locked", "--root", &home]);
        println!("==> {}", install.as_typed());
        install.run(root)?;
    }
    Ok(program)
}

fn built(root: &Path) -> Result<PathBuf, String> {
    let words = ["build", "--release", "--locked", "--message-format", "json-render-diagnostics", "-p", "tidegate-cli"];
    let build = Program::cargo(&words);
    println!("==> {}", build.as_typed());
    let programs = bench::executables(&build.output(root)?);
    let found = programs.into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == "tidegate"));
    found.ok_or_else(|| "the build made no program tidegate".to_owned())
}

/// The three parts on one store.
fn measure(asked: &Asked, tool: &Path, program: &Path, store: &str, address: &str) -> Result<Value, String> {
    let server = Server::start(program, address)?;
    let send = |rate: Option<f64>| send(asked, tool, &server.url, rate);
    println!("==> {store}: {} s as fast as it answers", asked.seconds);
    let warm = send(None)?;
    let sustained = send(None)?;
    let rate = sustained.rate;
    println!("==> {store}: {rate:.0}/s; {} s each at half of it and at nine tenths", asked.seconds);
    let (half, most) = (send(Some(rate * 0.5))?, send(Some(rate * 0.9))?);
    let answered = warm.answered + sustained.answered + half.answered + most.answered;
    let url = server.url.clone();
    server.stop()?;
    let stored = stored(program, address)?;
    if stored < answered {
        return Err(format!("{answered} enqueues at {url} were answered, and {stored} messages are in the store"));
    }
    Ok(json!({
        "store": store, "connections": CONNECTIONS, "payload_bytes": PAYLOAD_BYTES, "seconds": asked.seconds,
        "tool": format!("{} {}", TOOL.0, TOOL.1), "answered": answered, "stored": stored,
        "sustained": sustained.report(), "at_half": half.report(), "at_nine_tenths": most.report(),
    }))
}

/// What the tool measured in one part.
struct Sent {
    wanted: Option<f64>,
    rate: f64,
    answered: u64,
    /// Seconds.
    p50: f64,
    p99: f64,
    p999: f64,
}

impl Sent {
    fn report(&self) -> Value {
        let ms = |seconds: f64| (seconds * 1e6).round() / 1e3;
        let (p50, p99, p999) = (ms(self.p50), ms(self.p99), ms(self.p999));
        json!({
            "wanted_per_s": self.wanted, "per_s": self.rate.round(), "answered": self.answered,
            "p50_ms": p50, "p99_ms": p99, "p999_ms": p999,
        })
    }

    /// Reads the tool's report. Anything but an accepted message ends the measurement: figures of refusals are none.
    fn read(report: &Value, wanted: Option<f64>) -> Result<Self, String> {
        let codes = report["statusCodeDistribution"].as_object().ok_or("the load tool counted no answers")?;
        let answered = codes.get("202").and_then(Value::as_u64).unwrap_or(0);
        let other: Vec<_> = codes.iter().filter(|(code, _)| *code != "202").collect();
        let errors = report["errorDistribution"].as_object();
        let failed: Vec<_> = errors.into_iter().flatten().filter(|(what, _)| !what.contains("deadline")).collect();
        if !other.is_empty() || !failed.is_empty() || answered == 0 {
            return Err(format!(
                "not every enqueue was accepted: {answered} were, besides {other:?}, errors {failed:?}"
            ));
        }
        let number = |value: &Value, what: &str| value.as_f64().ok_or_else(|| format!("the load tool tells no {what}"));
        let times = &report["latencyPercentiles"];
        Ok(Self {
            wanted,
            rate: number(&report["summary"]["requestsPerSec"], "rate")?,
            answered,
            p50: number(&times["p50"], "p50")?,
            p99: number(&times["p99"], "p99")?,
            p999: number(&times["p99.9"], "p99.9")?,
        })
    }
}

fn send(asked: &Asked, tool: &Path, url: &str, rate: Option<f64>) -> Result<Sent, String> {
    let around = r#"{"filler":""}"#.len();
    let payload = json!({ "filler": "x".repeat(PAYLOAD_BYTES - around) });
    let body = json!({ "kind": "load", "unique_key": true, "payload": payload }).to_string();
    let mut command = Command::new(tool);
    command.args(["--no-tui", "--output-format", "json", "-c", CONNECTIONS, "-m", "POST", "-w"]);
    command.args(["-T", "application/json", "-d", &body, "-z", &format!("{}s", asked.seconds)]);
    if let Some(rate) = rate {
        command.args(["-q", &format!("{rate:.0}"), "--latency-correction"]);
    }
    let target = format!("{url}/v1/queues/{QUEUE}/messages");
    let ran = command.arg(&target).stderr(Stdio::inherit()).output();
    let ran = ran.map_err(|e| format!("cannot start {}: {e}", tool.display()))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    if !ran.status.success() {
        return Err(format!("the load tool ended with {}: {said}", ran.status));
    }
    let report = serde_json::from_str(&said).map_err(|e| format!("the load tool printed no report: {e}: {said}"))?;
    Sent::read(&report, rate)
}

/// How many messages of the queue the store has.
fn stored(program: &Path, address: &str) -> Result<u64, String> {
    let ran = Command::new(program).args(["stats", "--json", "--store", address]).output();
    let ran = ran.map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    let stats = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let queues = stats.flat_map(|value| value["queues"].as_array().cloned().unwrap_or_else(|| vec![value]));
    let ours = queues.filter(|queue| queue["queue"] == QUEUE || queue["name"] == QUEUE);
    let ready: Option<u64> = ours.filter_map(|queue| queue["ready"].as_u64()).reduce(|a, b| a + b);
    ready.ok_or_else(|| format!("`tidegate stats --json` tells nothing of the queue {QUEUE:?}: {said}"))
}

/// `tidegate serve`, ended with this value.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(program: &Path, address: &str) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--log-format", "text", "--store", address])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let mut heard = String::new();
        let lines = child.stderr.take().map(BufReader::new);
        let mut lines = lines.ok_or("the server's words cannot be heard")?;
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).map_err(|e| format!("cannot hear the server: {e}"))? == 0 {
                break;
            }
            if let Some(at) = line.find("http://") {
                let url = line[at..].split_whitespace().next().unwrap_or_default().trim_end_matches('/').to_owned();
                // Whatever it says from now on is for the person who started this.
                let _said = std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::stderr()));
                return Ok(Self { child, url });
            }
            heard.push_str(&line);
        }
        Err(format!("the server said not where it listens: {heard:?}"))
    }

    /// Ends it in good order, and demands that it does.
    fn stop(mut self) -> Result<(), String> {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status();
        asked.map_err(|e| format!("cannot end the server: {e}"))?;
        let status = self.child.wait().map_err(|e| format!("cannot wait for the server: {e}"))?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}")) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ended = self.child.kill();
            let _gone = self.child.wait();
        }
    }
}

fn table(reports: &[Value]) -> String {
    let mut text =
        String::from("| Store | Load | Enqueues/s | p50 ms | p99 ms | p99.9 ms |\n|---|---|--:|--:|--:|--:|\n");
    for report in reports {
        for (part, name) in
            [("sustained", "as fast as answered"), ("at_half", "half"), ("at_nine_tenths", "nine tenths")]
        {
            let (store, part) = (report["store"].as_str().unwrap_or_default(), &report[part]);
            let cells = ["per_s", "p50_ms", "p99_ms", "p999_ms"].map(|cell| part[cell].to_string());
            text.push_str(&format!("| {store} | {name} | {} |\n", cells.join(" | ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(codes: &Value, errors: &Value) -> Value {
        json!({
            "summary": { "requestsPerSec": 100.4 }, "statusCodeDistribution": codes, "errorDistribution": errors,
            "latencyPercentiles": { "p50": 0.001, "p99": 0.002_5, "p99.9": 0.01 },
        })
    }

    #[test]
    fn figures_are_read_in_milliseconds() {
        let sent = Sent::read(&report(&json!({ "202": 7 }), &json!({})), Some(50.0)).unwrap();
        let told = sent.report();
        assert_eq!(
            (&told["answered"], &told["per_s"], &told["p99_ms"], &told["p999_ms"]),
            (&json!(7), &json!(100.0), &json!(2.5), &json!(10.0))
        );
    }

    #[test]
    fn a_refusal_or_an_error_is_no_figure() {
        assert!(Sent::read(&report(&json!({ "202": 7, "429": 1 }), &json!({})), None).is_err());
        assert!(Sent::read(&report(&json!({ "202": 7 }), &json!({ "connection closed": 1 })), None).is_err());
        assert!(Sent::read(&report(&json!({}), &json!({})), None).is_err());
        // What is under way when the time is over is no failure.
        assert!(Sent::read(&report(&json!({ "202": 7 }), &json!({ "aborted due to deadline": 3 })), None).is_ok());
    }
}
