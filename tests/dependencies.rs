//! Holds the rules of `deny.toml` for everything that is depended on: licences, sources, duplicates
//! and bans. The same file serves cargo-deny; this test needs nothing that is not there anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// A package that is built on one of the targets of `deny.toml`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: String,
    source: Option<String>,
}

fn rules() -> toml::Table {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
    std::fs::read_to_string(path).expect("deny.toml can be read").parse().expect("deny.toml is TOML")
}

fn texts(rules: &toml::Table, section: &str, key: &str) -> Vec<String> {
    let values = rules[section][key].as_array().expect("an array");
    values.iter().map(|value| value.as_str().expect("a string").to_owned()).collect()
}

/// The crates that an array of `{ crate = … }` tables names.
fn crates(rules: &toml::Table, key: &str) -> BTreeSet<String> {
    let values = rules["bans"][key].as_array().expect("an array");
    values.iter().map(|value| value["crate"].as_str().expect("a crate").to_owned()).collect()
}

fn packages(rules: &toml::Table) -> BTreeSet<Package> {
    let mut packages = BTreeSet::new();
    for target in texts(rules, "graph", "targets") {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let array = |value: &Value| value.as_array().expect("an array").clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let built: BTreeSet<String> =
            array(&metadata["resolve"]["nodes"]).iter().map(|node| text(&node["id"])).collect();
        for package in array(&metadata["packages"]) {
            if built.contains(&text(&package["id"])) {
                packages.insert(Package {
                    name: text(&package["name"]),
                    version: text(&package["version"]),
                    license: text(&package["license"]),
                    source: package["source"].as_str().map(str::to_owned),
                });
            }
        }
    }
    assert!(packages.len() > 50, "only {} packages were found", packages.len());
    packages
}

/// Whether a licence expression can be satisfied with the allowed licences alone. `AND` binds closer
/// than `OR`; the old `/` means `OR`.
fn is_satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let satisfied = any(&mut rest, allowed);
    assert!(rest.is_empty(), "cannot read the licence {expression:?}");
    satisfied
}

fn any(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut satisfied = all(rest, allowed);
    while let ["OR", after @ ..] = rest {
        *rest = after;
        satisfied |= all(rest, allowed);
    }
    satisfied
}

fn all(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut satisfied = one(rest, allowed);
    while let ["AND", after @ ..] = rest {
        *rest = after;
        satisfied &= one(rest, allowed);
    }
    satisfied
}

fn one(rest: &mut &[&str], allowed: &[String]) -> bool {
    match rest {
        ["(", after @ ..] => {
            *rest = after;
            let satisfied = any(rest, allowed);
            assert_eq!(rest.first(), Some(&")"), "a licence has an open parenthesis");
            *rest = &rest[1..];
            satisfied
        }
        [license, "WITH", exception, after @ ..] => {
            let name = format!("{license} WITH {exception}");
            *rest = after;
            allowed.contains(&name)
        }
        [license, after @ ..] => {
            let satisfied = allowed.iter().any(|name| name == license);
            *rest = after;
            satisfied
        }
        [] => panic!("a licence ends too early"),
    }
}

#[test]
fn every_dependency_follows_the_rules_of_deny_toml() {
    let rules = rules();
    let (licenses, registries) =
        (texts(&rules, "licenses", "allow"), texts(&rules, "sources", "allow-registry"));
    let (banned, skipped) = (crates(&rules, "deny"), crates(&rules, "skip"));
    let mut wrong = Vec::new();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages(&rules) {
        let Package { name, version, license, source } = package;
        if !is_satisfied(&license, &licenses) {
            wrong.push(format!("{name} {version} is under {license}"));
        }
        if banned.contains(&name) {
            wrong.push(format!("{name} is banned"));
        }
        // The project itself has no source.
        let registry = source.as_deref().map(|source| source.trim_start_matches("registry+"));
        if registry.is_some_and(|registry| !registries.iter().any(|allowed| allowed == registry)) {
            wrong.push(format!("{name} {version} is from {source:?}"));
        }
        versions.entry(name).or_default().push(version);
    }
    let mut needed = BTreeSet::new();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let named = versions.iter().map(|version| format!("{name}@{version}"));
        let (excused, others): (Vec<_>, Vec<_>) = named.partition(|version| skipped.contains(version));
        if others.len() > 1 {
            wrong.push(format!("{name} is there as {}", versions.join(" and ")));
        }
        needed.extend(excused);
    }
    wrong.extend(skipped.difference(&needed).map(|entry| format!("{entry} needs no exception any more")));
    assert!(wrong.is_empty(), "against deny.toml:\n  {}", wrong.join("\n  "));
}

#[test]
fn licence_expressions_are_read_as_spdx_says() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for good in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "(GPL-3.0 OR MIT) AND ISC", "GPL-3.0 AND MIT OR ISC"]
    {
        assert!(is_satisfied(good, &allowed), "{good}");
    }
    assert!(is_satisfied("Apache-2.0 WITH LLVM-exception OR GPL-3.0", &allowed));
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(MIT OR ISC) AND GPL-3.0"] {
        assert!(!is_satisfied(bad, &allowed), "{bad}");
    }
}

/// What is fuzzed is built apart, with a lock file of its own, which nothing else would miss.
#[test]
fn the_lock_file_of_what_is_fuzzed_is_whole() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1", "--manifest-path", "fuzz/Cargo.toml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
