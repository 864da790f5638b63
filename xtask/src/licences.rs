//! Whether every crate we link may be passed on under our own licence.
//!
//! Reads the allow list from `deny.toml`, so that there is one list, and the licence expressions from `cargo metadata`
//! for the machine it runs on. This is the part of cargo-deny that needs neither a database nor a network.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::run::Program;

/// Fails if the licence of some crate cannot be satisfied from the allow list.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let deny = std::fs::read_to_string(root.join("deny.toml")).map_err(|e| format!("cannot read deny.toml: {e}"))?;
    let allowed = allow_list(&deny)?;
    let host = host(root)?;
    let text = Program::cargo(&["metadata", "--format-version", "1", "--all-features", "--filter-platform", &host])
        .output(root)?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata printed no JSON: {e}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let refused: Vec<String> = packages.iter().filter_map(|package| refusal(package, &allowed)).collect();
    if refused.is_empty() {
        println!("{} crates, every licence can be satisfied from the allow list", packages.len());
        return Ok(());
    }
    Err(format!(
        "{}\nhint: replace the crate, or add the licence to `[licenses] allow` in deny.toml with the reason",
        refused.join("\n")
    ))
}

/// The platform cargo builds for when nobody says otherwise.
fn host(root: &Path) -> Result<String, String> {
    let version = Program { program: "rustc", arguments: vec!["-vV"], environment: Vec::new() }.output(root)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| format!("`rustc -vV` names no host:\n{version}"))
}

/// Why this package may not be linked, if so.
fn refusal(package: &Value, allowed: &BTreeSet<String>) -> Option<String> {
    let name = package["name"].as_str().unwrap_or("a package without a name");
    let version = package["version"].as_str().unwrap_or_default();
    let Some(expression) = package["license"].as_str() else {
        return Some(format!("{name} {version} declares no licence expression"));
    };
    match is_satisfiable(expression, allowed) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name} {version} is under {expression}, which the allow list does not satisfy")),
        Err(problem) => Some(format!("{name} {version}: {problem}")),
    }
}

/// The strings of `allow = [ … ]` in the section `[licenses]`.
fn allow_list(deny: &str) -> Result<BTreeSet<String>, String> {
    let lines = deny.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let section = lines.skip_while(|line| *line != "[licenses]").skip(1).take_while(|line| !line.starts_with('['));
    let list = section.skip_while(|line| !line.starts_with("allow =")).collect::<Vec<_>>().join(" ");
    let list = list.split(']').next().unwrap_or_default();
    let names: BTreeSet<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    if names.is_empty() {
        return Err("deny.toml has no `allow = [\"…\"]` in its section [licenses]".to_owned());
    }
    Ok(names)
}

/// Whether the allowed licences suffice for an SPDX expression. `/`, as old manifests write it, means `OR`.
fn is_satisfiable(expression: &str, allowed: &BTreeSet<String>) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser { words: spaced.split_whitespace().collect(), at: 0, allowed };
    let verdict = parser.any_of().map_err(|problem| format!("licence expression \"{expression}\": {problem}"))?;
    match parser.peek() {
        None => Ok(verdict),
        Some(word) => Err(format!("licence expression \"{expression}\": \"{word}\" is not expected there")),
    }
}

/// Precedence as in SPDX: WITH binds tightest, then AND, then OR.
struct Parser<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a BTreeSet<String>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.peek() == Some(word);
        self.at += usize::from(is_next);
        is_next
    }

    // Both sides are always parsed, so that a malformed second half is an error whatever the first half says.
    fn any_of(&mut self) -> Result<bool, String> {
        let mut verdict = self.all_of()?;
        while self.take("OR") {
            verdict |= self.all_of()?;
        }
        Ok(verdict)
    }

    fn all_of(&mut self) -> Result<bool, String> {
        let mut verdict = self.one()?;
        while self.take("AND") {
            verdict &= self.one()?;
        }
        Ok(verdict)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let verdict = self.any_of()?;
            return if self.take(")") { Ok(verdict) } else { Err("a parenthesis is not closed".to_owned()) };
        }
        let licence = self.name()?;
        if self.take("WITH") {
            let exception = self.name()?;
            return Ok(self.allowed.contains(&format!("{licence} WITH {exception}")));
        }
        Ok(self.allowed.contains(licence))
    }

    fn name(&mut self) -> Result<&'a str, String> {
        match self.peek() {
            None => Err("it ends where a licence is expected".to_owned()),
            Some(word @ ("AND" | "OR" | "WITH" | "(" | ")")) => Err(format!("\"{word}\" where a licence is expected")),
            Some(name) => {
                self.at += 1;
                Ok(name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn allowed() -> BTreeSet<String> {
        ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into()
    }

    #[test]
    fn an_expression_passes_if_the_allowed_licences_satisfy_it() {
        #[rustfmt::skip]
        let table = [
            ("MIT",                                             true),
            ("GPL-3.0-only",                                    false),
            ("MIT OR GPL-3.0-only",                             true),
            ("GPL-3.0-only/MIT",                                true),
            ("MIT AND GPL-3.0-only",                            false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0",             true),
            ("(MIT OR Apache-2.0) AND BSD-3-Clause",            false),
            ("GPL-3.0-only OR MIT AND Unicode-3.0",             true),
            ("MIT OR GPL-3.0-only AND GPL-2.0-only",            true),
            ("Apache-2.0 WITH LLVM-exception",                  false),
            ("Apache-2.0 WITH LLVM-exception OR MIT",           true),
        ];
        for (expression, expected) in table {
            assert_eq!(is_satisfiable(expression, &allowed()), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn a_malformed_expression_is_an_error_and_not_a_pass() {
        for expression in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "AND MIT", "MIT OR )", "MIT)"] {
            assert!(is_satisfiable(expression, &allowed()).is_err(), "{expression:?} was accepted");
        }
    }

    #[test]
    fn the_allow_list_is_read_from_its_own_section() {
        let deny = "[bans]\nallow = [\"x\"]\n[licenses]\nversion = 2\nallow = [\n  \"MIT\", # \"not this\"\n  \"Zlib\",\n]\nconfidence = \"0.9\"\n";
        assert_eq!(allow_list(deny), Ok(["MIT".to_owned(), "Zlib".to_owned()].into()));
        assert!(allow_list("[bans]\nallow = [\"x\"]\n").is_err());
    }

    #[test]
    fn a_package_without_a_licence_expression_is_refused() {
        let package = json!({"name": "mystery", "version": "1.0.0", "license": null});
        let expected = "mystery 1.0.0 declares no licence expression".to_owned();
        assert_eq!(refusal(&package, &allowed()), Some(expected));
    }
}
