//! What this crate may do that no other may.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}

/// The lines of the sections whose headings begin so, with their headings' ends.
fn lints(manifest: &str, prefix: &str) -> BTreeSet<String> {
    let mut section = None;
    let mut found = BTreeSet::new();
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(heading) = line.strip_prefix('[') {
            section = heading.strip_prefix(prefix).map(str::to_owned);
        } else if let Some(section) = &section {
            found.insert(format!("{section} {line}"));
        }
    }
    found
}

#[test]
fn the_lints_are_those_of_the_workspace_but_for_one() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("it can be read");
    let ours = fs::read_to_string(root().join("crates/tidegate-powerloss/Cargo.toml")).expect("it can be read");
    let (workspace, ours) = (lints(&workspace, "workspace.lints."), lints(&ours, "lints."));
    assert!(workspace.len() > 20);
    let different: Vec<&String> = workspace.symmetric_difference(&ours).collect();
    assert_eq!(different, ["rust] unsafe_code = \"deny\"", "rust] unsafe_code = \"forbid\""]);
}

#[test]
fn every_other_crate_has_the_lints_of_the_workspace_and_so_forbids_unsafe() {
    let crates = ["crates", "examples"].into_iter().flat_map(|group| {
        let group = fs::read_dir(root().join(group)).expect("it can be read");
        group.flatten().map(|entry| entry.path().join("Cargo.toml")).filter(|manifest| manifest.exists())
    });
    for manifest in crates.chain([root().join("xtask/Cargo.toml")]) {
        let text = fs::read_to_string(&manifest).expect("it can be read");
        let inherits = text.contains("[lints]\nworkspace = true");
        let is_this = manifest.ends_with("crates/tidegate-powerloss/Cargo.toml");
        assert_ne!(inherits, is_this, "{}", manifest.display());
    }
}

#[test]
fn only_the_recorder_is_unsafe() {
    let sources = fs::read_dir(root().join("crates/tidegate-powerloss/src")).expect("it can be read");
    let word = ["un", "safe"].concat();
    for source in sources.flatten() {
        let text = fs::read_to_string(source.path()).expect("it can be read");
        let has = text.lines().any(|line| line.contains(&word) && !line.trim_start().starts_with("//"));
        assert_eq!(has, source.file_name() == "shim.rs", "{:?}", source.file_name());
    }
}
