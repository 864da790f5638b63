//! Which of our crates may depend on which: downwards only.
//!
//! The rules stand in [`rule`]; the facts come from `cargo metadata`, so a dependency that is optional, renamed or only
//! for one platform counts as well. A crate without a rule is an error: whoever adds one decides where it stands.
//!
//! The same facts show that no program that is shipped can have its rules broken: see [`canaries`].

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::run::Program;

/// A crate of this workspace and those of our crates it names in its manifest.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) is_example: bool,
    /// Normal and build dependencies: what a user of the crate gets.
    pub(crate) uses: BTreeSet<String>,
    /// Dependencies of tests, examples and benchmarks only.
    pub(crate) tests_with: BTreeSet<String>,
}

struct Rule {
    uses: &'static [&'static str],
    /// On top of `uses`.
    tests_with: &'static [&'static str],
}

/// What a crate may depend on, among ours.
fn rule(member: &Member) -> Option<Rule> {
    if member.is_example {
        // The examples prove that the façade suffices.
        return Some(Rule { uses: &["tidegate"], tests_with: &["tidegate-pgcluster"] });
    }
    let (uses, tests_with): (&[&str], &[&str]) = match member.name.as_str() {
        "tidegate-core" | "tidegate-pgcluster" => (&[], &[]),
        // Which is why it depends on nothing: `cargo xtask` is quick to build.
        "xtask" => (&["tidegate-pgcluster"], &[]),
        "tidegate-testkit" => (&["tidegate-core"], &[]),
        "tidegate-sqlite" => (&["tidegate-core"], &["tidegate-testkit"]),
        "tidegate-postgres" => (&["tidegate-core"], &["tidegate-testkit", "tidegate-pgcluster"]),
        // Proves the engine with the means of its tests; nothing depends on it.
        "tidegate-powerloss" => (&["tidegate-core", "tidegate-sqlite", "tidegate-testkit"], &[]),
        "tidegate" => {
            (&["tidegate-core", "tidegate-sqlite", "tidegate-postgres"], &["tidegate-testkit", "tidegate-pgcluster"])
        }
        "tidegate-sim" => (&["tidegate", "tidegate-core", "tidegate-testkit"], &[]),
        "tidegate-api" => (&["tidegate"], &[]),
        "tidegate-server" => (&["tidegate", "tidegate-api"], &["tidegate-pgcluster", "tidegate-testkit"]),
        // Its tests put it in front of the server's own router.
        "tidegate-remote" => (&["tidegate", "tidegate-api"], &["tidegate-server", "tidegate-testkit"]),
        "tidegate-bench" => (&["tidegate"], &["tidegate-pgcluster"]),
        // Throws bytes at the decoders of all that read some; nothing but tests depends on it.
        "tidegate-fuzz" => {
            (&["tidegate", "tidegate-api", "tidegate-remote", "tidegate-server", "tidegate-sqlite"], &[])
        }
        "tidegate-canaries" => (
            &["tidegate-core"],
            &["tidegate-sqlite", "tidegate-postgres", "tidegate-pgcluster", "tidegate-testkit", "tidegate"],
        ),
        // `deposits` is an example, and the one that is a load as well: the demo and the torture runs drive it.
        "tidegate-torture" => (&["tidegate", "deposits", "tidegate-pgcluster"], &[]),
        "tidegate-cli" => (
            &[
                "tidegate",
                "tidegate-api",
                "tidegate-bench",
                "tidegate-remote",
                "tidegate-server",
                "tidegate-torture",
                "deposits",
            ],
            &["tidegate-pgcluster", "tidegate-fuzz"],
        ),
        _ => return None,
    };
    Some(Rule { uses, tests_with })
}

/// Fails if one of our crates depends on one it should not know.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let metadata = metadata(root)?;
    let members = members_in(&metadata)?;
    let mut violations = violations(&members);
    violations.extend(canaries(&metadata));
    if violations.is_empty() {
        println!("{} crates, every dependency points down, no canary in what is shipped", members.len());
        return Ok(());
    }
    Err(format!(
        "{}\nhint: the rules stand in xtask/src/graph.rs and are explained in ARCHITECTURE.md",
        violations.join("\n")
    ))
}

/// The crates of this workspace, by name.
pub(crate) fn members(root: &Path) -> Result<Vec<Member>, String> {
    members_in(&metadata(root)?)
}

fn metadata(root: &Path) -> Result<Value, String> {
    let text = Program::cargo(&["metadata", "--format-version", "1", "--no-deps"]).output(root)?;
    serde_json::from_str(&text).map_err(|e| format!("cargo metadata printed no JSON: {e}"))
}

/// The feature by which the rules of the protocol can be broken.
const CANARIES: &str = "canaries";
/// Who may have it: the core, what hands it on to the core, and what breaks rules with it.
const HAVE_CANARIES: [&str; 7] = [
    "tidegate-core",
    "tidegate-sqlite",
    "tidegate-postgres",
    "tidegate-testkit",
    "tidegate",
    "tidegate-canaries",
    "tidegate-sim",
];

/// One sentence for each way in which a program could be built with its rules breakable without anybody asking for it: by a
/// default, by another feature, by a dependency; or at all, where it is shipped.
fn canaries(metadata: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let switches = |item: &str| item == CANARIES || item.rsplit('/').next() == Some(CANARIES);
        for (feature, items) in package["features"].as_object().into_iter().flatten() {
            if feature == CANARIES && !HAVE_CANARIES.contains(&name) {
                found.push(format!("{name} must not have a feature {CANARIES}: it is for tests of the protocol only"));
            }
            let on = items.as_array().into_iter().flatten().filter_map(Value::as_str).any(switches);
            if on && feature != CANARIES {
                found.push(format!("feature {feature} of {name} must not switch {CANARIES} on"));
            }
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["features"].as_array().into_iter().flatten().any(|feature| feature == CANARIES) {
                let used = dependency["name"].as_str().unwrap_or_default();
                found.push(format!(
                    "{name} must not switch {CANARIES} of {used} on; a feature {CANARIES} of its own may"
                ));
            }
        }
    }
    found
}

fn members_in(metadata: &Value) -> Result<Vec<Member>, String> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut members = packages.iter().map(|package| member(package, &ours)).collect::<Result<Vec<_>, _>>()?;
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(members)
}

fn member(package: &Value, ours: &BTreeSet<&str>) -> Result<Member, String> {
    let name = package["name"].as_str().ok_or("cargo metadata lists a package without a name")?.to_owned();
    let manifest = package["manifest_path"].as_str().ok_or_else(|| format!("package {name} has no manifest path"))?;
    let above = Path::new(manifest).parent().and_then(Path::parent);
    let mut member = Member {
        name,
        description: package["description"].as_str().unwrap_or_default().to_owned(),
        is_example: above.is_some_and(|directory| directory.ends_with("examples")),
        uses: BTreeSet::new(),
        tests_with: BTreeSet::new(),
    };
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        let Some(name) = dependency["name"].as_str().filter(|name| ours.contains(name)) else {
            continue;
        };
        let is_dev = dependency["kind"].as_str() == Some("dev");
        let list = if is_dev { &mut member.tests_with } else { &mut member.uses };
        list.insert(name.to_owned());
    }
    Ok(member)
}

/// One sentence per dependency that breaks the rules.
fn violations(members: &[Member]) -> Vec<String> {
    let mut found = Vec::new();
    for member in members {
        let name = &member.name;
        let Some(rule) = rule(member) else {
            found.push(format!("{name} has no rule: say in xtask/src/graph.rs which of our crates it may use"));
            continue;
        };
        for used in member.uses.iter().filter(|used| !rule.uses.contains(&used.as_str())) {
            found.push(format!("{name} must not depend on {used} (allowed: {})", listed(rule.uses)));
        }
        let for_tests = [rule.uses, rule.tests_with].concat();
        for used in member.tests_with.iter().filter(|used| !for_tests.contains(&used.as_str())) {
            found.push(format!("{name} must not test with {used} (allowed: {})", listed(&for_tests)));
        }
    }
    found
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none of ours".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `(name, kind)`, as a manifest has it.
    type Dependency<'a> = (&'a str, Option<&'a str>);
    /// `(name, directory, dependencies)`.
    type Package<'a> = (&'a str, &'a str, &'a [Dependency<'a>]);

    /// What `cargo metadata` says of a workspace of these packages.
    fn metadata(packages: &[Package<'_>]) -> Value {
        let packages = packages.iter().map(|(name, directory, dependencies)| {
            let dependencies = dependencies.iter().map(|(name, kind)| json!({"name": name, "kind": kind}));
            json!({
                "name": name,
                "manifest_path": format!("/src/tidegate/{directory}/{name}/Cargo.toml"),
                "description": "a crate",
                "dependencies": dependencies.collect::<Vec<_>>(),
            })
        });
        json!({ "packages": packages.collect::<Vec<_>>() })
    }

    fn violations_of(packages: &[Package<'_>]) -> Vec<String> {
        violations(&members_in(&metadata(packages)).unwrap())
    }

    const DEV: Option<&str> = Some("dev");
    const BUILD: Option<&str> = Some("build");

    #[test]
    fn a_graph_that_points_down_passes() {
        let found = violations_of(&[
            ("tidegate-core", "crates", &[("serde", None)]),
            ("tidegate-testkit", "crates", &[("tidegate-core", None)]),
            ("tidegate-sqlite", "crates", &[("tidegate-core", None), ("tidegate-testkit", DEV)]),
            ("tidegate", "crates", &[("tidegate-core", None), ("tidegate-sqlite", None), ("tidegate-testkit", DEV)]),
            ("tidegate-bench", "crates", &[("tidegate", None)]),
            ("deposits", "examples", &[("tidegate", None)]),
            ("tidegate-cli", "crates", &[("tidegate", None), ("deposits", None), ("tidegate-bench", None)]),
            ("tidegate-pgcluster", "crates", &[]),
            ("xtask", ".", &[("serde_json", None), ("tidegate-pgcluster", None)]),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_dependency_that_points_up_or_sideways_is_named() {
        #[rustfmt::skip]
        let table = [
            ("tidegate-core",    "crates",   ("tidegate-sqlite",  None),  "tidegate-core must not depend on tidegate-sqlite (allowed: none of ours)"),
            ("tidegate-core",    "crates",   ("tidegate-testkit", DEV),   "tidegate-core must not test with tidegate-testkit (allowed: none of ours)"),
            ("tidegate-sqlite",  "crates",   ("tidegate",         None),  "tidegate-sqlite must not depend on tidegate (allowed: tidegate-core)"),
            ("tidegate-sqlite",  "crates",   ("tidegate-testkit", None),  "tidegate-sqlite must not depend on tidegate-testkit (allowed: tidegate-core)"),
            ("tidegate-sqlite",  "crates",   ("tidegate-testkit", BUILD), "tidegate-sqlite must not depend on tidegate-testkit (allowed: tidegate-core)"),
            ("tidegate",         "crates",   ("tidegate-testkit", None),  "tidegate must not depend on tidegate-testkit (allowed: tidegate-core, tidegate-sqlite, tidegate-postgres)"),
            ("tidegate-bench",   "crates",   ("tidegate-core",    None),  "tidegate-bench must not depend on tidegate-core (allowed: tidegate)"),
            ("deposits",         "examples", ("tidegate-core",    None),  "deposits must not depend on tidegate-core (allowed: tidegate)"),
            ("deposits",         "examples", ("tidegate-testkit", DEV),   "deposits must not test with tidegate-testkit (allowed: tidegate, tidegate-pgcluster)"),
        ];
        for (name, directory, dependency, expected) in table {
            let found = violations_of(&[(name, directory, &[dependency]), (dependency.0, "crates", &[])]);
            assert!(found.contains(&expected.to_owned()), "{name} → {dependency:?}: {found:?}");
        }
    }

    #[test]
    fn canaries_are_switched_on_by_nobody_but_a_feature_of_that_name_where_it_may_be() {
        let package = |name: &str, features: Value, dependencies: Value| json!({ "packages": [{ "name": name, "features": features, "dependencies": dependencies }] });
        let none = json!([]);
        let fine = package(
            "tidegate",
            json!({ "default": ["sqlite"], "canaries": ["tidegate-core/canaries", "tidegate-sqlite?/canaries"] }),
            none.clone(),
        );
        assert_eq!(canaries(&fine), Vec::<String>::new());
        for (found, expected) in [
            (
                package("tidegate-core", json!({ "default": ["canaries"], "canaries": [] }), none.clone()),
                "feature default of tidegate-core must not switch canaries on",
            ),
            (
                package("tidegate", json!({ "reqwest": ["tidegate-sqlite?/canaries"] }), none.clone()),
                "feature reqwest of tidegate must not switch canaries on",
            ),
            (
                package("tidegate-cli", json!({ "canaries": [] }), none),
                "tidegate-cli must not have a feature canaries: it is for tests of the protocol only",
            ),
            (
                package("tidegate-cli", json!({}), json!([{ "name": "tidegate", "features": ["canaries"] }])),
                "tidegate-cli must not switch canaries of tidegate on; a feature canaries of its own may",
            ),
        ] {
            assert_eq!(canaries(&found), [expected]);
        }
    }

    #[test]
    fn a_crate_without_a_rule_is_refused() {
        let found = violations_of(&[("tidegate-misc", "crates", &[])]);
        assert_eq!(found, ["tidegate-misc has no rule: say in xtask/src/graph.rs which of our crates it may use"]);
    }

    #[test]
    fn the_exception_for_the_deposits_is_the_commands_and_nobody_elses() {
        let found =
            violations_of(&[("tidegate-bench", "crates", &[("deposits", None)]), ("deposits", "examples", &[])]);
        assert_eq!(found, ["tidegate-bench must not depend on deposits (allowed: tidegate)"]);
    }
}
