//! What the command alone reads, thrown bytes at as `crates/tidegate-fuzz` does with all others: its file of settings,
//! durations and sizes, files of messages, ledgers, contexts.

use std::collections::BTreeMap;
use std::path::Path;

use tidegate::canonical::canonicalize;
use tidegate::{Kind, Priority};
use tidegate_fuzz::Drive;

use crate::contexts::Contexts;
use crate::input::{self, Defaults, Format, Shape};
use crate::ledger;
use crate::settings::{Origin, Settings, Sources, size};

/// The longest that a line about one thing may be.
const LONGEST: usize = 8192;

fn driven(name: &str, seeds: &[&str], target: impl Fn(&str)) {
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    Drive { seed: 1, inputs: 3000 }.run_on(name, &seeds, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            target(text);
        }
    });
}

#[test]
fn whatever_a_file_of_settings_says_is_taken_or_told_and_no_password_is() {
    const STORE: &str = "store = \"postgres://ada:hunter2@db/shop\"";
    let seeds = [
        "store = \"t.db\"\ndrain = \"25s\"\n[limits]\nbody = \"64KiB\"\nbatch = 10\n[tokens]\nrequired = true\n",
        "store = \"postgres://ada:hunter2@db/shop\"\nlisten = \"127.0.0.1:7401\"\n[tls]\ncert = \"c\"\nkey = \"k\"\n",
        "[queues.\"acme/pay\"]\nmax_depth = 100\npaused = false\n[queues.b]\nmax_depth = 0\n",
        "limits = { requests_per_s = 5, requests_burst = 18446744073709551615 }\nlog = \"info,tidegate=debug\"\n",
        "drain = 2026-11-29T10:00:00Z\n[limits]\nx = [1.5, inf]\n",
    ];
    driven("settings", &seeds, |text| {
        let settings = read(text);
        for wrong in &settings.wrong {
            assert!(wrong.what.len() <= LONGEST, "{} bytes", wrong.what.len());
            let is_secret = text.starts_with(STORE) && text.matches("hunter2").count() == 1;
            assert!(!is_secret || !wrong.to_string().contains("hunter2"), "{wrong}");
        }
        if !settings.wrong.is_empty() {
            return;
        }
        let set = settings.all().filter_map(|(setting, value)| Some((setting.key, value?)));
        let set = set.filter(|(_, value)| value.origin != Origin::Default);
        let set: Vec<(&str, String)> = set.map(|(key, value)| (key, value.text.clone())).collect();
        let file = set.iter().map(|(key, value)| format!("{key} = {}\n", toml::Value::from(value.as_str())));
        let again = read(&file.collect::<String>());
        for (key, value) in set {
            let read = again.all().find(|(setting, _)| setting.key == key).and_then(|(_, value)| value);
            let read = read.unwrap_or_else(|| panic!("{key} is lost: {:?}", again.wrong));
            assert_eq!((&read.text, &read.origin), (&value, &Origin::File("config.toml".into())), "{key}");
        }
    });
}

/// Settings of a file, and nothing else but the defaults.
fn read(text: &str) -> Settings {
    let mut settings = Settings::gather(&Sources { file: None, variables: BTreeMap::new(), flags: Vec::new() });
    settings.read_text(text, Path::new("config.toml"));
    settings.check();
    settings
}

#[test]
fn a_duration_and_a_size_are_what_they_are_written_as() {
    driven("numbers", &["500ms", "25s", "7d", "64KiB", "1 MiB", "18446744073709551615", "0"], |text| {
        match input::duration(text) {
            Ok(span) => assert_eq!(input::duration(&format!("{}ms", span.as_millis())), Ok(span), "{text}"),
            Err(what) => assert!(what.len() <= LONGEST, "{} bytes", what.len()),
        }
        if let Ok(bytes) = size(text) {
            assert_eq!(size(&bytes.to_string()), Ok(bytes), "{text}");
        }
    });
}

fn shape(format: Format, key_field: Option<&str>) -> Shape {
    let defaults = Defaults {
        queue: None,
        kind: Kind::new("k").ok(),
        version: 1,
        priority: Priority::default(),
        delay: None,
        deadline: None,
    };
    Shape { format, key_field: key_field.map(str::to_owned), json_fields: vec!["n".to_owned()], defaults }
}

#[test]
fn every_line_of_a_file_of_messages_is_a_message_or_told_with_its_number() {
    let seeds = [
        "{\"key\":\"a\",\"payload\":{\"n\":1},\"delay\":\"5s\"}\n{\"key\":\"b\",\"payload\":9007199254740993}\n",
        "{\"id\":\"a\",\"n\":1}\r\n\r\n{\"id\":7,\"x\":\"y\"}\n[1]\n",
        "id,n,text\na,1,\"x, y\"\nb,{},\"a\"\"b\"\n",
        "id,n\r\n\"a\r\nb\",1\r\n\r\nc,\r\n",
        "\u{feff}{\"key\":\"a\",\"payload\":1}",
    ];
    let shapes = [shape(Format::Ndjson, None), shape(Format::Ndjson, Some("id")), shape(Format::Csv, Some("id"))];
    driven("messages", &seeds, |text| {
        let most = text.bytes().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64 + 1;
        for shape in &shapes {
            let mut last = 0;
            let _no_heading = input::read(text.as_bytes(), shape, &mut |batch| {
                for line in batch {
                    assert!(line.number >= last && line.number <= most, "line {} after {last} of {most}", line.number);
                    last = line.number;
                    match line.message {
                        Ok(message) => assert!(canonicalize(message.payload.text()).is_ok()),
                        Err(what) => assert!(!what.is_empty() && what.len() <= LONGEST, "{} bytes", what.len()),
                    }
                }
                true
            });
        }
    });
}

#[test]
fn every_line_of_a_ledger_is_an_entry_or_told() {
    let seeds =
        ["{\"key\":\"k1\",\"amount\":9007199254740993}", "key,amount\nk1,500\n\"k2\",\"1\n2\"\n", "7", "key\nk1,2\n"];
    driven("ledger", &seeds, |text| {
        match ledger::object(text) {
            Ok(entry) => assert!(entry.json.starts_with('{'), "{}", entry.json),
            Err(what) => assert!(!what.is_empty() && what.len() <= LONGEST, "{} bytes", what.len()),
        }
        for line in ledger::records(text).into_iter().flatten() {
            if let Ok(entry) = line.entry {
                let read: Result<serde_json::Value, _> = serde_json::from_str(&entry.json);
                assert!(read.is_ok_and(|value| value.is_object()), "{}", entry.json);
            }
        }
    });
}

#[test]
fn contexts_that_are_read_are_written_alike() {
    let seeds = [
        "current = \"a\"\n[contexts.a]\nurl = \"https://example.com\"\ntoken_file = \"t\"\nproduction = true\n",
        "[contexts.\"b c\"]\nurl = \"http://127.0.0.1:1\"\ntoken = \"tg_x\"\nca = \"ca.pem\"\nplaintext = true\n",
    ];
    driven("contexts", &seeds, |text| {
        let Ok(contexts) = toml::from_str::<Contexts>(text) else { return };
        let written = toml::to_string(&contexts).expect("what was read can be written");
        assert!(toml::from_str::<Contexts>(&written).is_ok_and(|again| again == contexts), "{written}");
    });
}
