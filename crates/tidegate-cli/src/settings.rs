//! The settings of a server, and where each comes from: flags, then the environment, then a file, then defaults.
//!
//! [`TABLE`] is all there is to set; the reference page is made from it. A key that is not in it is refused, with the one it
//! looks like. Values are text until they are asked for, and each is checked as its [`Sort`] says before anything starts,
//! wherever it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate::{Address, QueueName, Tenant};
use tidegate_remote::ServerUrl;

use crate::exit::Problem;
use crate::input::duration;
use crate::log;

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// May hold a password: never shown whole, and may be read from a file that a variable names.
    Store,
    Path,
    /// An address and a port.
    Listen,
    Switch,
    Count,
    /// Bytes, such as `64KiB`.
    Size,
    /// A time, such as `25s`.
    Span,
    /// What is logged.
    Filter,
    /// How it is written.
    Format,
    /// Where traces are sent.
    Collector,
    /// What is sent along with them. May hold a key: never shown, and may be read from a file that a variable names.
    Headers,
    /// A name.
    Name,
    /// A share, from 0 to 1.
    Share,
}

impl Sort {
    pub(crate) fn example(self) -> &'static str {
        match self {
            Self::Path => "a path",
            Self::Store => "a path, sqlite://PATH, or postgres://HOST/DATABASE",
            Self::Listen => "an address and a port, such as 127.0.0.1:7401 or [::1]:7401",
            Self::Switch => "true or false",
            Self::Count => "a whole number from 1 on",
            Self::Size => "bytes, such as 4096, 64KiB or 1MiB",
            Self::Span => "a time, such as 500ms, 25s, 5m, 2h or 7d",
            Self::Filter => "a level, or levels of parts: warn, or info,tidegate_sqlite=debug",
            Self::Format => "auto, text or json",
            Self::Collector => "an address, such as http://127.0.0.1:4318 or https://otlp.example.com",
            Self::Headers => "NAME=VALUE, with commas between, such as x-api-key=…",
            Self::Name => "a name, such as tidegate",
            Self::Share => "a share from 0 to 1, such as 0.05",
        }
    }

    /// Whether it may hold what nobody should see.
    pub(crate) fn is_secret(self) -> bool {
        matches!(self, Self::Store | Self::Headers)
    }

    fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Path if text.is_empty() => Err("it is empty".to_owned()),
            Self::Path => Ok(()),
            Self::Store => text.parse::<Address>().map(drop).map_err(|error| error.what().to_owned()),
            Self::Listen => text.parse::<std::net::SocketAddr>().map(drop).map_err(|e| e.to_string()),
            Self::Switch => switch(text).map(drop),
            Self::Count => count(text).map(drop),
            Self::Size => size(text).map(drop),
            Self::Span => duration(text).map(drop),
            Self::Filter => log::filter(text).map(drop),
            Self::Format => text.parse::<log::Format>().map(drop),
            Self::Collector => collector(text).map(drop),
            Self::Headers => headers(text).map(drop),
            Self::Name if text.trim().is_empty() => Err("it is empty".to_owned()),
            Self::Name => Ok(()),
            Self::Share => share(text).map(drop),
        }
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

fn count(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(0) => Err("it is not at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(e) => Err(e.to_string()),
    }
}

/// What every collector has its traces sent to, below its address.
pub(crate) const TRACES: &str = "/v1/traces";

/// The address of a collector; one that ends with the path of traces is that of the collector all the same.
pub(crate) fn collector(text: &str) -> Result<ServerUrl, String> {
    let text = text.strip_suffix(TRACES).unwrap_or(text);
    text.parse::<ServerUrl>().map_err(|error| error.what().to_owned())
}

/// Names and values, without what is around them.
pub(crate) fn headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').ok_or("a part of it is not NAME=VALUE")?;
        let name = name.trim();
        let is_fine = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        if name.is_empty() || !name.bytes().all(is_fine) {
            return Err("a name in it is none that a header can have");
        }
        let value = value.trim();
        if !value.bytes().all(|c| (0x20..0x7f).contains(&c)) {
            return Err("a value in it is none that a header can have");
        }
        Ok((name.to_owned(), value.to_owned()))
    };
    let parts = text.split(',').filter(|part| !part.trim().is_empty());
    parts.map(pair).collect::<Result<_, _>>().map_err(str::to_owned)
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) => Err("it is not from 0 to 1".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" | "K" | "k" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        other => return Err(format!("{other:?} is no unit of bytes")),
    };
    let number = count(number)?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is too large".to_owned())
}

/// One thing that can be set.
#[derive(Debug)]
pub(crate) struct Setting {
    /// As it is called in a file; a dot is a table.
    pub(crate) key: &'static str,
    /// What stands for it where nothing else does; none: it is not set.
    pub(crate) default: Option<&'static str>,
    pub(crate) sort: Sort,
    /// What it is for, in a sentence.
    pub(crate) about: &'static str,
}

impl Setting {
    /// The variable of the environment.
    pub(crate) fn variable(&self) -> String {
        format!("TIDEGATE_{}", self.key.to_ascii_uppercase().replace(['.', '-'], "_"))
    }
}

const fn set(key: &'static str, sort: Sort, default: Option<&'static str>, about: &'static str) -> Setting {
    Setting { key, default, sort, about }
}

/// Everything that can be set.
pub(crate) const TABLE: &[Setting] = &[
    set("store", Sort::Store, Some("tidegate.db"), "Where the messages are."),
    set(
        "listen",
        Sort::Listen,
        Some("127.0.0.1:7401"),
        "Where clients connect. Anything but loopback demands tokens and TLS.",
    ),
    set("drain", Sort::Span, Some("25s"), "How long requests under way are waited for when it is told to stop."),
    set("retention", Sort::Span, Some("7d"), "How long answers and keys are kept after a message ended."),
    set(
        "log",
        Sort::Filter,
        Some("info,tidegate_server::requests=warn"),
        "What is logged: a level, or levels by part of the program. Requests are logged with info.",
    ),
    set(
        "log_format",
        Sort::Format,
        Some("auto"),
        "How it is written: text, json (an object a line), or auto, which is text on a terminal and json elsewhere.",
    ),
    set(
        "otlp.endpoint",
        Sort::Collector,
        None,
        "Where traces are sent: an OpenTelemetry collector, by OTLP over HTTP. Without it no trace is made.",
    ),
    set(
        "otlp.headers",
        Sort::Headers,
        None,
        "What is sent along with traces, such as a key that the collector demands.",
    ),
    set("otlp.service", Sort::Name, Some("tidegate"), "What this process is called in traces (service.name)."),
    set(
        "otlp.ratio",
        Sort::Share,
        Some("1"),
        "The share of the traces begun here that is sent. One that was begun elsewhere is sent if it was there.",
    ),
    set(
        "otlp.timeout",
        Sort::Span,
        Some("5s"),
        "How long a collector may take to answer, and how long the end of the process waits for it at most.",
    ),
    set("otlp.queue", Sort::Count, Some("8192"), "The most spans that wait to be sent; more are dropped, and counted."),
    set("tls.cert", Sort::Path, None, "The chain of certificates, as PEM. Read again on SIGHUP."),
    set("tls.key", Sort::Path, None, "The key of the first certificate, as PEM. Read again on SIGHUP."),
    set(
        "tokens.required",
        Sort::Switch,
        Some("false"),
        "Demands a token of clients on this machine as well, even before there is one.",
    ),
    set(
        "insecure.plaintext",
        Sort::Switch,
        Some("false"),
        "Listens beyond loopback without TLS: payloads and tokens can be read on the way.",
    ),
    set(
        "insecure.no_tokens",
        Sort::Switch,
        Some("false"),
        "Asks nobody for a token: whoever reaches it may do everything.",
    ),
    set(
        "limits.body",
        Sort::Size,
        Some("4MiB"),
        "The longest body of a request; where it is not set, at least twice limits.payload and 64KiB.",
    ),
    set("limits.payload", Sort::Size, Some("1MiB"), "The largest payload, result or effect value."),
    set("limits.headers", Sort::Size, Some("16KiB"), "The longest head of a request, at most 24KiB."),
    set("limits.json_depth", Sort::Count, Some("64"), "The deepest nesting of JSON."),
    set("limits.batch", Sort::Count, Some("1000"), "The most items of one request."),
    set("limits.page", Sort::Count, Some("1000"), "The most messages of one page."),
    set("limits.wait", Sort::Span, Some("60s"), "The longest that a request waits for an answer."),
    set("limits.connections", Sort::Count, Some("8192"), "The most connections."),
    set(
        "limits.connections_per_peer",
        Sort::Count,
        Some("1024"),
        "The most connections of one address (of a /64, for IPv6).",
    ),
    set(
        "limits.head_time",
        Sort::Span,
        Some("5s"),
        "How long the head of a request may take, or up to a fifth longer.",
    ),
    set("limits.idle", Sort::Span, Some("60s"), "How long a connection may be idle between two requests."),
    set(
        "limits.body_rate",
        Sort::Size,
        Some("1KiB"),
        "Bytes a second that a body has to come with, after its first five seconds.",
    ),
    set("limits.stall", Sort::Span, Some("30s"), "How long a client may take nothing of its answer."),
    set(
        "limits.queues",
        Sort::Count,
        Some("10000"),
        "The most queues that there may be for a request to make another one.",
    ),
    set(
        "limits.new_queue_depth",
        Sort::Count,
        None,
        "The limit that a queue gets which a request makes; none, unless it is set.",
    ),
    set(
        "limits.requests_per_s",
        Sort::Count,
        None,
        "The most requests a second of one token, or of one address without one; no limit, unless it is set. What is written under a lease does not count.",
    ),
    set(
        "limits.requests_burst",
        Sort::Count,
        None,
        "The most requests of one token or address at once; unless it is set, as many as a second's.",
    ),
];

/// What has a file of its own: how commands reach servers.
const CONTEXTS: &str = "contexts";
/// The part of a file that says what queues are to be like.
const QUEUES: &str = "queues";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File(PathBuf),
    Variable(String),
    /// A variable that names a file with the value.
    FileOfVariable(String, PathBuf),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::FileOfVariable(name, path) => write!(f, "{name} ({})", path.display()),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value with where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// What a file says a queue is to be like. What it does not say stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeclaredQueue {
    pub(crate) tenant: Tenant,
    pub(crate) queue: QueueName,
    /// `max_depth = 0` lifts the limit.
    pub(crate) max_depth: Option<Option<u64>>,
    pub(crate) paused: Option<bool>,
}

/// Everything that was set, and what was wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    values: BTreeMap<&'static str, Value>,
    pub(crate) queues: Vec<DeclaredQueue>,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// Why it must not be started with.
    pub(crate) wrong: Vec<Problem>,
    /// What is worth a word.
    pub(crate) odd: Vec<String>,
}

/// Where settings come from, given as values so that a test can.
pub(crate) struct Sources<'a> {
    /// The file, and whether somebody named it; one that nobody named need not be there.
    pub(crate) file: Option<(PathBuf, bool)>,
    /// The environment.
    pub(crate) variables: BTreeMap<String, String>,
    /// Key, value and the flag itself.
    pub(crate) flags: Vec<(&'a str, String, String)>,
}

impl Settings {
    /// Puts everything together. What is wrong is noted, not the end: `config check` tells all of it.
    pub(crate) fn gather(sources: &Sources<'_>) -> Self {
        let mut this = Self::default();
        for setting in TABLE {
            if let Some(default) = setting.default {
                this.values.insert(setting.key, Value { text: default.to_owned(), origin: Origin::Default });
            }
        }
        this.usual_places(&sources.variables);
        if let Some((path, named)) = &sources.file {
            this.read_file(path, *named);
        }
        this.read_variables(&sources.variables);
        for (key, text, flag) in &sources.flags {
            this.put(key, text.clone(), Origin::Flag(flag.clone()));
        }
        this.check();
        this
    }

    /// What platforms say in words of their own: weaker than anything that names Tidegate.
    fn usual_places(&mut self, variables: &BTreeMap<String, String>) {
        if let Some(directory) = variables.get("STATE_DIRECTORY").and_then(|all| all.split(':').next()) {
            let text = format!("{directory}/tidegate.db");
            self.put("store", text, Origin::Variable("STATE_DIRECTORY".to_owned()));
        }
        if let Some(url) = variables.get("DATABASE_URL").filter(|url| url.starts_with("postgres")) {
            self.put("store", url.clone(), Origin::Variable("DATABASE_URL".to_owned()));
        }
        if let Some(port) = variables.get("PORT").filter(|port| port.parse::<u16>().is_ok()) {
            self.put("listen", format!("127.0.0.1:{port}"), Origin::Variable("PORT".to_owned()));
        }
        self.usual_traces(variables);
    }

    /// What OpenTelemetry calls its settings, as far as they are ours.
    fn usual_traces(&mut self, variables: &BTreeMap<String, String>) {
        let there = |name: &str| variables.get(name).filter(|value| !value.is_empty()).map(String::as_str);
        let says = |name: &str, word: &str| there(name).is_some_and(|value| value.eq_ignore_ascii_case(word));
        if says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none") {
            return;
        }
        let usual = [
            ("otlp.endpoint", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]),
            ("otlp.headers", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"]),
            ("otlp.timeout", ["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"]),
            ("otlp.service", ["", "OTEL_SERVICE_NAME"]),
        ];
        for (key, names) in usual {
            // The one for traces alone is the stronger.
            for name in names {
                let Some(value) = there(name) else { continue };
                let value = if key == "otlp.timeout" { format!("{value}ms") } else { value.to_owned() };
                self.put(key, value, Origin::Variable(name.to_owned()));
            }
        }
        if there("OTEL_TRACES_SAMPLER").is_some_and(|sampler| sampler.ends_with("traceidratio"))
            && let Some(share) = there("OTEL_TRACES_SAMPLER_ARG")
        {
            self.put("otlp.ratio", share.to_owned(), Origin::Variable("OTEL_TRACES_SAMPLER_ARG".to_owned()));
        }
        for name in ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] {
            if let Some(protocol) = there(name).filter(|protocol| *protocol != "http/protobuf") {
                self.odd.push(format!("{name} is {protocol}: traces are sent as http/protobuf all the same"));
            }
        }
    }

    fn read_variables(&mut self, variables: &BTreeMap<String, String>) {
        for setting in TABLE {
            let variable = setting.variable();
            let of_file = format!("{variable}_FILE");
            if setting.sort.is_secret()
                && let Some(path) = variables.get(&of_file)
            {
                match std::fs::read_to_string(path) {
                    Ok(text) => {
                        let origin = Origin::FileOfVariable(of_file, PathBuf::from(path));
                        self.put(setting.key, text.trim_end_matches(['\r', '\n']).to_owned(), origin);
                    }
                    Err(e) => self.wrong.push(
                        Problem::usage(format!("{of_file} names {path}, which cannot be read: {e}"))
                            .hint("name a file with the value in it, readable by this user"),
                    ),
                }
            }
            if let Some(text) = variables.get(&variable) {
                self.put(setting.key, text.clone(), Origin::Variable(variable));
            }
        }
        self.odd_variables(variables);
    }

    /// A variable that looks like one of ours. It is told and not refused: Kubernetes makes some of a service's name.
    fn odd_variables(&mut self, variables: &BTreeMap<String, String>) {
        const OTHERS: [&str; 10] = [
            "TIDEGATE_CONFIG",
            "TIDEGATE_BUSY_MS",
            "TIDEGATE_URL",
            "TIDEGATE_TOKEN",
            "TIDEGATE_TOKEN_FILE",
            "TIDEGATE_CONTEXT",
            "TIDEGATE_TENANT",
            "TIDEGATE_STORE_FILE",
            "TIDEGATE_OTLP_HEADERS_FILE",
            "TIDEGATE_CA",
        ];
        let ours: Vec<String> = TABLE.iter().map(Setting::variable).chain(OTHERS.map(str::to_owned)).collect();
        const OURS: &str = "TIDEGATE_";
        for name in variables.keys().filter(|name| name.starts_with(OURS) && !ours.contains(name)) {
            // All of them begin alike, which makes none of them like another.
            let rests = ours.iter().filter_map(|name| name.strip_prefix(OURS));
            if let Some(near) = nearest(&name[OURS.len()..], rests).map(|rest| format!("{OURS}{rest}")) {
                self.odd.push(format!("the variable {name} is not read; did you mean {near}?"));
            }
        }
    }

    fn read_file(&mut self, path: &Path, named: bool) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => return,
            Err(e) => {
                return self.wrong.push(
                    Problem::usage(format!("the file {} cannot be read: {e}", path.display()))
                        .hint("--config or TIDEGATE_CONFIG names another one"),
                );
            }
        };
        self.file = Some(path.to_owned());
        self.read_text(&text, path);
    }

    /// What a file says.
    pub(crate) fn read_text(&mut self, text: &str, path: &Path) {
        match text.parse::<toml::Table>() {
            Ok(table) => self.read_table("", &table, path),
            // Not the text around the place: the address of a store may have a password in it.
            Err(error) => self.wrong.push(
                Problem::usage(format!("{}{} is no TOML: {}", path.display(), line_of(&error, text), error.message()))
                    .hint("tidegate config print shows what a file may say"),
            ),
        }
    }

    fn read_table(&mut self, before: &str, table: &toml::Table, path: &Path) {
        for (name, value) in table {
            let key = if before.is_empty() { name.clone() } else { format!("{before}.{name}") };
            let is_table = || TABLE.iter().any(|setting| setting.key.starts_with(&format!("{key}.")));
            match value {
                toml::Value::Table(queues) if key == QUEUES => self.read_queues(queues, path),
                toml::Value::Table(_) if key == CONTEXTS => self.wrong.push(
                    Problem::usage(format!("{} has contexts in it, which are kept in contexts.toml", path.display()))
                        .hint("tidegate context set NAME --url URL"),
                ),
                toml::Value::Table(inner) if is_table() => self.read_table(&key, inner, path),
                toml::Value::String(text) => self.put(&key, text.clone(), Origin::File(path.to_owned())),
                toml::Value::Integer(number) => self.put(&key, number.to_string(), Origin::File(path.to_owned())),
                toml::Value::Boolean(switch) => self.put(&key, switch.to_string(), Origin::File(path.to_owned())),
                toml::Value::Float(share) if find(&key).is_some_and(|setting| setting.sort == Sort::Share) => {
                    self.put(&key, share.to_string(), Origin::File(path.to_owned()));
                }
                toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                    match find(&key) {
                        Some(setting) => self.wrong.push(
                            Problem::usage(format!("{key} in {} is a {}", path.display(), value.type_str()))
                                .hint(setting.sort.example()),
                        ),
                        None => self.unknown(&key, &Origin::File(path.to_owned())),
                    }
                }
            }
        }
    }

    fn read_queues(&mut self, queues: &toml::Table, path: &Path) {
        for (name, value) in queues {
            match declared(name, value) {
                Ok(queue) => self.queues.push(queue),
                Err(problem) => {
                    let what = format!("{QUEUES}.{name:?} in {}: {}", path.display(), problem.what);
                    self.wrong.push(Problem { what, ..problem });
                }
            }
        }
    }

    fn put(&mut self, key: &str, text: String, origin: Origin) {
        match find(key) {
            Some(setting) => drop(self.values.insert(setting.key, Value { text, origin })),
            None => self.unknown(key, &origin),
        }
    }

    fn unknown(&mut self, key: &str, origin: &Origin) {
        let words = TABLE.iter().map(|setting| setting.key).chain([QUEUES]);
        let hint = match nearest(key, words) {
            Some(near) => format!("did you mean {near}?"),
            None => "tidegate config print shows all that can be set".to_owned(),
        };
        self.wrong.push(Problem::usage(format!("there is no setting {key}, which {origin} sets")).hint(hint));
    }

    /// Each value by its sort, and what has to go together.
    pub(crate) fn check(&mut self) {
        for setting in TABLE {
            let Some(Value { text, origin }) = self.values.get(setting.key) else { continue };
            if let Err(why) = setting.sort.check(text) {
                let shown = if setting.sort.is_secret() { "…".to_owned() } else { format!("{text:?}") };
                let what = format!("{} is {shown}, from {origin}: {why}", setting.key);
                self.wrong.push(Problem::usage(what).hint(setting.sort.example()));
            }
        }
        if self.wrong.is_empty() {
            self.check_together();
        }
    }

    fn check_together(&mut self) {
        let listen = self.listen();
        let mut wrong = Vec::new();
        if self.path("tls.cert").is_some() != self.path("tls.key").is_some() {
            let (there, missing) =
                if self.path("tls.cert").is_some() { ("tls.cert", "tls.key") } else { ("tls.key", "tls.cert") };
            wrong.push(Problem::usage(format!("{there} is set and {missing} is not")).hint("TLS needs both"));
        }
        let beyond = !listen.ip().is_loopback();
        let origin = self.values.get("listen").map(|value| value.origin.to_string()).unwrap_or_default();
        if beyond && self.path("tls.cert").is_none() && !self.switch("insecure.plaintext") {
            wrong.push(
                Problem::usage(format!(
                    "{listen}, from {origin}, can be reached from other machines, and nothing would be encrypted"
                ))
                .hint("set --tls-cert and --tls-key; listen on 127.0.0.1 behind a proxy; or say --insecure-plaintext"),
            );
        }
        let collector = self.text("otlp.endpoint").and_then(|text| collector(text).ok());
        if let Some(url) = collector.filter(|url| !url.is_encrypted() && !url.is_loopback())
            && self.text("otlp.headers").is_some()
        {
            self.odd.push(format!("otlp.headers can be read by others on the way to {url}: its address is not https"));
        }
        if !cfg!(feature = "otlp") && self.text("otlp.endpoint").is_some() {
            wrong.push(
                Problem::usage("otlp.endpoint is set, and this program was built without traces")
                    .hint("build it with the feature otlp, or leave otlp.endpoint out"),
            );
        }
        if self.switch("tokens.required") && self.switch("insecure.no_tokens") {
            wrong.push(Problem::usage("tokens are both required and switched off").hint("leave one of the two out"));
        }
        self.fit_bodies();
        if self.size("limits.headers") > 24 << 10 {
            wrong.push(Problem::usage("limits.headers is over 24KiB").hint("clients should send less"));
        }
        if self.maybe_count("limits.requests_burst").is_some() && self.maybe_count("limits.requests_per_s").is_none() {
            wrong.push(
                Problem::usage("limits.requests_burst is set and limits.requests_per_s is not")
                    .hint("a burst is of a limit: set both, or leave both out"),
            );
        }
        if self.size("limits.body_rate") > u64::from(u32::MAX) {
            wrong.push(Problem::usage("limits.body_rate is too large"));
        }
        self.wrong.append(&mut wrong);
    }

    /// A body holds the largest payload, in base64 as well, and what stands around it.
    fn fit_bodies(&mut self) {
        let payload = self.size("limits.payload");
        let fits = payload.saturating_mul(2).saturating_add(64 << 10);
        let body = self.size("limits.body");
        let Some(value) = self.values.get_mut("limits.body") else { return };
        if value.origin == Origin::Default && body < fits {
            value.text = format!("{}KiB", fits.div_ceil(1 << 10));
        } else if body <= payload {
            self.odd.push(format!(
                "limits.body is {}, from {}: a payload of {payload} bytes, which limits.payload allows, does not fit into it",
                value.text, value.origin
            ));
        }
    }

    /// What is wrong, as one problem: the first, and how many more there are.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let first = self.wrong.first()?.clone();
        Some(match self.wrong.len() {
            1 => first,
            n => {
                let hint = first.hint.clone().unwrap_or_default();
                first.hint(format!("{hint}; {} more with: tidegate config check", n - 1))
            }
        })
    }

    /// Every setting with its value, in the order of the table.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static Setting, Option<&Value>)> {
        TABLE.iter().map(|setting| (setting, self.values.get(setting.key)))
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        debug_assert!(find(key).is_some(), "no setting {key}");
        self.values.get(key).map(|value| value.text.as_str())
    }

    pub(crate) fn store(&self) -> &str {
        self.text("store").unwrap_or_default()
    }

    /// Where to listen.
    pub(crate) fn listen(&self) -> std::net::SocketAddr {
        self.text("listen").and_then(|text| text.parse().ok()).unwrap_or(([127, 0, 0, 1], 7401).into())
    }

    /// What is logged.
    pub(crate) fn log(&self) -> &str {
        self.text("log").unwrap_or_default()
    }

    /// How it is written.
    pub(crate) fn log_format(&self) -> log::Format {
        self.text("log_format").and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub(crate) fn switch(&self, key: &str) -> bool {
        self.text(key).is_some_and(|text| switch(text) == Ok(true))
    }

    pub(crate) fn maybe_count(&self, key: &str) -> Option<u64> {
        self.text(key).and_then(|text| count(text).ok())
    }

    /// A number that has a default; a larger one than fits means as many as there can be.
    pub(crate) fn count(&self, key: &str) -> usize {
        self.maybe_count(key).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX)
    }

    pub(crate) fn size(&self, key: &str) -> u64 {
        self.text(key).and_then(|text| size(text).ok()).unwrap_or(u64::MAX)
    }

    #[cfg(feature = "otlp")]
    pub(crate) fn share(&self, key: &str) -> f64 {
        self.text(key).and_then(|text| share(text).ok()).unwrap_or(1.0)
    }

    pub(crate) fn span(&self, key: &str) -> Duration {
        self.text(key).and_then(|text| duration(text).ok()).unwrap_or_default()
    }
}

/// In which line a text is wrong, if that is known.
pub(crate) fn line_of(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    before.map_or_else(String::new, |before| format!(", line {}", before.matches('\n').count() + 1))
}

fn find(key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.key == key)
}

/// The word that another one was meant to be, if one is near.
pub(crate) fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |word: &str| word.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |known: &str| {
        // In the wrong table, but the right word.
        if last(known) == last(word) { 1.0 } else { strsim::jaro_winkler(word, known) }
    };
    let best = words.map(|known| (known, likeness(known))).max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    (best.1 > 0.8).then_some(best.0)
}

/// `[queues."payments"]`, or `[queues."acme/payments"]` for the tenant `acme`.
fn declared(name: &str, value: &toml::Value) -> Result<DeclaredQueue, Problem> {
    const MEMBERS: [&str; 2] = ["max_depth", "paused"];
    let (tenant, queue) = name.split_once('/').unwrap_or(("", name));
    let mut this =
        DeclaredQueue { tenant: Tenant::new(tenant)?, queue: QueueName::new(queue)?, max_depth: None, paused: None };
    let toml::Value::Table(members) = value else {
        return Err(Problem::usage(format!("it is a {}", value.type_str())).hint("a table with max_depth and paused"));
    };
    for (member, value) in members {
        match (member.as_str(), value) {
            ("max_depth", toml::Value::Integer(n)) if *n >= 0 => {
                this.max_depth = Some(u64::try_from(*n).ok().filter(|n| *n > 0));
            }
            ("paused", toml::Value::Boolean(paused)) => this.paused = Some(*paused),
            ("max_depth", _) => {
                return Err(Problem::usage(format!("max_depth is {value}")).hint("a whole number; 0 for no limit"));
            }
            ("paused", _) => return Err(Problem::usage(format!("paused is {value}")).hint("true or false")),
            (unknown, _) => {
                let hint = match nearest(unknown, MEMBERS.into_iter()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "a queue has max_depth and paused".to_owned(),
                };
                return Err(Problem::usage(format!("there is no setting {unknown} of a queue")).hint(hint));
            }
        }
    }
    Ok(this)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(file: &str, variables: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Settings {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        Settings::gather(&Sources {
            file: Some((path, true)),
            variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            flags: flags.iter().map(|(key, value)| (*key, (*value).to_owned(), format!("--{key}"))).collect(),
        })
    }

    fn wrong(settings: &Settings) -> String {
        settings.wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_default_is_a_value_of_its_sort_and_every_key_and_variable_is_one() {
        let settings = gathered("", &[], &[]);
        assert_eq!(wrong(&settings), "");
        for (n, setting) in TABLE.iter().enumerate() {
            assert!(TABLE[..n].iter().all(|other| other.variable() != setting.variable()), "{}", setting.key);
            assert!(setting.about.ends_with('.'), "{}", setting.key);
        }
    }

    #[test]
    fn a_flag_is_stronger_than_a_variable_and_that_than_the_file_and_that_than_the_default() {
        let file = "drain = \"1s\"\n[limits]\nbatch = 1\nwait = \"1s\"";
        let variables = [("TIDEGATE_DRAIN", "2s"), ("TIDEGATE_LIMITS_BATCH", "2"), ("TIDEGATE_STORE", "v.db")];
        let settings = gathered(file, &variables, &[("drain", "3s")]);
        assert_eq!(wrong(&settings), "");
        let found: Vec<_> = (settings.all())
            .filter_map(|(setting, value)| Some((setting.key, value?)))
            .filter(|(_, value)| value.origin != Origin::Default)
            .map(|(key, value)| {
                let origin = value.origin.to_string();
                (key, value.text.as_str(), origin.rsplit('/').next().unwrap_or_default().to_owned())
            })
            .collect();
        let expected = [
            ("store", "v.db", "TIDEGATE_STORE"),
            ("drain", "3s", "--drain"),
            ("limits.batch", "2", "TIDEGATE_LIMITS_BATCH"),
            ("limits.wait", "1s", "config.toml"),
        ];
        assert_eq!(found, expected.map(|(key, text, origin)| (key, text, origin.to_owned())));
    }

    #[test]
    fn a_body_holds_a_payload_of_the_limit_unless_it_is_said_otherwise() {
        let bodies = |file| {
            let settings = gathered(file, &[], &[]);
            assert_eq!(wrong(&settings), "");
            (settings.size("limits.body"), settings.odd.len())
        };
        assert_eq!(bodies(""), (4 << 20, 0));
        assert_eq!(bodies("[limits]\npayload = \"3MiB\""), ((6 << 20) + (64 << 10), 0));
        assert_eq!(bodies("[limits]\npayload = \"1KiB\""), (4 << 20, 0));
        assert_eq!(bodies("[limits]\nbody = \"2MiB\""), (2 << 20, 0));
        assert_eq!(bodies("[limits]\nbody = \"1MiB\""), (1 << 20, 1));
    }

    #[test]
    fn what_platforms_say_is_weaker_than_what_names_tidegate() {
        let variables = [("DATABASE_URL", "postgres://h/d"), ("STATE_DIRECTORY", "/var/lib/t"), ("PORT", "8080")];
        let settings = gathered("", &variables, &[]);
        assert_eq!((settings.store(), settings.listen().port()), ("postgres://h/d", 8080));
        assert_eq!(gathered("store = \"f.db\"", &variables, &[]).store(), "f.db");
        assert_eq!(gathered("", &variables[1..2], &[]).store(), "/var/lib/t/tidegate.db");
    }

    #[test]
    fn what_opentelemetry_calls_its_settings_is_weaker_than_what_names_tidegate() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4318/v1/traces"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=secret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_SERVICE_NAME", "deposits"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let settings = gathered("", &variables, &[]);
        assert_eq!(wrong(&settings), "");
        assert!(settings.odd[0].contains("on the way to http://traces:4318"), "{:?}", settings.odd);
        let found =
            ["endpoint", "headers", "timeout", "service", "ratio"].map(|key| settings.text(&format!("otlp.{key}")));
        let expected = ["http://traces:4318/v1/traces", "x-api-key=secret", "1500ms", "deposits", "0.25"];
        assert_eq!(found, expected.map(Some));
        assert_eq!(collector(found[0].unwrap()).unwrap().to_string(), "http://traces:4318");
        let file = "[otlp]\nendpoint = \"https://mine\"\nratio = 0.5";
        let settings = gathered(file, &variables, &[]);
        assert_eq!((settings.text("otlp.endpoint"), settings.text("otlp.ratio")), (Some("https://mine"), Some("0.5")));
        assert!(settings.odd.is_empty(), "{:?}", settings.odd);
        let disabled = [&variables[..], &[("OTEL_SDK_DISABLED", "true")]].concat();
        assert_eq!(gathered("", &disabled, &[]).text("otlp.endpoint"), None);
        let grpc = gathered("", &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], &[]);
        assert!(grpc.odd[0].contains("http/protobuf"), "{:?}", grpc.odd);
    }

    #[test]
    fn a_secret_is_read_from_the_file_that_a_variable_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("url");
        std::fs::write(&path, "postgres://u:secret@h/d\n").unwrap();
        let settings = gathered("", &[("TIDEGATE_STORE_FILE", path.to_str().unwrap())], &[]);
        assert_eq!((wrong(&settings).as_str(), settings.store()), ("", "postgres://u:secret@h/d"));
        assert!(wrong(&gathered("", &[("TIDEGATE_STORE_FILE", "no/such")], &[])).contains("cannot be read"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_one_it_looks_like() {
        for (file, key, hint) in [
            ("dran = \"1s\"", "dran", "did you mean drain?"),
            ("[limits]\nbodi = 1", "limits.bodi", "did you mean limits.body?"),
            ("batch = 1", "batch", "did you mean limits.batch?"),
            ("[limit]\nx = 1", "limit", "did you mean"),
            ("colour = \"red\"", "colour", "tidegate config print"),
            ("[queues.a]\nmax_dept = 1", "max_dept", "did you mean max_depth?"),
        ] {
            let told = wrong(&gathered(file, &[], &[]));
            assert!(told.contains(&format!("setting {key}")) && told.contains(hint), "{file}: {told}");
        }
        let odd = gathered("", &[("TIDEGATE_LISTEM", "x"), ("TIDEGATE_SERVICE_HOST", "10.0.0.1")], &[]).odd;
        assert_eq!(odd.len(), 1, "{odd:?}");
        assert!(odd[0].contains("TIDEGATE_LISTEM") && odd[0].contains("TIDEGATE_LISTEN?"), "{odd:?}");
    }

    #[test]
    fn a_value_that_is_none_of_its_sort_is_refused_with_where_it_came_from() {
        for (file, part) in [
            ("drain = \"soon\"", "drain is \"soon\""),
            ("listen = \"localhost\"", "such as 127.0.0.1:7401"),
            ("log = \"tidegate=loud\"", "log is \"tidegate=loud\""),
            ("log_format = \"xml\"", "auto, text or json"),
            ("[limits]\nbody = \"1 Mb\"", "\"Mb\" is no unit"),
            ("[limits]\nbatch = 0", "at least 1"),
            ("[limits]\nbatch = [1]", "is a array"),
            ("[tokens]\nrequired = \"perhaps\"", "neither true nor false"),
            ("[otlp]\nendpoint = \"127.0.0.1:4318\"", "such as http://127.0.0.1:4318"),
            ("[otlp]\nratio = 1.5", "not from 0 to 1"),
            ("[otlp]\nheaders = \"x-api-key: secret\"", "not NAME=VALUE"),
            ("[otlp]\nheaders = \"a b=secret\"", "none that a header can have"),
            ("[queues.\"a b\"]", "invalid queue name"),
            ("[queues.a]\nmax_depth = -1", "max_depth is -1"),
            ("store = \"mysql://u:secret@h/d\"", "no engine of that name"),
            ("x = [", "is no TOML"),
        ] {
            let told = wrong(&gathered(file, &[], &[]));
            assert!(told.contains(part), "{file}: {told}");
            assert!(!told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn nothing_listens_beyond_loopback_in_the_clear_unless_that_is_said() {
        let refused = wrong(&gathered("listen = \"0.0.0.0:7401\"", &[], &[]));
        assert!(refused.contains("can be reached from other machines") && refused.contains("--insecure-plaintext"));
        for file in [
            "listen = \"0.0.0.0:7401\"\n[insecure]\nplaintext = true",
            "listen = \"[::]:7401\"\n[tls]\ncert = \"c\"\nkey = \"k\"",
            "listen = \"[::1]:7401\"",
        ] {
            assert_eq!(wrong(&gathered(file, &[], &[])), "", "{file}");
        }
        assert!(wrong(&gathered("[tls]\ncert = \"c\"", &[], &[])).contains("tls.key is not"));
    }

    #[test]
    fn a_password_beside_a_mistake_is_not_shown() {
        let told = wrong(&gathered("drain = \"1s\"\nstore = \"postgres://u:secret@h/d\" x", &[], &[]));
        assert!(told.contains("config.toml, line 2 is no TOML: ") && !told.contains("secret"), "{told}");
    }

    #[test]
    fn a_burst_without_a_rate_is_refused() {
        let told = wrong(&gathered("[limits]\nrequests_burst = 5", &[], &[]));
        assert!(told.contains("limits.requests_burst is set and limits.requests_per_s is not"), "{told}");
        assert_eq!(wrong(&gathered("[limits]\nrequests_per_s = 5", &[], &[])), "");
        assert_eq!(wrong(&gathered("[limits]\nrequests_per_s = 5\nrequests_burst = 50", &[], &[])), "");
    }

    #[test]
    fn queues_are_declared_by_name_and_tenant() {
        let settings =
            gathered("[queues.a]\nmax_depth = 5\n[queues.\"acme/b.c\"]\nmax_depth = 0\npaused = true", &[], &[]);
        assert_eq!(wrong(&settings), "");
        let told: Vec<_> = (settings.queues.iter())
            .map(|queue| (queue.tenant.as_str(), queue.queue.as_str(), queue.max_depth, queue.paused))
            .collect();
        assert_eq!(told, [("", "a", Some(Some(5)), None), ("acme", "b.c", Some(None), Some(true))]);
    }

    #[test]
    fn bytes_have_units() {
        for (text, bytes) in [("1", 1), ("1B", 1), ("16KiB", 16 << 10), ("1 MiB", 1 << 20), ("2G", 2 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "1KB", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
