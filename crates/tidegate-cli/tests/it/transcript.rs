//! The transcripts in the documents are what a person sees who types them: a block marked `console`, in which a line that
//! begins with `$ ` is typed and what follows is printed.
//!
//! Ids, groups and effect keys are others in each run: the first one in a document stands for the first one that is printed,
//! and what is typed later means that one. Times and ages are not compared, nor how wide a column is.

use std::collections::HashMap;

use nix::unistd::{Uid, User};

use crate::desk::{Desk, Ran};
use crate::documents::{Block, blocks, page, words};
use crate::terminal::in_front_of_a_person;

/// Runs every transcript of a page in its order. A command ends with 0, or the page shows the error that it ends with.
pub(crate) fn run(desk: &Desk, path: &str) {
    let mut names = Names::default();
    let transcripts: Vec<Block> = blocks(&page(path)).into_iter().filter(|block| block.info == "console").collect();
    assert!(!transcripts.is_empty(), "{path} has no transcript");
    let mut differs = false;
    let mut now = String::new();
    for block in transcripts {
        now.push_str(&format!("\n{path}:{}\n", block.line));
        for Step { typed, printed } in steps(&block.text) {
            let arguments = words(&names.actual(typed));
            assert_eq!(arguments[0], "tidegate", "{path}:{}: {typed}", block.line);
            let arguments: Vec<&str> = arguments[1..].iter().map(String::as_str).collect();
            let Ran { out, err, code: ended } = in_front_of_a_person(desk.command(&arguments));
            let seen = format!("{out}{err}");
            now.push_str(&format!("$ {typed}\n{seen}"));
            differs |= (ended == Some(0)) == printed.contains("error: ");
            let (expected, seen) = names.masked(&printed, &seen);
            differs |= expected != seen;
            if differs {
                now.push_str(&format!("--- expected, as it is compared:\n{expected}--- seen:\n{seen}---\n"));
            }
        }
    }
    assert!(!differs, "the page shows something else than is printed:\n{now}");
}

struct Step<'a> {
    typed: &'a str,
    printed: String,
}

fn steps(block: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(typed), _) => steps.push(Step { typed, printed: String::new() }),
            (None, Some(step)) => step.printed.push_str(&format!("{line}\n")),
            (None, None) => panic!("{line:?} is printed before anything was typed"),
        }
    }
    steps
}

/// Which name of the document is which of this run.
#[derive(Default)]
struct Names {
    in_document: Vec<String>,
    in_run: Vec<String>,
}

impl Names {
    /// A line as it is typed in this run.
    fn actual(&self, typed: &str) -> String {
        let known: HashMap<&String, &String> = self.in_document.iter().zip(&self.in_run).collect();
        tokens(typed).into_iter().map(|token| known.get(&token).map_or(token, |actual| (*actual).clone())).collect()
    }

    /// What the document says is printed, and what was: with the same stand-ins, line by line.
    fn masked(&mut self, expected: &str, seen: &str) -> (String, String) {
        (masked(expected, &mut self.in_document), masked(seen, &mut self.in_run))
    }
}

fn masked(text: &str, names: &mut Vec<String>) -> String {
    let me = User::from_uid(Uid::current()).unwrap().map(|user| user.name);
    let mut out = String::new();
    for line in text.lines() {
        let mut shown: Vec<String> = Vec::new();
        for token in tokens(line) {
            if is_name(&token) {
                let place = names.iter().position(|known| *known == token).unwrap_or_else(|| {
                    names.push(token.clone());
                    names.len() - 1
                });
                shown.push(format!("<{place}>"));
            } else if token.len() == 24 && token.contains('T') && token.ends_with('Z') {
                shown.push("<time>".to_owned());
            } else if token == WHO || Some(&token) == me.as_ref() {
                shown.push("<who>".to_owned());
            } else {
                shown.push(token);
            }
        }
        out.push_str(&without_ages(&shown.concat()));
        out.push('\n');
    }
    out
}

/// The person at the desk, in the documents.
const WHO: &str = "ana";

/// Words and what is between them, so that nothing is lost when they are put together.
fn tokens(line: &str) -> Vec<String> {
    let in_word = |c: char| c.is_ascii_alphanumeric() || "_-:.".contains(c);
    let mut tokens: Vec<String> = Vec::new();
    let mut inside = false;
    for c in line.chars() {
        match tokens.last_mut().filter(|_| inside == in_word(c)) {
            Some(token) => token.push(c),
            None => tokens.push(c.to_string()),
        }
        inside = in_word(c);
    }
    tokens
}

/// An id of a message, a group or an effect key, or a name that an operation was given.
fn is_name(token: &str) -> bool {
    let is_hex = token.len() >= 12 && token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex
        || (token.len() == 17 && token.starts_with("msg_"))
        || token.starts_with("grp_")
        || token.starts_with("redrive-1")
}

/// Words separated by one space; numbers before a unit of time stand for any.
fn without_ages(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_unit = |word: Option<&&str>| {
        word.is_some_and(|word| matches!(word.trim_end_matches([',', ';', ')']), "ms" | "s" | "min" | "h" | "days"))
    };
    let shown = words.iter().enumerate().map(|(at, word)| {
        let is_number = word.trim_start_matches('(').parse::<f64>().is_ok();
        let after_number = at > 0 && words[at - 1].trim_start_matches('(').parse::<f64>().is_ok();
        match () {
            () if is_number && is_unit(words.get(at + 1)) => "<n>",
            () if after_number && is_unit(Some(word)) => "<unit>",
            () => word,
        }
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[test]
fn what_differs_from_run_to_run_is_not_compared_and_everything_else_is() {
    let mut names = Names::default();
    let document = "msg_01jcz4t6q8000  deposit  0a1b2c3d4e5f6071  3 s ago\nsame msg_01jcz4t6q8000";
    let run = "msg_1m86ympgh0000 deposit ffff2c3d4e5f6071 17 min ago\nsame msg_1m86ympgh0000";
    let (expected, seen) = names.masked(document, run);
    assert_eq!(expected, seen);
    assert_eq!(names.actual("tidegate get msg_01jcz4t6q8000 --json"), "tidegate get msg_1m86ympgh0000 --json");
    let (expected, seen) = names.masked("attempts 1", "attempts 2");
    assert_ne!(expected, seen);
    let (expected, seen) = names.masked("msg_01jcz4t6q8000", "msg_1m86ympgh0009");
    assert_ne!(expected, seen, "another message than before");
}
