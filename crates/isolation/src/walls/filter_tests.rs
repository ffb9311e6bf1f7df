//! What the compiled filters answer, found by running them as the kernel would.

use std::collections::BTreeSet;

use super::super::profile::{RUNNER, SANDBOX, name};
use super::*;

/// Calls are tried below this number.
const CALLS: u32 = 1024;

type Arguments = [u32; 6];

/// Runs a program on one call.
fn answer(program: &[BpfInstruction], arch: u32, number: u32, arguments: Arguments) -> u32 {
    let (mut at, mut held) = (0, 0_u32);
    loop {
        let BpfInstruction { code, jt, jf, k } = program[at];
        at += 1;
        let go = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            LOAD => {
                held = match k {
                    NUMBER => number,
                    ARCH => arch,
                    _ => arguments[usize::try_from((k - ARGUMENTS) / 8).unwrap()],
                }
            }
            AND => held &= k,
            JUMP => at += usize::try_from(k).unwrap(),
            JUMP_EQUAL => at += go(held == k),
            JUMP_AT_LEAST => at += go(held >= k),
            RETURN => return k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn native(program: &[BpfInstruction], number: u32, arguments: Arguments) -> u32 {
    answer(program, ARCHITECTURE, number, arguments)
}

/// Arguments that tell apart what a rule tells apart: each value that it names, one beside it,
/// with every bit that its masks leave out set as well, in every combination.
fn probes(rule: &Rule) -> Vec<Arguments> {
    let mut values: [BTreeSet<u32>; 6] = std::array::from_fn(|_| BTreeSet::from([0]));
    for test in rule.only.iter().copied().flatten() {
        let one = test.mask & test.mask.wrapping_neg();
        values[usize::from(test.argument)].extend([
            test.value,
            test.value | !test.mask,
            test.value ^ one,
            test.mask,
        ]);
    }
    let mut all = vec![[0; 6]];
    for (index, choices) in values.iter().enumerate() {
        all = all
            .iter()
            .flat_map(|probe| {
                choices.iter().map(move |&value| {
                    let mut probe = *probe;
                    probe[index] = value;
                    probe
                })
            })
            .collect();
    }
    all
}

fn compile(rules: &[Rule]) -> Vec<BpfInstruction> {
    program(rules.iter(), NOTIFY, NOTIFY).unwrap()
}

/// Whether two programs answer every call of this rule alike.
fn agree(rule: &Rule, one: &[BpfInstruction], other: &[BpfInstruction]) -> bool {
    rule.calls.iter().all(|&(number, _)| {
        probes(rule)
            .iter()
            .all(|&arguments| native(one, number, arguments) == native(other, number, arguments))
    })
}

#[test]
fn no_rule_is_redundant_and_each_has_a_reason() {
    let rules: Vec<Rule> = Profile::Sandbox.rules().copied().collect();
    let full = compile(&rules);
    for (index, rule) in rules.iter().enumerate() {
        assert!(rule.reason.len() > 10, "{:?} has no reason", rule.calls);
        let mut without = rules.clone();
        without.remove(index);
        let without = compile(&without);
        for call in rule.calls {
            let alone = Rule {
                calls: std::slice::from_ref(call),
                ..*rule
            };
            assert!(
                !agree(&alone, &full, &without),
                "the rule for {call:?} changes nothing"
            );
        }
        for line in 0..rule.only.len() {
            let mut rest = rule.only.to_vec();
            rest.remove(line);
            let mut changed = rules.clone();
            // An empty list would mean that the call is always allowed.
            if rest.is_empty() {
                changed.remove(index);
            } else {
                changed[index].only = rest.leak();
            }
            assert!(
                !agree(rule, &full, &compile(&changed)),
                "line {line} of {:?} changes nothing",
                rule.calls
            );
        }
    }
}

#[test]
fn no_call_stands_twice_and_none_is_both_let_through_and_left_out() {
    let mut seen = BTreeSet::new();
    for (number, name) in RUNNER
        .iter()
        .chain(SANDBOX)
        .chain(DENIED)
        .flat_map(|rule| rule.calls)
    {
        assert!(seen.insert(number), "{name} ({number}) stands twice");
    }
    for profile in [Profile::Runner, Profile::Sandbox] {
        let rules: Vec<Rule> = profile.rules().copied().collect();
        let compiled = compile(&rules);
        for &(number, name) in DENIED.iter().flat_map(|rule| rule.calls) {
            assert_eq!(native(&compiled, number, [0; 6]), NOTIFY, "{name}");
        }
    }
}

#[test]
fn the_compiled_filter_answers_what_the_profile_says() {
    for (profile, otherwise) in [(Profile::Runner, NOTIFY), (Profile::Sandbox, EPERM)] {
        let compiled = program(profile.rules(), otherwise, otherwise).unwrap();
        for number in 0..CALLS {
            let rule = profile
                .rules()
                .find(|rule| rule.calls.iter().any(|&(known, _)| known == number));
            for arguments in rule.map_or_else(|| vec![[0; 6]], probes) {
                let holds = |test: &Test| {
                    let held = arguments[usize::from(test.argument)] & test.mask;
                    (held == test.value) == test.equal
                };
                let expected = match rule {
                    Some(rule) if rule.verdict == Verdict::Absent => ENOSYS,
                    Some(rule) if rule.only.is_empty() => ALLOW,
                    Some(rule) if rule.only.iter().any(|line| line.iter().all(holds)) => ALLOW,
                    _ => otherwise,
                };
                let call = name(number).unwrap_or("?");
                assert_eq!(
                    native(&compiled, number, arguments),
                    expected,
                    "{call} {arguments:?}"
                );
            }
        }
    }
}

#[test]
fn the_runners_profile_is_the_tighter_one() {
    let (runner, sandbox) = (
        Profile::Runner.rules().count(),
        Profile::Sandbox.rules().count(),
    );
    assert!(runner < sandbox);
    let runner = program(Profile::Runner.rules(), EPERM, EPERM).unwrap();
    let sandbox = program(Profile::Sandbox.rules(), EPERM, EPERM).unwrap();
    for rule in Profile::Sandbox.rules() {
        for &(number, name) in rule.calls {
            for arguments in probes(rule) {
                let (tight, wide) = (
                    native(&runner, number, arguments),
                    native(&sandbox, number, arguments),
                );
                assert!(tight == wide || tight == EPERM, "{name} {arguments:?}");
            }
        }
    }
}

#[test]
fn foreign_architectures_end_the_process() {
    for profile in [Profile::Runner, Profile::Sandbox] {
        let compiled = program(profile.rules(), NOTIFY, NOTIFY).unwrap();
        // i386, x86-64 or arm64 on the other, big-endian, and none.
        for arch in [0x4000_0003, 0xc000_003e, 0xc000_00b7, 0x8000_0015, 0] {
            if arch != ARCHITECTURE {
                for number in 0..CALLS {
                    assert_eq!(answer(&compiled, arch, number, [0; 6]), KILL);
                }
            }
        }
        if cfg!(target_arch = "x86_64") {
            for number in 0..CALLS {
                assert_eq!(native(&compiled, X32_BIT | number, [0; 6]), KILL);
            }
            assert_eq!(native(&compiled, NO_CALL, [0; 6]), NOTIFY);
            assert_eq!(native(&compiled, X32_BIT - 1, [0; 6]), NOTIFY);
        }
    }
}

#[test]
fn a_search_takes_few_steps_and_the_kernel_takes_the_program() {
    for profile in [Profile::Runner, Profile::Sandbox] {
        let filter = Filter::compile(profile).unwrap();
        for program in [&filter.counting, &filter.silent] {
            // Far below BPF_MAXINSNS; a linear search would need one step per call.
            assert!(program.len() < 400, "{}", program.len());
        }
    }
}

#[test]
fn a_supervisor_is_refused_programs_networks_and_what_escapes_are_made_of() {
    let compiled = supervisor().unwrap();
    let answer = |name: &str, first: i32| {
        let rules = RUNNER.iter().chain(SANDBOX).chain(DENIED);
        let (number, _) = rules
            .flat_map(|rule| rule.calls)
            .find(|(_, known)| *known == name)
            .unwrap();
        native(&compiled, *number, [first.cast_unsigned(), 0, 0, 0, 0, 0])
    };
    for (_, name) in DENIED.iter().flat_map(|rule| rule.calls) {
        assert_eq!(answer(name, 0), EPERM, "{name}");
    }
    for name in ["execve", "execveat", "setresuid", "setgroups"] {
        assert_eq!(answer(name, 0), EPERM, "{name}");
    }
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
        assert_eq!(answer("socket", family), EPERM);
    }
    assert_eq!(answer("socket", libc::AF_UNIX), ALLOW);
    for name in ["ppoll", "read", "ioctl", "pidfd_send_signal", "accept4"] {
        assert_eq!(answer(name, 0), ALLOW, "{name}");
    }
}
