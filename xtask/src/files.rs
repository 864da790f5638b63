//! What no file of the repository may be or contain: more than 1 MiB, a path of one machine, the host of a registry, and
//! in a Markdown page a link to a file that is not there.
//!
//! A path or a host that works on one desk only is found here before somebody else's build finds it.

use std::path::{Path, PathBuf};

use crate::run::Program;

const LARGEST_BYTES: u64 = 1 << 20;

/// Written in two halves, so that this file does not contain what it looks for.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/tmp/", "plan"), concat!("/ro", "ot/"), concat!(".cargo/", "registry")];
const REGISTRY_HOSTS: [&str; 5] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("proxy.go", "lang.org"),
];

/// Names the registry in every entry, and is written by cargo.
const NOT_READ: &str = "Cargo.lock";

/// Fails if a file of the repository is too large or names a machine path or a registry host.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let files = listed(root)?;
    let mut found = Vec::new();
    for file in &files {
        let path = root.join(file);
        let bytes = std::fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let name = file.display().to_string();
        found.extend(too_large(&name, bytes.len() as u64));
        // A file that is not UTF-8 is no text.
        if let Ok(text) = std::str::from_utf8(&bytes)
            && !name.ends_with(NOT_READ)
        {
            found.extend(unwanted(&name, text));
            found.extend(dead_links(&name, text, path.parent().unwrap_or(root)));
        }
    }
    if found.is_empty() {
        println!("{} files, none over 1 MiB, no machine path or registry host, no dead link", files.len());
        return Ok(());
    }
    Err(found.join("\n"))
}

/// What is committed or would be; without git, what lies there except build products and stores.
fn listed(root: &Path) -> Result<Vec<PathBuf>, String> {
    let git = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    match (Program { program: "git", arguments: git.to_vec(), environment: Vec::new() }).output(root) {
        // A file deleted but not yet committed as such is still listed.
        Ok(names) => Ok(names
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from)
            .filter(|file| root.join(file).is_file())
            .collect()),
        Err(problem) => {
            println!("git cannot list the files, so every file outside target/ is looked at ({problem})");
            let mut files = Vec::new();
            walk(root, Path::new(""), &mut files)?;
            Ok(files)
        }
    }
}

fn walk(root: &Path, below: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let directory = root.join(below);
    let failed = |e: std::io::Error| format!("cannot list {}: {e}", directory.display());
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let path = below.join(&name);
        let name = name.to_string_lossy();
        let kind = entry.file_type().map_err(failed)?;
        let is_product = path == Path::new("target") || path == Path::new(".git");
        let is_store = [".db", ".db-wal", ".db-shm"].iter().any(|ending| name.ends_with(ending));
        if kind.is_dir() && !is_product {
            walk(root, &path, files)?;
        } else if kind.is_file() && !is_store {
            files.push(path);
        }
    }
    Ok(())
}

fn too_large(name: &str, bytes: u64) -> Option<String> {
    (bytes > LARGEST_BYTES).then(|| format!("{name} has {bytes} bytes; the largest allowed is {LARGEST_BYTES}"))
}

/// One sentence per line that names a machine path or a registry host.
fn unwanted(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for pattern in MACHINE_PATHS.iter().filter(|pattern| starts_a_path(line, pattern)) {
            found.push(format!("{name}:{number}: names the machine path {pattern}"));
        }
        for host in REGISTRY_HOSTS.iter().filter(|host| line.contains(*host)) {
            found.push(format!("{name}:{number}: names the registry host {host}"));
        }
    }
    found
}

/// One sentence per link of a Markdown page to a file that is not there.
fn dead_links(name: &str, text: &str, directory: &Path) -> Vec<String> {
    if !name.ends_with(".md") {
        return Vec::new();
    }
    let dead = links(text).filter(|link| !directory.join(link).exists());
    dead.map(|link| format!("{name}: links to {link}, which is not there")).collect()
}

/// Where the links of a Markdown page lead, as far as that is a file: `[text](target)` outside code blocks.
fn links(markdown: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    let prose = markdown.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    let targets = prose.flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    let files = targets.filter_map(|target| target.split('#').next());
    files.filter(|file| !file.is_empty() && !file.contains("://"))
}

/// An absolute path begins the text or follows something that is no part of a longer relative path.
fn starts_a_path(line: &str, pattern: &str) -> bool {
    line.match_indices(pattern).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !pattern.starts_with('/') || !before.is_some_and(|c| c.is_alphanumeric() || "-_.*}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_path_is_named_with_its_line() {
        let text = format!("fine\nlet p = \"{}main\";\n", MACHINE_PATHS[0]);
        assert_eq!(unwanted("a.rs", &text), [format!("a.rs:2: names the machine path {}", MACHINE_PATHS[0])]);
    }

    #[test]
    fn a_relative_path_that_merely_contains_the_word_is_fine() {
        let text = format!("docs{}page.md", MACHINE_PATHS[0]);
        assert_eq!(unwanted("a.md", &text), Vec::<String>::new());
    }

    #[test]
    fn every_registry_host_is_found() {
        for host in REGISTRY_HOSTS {
            let text = format!("see {host} for more");
            assert_eq!(unwanted("a.md", &text), [format!("a.md:1: names the registry host {host}")]);
        }
    }

    #[test]
    fn a_file_of_one_mebibyte_passes_and_one_byte_more_does_not() {
        assert_eq!(too_large("a", LARGEST_BYTES), None);
        assert_eq!(
            too_large("a", LARGEST_BYTES + 1),
            Some("a has 1048577 bytes; the largest allowed is 1048576".to_owned())
        );
    }

    #[test]
    fn links_are_the_files_a_page_leads_to() {
        let page = "[a](x.md) and [b](../y.md#part), [here](#top), [web](https://example.org/z)\n```text\n[no](n.md)\n```\n[c](d/)\n";
        assert_eq!(links(page).collect::<Vec<_>>(), ["x.md", "../y.md", "d/"]);
    }

    #[test]
    fn a_link_to_a_file_that_is_not_there_is_named() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = "[there](Cargo.toml) [gone](no-such-file.md)";
        assert_eq!(dead_links("a.md", page, directory), ["a.md: links to no-such-file.md, which is not there"]);
        assert_eq!(dead_links("a.rs", page, directory), Vec::<String>::new());
    }

    #[test]
    fn the_checker_does_not_match_itself() {
        assert_eq!(unwanted("files.rs", include_str!("files.rs")), Vec::<String>::new());
    }
}
