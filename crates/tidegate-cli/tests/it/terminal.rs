//! What a person at a terminal gets and a pipe does not: progress and colour.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::pty::{OpenptyResult, Winsize, openpty};

use crate::desk::{Desk, Ran};

const ESCAPE: char = '\u{1b}';

/// A desk with a file of messages to enqueue.
fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("many.ndjson", (0..5000).map(|n| format!("{{\"id\":\"d-{n}\"}}\n")).collect::<String>());
    desk
}

const MANY: [&str; 6] = ["enqueue", "--kind", "k", "--key-field", "id", "many.ndjson"];

/// Runs the command with its standard error on a terminal; standard output is a pipe.
pub(crate) fn at_a_terminal(mut command: Command) -> Ran {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(slave);
    let (ran, shown) = run(command, master);
    Ran { err: shown, ..ran }
}

/// Runs the command with its standard output on a terminal, without colours; standard error is a pipe, so that no bar is
/// drawn. The terminal is wide enough that nothing is shortened for it, which would depend on how old things are.
pub(crate) fn in_front_of_a_person(mut command: Command) -> Ran {
    let size = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    command.env("TERM", "xterm").env("NO_COLOR", "1").stdout(slave).stderr(Stdio::piped());
    let (ran, shown) = run(command, master);
    Ran { out: shown.replace("\r\n", "\n"), ..ran }
}

/// Runs the command; what it shows at the terminal is the second thing.
fn run(mut command: Command, master: OwnedFd) -> (Ran, String) {
    let child = command.spawn().unwrap();
    // It holds the other end of the terminal, which has no end as long as anybody does.
    drop(command);
    let shown = std::thread::spawn(move || {
        let mut shown = Vec::new();
        // Linux ends a terminal with an error when nobody holds its other end.
        let _ended = File::from(master).read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    let ran = Ran::of(child.wait_with_output().unwrap());
    (ran, shown.join().unwrap())
}

#[test]
fn progress_is_shown_at_a_terminal_and_nowhere_else() {
    let bar = "left";
    let piped = desk().run(&MANY).ends(0);
    assert!(!piped.err.contains(bar) && !piped.err.contains('\r') && !piped.err.contains(ESCAPE), "{:?}", piped.err);
    let here = desk();
    let watched = at_a_terminal(here.command(&MANY)).ends(0);
    assert!(watched.err.contains(" %  ") && watched.err.contains(bar), "{:?}", watched.err);
    assert!(!watched.out.contains(ESCAPE), "standard output is a pipe here: {:?}", watched.out);
    let here = desk();
    let for_a_program = at_a_terminal(here.command(&[&MANY[..], &["--json"]].concat())).ends(0);
    assert!(!for_a_program.err.contains(bar), "{:?}", for_a_program.err);
}

#[test]
fn colour_is_on_at_a_terminal_unless_no_color_says_otherwise() {
    let desk = Desk::new();
    let nothing = ["get", "msg_0000000000001"];
    let at = |no_color: Option<&str>, arguments: &[&str]| {
        let mut command = desk.command(&[arguments, &["--store", "none.db"]].concat());
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        at_a_terminal(command).ends(3).err
    };
    assert!(at(None, &nothing).contains("\u{1b}[31;1merror:"));
    assert!(at(Some(""), &nothing).contains(ESCAPE), "empty is as good as not set");
    assert!(!at(Some("1"), &nothing).contains(ESCAPE));
    assert!(!at(None, &["get", "msg_0000000000001", "--color", "never"]).contains(ESCAPE));
    assert!(at(Some("1"), &["get", "msg_0000000000001", "--color", "always"]).contains(ESCAPE));
    let piped = desk.run(&["get", "msg_0000000000001", "--store", "none.db"]).ends(3);
    assert!(!piped.err.contains(ESCAPE), "{:?}", piped.err);
}
