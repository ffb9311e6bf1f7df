//! Compiles the seccomp profiles (`profiles/*.toml`) into tables of Rust, so that the supervisor
//! carries no parser and a mistake in a profile is an error of the build.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use serde::Deserialize;

/// Shorter reasons say nothing.
const SHORTEST_REASON: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    extends: Option<String>,
    #[serde(default)]
    numbers: BTreeMap<String, u32>,
    #[serde(default)]
    constants: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    allow: Vec<Rule>,
    #[serde(default)]
    absent: Vec<Rule>,
    #[serde(default)]
    deny: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    reason: String,
    calls: Vec<String>,
    #[serde(default)]
    only: Vec<String>,
    arch: Option<String>,
}

/// What the files of all profiles share.
#[derive(Debug, Default)]
struct Shared {
    numbers: BTreeMap<String, u32>,
    constants: BTreeMap<String, Vec<String>>,
    seen: BTreeSet<String>,
}

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=profiles");
    let mut shared = Shared::default();
    let mut code = String::new();
    let profiles = [
        ("RUNNER", "runner"),
        ("SANDBOX", "sandbox"),
        ("DENIED", "denied"),
        ("SUPERVISOR", "supervisor"),
    ];
    for (table, name) in profiles {
        let file = format!("profiles/{name}.toml");
        let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        let profile: Profile = toml::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
        if profile
            .extends
            .as_deref()
            .is_some_and(|base| name != "sandbox" || base != "runner")
        {
            return Err(format!(
                "{file}: only the sandbox extends, and only the runner's"
            ));
        }
        shared.numbers.extend(profile.numbers);
        shared.constants.extend(profile.constants);
        if name == "supervisor" {
            // It stands by itself: it says what is refused, not what is let through.
            shared.seen.clear();
        }
        if name == "denied" && !(profile.allow.is_empty() && profile.absent.is_empty()) {
            return Err(format!("{file}: only `deny` belongs here"));
        }
        let _ = writeln!(code, "pub(crate) const {table}: &[Rule] = &[");
        let kinds = [
            (profile.allow, "Allow"),
            (profile.absent, "Absent"),
            (profile.deny, "Deny"),
        ];
        for (rules, verdict) in kinds {
            for rule in rules {
                code += &shared
                    .rule(&rule, verdict)
                    .map_err(|error| format!("{file}: {error}"))?;
            }
        }
        code += "];\n";
    }
    let out = env::var("OUT_DIR").map_err(|error| error.to_string())?;
    fs::write(Path::new(&out).join("profiles.rs"), code).map_err(|error| error.to_string())
}

impl Shared {
    fn rule(&mut self, rule: &Rule, verdict: &str) -> Result<String, String> {
        let Rule {
            reason,
            calls,
            only,
            arch,
        } = rule;
        if reason.trim().len() < SHORTEST_REASON {
            return Err(format!("the rule for {calls:?} has no reason"));
        }
        if calls.is_empty() || (!only.is_empty() && verdict != "Allow") {
            return Err(format!(
                "a rule without calls, or `only` without allowing: {reason}"
            ));
        }
        let mut code = String::new();
        if let Some(arch) = arch {
            let _ = writeln!(code, "    #[cfg(target_arch = {arch:?})]");
        }
        let _ = writeln!(
            code,
            "    Rule {{\n        reason: {reason:?},\n        verdict: Verdict::{verdict},"
        );
        code += "        calls: &[";
        for call in calls {
            if !self.seen.insert(call.clone()) {
                return Err(format!("{call} stands twice"));
            }
            let number = match self.numbers.get(call) {
                Some(number) => number.to_string(),
                None if is_name(call) => format!("libc::SYS_{call} as u32"),
                None => return Err(format!("{call:?} is not the name of a call")),
            };
            let _ = write!(code, "({number}, {call:?}), ");
        }
        code += "],\n        only: &[";
        for line in only {
            let _ = write!(code, "&[{}], ", self.line(line)?);
        }
        code += "],\n    },\n";
        Ok(code)
    }

    /// `arg0 == A and arg1 & MASK == B and arg2 != C`
    fn line(&self, line: &str) -> Result<String, String> {
        let mut code = String::new();
        for test in line.split(" and ") {
            let words: Vec<&str> = test.split_whitespace().collect();
            let (argument, mask, operator, value) = match words.as_slice() {
                [argument, operator, value] => (*argument, "0xffff_ffff", *operator, *value),
                [argument, "&", mask, operator, value] => (*argument, *mask, *operator, *value),
                _ => return Err(format!("{test:?} is no test")),
            };
            let argument: u8 = argument
                .strip_prefix("arg")
                .and_then(|number| number.parse().ok())
                .filter(|number| *number < 6)
                .ok_or_else(|| format!("{test:?} tests no argument"))?;
            let equal = match operator {
                "==" => true,
                "!=" => false,
                _ => return Err(format!("{test:?} has no operator")),
            };
            let (mask, value) = (self.value(mask)?, self.value(value)?);
            let _ = write!(
                code,
                "Test {{ argument: {argument}, mask: {mask}, value: {value}, equal: {equal} }}, "
            );
        }
        Ok(code)
    }

    fn value(&self, text: &str) -> Result<String, String> {
        if let Some(parts) = self.constants.get(text) {
            let parts: Result<Vec<String>, String> =
                parts.iter().map(|part| self.value(part)).collect();
            return Ok(format!("({})", parts?.join(" | ")));
        }
        let digits = text.strip_prefix("0x").unwrap_or(text);
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let is_number = digits
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() || byte == b'_');
            return is_number
                .then(|| text.to_owned())
                .ok_or_else(|| format!("{text:?} is no number"));
        }
        if is_name(text) {
            return Ok(format!("(libc::{text} as u32)"));
        }
        Err(format!("{text:?} is neither a number nor a constant"))
    }
}

/// Whether this is what names of libc look like; whether it is one, the compiler says.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
