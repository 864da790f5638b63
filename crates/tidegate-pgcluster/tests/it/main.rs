//! A cluster is what it says it is, through every way of ending it, and nothing of it stays.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tidegate_pgcluster::{Cluster, Pooler, Settings};

/// How a test tells the process it starts of itself that it is one.
const CHILD: &str = "TIDEGATE_TEST_CHILD";

fn cluster() -> Cluster {
    Cluster::start(Settings::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn asked(cluster: &Cluster, question: &str) -> String {
    cluster.sql("postgres", question).unwrap_or_else(|error| panic!("{error}")).trim().to_owned()
}

#[test]
fn a_cluster_is_durable_and_reached_over_the_loopback_interface_with_its_password_alone() {
    let cluster = cluster();
    let settings = "select string_agg(setting, ' ' order by name) from pg_settings \
                    where name in ('fsync', 'full_page_writes', 'synchronous_commit', 'listen_addresses')";
    assert_eq!(asked(&cluster, settings), "on on 127.0.0.1 on");
    let url = cluster.url();
    let (login, place) = url.split_once('@').unwrap();
    let user = login.rsplit_once(':').unwrap().0;
    let error = Cluster::at(&format!("{user}:wrong@{place}")).unwrap_err();
    assert!(error.to_string().contains("password authentication failed"), "{error}");
}

#[test]
fn what_was_committed_survives_every_way_of_ending_a_cluster() {
    let cluster = cluster();
    let url = cluster.url();
    asked(&cluster, "create table t (how text)");
    asked(&cluster, "insert into t values ('restarted immediately')");
    cluster.restart_immediately().unwrap();
    asked(&cluster, "insert into t values ('killed')");
    cluster.kill().unwrap();
    let error = cluster.sql("postgres", "select 1").unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    cluster.start_again().unwrap();
    asked(&cluster, "insert into t values ('stopped')");
    cluster.stop().unwrap();
    cluster.start_again().unwrap();
    assert_eq!(asked(&cluster, "select string_agg(how, ', ') from t"), "restarted immediately, killed, stopped");
    assert_eq!(cluster.url(), url, "clients find it where it was");
    assert!(cluster.start_again().unwrap_err().to_string().contains("runs already"));
}

#[test]
fn a_cluster_of_somebody_else_is_used_and_not_restarted() {
    let cluster = cluster();
    let theirs = Cluster::at(&cluster.url()).unwrap();
    assert_eq!(theirs.database("a \"name\"").unwrap(), cluster.database("a \"name\"").unwrap());
    assert!(theirs.restart_immediately().unwrap_err().to_string().contains("started by somebody else"));
    drop(theirs);
    assert_eq!(asked(&cluster, "select 1"), "1");
}

#[test]
fn behind_a_pooler_a_connection_is_one_for_a_transaction_only() {
    let cluster = cluster();
    let pooler = Pooler::start(&cluster).unwrap_or_else(|error| panic!("{error}"));
    let behind = Cluster::at(&pooler.url("postgres")).unwrap();
    assert_ne!(behind.url(), cluster.url());
    assert_eq!(asked(&behind, "select inet_server_port()"), asked(&cluster, "select inet_server_port()"));
}

#[test]
fn a_cluster_that_is_dropped_leaves_nothing() {
    let cluster = cluster();
    let directory = cluster.directory().unwrap().to_owned();
    let pid = postmaster(&directory);
    drop(cluster);
    assert!(!directory.exists());
    assert!(!runs(pid, &directory));
}

#[test]
fn a_cluster_whose_process_is_killed_leaves_nothing() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["a_process_that_starts_a_cluster_and_waits_to_be_killed", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let directory = loop {
        let line = lines.next().expect("the child says where its cluster is").unwrap();
        if let Some((_, path)) = line.split_once("@cluster ") {
            break PathBuf::from(path);
        }
    };
    let pid = postmaster(&directory);
    assert!(runs(pid, &directory));
    child.kill().unwrap();
    child.wait().unwrap();
    // Its watchdog is nobody's child now and says nothing when it is done.
    for _ in 0..2000 {
        if !directory.exists() {
            break;
        }
        pause();
    }
    assert!(!directory.exists(), "{} is still there", directory.display());
    assert!(!runs(pid, &directory));
}

#[test]
fn a_process_that_starts_a_cluster_and_waits_to_be_killed() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a child")]
    if std::env::var(CHILD).is_err() {
        return;
    }
    let cluster = cluster();
    println!("\n@cluster {}", cluster.directory().unwrap().display());
    // Ends with the parent at the latest.
    let _nothing = std::io::stdin().read_to_end(&mut Vec::new());
}

fn postmaster(directory: &Path) -> u32 {
    let file = std::fs::read_to_string(directory.join("data/postmaster.pid")).expect("a server that runs says so");
    file.lines().next().and_then(|line| line.parse().ok()).expect("its first line is the process")
}

/// Whether that process runs and is that cluster's.
fn runs(pid: u32, directory: &Path) -> bool {
    let shown = std::fs::read(format!("/proc/{pid}/cmdline")).or_else(|_| {
        Command::new("ps").args(["-p", &pid.to_string(), "-o", "args="]).output().map(|output| output.stdout)
    });
    let directory = directory.to_str().expect("a path of text");
    shown.is_ok_and(|shown| String::from_utf8_lossy(&shown).contains(directory))
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a directory that another process removes")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}
