//! The command against a server: it says the same as at a store of its own, and says plainly what it cannot do there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::pty::{OpenptyResult, openpty};
use serde_json::Value;

use crate::again::again_everywhere;
use crate::desk::{Bench, Desk, Ran, masked, over_http};
use crate::documents::{commands, page};
use crate::serve::Server;

const HOUR: Duration = Duration::from_secs(3600);

again_everywhere! { over_http }

/// Types the commands of a page in their order, with the addresses it names standing for a server of this test.
pub(crate) fn in_their_order_against_a_server(path: &str) {
    let (desk, ids) = laid();
    let server = Server::start(&desk, &["--require-tokens"]);
    let mut typed = commands(&page(path)).into_iter();
    // The first one is typed where the store is, and what it prints is kept in a file.
    let made = typed.next().unwrap();
    let [made @ .., into, file] = made.as_slice() else { panic!("{made:?}") };
    assert_eq!((made[..2].join(" ").as_str(), into.as_str()), ("token create", ">"));
    let made: Vec<&str> = made.iter().map(String::as_str).collect();
    desk.write(file, desk.run(&made).ends(0).out);
    let dead = ids.iter().find(|(name, _)| *name == "DEAD").unwrap();
    for command in typed {
        let word = |word: &String| match word.as_str() {
            "ID" => dead.1.clone(),
            word if word.starts_with("https://") => server.url(),
            word => word.to_owned(),
        };
        let arguments: Vec<String> = command.iter().map(word).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run_with_home(&desk, &arguments).ends(0);
    }
    assert!(desk.run(&["audit"]).ends(0).out.contains("\ttoken:ada ("), "the token and the user are in the audit");
}

// --- here and there --------------------------------------------------------------------------------------------------

/// A desk with a message in every state.
fn laid() -> (Desk, Vec<(&'static str, String)>) {
    let desk = Desk::new();
    let ids = desk.prepare(async |bench: &Bench| {
        let completed = bench.completed("dep-1").await;
        let failed = bench.failed("dep-2").await;
        let parked = bench.parked("dep-3", HOUR).await;
        let dead = bench.dead("dep-4").await;
        let another = bench.dead("dep-5").await;
        let leased = bench.lease("dep-6").await.message.id;
        let ready = bench.enqueue("dep-7").await;
        [completed, failed, parked, dead, another, leased, ready]
    });
    let names = ["COMPLETED", "FAILED", "PARKED", "DEAD", "ANOTHER", "LEASED", "READY"];
    (desk, names.into_iter().zip(ids.map(|id| id.to_string())).collect())
}

/// Words with ids in the place of their names.
fn words(line: &str, ids: &[(&'static str, String)]) -> Vec<String> {
    let word =
        |word: &str| ids.iter().find(|(name, _)| *name == word).map_or_else(|| word.to_owned(), |(_, id)| id.clone());
    line.split(' ').map(word).collect()
}

/// What a run said, without what differs from one moment to the next: ids, times, ages.
fn told(ran: &Ran) -> (Option<i32>, String, String) {
    let ageless = |text: &str| {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("_ms\":") {
            out.push_str(&rest[..at + 5]);
            let end = rest[at + 5..].find([',', '}']).unwrap_or(0);
            out.push_str("AGE");
            rest = &rest[at + 5 + end..];
        }
        let mut out = out + rest;
        // "856 ms ago": a number and its unit.
        while let Some(at) = out.find(" ago") {
            let number = out[..at].rmatch_indices(char::is_whitespace).nth(1).map_or(0, |(at, _)| at + 1);
            out.replace_range(number..at + " ago".len(), "AGE");
        }
        masked(&out)
    };
    (ran.code, ageless(&ran.out), ageless(&ran.err))
}

#[test]
fn every_command_that_looks_says_the_same_of_a_server_as_of_its_store() {
    let (desk, ids) = laid();
    desk.write("ledger.ndjson", "{\"key\":\"nobodys\",\"amount\":1}\n");
    let server = Server::start(&desk, &[]);
    #[rustfmt::skip]
    let looks = [
        "list", "list --json", "list --all", "list --all --json", "list --state dead,parked", "list --queue deposit --limit 2",
        "list --code timeout", "list --after PARKED", "list --queue nobody",
        "get COMPLETED", "get COMPLETED --json", "get PARKED --json", "get DEAD", "get LEASED", "get READY --json",
        "get --queue deposit --key dep-3", "get --queue deposit --key nobodys", "get msg_0000000000001",
        "explain COMPLETED", "explain FAILED --json", "explain PARKED", "explain DEAD", "explain READY", "explain READY --json",
        "explain msg_0000000000001",
        "dead list", "dead list --json", "dead groups", "dead groups --json", "dead groups --parked", "dead show DEAD",
        "dead show DEAD --json", "dead show READY", "dead redrive DEAD --dry-run", "dead redrive --all --dry-run --json",
        "dead redrive COMPLETED --dry-run", "dead operations", "dead operations nobody",
        "parked list", "parked list --json", "parked show PARKED", "parked show PARKED --json", "parked show DEAD",
        "reconcile --ledger ledger.ndjson", "reconcile --ledger ledger.ndjson --json",
        "queue list --json", "audit", "audit --json", "audit --limit 1", "token list", "token list --all --json",
        "top --once --json",
    ];
    for line in looks {
        let words = words(line, &ids);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let here = desk.run(&[&["--store", "tidegate.db"], &words[..]].concat());
        let there = desk.run(&[&["--url", &server.url(), "--reveal"], &words[..]].concat());
        let (mut here, mut there) = (told(&here), told(&there));
        if line.starts_with("top") {
            // The moment itself is said, and ages are; nothing else may differ.
            (here.2, there.2) = (String::new(), String::new());
        }
        assert_eq!(here, there, "{line}");
    }
    // The figures of a store, but for the disk, which is the server's to watch.
    let stats = |arguments: &[&str]| -> Value {
        let mut stats: Value = serde_json::from_str(&desk.run(arguments).ends(0).out).unwrap();
        stats.as_object_mut().unwrap().remove("disk");
        for queue in stats["queues"].as_array_mut().unwrap() {
            queue.as_object_mut().unwrap().retain(|name, _| !name.ends_with("_ms"));
        }
        for lane in stats["lanes"].as_array_mut().unwrap() {
            lane.as_object_mut().unwrap().remove("oldest_ms");
        }
        stats
    };
    assert_eq!(
        stats(&["stats", "--json", "--store", "tidegate.db"]),
        stats(&["stats", "--json", "--url", &server.url()])
    );
    desk.run(&["stats", "--url", &server.url()]).ends(0).shows("open effects\t1\n");
}

#[test]
fn every_command_that_acts_does_and_says_the_same_on_a_server_as_on_a_store() {
    let (home, home_ids) = laid();
    let (away, away_ids) = laid();
    let server = Server::start(&away, &[]);
    #[rustfmt::skip]
    let acts = [
        "enqueue --kind greet --key a --payload {\"name\":\"Ada\"}", "enqueue --kind greet --key a --payload {\"name\":\"Ada\"} --json",
        "enqueue --kind greet --key a --payload {\"name\":\"Bob\"}", "enqueue --kind deposit --key dep-1 --payload {\"deposit\":\"dep-1\"} --json",
        "enqueue --kind greet --key b --payload {", "enqueue --kind greet --key-field id many.ndjson",
        "cancel READY --reason no", "cancel READY COMPLETED --json", "cancel COMPLETED",
        "dead edit DEAD --payload {\"deposit\":\"other\"} --reason wrong", "dead edit DEAD --payload {\"deposit\":\"other\"} --reason wrong --json",
        "dead edit READY --payload 1 --reason wrong",
        "dead redrive DEAD --reason repaired --operation one", "dead redrive DEAD --operation two", "dead operations",
        "dead redrive --cancel one", "dead redrive --resume nobody",
        "dead redrive FAILED --again --reason mistake --operation three --json",
        "dead discard ANOTHER --reason test", "dead discard ANOTHER READY --reason test --json", "dead list --discarded",
        "parked resolve PARKED --effect capture --did-not-happen --reason asked",
        "parked resolve PARKED --effect capture --happened --result \"ch_1\" --reason seen",
        "parked resolve PARKED --effect capture --happened --result \"ch_1\" --reason seen --json",
        "queue pause deposit --reason maintenance", "queue pause unheard --json", "queue limit deposit 7 --json",
        "queue limit deposit none", "queue resume deposit",
        "token create app --scope paint", "token revoke nobody",
        "audit", "audit --json", "list --all", "dead operations",
    ];
    for desk in [&home, &away] {
        desk.write("many.ndjson", "{\"id\":\"m-1\"}\n{\"id\":\"m-2\"}\n{}\n{\"id\":\"m-1\"}\n");
    }
    for line in acts {
        let run = |desk: &Desk, place: &[&str], ids: &[(&'static str, String)]| {
            let words = words(line, ids);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            told(&desk.run(&[place, &words[..]].concat()))
        };
        let here = run(&home, &["--store", "tidegate.db"], &home_ids);
        let there = run(&away, &["--url", &server.url(), "--reveal"], &away_ids);
        assert_eq!(here, there, "{line}");
    }
    // A token is another one each time; made over HTTP it is let in, and seen by the store.
    let token = away.run(&["token", "create", "app", "--scope", "read", "--url", &server.url()]).ends(0).out;
    away.run(&["token", "list"]).ends(0).shows("app\tread:*");
    away.run(&["list", "--url", &server.url(), "--token", token.trim()]).ends(0).shows("deposit");
}

// --- what cannot be done there ---------------------------------------------------------------------------------------

#[test]
fn what_works_on_a_store_alone_says_so_and_what_to_do_instead() {
    let desk = Desk::new();
    let id = "msg_0000000000001";
    for command in
        [&["doctor"][..], &["backup", "copy.db"], &["migrate", "status"], &["erase", id, "--reason", "asked"]]
    {
        let ran = desk.run(&[&["--url", "http://127.0.0.1:1"], command].concat()).ends(2);
        ran.says(&format!("{} works on a store itself, and http://127.0.0.1:1 is a server", command[0]))
            .says("--store");
    }
    for command in [&["serve"][..], &["dev"], &["demo"], &["torture"], &["bench"], &["config", "list"]] {
        let ran = desk.run(&[&["--url", "http://127.0.0.1:1"], command].concat()).ends(2);
        ran.says(&format!("{} asks no server", command[0]));
    }
    desk.run(&["list", "--url", "http://127.0.0.1:1", "--store", "s.db"])
        .ends(2)
        .says("one command works on one of them");
    assert!(desk.files().is_empty(), "{:?}", desk.files());
}

#[test]
fn amounts_are_not_compared_with_payloads_that_are_masked() {
    let (desk, _) = laid();
    desk.write("ledger.ndjson", "{\"key\":\"x\",\"amount\":1}\n");
    let compare = ["reconcile", "--ledger", "ledger.ndjson", "--amount-field", "cents", "--url", "http://127.0.0.1:1"];
    desk.run(&compare).ends(2).says("which the server masks").says("--reveal");
}

#[test]
fn contents_are_masked_unless_they_are_asked_for_and_who_saw_them_is_written_down() {
    let (desk, ids) = laid();
    let server = Server::start(&desk, &[]);
    let token = desk.run(&["token", "create", "desk", "--scope", "read", "--scope", "reveal"]).ends(0).out;
    desk.write("token", &token);
    let reach = ["--url", &server.url(), "--token-file", "token"];
    let completed = words("COMPLETED", &ids).remove(0);
    let masked = desk.run(&[&["get", &completed, "--json"], &reach[..]].concat()).ends(0);
    assert!(masked.out.contains("\"payload\":{\"masked\":true,\"bytes\":19}"), "{}", masked.out);
    assert!(!masked.out.contains("ch_1"), "{}", masked.out);
    let audit = |desk: &Desk| desk.run(&["audit"]).ends(0).out.matches("\treveal\t").count();
    assert_eq!(audit(&desk), 0);
    desk.run(&[&["get", &completed, "--json", "--reveal"], &reach[..]].concat())
        .ends(0)
        .shows("{\"deposit\":\"dep-1\"}");
    assert_eq!(audit(&desk), 1);
}

#[test]
fn a_token_that_is_refused_and_an_address_that_is_wrong_are_told_as_what_they_are() {
    let (desk, _) = laid();
    let server = Server::start(&desk, &["--require-tokens"]);
    let list = |arguments: &[&str]| desk.run(&[&["list"], arguments].concat());
    list(&["--url", &server.url()]).ends(6).says("no token").says("--token-file");
    list(&["--url", &server.url(), "--token", "tg_nobodys"]).ends(6).says("not valid").says("TIDEGATE_TOKEN");
    let token = desk.run(&["token", "create", "app", "--scope", "produce"]).ends(0).out;
    let url = server.url();
    list(&["--url", &url, "--queue", "deposit", "--token", token.trim(), "--json"]).ends(6).says("\"not_allowed\"");
    list(&["--url", &url, "--token-file", "none"]).ends(3).says("none cannot be read");
    list(&["--url", &url, "--token", "two words"]).ends(2).says("tg_");
    list(&["--url", "http://example.com", "--token", "tg_x"]).ends(2).says("could be read").says("--plaintext");
    list(&["--url", "127.0.0.1:7401"]).ends(2).says("has no scheme").says("http://127.0.0.1:7401");
    list(&["--url", "http://127.0.0.1:1"]).ends(5).says("cannot reach the server").says("nothing was sent");
    list(&["--url", "https://127.0.0.1:1", "--ca", "none.pem"]).ends(2).says("none.pem");
    let strange =
        answering(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
    list(&["--url", &format!("http://{strange}")]).ends(2).says("is no Tidegate server").says("check the address");
}

/// Something that answers every request alike.
fn answering(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 4096];
            let _read = connection.read(&mut request);
            let _written = connection.write_all(answer);
        }
    });
    address
}

#[test]
fn a_reply_that_is_lost_is_asked_for_again_and_nothing_is_done_twice() {
    let desk = Desk::new();
    let server = Server::start(&desk, &[]);
    let lose = Arc::new(AtomicUsize::new(0));
    let url = format!("http://{}", losing(server.address, &lose));
    let many: String = (0..40).map(|n| format!("{{\"id\":\"m-{n}\"}}\n")).collect();
    desk.write("many.ndjson", many);
    for _ in 0..2 {
        lose.store(2, Ordering::SeqCst);
        desk.run(&["enqueue", "--kind", "k", "--key-field", "id", "many.ndjson", "--url", &url]).ends(0);
        assert_eq!(lose.load(Ordering::SeqCst), 0, "replies were lost");
    }
    assert_eq!(desk.run(&["list", "--limit", "1000"]).ends(0).out.lines().count(), 40);
    lose.store(1, Ordering::SeqCst);
    desk.run(&["queue", "pause", "k", "--url", &url]).ends(0).shows("k\tpaused");
    desk.run(&["queue", "list"]).ends(0).shows("k\tpaused");
}

/// A way to a server on which so many replies are lost.
fn losing(server: SocketAddr, lose: &Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let lose = Arc::clone(lose);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let lose = Arc::clone(&lose);
            std::thread::spawn(move || {
                let mut upstream = TcpStream::connect(server).unwrap();
                let (mut asking, mut asked) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ended = std::io::copy(&mut asking, &mut asked);
                    let _closed = asked.shutdown(std::net::Shutdown::Write);
                });
                let mut bytes = vec![0; 64 << 10];
                while let Ok(n @ 1..) = upstream.read(&mut bytes) {
                    let lost = lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                    if lost.is_ok() || client.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
                let _closed = client.shutdown(std::net::Shutdown::Both);
                let _closed = upstream.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

// --- contexts --------------------------------------------------------------------------------------------------------

/// The program with a home of its own, where contexts are kept.
fn with_home(desk: &Desk, arguments: &[&str]) -> Command {
    let mut command = desk.at_home(arguments);
    command.env("HOME", desk.path("home"));
    command
}

fn run_with_home(desk: &Desk, arguments: &[&str]) -> Ran {
    Ran::of(with_home(desk, arguments).output().unwrap())
}

#[test]
fn contexts_are_set_listed_used_and_removed() {
    let (desk, _) = laid();
    let server = Server::start(&desk, &["--require-tokens"]);
    let token = desk.run(&["token", "create", "app", "--scope", "read", "--scope", "operate"]).ends(0).out;
    desk.write("token", &token);
    let run = |arguments: &[&str]| run_with_home(&desk, arguments);
    run(&["context", "list"]).ends(0).prints("");
    run(&["context", "use", "here"]).ends(3).says("there is no context here");
    run(&["context", "set", "here"]).ends(2).says("has no address");
    run(&["context", "set", "here", "--url", "nowhere"]).ends(2).says("no scheme");
    run(&["context", "set", "here", "--url", &server.url(), "--token-file", "token"]).ends(0).says("context use here");
    let mut set =
        with_home(&desk, &["context", "set", "prod", "--url", "https://example.com", "--token", "-", "--production"]);
    let mut child = set.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"tg_of_prod\n").unwrap();
    Ran::of(child.wait_with_output().unwrap()).ends(0);
    let listed = run(&["context", "list"]).ends(0).out;
    let file = desk.path("token").display().to_string();
    assert_eq!(
        listed,
        format!("\there\t{}\t{file}\t\n\tprod\thttps://example.com\tkept here\tproduction\n", server.url())
    );
    let json = run(&["context", "list", "--json"]).ends(0).out;
    assert!(!json.contains("tg_"), "{json}");

    // Nothing is in use yet: the file of the directory is meant.
    run(&["stats"]).ends(0).shows("disk");
    run(&["context", "use", "here"]).ends(0).says("here");
    assert!(!run(&["stats"]).ends(0).out.contains("disk"), "the server is asked");
    run(&["list"]).ends(0).shows("dep-7");
    run(&["--store", "tidegate.db", "stats"]).ends(0).shows("disk");
    let mut command = with_home(&desk, &["stats"]);
    Ran::of(command.env("TIDEGATE_STORE", "tidegate.db").output().unwrap()).ends(0).shows("disk");
    run(&["doctor"]).ends(2).says("works on a store itself");
    run(&["--context", "prdo", "list"]).ends(3).says("did you mean prod?");

    // The token of one server is not sent to another one.
    run(&["context", "set", "here", "--url", "https://example.com"]).ends(2).says("another server");
    run(&["context", "remove", "here"]).ends(0).says("it was in use");
    run(&["context", "remove", "here"]).ends(3);
    run(&["stats"]).ends(0).shows("disk");

    let path = desk.path("home").join(".config/tidegate/contexts.toml");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    run(&["context", "list"]).ends(6).says("chmod 600");
    run(&["list"]).ends(6).says("chmod 600");
    run(&["--store", "tidegate.db", "list"]).ends(0);
}

#[test]
fn production_is_asked_about_before_an_act_and_not_before_a_look() {
    let (desk, _) = laid();
    let server = Server::start(&desk, &[]);
    let run = |arguments: &[&str]| run_with_home(&desk, arguments);
    run(&["context", "set", "prod", "--url", &server.url(), "--production", "--use"]).ends(0);
    run(&["list"]).ends(0).shows("dep-7");
    run(&["queue", "list"]).ends(0);
    for act in [
        &["queue", "pause", "deposit"][..],
        &["enqueue", "--kind", "k", "--key", "a", "--payload", "1"],
        &["dead", "redrive", "--all"],
        &["token", "create", "x", "--scope", "read"],
    ] {
        run(act).ends(2).says("context prod is production").says("no terminal").says("--yes");
        // Whoever names only its address means the same place.
        run(&[&["--url", &server.url()], act].concat()).ends(2).says("context prod is production");
    }
    run(&["dead", "redrive", "--all", "--dry-run"]).ends(0);
    assert!(!run(&["queue", "list"]).ends(0).out.contains("paused"));
    run(&["queue", "pause", "deposit", "--yes"]).ends(0).shows("deposit\tpaused");
    run(&["context", "set", "prod", "--no-production"]).ends(0);
    run(&["queue", "resume", "deposit"]).ends(0).shows("deposit\tresumed");
    run(&["context", "set", "prod", "--production"]).ends(0);

    // At a terminal, a person says so by typing its name.
    for (typed, code) in [("prod\n", 0), ("yes\n", 2)] {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut command = with_home(&desk, &["queue", "pause", "deposit"]);
        command.stdin(slave).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        drop(command);
        std::fs::File::from(master.try_clone().unwrap()).write_all(typed.as_bytes()).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap()).ends(code).says("Type prod to do it:");
        if code != 0 {
            ran.says("that was not confirmed");
        }
    }
}
