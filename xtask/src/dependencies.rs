//! What other people's code may come in: `cargo deny` where it is installed, and the part
//! of the same `deny.toml` that needs no further program everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::workspace::Workspace;
use crate::{graph, process};

/// The most packages that the lock file may name: every crate is there for a reason that
/// can be said in a line (style 20).
const MAX_PACKAGES: usize = 450;

/// The part of `deny.toml` that is enforced here too.
#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    allow: BTreeSet<String>,
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    /// Crates that may depend on it all the same; nobody when absent.
    wrappers: Option<BTreeSet<String>>,
}

/// Runs all checks that this machine can.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.root().join("deny.toml");
    let written = fs::read_to_string(&path).context("cannot read deny.toml")?;
    let deny: Deny = toml::from_str(&written).context("deny.toml is not as expected")?;
    let metadata = workspace.metadata(true)?;
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("cargo metadata lists no packages")?;

    let built = built(workspace)?;
    let in_builds = || {
        packages.iter().filter(|package| {
            built.contains(&format!(
                "{} v{}",
                text(package, "name"),
                text(package, "version")
            ))
        })
    };
    let mut wrong = directions(&deny.bans);
    wrong.extend(in_builds().filter_map(|package| licence_problem(&deny.licenses, package)));
    wrong.extend(in_builds().filter_map(|package| ban_problem(&deny.bans, package)));
    if packages.len() > MAX_PACKAGES {
        wrong.push(format!(
            "{} packages, and at most {MAX_PACKAGES} are wanted",
            packages.len()
        ));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    eprintln!(
        "    {} packages in builds: licences, bans and crate directions as deny.toml has them",
        built.len()
    );

    if process::succeeds(workspace.cargo().args(["deny", "--version"])) {
        // The advisory database needs a network that a test run may not have.
        return process::run(workspace.cargo().args([
            "deny",
            "--offline",
            "check",
            "bans",
            "licenses",
            "sources",
        ]));
    }
    eprintln!(
        "    NOT CHECKED: duplicates, sources and advisories. `cargo deny` is not installed;"
    );
    eprintln!("    `cargo install --locked cargo-deny` and `cargo deny check` do it.");
    Ok(())
}

/// The packages that some build of ours contains, as `name vVERSION`. The lock file names
/// more, and so does the resolution of `cargo metadata`: both count a crate whose feature
/// is only mentioned (`ring?/std`) and never turned on.
fn built(workspace: &Workspace) -> Result<BTreeSet<String>> {
    let tree = process::output(workspace.cargo().args([
        "tree",
        "--locked",
        "--workspace",
        "--edges=normal,build,dev",
        "--prefix=none",
        "--format={p}",
    ]))?;
    let name_and_version = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?))
    };
    Ok(tree.lines().filter_map(name_and_version).collect())
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn licence_problem(licenses: &Licenses, package: &Value) -> Option<String> {
    let (name, expression) = (text(package, "name"), text(package, "license"));
    let allowed = |licence: &str| {
        licenses.allow.contains(licence)
            || licenses
                .exceptions
                .iter()
                .any(|one| one.name == name && one.allow.contains(licence))
    };
    if is_satisfied(expression, &allowed) {
        return None;
    }
    Some(format!(
        "{name} {} is under `{expression}`, which deny.toml does not allow",
        text(package, "version")
    ))
}

/// Whether an SPDX expression (annex D of the specification) can be met with these
/// licences. A slash is the older way to write OR that crates.io still has. What is no
/// expression cannot be met.
fn is_satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    any_of(&mut rest, allowed) == Some(true) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut met = all_of(rest, allowed)?;
    while let ["OR", after @ ..] = *rest {
        *rest = after;
        met |= all_of(rest, allowed)?;
    }
    Some(met)
}

fn all_of(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut met = licence(rest, allowed)?;
    while let ["AND", after @ ..] = *rest {
        *rest = after;
        met &= licence(rest, allowed)?;
    }
    Some(met)
}

fn licence(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    match *rest {
        ["(", inner @ ..] => {
            *rest = inner;
            let met = any_of(rest, allowed)?;
            let [")", after @ ..] = *rest else {
                return None;
            };
            *rest = after;
            Some(met)
        }
        [name, "WITH", exception, after @ ..] => {
            *rest = after;
            Some(allowed(&format!("{name} WITH {exception}")))
        }
        [name, after @ ..] => {
            *rest = after;
            Some(allowed(name))
        }
        [] => None,
    }
}

fn ban_problem(bans: &Bans, package: &Value) -> Option<String> {
    let name = text(package, "name");
    let depends_on = |banned: &str| {
        package
            .get("dependencies")
            .and_then(Value::as_array)
            .is_some_and(|list| {
                list.iter().any(|dependency| {
                    text(dependency, "name") == banned && dependency.get("path").is_some()
                })
            })
    };
    bans.deny
        .iter()
        .find(|ban| match &ban.wrappers {
            None => ban.name == name,
            Some(wrappers) => !wrappers.contains(name) && depends_on(&ban.name),
        })
        .map(|ban| format!("{name} brings {}, which deny.toml bans", ban.name))
}

/// The crate directions stand in `deny.toml` too, for editors and services that run only
/// `cargo deny`; they must say the same as our own table.
fn directions(bans: &Bans) -> Vec<String> {
    let mut expected: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, dependencies) in graph::ALLOWED {
        for dependency in *dependencies {
            expected
                .entry(dependency)
                .or_default()
                .insert((*name).to_owned());
        }
    }
    expected
        .iter()
        // `types` is for everybody.
        .filter(|(name, _)| **name != "types")
        .filter(|(name, wrappers)| {
            !bans
                .deny
                .iter()
                .any(|ban| ban.name == **name && ban.wrappers.as_ref() == Some(*wrappers))
        })
        .map(|(name, wrappers)| {
            let list: Vec<&str> = wrappers.iter().map(String::as_str).collect();
            format!("deny.toml must have {{ crate = \"{name}\", wrappers = {list:?} }}, as xtask/src/graph.rs has it")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::is_satisfied;

    fn satisfied(expression: &str) -> bool {
        is_satisfied(expression, &|licence| {
            matches!(licence, "MIT" | "ISC" | "Apache-2.0 WITH LLVM-exception")
        })
    }

    #[test]
    fn one_of_several_licences_is_enough() {
        assert!(satisfied("MIT"));
        assert!(satisfied("GPL-3.0 OR MIT"));
        assert!(satisfied("Unlicense/MIT"));
        assert!(satisfied("Apache-2.0 WITH LLVM-exception OR GPL-2.0"));
        assert!(satisfied("(GPL-2.0 OR ISC) AND MIT"));
    }

    #[test]
    fn every_licence_of_a_conjunction_is_needed() {
        assert!(!satisfied("MIT AND GPL-2.0"));
        assert!(!satisfied("(MIT OR ISC) AND OpenSSL"));
        assert!(satisfied("GPL-2.0 AND X OR MIT"));
    }

    #[test]
    fn what_cannot_be_read_is_not_allowed() {
        for expression in [
            "",
            "GPL-3.0",
            "MIT OR",
            "(MIT",
            "MIT)",
            "Apache-2.0 WITH Other",
        ] {
            assert!(!satisfied(expression), "{expression}");
        }
    }
}
