use clap::CommandFactory as _;
use insta::assert_snapshot;

use super::Person;
use crate::args::Arguments;

/// The help of a command, at a width that does not depend on who runs the test.
fn help(path: &[&str]) -> String {
    let mut command = Arguments::command().term_width(100);
    command.build();
    let mut command = &mut command;
    for name in path {
        command = command.find_subcommand_mut(name).unwrap();
    }
    command
        .clone()
        .term_width(100)
        .render_long_help()
        .to_string()
}

#[test]
fn the_arguments_are_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn every_command_has_an_example_in_its_help() {
    fn check(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        if command.get_name() == "help" {
            return;
        }
        let after = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(after.contains("Example"), "{path}");
        command.get_subcommands().for_each(|sub| check(sub, &path));
    }
    check(&Arguments::command(), "");
}

#[test]
fn help_of_choir() {
    assert_snapshot!(help(&[]));
}

#[test]
fn help_of_login() {
    assert_snapshot!(help(&["login"]));
}

#[test]
fn help_of_sandbox() {
    assert_snapshot!(help(&["sandbox"]));
}

#[test]
fn help_of_sandbox_list() {
    assert_snapshot!(help(&["sandbox", "list"]));
}

#[test]
fn help_of_run() {
    assert_snapshot!(help(&["run"]));
}

#[test]
fn help_of_audit_verify() {
    assert_snapshot!(help(&["audit", "verify"]));
}

#[tokio::test]
async fn wrong_usage_ends_with_2_and_help_with_0() {
    let mut person = Person::new();
    for (line, code, text) in [
        ("choir --help", 0, "Usage: choir"),
        ("choir --version", 0, "choir 0."),
        ("choir", 2, "Usage: choir"),
        ("choir nope", 2, "unrecognized subcommand"),
        ("choir sandbox start prod", 2, "expected live or dev"),
        ("choir run", 2, "<CMD>"),
        ("choir run --env X -- true", 2, "expected NAME=VALUE"),
        ("choir whoami --server nonsense", 2, "not an address"),
    ] {
        let ended = person
            .run_words(line.split(' ').map(Into::into).collect())
            .await;
        assert_eq!(ended.code, code, "{line}");
        let shown = if code == 0 {
            ended.stdout
        } else {
            ended.stderr
        };
        assert!(shown.contains(text), "{line}: {shown}");
    }
}

#[tokio::test]
async fn completions_name_every_command() {
    for shell in ["bash", "fish", "zsh"] {
        let line = ["choir", "completions", shell].map(Into::into).to_vec();
        let ended = Person::new().run_words(line).await;
        assert_eq!(ended.code, 0);
        for command in Arguments::command().get_subcommands() {
            assert!(
                ended.stdout.contains(command.get_name()),
                "{shell}: {}",
                command.get_name()
            );
        }
    }
}
