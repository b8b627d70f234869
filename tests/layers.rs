//! Holds the lines between the layers: which module may name which other module and which crate.
//!
//! Sources are read as text: comments and literals are taken out, and what is left is looked through
//! for paths. Unit tests at the end of a file may name what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules that each module of `src/` may name. Dependencies point one way.
const MODULES: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("telemetry", &[]),
    ("open_files", &[]),
    ("decision", &["units"]),
    ("replication", &["decision", "units"]),
    ("edge", &["replication", "decision", "units"]),
    ("webhook", &["replication", "decision", "units"]),
    ("config", &["edge", "replication", "telemetry", "units", "webhook"]),
    ("node", &["config", "edge", "open_files", "replication", "telemetry", "units", "webhook"]),
    ("client", &["units"]),
    ("fuzzing", &["cli", "edge", "replication"]),
    ("cli", &["client", "config", "decision", "node", "telemetry", "units"]),
];

/// Crates that are the business of one module.
const OWNED_CRATES: &[(&str, &str)] = &[
    ("openraft", "replication"),
    ("sled", "replication"),
    ("bincode", "replication"),
    ("tonic", "replication"),
    ("axum", "edge"),
    ("clap", "cli"),
    ("indicatif", "cli"),
];

/// What a decision must not know: other machines, clocks, chance, floats, and other tasks.
const UNKNOWN_TO_DECISION: &[&str] = &[
    "tokio",
    "hyper",
    "http",
    "tracing",
    "getrandom",
    "rand",
    "SystemTime",
    "Instant",
    "thread",
    "fs",
    "net",
    "env",
    "f32",
    "f64",
    "async",
    "await",
    "unsafe",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the sources can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without comments, literals and its unit tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a source can be read");
    let bare = without_comments_and_literals(&text);
    match bare.find("#[cfg(test)]\nmod tests {") {
        Some(tests) => bare[..tests].to_owned(),
        None => bare,
    }
}

fn without_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut bare = String::with_capacity(text.len());
    let mut at = 0;
    let next = |at: usize, offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    while at < chars.len() {
        match chars[at] {
            '/' if next(at, 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if next(at, 1) == '*' => {
                while at < chars.len() && !(chars[at] == '*' && next(at, 1) == '/') {
                    at += 1;
                }
                at += 2;
            }
            'r' if matches!(next(at, 1), '"' | '#') && raw_string_end(&chars, at).is_some() => {
                at = raw_string_end(&chars, at).expect("just looked");
            }
            '"' => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    at += if chars[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            '\'' if next(at, 1) == '\\' => {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            '\'' if next(at, 2) == '\'' => at += 3,
            other => {
                bare.push(other);
                at += 1;
            }
        }
    }
    bare
}

/// Where the raw string that begins at `r` ends.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|char| **char == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let mut at = open + 1;
    while at < chars.len() {
        let closes = chars[at] == '"'
            && chars[at + 1..].iter().take(hashes).filter(|char| **char == '#').count() == hashes;
        at += 1;
        if closes {
            return Some(at + hashes);
        }
    }
    None
}

/// The words of the code, each with the two characters before and after it.
fn words(code: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_word)?;
        let end = code[start..].find(|char| !is_word(char)).map_or(code.len(), |length| start + length);
        at = end;
        Some((code[..start].trim_end(), &code[start..end], code[end..].trim_start()))
    })
}

/// The modules that the code names by `crate::module` or within `crate::{…}`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (_, word, after) in words(code) {
        let Some(path) = after.strip_prefix("::").filter(|_| word == "crate") else { continue };
        let path = path.trim_start();
        match path.strip_prefix('{') {
            None => named.extend(words(path).next().map(|(_, first, _)| first.to_owned())),
            Some(group) => named.extend(heads(group)),
        }
    }
    named
}

/// The first word of each part of a `{…}` group.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut part_begins, mut heads) = (0, 0, Vec::new());
    for (place, char) in group.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.extend(words(&group[part_begins..place]).next().map(|(_, first, _)| first.to_owned()));
                part_begins = place + 1;
                if char == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads
}

/// Whether the code names this crate: in a path, or in a `use`.
fn names_crate(code: &str, name: &str) -> bool {
    words(code).any(|(before, word, after)| {
        word == name && !before.ends_with("::") && (after.starts_with("::") || before.ends_with("use"))
    })
}

/// The code of each module, file by file.
fn modules() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut modules: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    for path in files {
        let first = path.strip_prefix(&root).expect("under src").components().next().expect("a name");
        let module = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
        modules.entry(module).or_default().push((path.clone(), code(&path)));
    }
    modules
}

#[test]
fn every_module_has_its_line() {
    for module in modules().keys().filter(|module| !matches!(module.as_str(), "lib" | "main")) {
        assert!(
            MODULES.iter().any(|(name, _)| name == module),
            "src/{module} is a new part: say in tests/layers.rs what it may name"
        );
    }
}

#[test]
fn dependencies_of_modules_point_one_way() {
    let all: BTreeSet<&str> = MODULES.iter().map(|(name, _)| *name).collect();
    let modules = modules();
    for (module, allowed) in MODULES {
        for (path, code) in modules.get(*module).into_iter().flatten() {
            for named in named_modules(code) {
                let fine =
                    named == *module || allowed.contains(&named.as_str()) || !all.contains(named.as_str());
                assert!(fine, "{}: {module} must not name crate::{named}", path.display());
            }
        }
    }
}

#[test]
fn crates_stay_with_the_module_that_owns_them() {
    for (module, files) in modules() {
        for (path, code) in files {
            for (name, owner) in OWNED_CRATES.iter().filter(|(_, owner)| *owner != module) {
                assert!(!names_crate(&code, name), "{}: only {owner} may name {name}", path.display());
            }
        }
    }
}

#[test]
fn a_decision_knows_no_clock_no_chance_no_float_and_no_other_task() {
    for (path, code) in modules().remove("decision").expect("the decision core") {
        let words: BTreeSet<&str> = words(&code).map(|(_, word, _)| word).collect();
        for unknown in UNKNOWN_TO_DECISION {
            assert!(!words.contains(unknown), "{}: a decision must not know {unknown}", path.display());
        }
    }
}

#[test]
fn reading_sources_leaves_comments_and_literals_out() {
    let bare = without_comments_and_literals(
        "use a::b; // use sled::Db\n/* crate::node */ let c = '\\''; let s = \"crate::edge\"; r#\"axum::x\"#; 'x'",
    );
    assert!(bare.contains("use a::b;"), "{bare}");
    for absent in ["sled", "node", "edge", "axum"] {
        assert!(!bare.contains(absent), "{bare}");
    }
    let named = named_modules("use crate::{cli::{a, b}, client}; crate::units::X; super::crate_thing::y");
    assert_eq!(named, ["cli", "client", "units"].map(str::to_owned).into());
    assert!(names_crate("use sled;", "sled") && names_crate("sled::open()", "sled"));
    assert!(!names_crate("self.sled.len()", "sled") && !names_crate("a::sled::b", "sled"));
}
