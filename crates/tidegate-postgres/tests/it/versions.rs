//! What the engine asks of its server is there since PostgreSQL 14, whatever version these tests run on.
//!
//! Each function that a statement calls is in a list with the version that brought it, and nothing newer is. A function that
//! is not in the list has to be looked up in the release notes first.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::engine::sql;

/// The oldest server that a store opens on.
const LEAST: u32 = 14;

/// Functions of the server's own, with the version that brought them; 9 is 9.6 or older.
const FUNCTIONS: [(&str, u32); 83] = [
    ("abs", 9),
    ("age", 9),
    ("array_length", 9),
    ("array_remove", 9),
    ("bit", 9),
    ("bool_and", 9),
    ("chr", 9),
    ("clock_timestamp", 9),
    ("coalesce", 9),
    ("convert_to", 9),
    ("count", 9),
    ("current_database", 9),
    ("current_setting", 9),
    ("decode", 9),
    ("encode", 9),
    ("exists", 9),
    ("extract", 9),
    ("floor", 9),
    ("gen_random_uuid", 13),
    ("generate_series", 9),
    ("greatest", 9),
    ("hashtextextended", 11),
    ("host", 9),
    ("int4", 9),
    ("int8", 9),
    ("json_array_elements", 9),
    ("json_array_length", 9),
    ("json_build_object", 9),
    ("json_each", 9),
    ("json_each_text", 9),
    ("json_typeof", 9),
    ("jsonb_build_object", 9),
    ("least", 9),
    ("left", 9),
    ("length", 9),
    ("lower", 9),
    ("lpad", 9),
    ("ltrim", 9),
    ("max", 9),
    ("min", 9),
    ("name", 9),
    ("nextval", 9),
    ("now", 9),
    ("nullif", 9),
    ("octet_length", 9),
    ("pg_advisory_xact_lock", 9),
    ("pg_backend_pid", 9),
    ("pg_control_system", 9),
    ("pg_current_wal_lsn", 10),
    ("pg_get_functiondef", 9),
    ("pg_is_in_recovery", 9),
    ("pg_notify", 9),
    ("pg_terminate_backend", 9),
    ("pg_try_advisory_xact_lock", 9),
    ("pg_try_advisory_xact_lock_shared", 9),
    ("pg_walfile_name", 9),
    ("position", 9),
    ("replace", 9),
    ("row_number", 9),
    ("row_to_json", 9),
    ("rtrim", 9),
    ("scale", 9),
    ("set_byte", 9),
    ("set_config", 9),
    ("setval", 9),
    ("sha256", 11),
    ("split_part", 9),
    ("starts_with", 11),
    ("string_agg", 9),
    ("strpos", 9),
    ("substr", 9),
    ("substring", 9),
    ("sum", 9),
    ("text", 9),
    ("time", 9),
    ("to_hex", 9),
    ("to_json", 9),
    ("to_regclass", 9),
    ("to_regnamespace", 9),
    ("trim_scale", 13),
    ("txid_current", 9),
    ("unnest", 9),
    ("uuid_send", 9),
];
/// Settings that a statement or a table sets or asks for.
const SETTINGS: [(&str, u32); 16] = [
    // Our own.
    ("tidegate.begun", 9),
    ("client_connection_check_interval", 14),
    ("lock_timeout", 9),
    ("idle_in_transaction_session_timeout", 9),
    ("plan_cache_mode", 12),
    ("enable_seqscan", 9),
    ("enable_bitmapscan", 9),
    ("enable_hashjoin", 9),
    ("enable_mergejoin", 9),
    ("jit", 11),
    ("synchronous_commit", 9),
    ("server_version_num", 9),
    ("server_version", 9),
    ("server_encoding", 9),
    ("fsync", 9),
    ("full_page_writes", 9),
];

/// What came into SQL after version 14: none of it may be used.
const NEWER: [&str; 13] = [
    "merge into",
    "nulls not distinct",
    "is json array",
    "is json object",
    "json_table(",
    "json_query(",
    "json_exists(",
    "any_value(",
    "security_invoker",
    "old.*",
    "without overlaps",
    "stored virtual",
    "returning with (",
];

fn source(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

/// All of the engine's text, in which its statements are.
fn texts() -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for directory in ["src", "migrations"] {
        for file in fs::read_dir(source(directory)).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
            texts.push((path.file_name().unwrap().to_string_lossy().into_owned(), text));
        }
    }
    texts
}

/// Names before a parenthesis that are functions of the server.
fn called(text: &str, functions: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices('(') {
        let before = &text[..at];
        let name: String = before.chars().rev().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let name: String = name.chars().rev().collect();
        let rest = &before[..before.len() - name.len()];
        // A method or a path of Rust, a macro, or a function that is being defined there.
        let of_rust = rest.ends_with(['.', ':']) && !rest.ends_with("tidegate.") || rest.ends_with("fn ");
        if !of_rust && functions.contains(&name) {
            found.insert(name);
        }
    }
    found
}

#[test]
fn no_statement_calls_a_function_that_came_after_the_oldest_server() {
    let functions: BTreeSet<String> =
        sql("select distinct proname from pg_proc where pronamespace = 'pg_catalog'::regnamespace")
            .lines()
            .map(|line| line.trim().to_owned())
            .collect();
    assert!(functions.len() > 1000, "only {} functions were found", functions.len());
    let mut unknown = Vec::new();
    let mut all = BTreeSet::new();
    for (file, text) in texts() {
        for name in called(&text, &functions) {
            if !FUNCTIONS.iter().any(|(known, since)| *known == name && *since <= LEAST) {
                unknown.push(format!("{file}: {name}"));
            }
            all.insert(name);
        }
    }
    assert!(
        unknown.is_empty(),
        "not in the list, or newer than {LEAST}: {unknown:#?}\nhint: look up the version that brought it"
    );
    assert!(all.contains("unnest") && all.contains("hashtextextended"), "{all:?}");
}

#[test]
fn no_statement_sets_what_came_after_the_oldest_server() {
    let mut found = BTreeSet::new();
    for (file, text) in texts() {
        for call in ["set_config('", "current_setting('"] {
            for (at, _) in text.match_indices(call) {
                let name = text[at + call.len()..].split('\'').next().unwrap();
                let known = SETTINGS.iter().any(|(known, since)| *known == name && *since <= LEAST);
                assert!(known, "{file}: {name} is not in the list, or newer than {LEAST}");
                found.insert(name.to_owned());
            }
        }
    }
    assert!(found.contains("lock_timeout") && found.contains("client_connection_check_interval"), "{found:?}");
}

#[test]
fn no_statement_has_words_that_came_after_the_oldest_server() {
    for (file, text) in texts() {
        let text = text.to_lowercase();
        let found: Vec<_> = NEWER.iter().filter(|word| text.contains(*word)).collect();
        assert!(found.is_empty(), "{file}: {found:?}");
    }
}
