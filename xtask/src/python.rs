//! `cargo xtask python`: the type checker and the tests of `clients/python`, in an environment of its own, the tests against
//! the program that was built.
//!
//! The environment is made once in the target directory, from pinned versions, and made anew when these change. Python itself
//! is asked for, not installed: a developer's machine is not changed behind their back.

use std::path::{Path, PathBuf};

use crate::docs;
use crate::run::{Program, is_installed};

/// What the checks run with, beside the package.
const REQUIREMENTS: &str = "clients/python/requirements-test.txt";
/// The oldest Python the package promises.
const OLDEST: &str = "import sys; sys.exit(sys.version_info < (3, 10))";

/// Checks the types and runs the tests.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    prerequisites()?;
    let python = environment(root)?.display().to_string();
    let program = docs::built_command(root)?.display().to_string();
    let package = root.join("clients/python");
    let module = |arguments: &[&'static str]| {
        let words = std::iter::once("-m").chain(arguments.iter().copied()).collect();
        let environment = vec![("PYTHONDONTWRITEBYTECODE", "1"), ("TIDEGATE_BIN", program.as_str())];
        Program { program: &python, arguments: words, environment }.run(&package)
    };
    module(&["mypy", "--cache-dir=/dev/null"])?;
    module(&["pytest", "--timeout=60"])
}

fn prerequisites() -> Result<(), String> {
    if !is_installed("python3", &["-c", OLDEST]) {
        return Err(
            "no python3 of 3.10 or newer was found\nhint: on Debian: apt-get install python3 python3-venv".to_owned()
        );
    }
    if !is_installed("python3", &["-c", "import venv, ensurepip"]) {
        return Err("python3 has no venv with pip\nhint: on Debian: apt-get install python3-venv".to_owned());
    }
    Ok(())
}

/// The interpreter of an environment with what is pinned in it.
fn environment(root: &Path) -> Result<PathBuf, String> {
    let wanted = root.join(REQUIREMENTS);
    let wanted = std::fs::read_to_string(&wanted).map_err(|e| format!("cannot read {}: {e}", wanted.display()))?;
    let directory = target(root)?.join("python");
    let (python, made_of) = (directory.join("bin/python"), directory.join("made-of.txt"));
    if std::fs::read_to_string(&made_of).is_ok_and(|made_of| made_of == wanted) && python.is_file() {
        return Ok(python);
    }
    let here = directory.display().to_string();
    Program { program: "python3", arguments: vec!["-m", "venv", "--clear", &here], environment: Vec::new() }
        .run(root)?;
    let arguments =
        vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS];
    Program { program: &python.display().to_string(), arguments, environment: Vec::new() }.run(root)?;
    // Last, so that an environment that was not finished is made again.
    std::fs::write(&made_of, wanted).map_err(|e| format!("cannot write {}: {e}", made_of.display()))?;
    Ok(python)
}

/// Where cargo puts what it builds.
pub(crate) fn target(root: &Path) -> Result<PathBuf, String> {
    let metadata = Program::cargo(&["metadata", "--format-version=1", "--no-deps", "--offline"]).output(root)?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).map_err(|e| format!("`cargo metadata` printed no JSON: {e}"))?;
    let directory = metadata["target_directory"].as_str();
    directory.map(PathBuf::from).ok_or_else(|| "`cargo metadata` names no target directory".to_owned())
}
