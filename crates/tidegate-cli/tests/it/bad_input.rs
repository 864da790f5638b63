//! Whatever is wrong gets a clear error with its value, its own exit code, and leaves nothing half-written.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::Uid;
use tidegate::sqlite::rusqlite::Connection;

use crate::desk::{Desk, Ran};

const ONE: [&str; 7] = ["enqueue", "--kind", "greet", "--key", "a", "--payload", "1"];

#[test]
fn wrong_usage_is_an_object_too_when_json_was_asked_for() {
    let desk = Desk::new();
    for (arguments, what, hint) in [
        (&["get", "--json", "msg_x"][..], "not a message id", "msg_"),
        (&["get", "--json"], "required arguments were not provided: <ID>", "usage: tidegate get"),
        (&["get", "--json", "--bogus"], "unexpected argument '--bogus' found", "'-- --bogus'"),
        (&["lits", "--json"], "unrecognized subcommand 'lits'", "'list'"),
        (&["dead", "--json"], "requires a subcommand", "usage: tidegate dead"),
        (&["--json"], "requires a subcommand", "usage: tidegate"),
        (&["list", "--queue", "a b", "--json"], "invalid queue name \"a b\"", "1 to 100 of"),
    ] {
        let ran = desk.run(arguments).ends(2).prints("");
        let told: serde_json::Value = serde_json::from_str(&ran.err).unwrap_or_else(|e| panic!("{e}: {}", ran.err));
        assert!(told["error"].as_str().unwrap().contains(what), "{told}");
        assert!(told["hint"].as_str().unwrap().contains(hint), "{told}");
        assert!(!ran.err.contains("role") && !ran.err.contains("; hint"), "{told}");
        assert_eq!((told["kind"].as_str(), told["exit_code"].as_u64()), (Some("invalid"), Some(2)), "{told}");
    }
    desk.run(&["get", "--help", "--json"]).ends(0).shows("Usage:");
}

#[test]
fn a_hint_is_a_line_of_its_own() {
    let ran = Desk::new().run(&["list", "--queue", "a b"]).ends(2).says("\nhint: 1 to 100 of");
    assert!(!ran.err.contains("; hint"), "{}", ran.err);
}

#[test]
fn wrong_usage_is_2_and_names_the_value() {
    let desk = Desk::new();
    let long_key = "k".repeat(256);
    for (arguments, says) in [
        (&["list", "--bogus"][..], "unexpected argument '--bogus'"),
        (&["nonsense"], "unrecognized subcommand 'nonsense'"),
        (&["get", "12"], "not a message id: \"12\""),
        (&["get", "msg_0000000000i00"], "not a message id"),
        (&["get"], "required"),
        (&["get", "--key", "a"], "--queue"),
        (&["list", "--limit", "0"], "0 is not in 1.."),
        (&["list", "--queue", "pay ments"], "invalid queue name \"pay ments\""),
        (&["enqueue", "--kind", "k/1", "--key", "a", "--payload", "1"], "invalid kind \"k/1\""),
        (&["enqueue", "--kind", "k", "--key", "a b", "--payload", "1"], "invalid idempotency key \"a b\""),
        (&["enqueue", "--kind", "k", "--key", &long_key, "--payload", "1"], "(256 bytes)"),
        (&["enqueue", "--kind", "k", "--payload", "1"], "a message needs a key"),
        (&["enqueue", "--key", "a", "--payload", "1"], "--kind is missing"),
        (&["enqueue", "--kind", "k", "--key", "a"], "--payload is missing"),
        (&["enqueue", "--kind", "k", "--key", "a", "--payload", "{"], "the text ends too early at $ (byte 1)"),
        (&["enqueue", "--kind", "k", "--key", "a", "--payload", r#"{"n":1,"n":2}"#], "appears twice at $.n"),
        (&["enqueue", "--kind", "k", "--key", "a", "--payload", "1", "--priority", "12"], "invalid priority 12"),
        (&["enqueue", "--kind", "k", "--key", "a", "--payload", "1", "--delay", "soon"], "not a duration: \"soon\""),
        (&["enqueue", "--kind", "k", "--key", "a", "--payload", "1", "--deadline", "now"], "not a time: \"now\""),
        (&["enqueue", "--kind", "k", "--key", "a", "file"], "cannot be used with"),
        (&["enqueue", "--key-field", "id"], "<FILE>"),
        (&["enqueue", "--key-field", "id", "-"], "--kind is missing"),
        (&["enqueue", "--kind", "k", "--format", "csv", "-"], "--key-field COLUMN"),
        (&["enqueue", "--kind", "k", "--json-field", "n", "-"], "--json-field is for CSV files"),
        (&["--store", "", "list"], "names no file"),
        (&["--store", "redis://db", "list"], "no engine of that name"),
        (&["--store", ".", "list"], "is a directory"),
        (&["--color", "blue", "list"], "invalid value 'blue'"),
    ] {
        let ran = desk.run(arguments).ends(2).says(says);
        assert!(!ran.err.contains("secret"), "{}", ran.err);
        assert_eq!(ran.out, "", "data is for what was done: {arguments:?}");
    }
    assert_eq!(desk.files(), Vec::<String>::new(), "nothing of it makes a store");
}

#[test]
fn what_is_not_there_is_3_and_looking_makes_no_store() {
    let desk = Desk::new();
    for command in [
        &["list"][..],
        &["get", "msg_0000000000001"],
        &["explain", "msg_0000000000001"],
        &["dead", "list"],
        &["parked", "list"],
        &["queue", "pause", "q"],
        &["cancel", "msg_0000000000001"],
        &["dead", "redrive", "--all"],
        &["audit"],
        &["stats"],
    ] {
        desk.run(command).ends(3).says("error: no store at tidegate.db").says("hint: --store PATH");
    }
    assert_eq!(desk.files(), Vec::<String>::new());
    desk.write("empty.db", "");
    desk.run(&["--store", "empty.db", "list"]).ends(3).says("empty.db is empty, and no store yet");
    assert_eq!(std::fs::metadata(desk.path("empty.db")).unwrap().len(), 0);
    desk.run(&["--store", "no/such/place.db", "list"]).ends(3).says("no directory no/such");
    desk.run(&[&["--store", "no/such/place.db"], &ONE[..]].concat()).ends(3).says("no directory no/such");
    desk.run(&["enqueue", "--kind", "k", "--key-field", "id", "gone.csv"]).ends(3).says("cannot read gone.csv");
    desk.run(&ONE).ends(0);
    desk.run(&["get", "msg_0000000000001"]).ends(3).says("no message msg_0000000000001");
    desk.run(&["get", "--queue", "greet", "--key", "b"]).ends(3).says("no message with key b on queue greet");
    desk.run(&["explain", "msg_0000000000001"]).ends(3);
}

#[test]
fn an_error_for_programs_is_an_object_on_standard_error() {
    let desk = Desk::new();
    let ran = desk.run(&["list", "--json"]).ends(3);
    assert_eq!(
        ran.err,
        "{\"error\":\"no store at tidegate.db\",\"hint\":\"--store PATH or TIDEGATE_STORE names another one; \
         `tidegate enqueue` creates it\",\"kind\":\"not_found\",\"exit_code\":3}\n"
    );
}

#[test]
fn the_store_is_named_by_flag_before_environment() {
    let desk = Desk::new();
    let with_env = |arguments: &[&str]| {
        let mut command = desk.command(arguments);
        Ran::of(command.env("TIDEGATE_STORE", "from-env.db").output().unwrap())
    };
    with_env(&ONE).ends(0);
    with_env(&[&ONE[..], &["--store", "sqlite://from-flag.db"]].concat()).ends(0);
    assert_eq!(desk.files(), ["from-env.db", "from-flag.db"]);
    with_env(&["bench", "--quick", "--keys", "time", "--json"]).ends(0);
}

#[test]
fn a_key_with_another_payload_is_4_and_changes_nothing() {
    let desk = Desk::new();
    desk.run(&ONE).ends(0);
    let other = ["enqueue", "--kind", "greet", "--key", "a", "--payload", "2"];
    desk.run(&other)
        .ends(4)
        .says("key \"a\" is known in queue greet with another payload: msg_")
        .says("hint: a key names one intended effect for as long as it is kept")
        .says("the known one: tidegate get msg_");
    desk.run(&["get", "--queue", "greet", "--key", "a"]).ends(0).shows("payload\t1\n");
    assert_eq!(desk.run(&["list", "--all"]).ends(0).out.lines().count(), 1);
}

#[test]
fn a_payload_over_the_limit_is_refused_with_both_sizes() {
    let desk = Desk::new();
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    desk.run_with_input(&["enqueue", "--kind", "k", "--key", "a", "--payload", "-"], long.as_bytes())
        .ends(2)
        .says("payload of 1048578 bytes is over the limit of 1048576")
        .says("hint: store the document elsewhere");
    let lines = format!("{{\"id\":\"a\",\"x\":{long}}}\n{{\"id\":\"b\"}}\n");
    desk.run_with_input(&["enqueue", "--kind", "k", "--key-field", "id", "-"], lines.as_bytes())
        .ends(1)
        .says("line 1: payload of 1048593 bytes is over the limit of 1048576")
        .shows("added\t1\n");
    assert_eq!(desk.run(&["list"]).ends(0).out.lines().count(), 1, "and nothing of the long ones is there");
}

// --- files that are no store of ours ---------------------------------------------------------------------------------

#[test]
fn a_file_that_is_no_database_is_1_and_left_as_it_is() {
    let desk = Desk::new();
    desk.write(
        "tidegate.db",
        "this is a letter, not a database, and it is longer than a page header of SQLite would be",
    );
    let before = std::fs::read(desk.path("tidegate.db")).unwrap();
    desk.run(&["list"]).ends(1).says("tidegate.db is no SQLite database").says("hint:");
    desk.run(&ONE).ends(1).says("is no SQLite database");
    assert_eq!(std::fs::read(desk.path("tidegate.db")).unwrap(), before);
}

#[test]
fn a_database_of_another_program_is_4_and_left_as_it_is() {
    let desk = Desk::new();
    Connection::open(desk.path("tidegate.db")).unwrap().execute_batch("create table theirs (x)").unwrap();
    let before = std::fs::read(desk.path("tidegate.db")).unwrap();
    desk.run(&ONE).ends(4).says("is an SQLite database of another program");
    desk.run(&["stats"]).ends(4);
    assert_eq!(std::fs::read(desk.path("tidegate.db")).unwrap(), before);
}

#[test]
fn a_store_of_a_newer_program_is_4_and_left_as_it_is() {
    let desk = Desk::new();
    desk.run(&ONE).ends(0);
    let newer = "insert into tide_migration (number, name, checksum, applied_at) values (999, '0999_later', x'00', 0)";
    Connection::open(desk.path("tidegate.db")).unwrap().execute_batch(newer).unwrap();
    let before = std::fs::read(desk.path("tidegate.db")).unwrap();
    desk.run(&ONE).ends(4).says("is a store of a newer tidegate").says("hint: run the newer program");
    assert_eq!(std::fs::read(desk.path("tidegate.db")).unwrap(), before);
}

#[test]
fn a_damaged_store_is_1_and_never_served() {
    let desk = Desk::new();
    desk.write("many.ndjson", (0..2000).map(|n| format!("{{\"id\":{n}}}\n")).collect::<String>());
    desk.run(&["enqueue", "--kind", "k", "--key-field", "id", "many.ndjson"]).ends(0);
    let mut content = std::fs::read(desk.path("tidegate.db")).unwrap();
    // Every page but the first: whatever is read, it is not what was written.
    content[4096..].iter_mut().for_each(|byte| *byte = 0xa5);
    desk.write("tidegate.db", content);
    for command in [&["list"][..], &["stats"], &ONE] {
        desk.run(command).ends(1).says("tidegate.db is damaged").says("restore a backup");
    }
}

// --- files that cannot be written ------------------------------------------------------------------------------------

/// The program as somebody without rights on the store. Root may write everything, so there it runs as nobody, from a copy
/// that nobody may read.
fn without_rights(desk: &Desk, arguments: &[&str]) -> Ran {
    let mut command = if Uid::effective().is_root() {
        let program = desk.path("program");
        if !program.exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_tidegate"), &program).unwrap();
        }
        let mut command = Command::new(program);
        command.uid(65534).gid(65534);
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_tidegate"))
    };
    command.args(arguments).current_dir(desk.path("")).env_clear().stdin(Stdio::null());
    Ran::of(command.output().unwrap())
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_store_that_may_not_be_written_is_6() {
    let desk = Desk::new();
    mode(&desk.path(""), 0o755);
    std::fs::create_dir(desk.path("theirs")).unwrap();
    desk.run(&[&["--store", "theirs/tidegate.db"], &ONE[..]].concat()).ends(0);
    let other = ["enqueue", "--kind", "greet", "--key", "b", "--payload", "1"];
    let refused = |what: &str| {
        for command in [&["list"][..], &other] {
            without_rights(&desk, &[&["--store", "theirs/tidegate.db"], command].concat())
                .ends(6)
                .says(what)
                .says("hint: the file and its directory must be writable for this user");
        }
    };
    mode(&desk.path("theirs/tidegate.db"), 0o444);
    mode(&desk.path("theirs"), 0o755);
    if !Uid::effective().is_root() {
        mode(&desk.path("theirs"), 0o555);
    }
    refused("store theirs/tidegate.db may not be written");
    mode(&desk.path("theirs/tidegate.db"), 0o666);
    if Uid::effective().is_root() {
        refused("directory of the store, theirs may not be written");
    }
    let nowhere = without_rights(&desk, &[&["--store", "theirs/new.db"], &ONE[..]].concat());
    nowhere.ends(6).says("may not be written");
    mode(&desk.path("theirs"), 0o755);
    let listed = desk.run(&["--store", "theirs/tidegate.db", "list"]).ends(0).out;
    assert_eq!(listed.lines().count(), 1, "{listed}");
}

/// Fills a disk that is a few hundred kilobytes large: a file system of its own, or where none may be mounted a limit on
/// the size of files. What was acknowledged before is there afterwards, and nothing else.
#[test]
fn a_full_disk_is_5_and_keeps_exactly_what_was_acknowledged() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("disk")).unwrap();
    let filler = "x".repeat(4000);
    desk.write(
        "many.ndjson",
        (0..400).map(|n| format!("{{\"id\":{n},\"filler\":\"{filler}\"}}\n")).collect::<String>(),
    );
    let script = |begin: &str| {
        format!(
            "{begin}
             T='{program} --store disk/tidegate.db'
             for n in 1 2 3 4 5; do $T enqueue --kind k --key before-$n --payload $n || exit 90; done
             $T enqueue --kind k --key-field id many.ndjson; echo code $?
             {after}
             $T list --all --limit 1000; echo listed $?
             $T stats --json; echo stats $?",
            program = env!("CARGO_BIN_EXE_tidegate"),
            after = if begin.contains("ulimit") { "ulimit -S -f unlimited" } else { "mount -o remount,size=64m disk" },
        )
    };
    let shell = |wrap: &[&str], script: &str| {
        let mut command = Command::new(wrap[0]);
        command.args(&wrap[1..]).args(["sh", "-c", script]).current_dir(desk.path("")).stdin(Stdio::null());
        Ran::of(command.output().unwrap())
    };
    let mounted = shell(&["unshare", "--mount"], &script("mount -t tmpfs -o size=400k tmpfs disk || exit 91"));
    let ran = match mounted.code {
        Some(0) => mounted,
        // Nobody may mount here: a file that may not grow is the next best thing. Blocks of 512 bytes.
        _ => shell(&["env"], &script("trap '' XFSZ; ulimit -S -f 800")),
    }
    .ends(0);
    assert!(ran.out.contains("code 5\n"), "{ran:?}");
    assert!(ran.err.contains("hint: ") && ran.err.contains("not added twice"), "{}", ran.err);
    let listed: Vec<&str> = ran
        .out
        .lines()
        .skip_while(|line| *line != "code 5")
        .skip(1)
        .take_while(|line| line.starts_with("msg_"))
        .collect();
    assert!(ran.out.contains("\nlisted 0\n") && ran.out.contains("\nstats 0\n"), "{}", ran.out);
    assert_eq!(listed.len(), 5, "what was acknowledged, and no part of the batch that was not: {}", ran.out);
    assert!(ran.out.contains("\"ready\":5,"), "the counts agree: {}", ran.out);
}

/// Another process holds the file for longer than the command waits: 30 s, and here a tenth of a second.
#[test]
fn a_store_that_stays_busy_is_5_and_nothing_was_stored() {
    let desk = Desk::new();
    desk.run(&ONE).ends(0);
    let holder = Connection::open(desk.path("tidegate.db")).unwrap();
    holder.execute_batch("begin immediate").unwrap();
    let patient_for = |milliseconds: &str, arguments: &[&str]| {
        Ran::of(desk.command(arguments).env("TIDEGATE_BUSY_MS", milliseconds).output().unwrap())
    };
    let other = ["enqueue", "--kind", "k", "--key", "other", "--payload", "1"];
    let busy = patient_for("100", &other).ends(5);
    busy.says("error: ").says("hint: ");
    let busy = patient_for("100", &[&other[..], &["--json"]].concat()).ends(5);
    let told: serde_json::Value = serde_json::from_str(&busy.err).unwrap();
    assert_eq!((&told["kind"], &told["exit_code"]), (&"unavailable".into(), &5.into()), "{told}");
    // Whoever only looks is not kept waiting.
    assert_eq!(patient_for("100", &["list"]).ends(0).out.lines().count(), 1);
    patient_for("soon", &["list"]).ends(2).says("TIDEGATE_BUSY_MS is \"soon\"").says("hint: a number of milliseconds");

    holder.execute_batch("rollback").unwrap();
    patient_for("100", &other).ends(0);
    assert_eq!(desk.run(&["list"]).ends(0).out.lines().count(), 2, "the refused one was not stored, the later one was");
}
