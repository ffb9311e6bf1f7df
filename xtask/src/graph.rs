//! Which of our crates may know which: the table of the architecture's section 8.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A crate of ours and the crates of ours that it may depend on, in shipped code and in tests.
pub(crate) const ALLOWED: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("crypto", &["types"]),
    ("policy", &["types"]),
    ("ledger", &["types", "crypto"]),
    ("isolation", &["types"]),
    ("runtime", &["types", "isolation"]),
    ("gateway", &["types", "crypto"]),
    (
        "hypervisor",
        &[
            "types",
            "crypto",
            "policy",
            "ledger",
            "isolation",
            "runtime",
            "gateway",
        ],
    ),
    ("sandbox", &["types"]),
    ("cli", &["types", "crypto", "ledger", "policy"]),
    (
        "system-tests",
        &[
            "types",
            "crypto",
            "policy",
            "ledger",
            "isolation",
            "runtime",
            "gateway",
            "hypervisor",
            "sandbox",
            "cli",
        ],
    ),
    ("xtask", &[]),
];

/// Checks what `cargo metadata --no-deps` says against the table.
pub(crate) fn check(metadata: &Value) -> Result<()> {
    let actual = edges(metadata)?;
    let wrong = violations(&actual);
    if wrong.is_empty() {
        eprintln!("    {} crates, every dependency points down", actual.len());
        return Ok(());
    }
    bail!("{}", wrong.join("\n"))
}

/// Every crate of ours and which of ours it depends on.
pub(crate) fn edges(metadata: &Value) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("cargo metadata lists no packages")?;
    let name_of = |value: &Value| value.get("name").and_then(Value::as_str).map(str::to_owned);
    let ours: BTreeSet<String> = packages.iter().filter_map(name_of).collect();
    Ok(packages
        .iter()
        .filter_map(|package| {
            let dependencies = package.get("dependencies").and_then(Value::as_array)?;
            let known = dependencies
                .iter()
                .filter(|dependency| dependency.get("path").is_some())
                .filter_map(name_of)
                .filter(|name| ours.contains(name))
                .collect();
            Some((name_of(package)?, known))
        })
        .collect())
}

fn violations(actual: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, dependencies) in actual {
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
            wrong.push(format!(
                "{name} is no crate of the table in xtask/src/graph.rs"
            ));
            continue;
        };
        for dependency in dependencies {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    for (name, _) in ALLOWED {
        if !actual.contains_key(*name) {
            wrong.push(format!(
                "the table in xtask/src/graph.rs names {name}, which is no crate"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{ALLOWED, violations};

    fn allowed() -> BTreeMap<String, BTreeSet<String>> {
        ALLOWED
            .iter()
            .map(|(name, list)| {
                (
                    (*name).to_owned(),
                    list.iter().map(|d| (*d).to_owned()).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn the_table_itself_is_allowed() {
        assert_eq!(violations(&allowed()), Vec::<String>::new());
    }

    #[test]
    fn a_dependency_that_points_up_is_named() {
        let mut graph = allowed();
        graph.get_mut("types").unwrap().insert("gateway".to_owned());
        assert_eq!(violations(&graph), ["types must not depend on gateway"]);
    }

    #[test]
    fn an_unknown_and_a_vanished_crate_are_named() {
        let mut graph = allowed();
        graph.remove("policy");
        graph.insert("utils".to_owned(), BTreeSet::new());
        assert_eq!(violations(&graph).len(), 2);
    }

    /// `sandbox` is code that runs behind the wall; it knows nothing of what enforces it.
    #[test]
    fn the_table_has_no_cycle() {
        let order: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
        for (at, (name, dependencies)) in ALLOWED.iter().enumerate() {
            for dependency in *dependencies {
                let below = order.iter().position(|other| other == dependency).unwrap();
                assert!(below < at, "{name} stands above {dependency} in the table");
            }
        }
    }
}
