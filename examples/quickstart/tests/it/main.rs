//! The quickstart as its guide has it run: twice, in a directory of its own.

use std::process::Command;

#[test]
fn the_second_run_greets_nobody_and_has_the_answer_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_quickstart")).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(), "greeting Ada\nhello, Ada\n");
    assert_eq!(run(), "hello, Ada\n");
    let mut files = directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(files.next().unwrap(), "tidegate.db");
    assert!(files.next().is_none(), "one whole file is left");
}
