//! `choir provider add`: a section in the configuration of this machine, or nothing at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::{Ended, Person};

const BEFORE: &str = "# kept as it is\ndata_dir = \"/var/lib/choir\"\n";

/// A configuration, and a program beside `choir` that finds everything valid but what says
/// `refuse-me`.
struct Machine {
    person: Person,
    config: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let machine = Self::without_program();
        let program = machine.person.home.path().join("hypervisor");
        let script = "#!/bin/sh\n[ \"$1 $3\" = '--config check-config' ] || exit 2\n\
                      if grep -q refuse-me \"$2\"; then echo 'hypervisor: refuse-me is refused' >&2; exit 1; fi\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        machine
    }

    fn without_program() -> Self {
        let person = Person::new();
        let dir = person.home.path().join("etc");
        fs::create_dir(&dir).unwrap();
        let config = dir.join("choir.toml");
        fs::write(&config, BEFORE).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).unwrap();
        Self { person, config }
    }

    /// No control plane is asked: it may not run yet.
    async fn add(&mut self, arguments: &str) -> Ended {
        let config = self.config.display();
        let line = format!("provider add --config {config} {arguments}");
        self.person.run_at("http://localhost:1", &line).await
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.config).unwrap()
    }

    fn mode(&self, file: &str) -> u32 {
        let path = self.config.with_file_name(file);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// What lies in the directory of the configuration.
    fn files(&self) -> Vec<String> {
        let dir = fs::read_dir(self.config.parent().unwrap()).unwrap();
        let mut names: Vec<String> = dir
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

const ACME: &str =
    "acme --kind openai --base-url https://api.acme.example/v1 --model large --model small";

#[tokio::test]
async fn a_provider_is_added_behind_what_is_there_with_its_key_in_a_file_of_its_own() {
    let mut machine = Machine::new();
    machine.person.stdin = Some(b"  sk-piped-in-0123456789\n".to_vec());
    let ended = machine
        .add(&format!("{ACME} --key-file - --default --private-network"))
        .await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended.stdout.starts_with("Added acme to "),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("choir provider test acme"));
    let text = machine.text();
    assert!(text.starts_with(BEFORE), "{text}");
    let parsed: toml::Table = text.parse().unwrap();
    let key_file = machine.config.with_file_name("acme.key");
    let expected = format!(
        "name = \"acme\"\nkind = \"openai\"\nbase_url = \"https://api.acme.example/v1\"\nkey_file = {key_file:?}\n\
         models = [\"large\", \"small\"]\naddresses = \"private_network_too\"\ndefault = \"large\""
    );
    let expected: toml::Table = expected.parse().unwrap();
    assert_eq!(
        parsed["providers"].as_array().unwrap(),
        &[toml::Value::Table(expected)]
    );
    assert_eq!(
        fs::read_to_string(&key_file).unwrap(),
        "sk-piped-in-0123456789"
    );
    assert_eq!(
        (machine.mode("acme.key"), machine.mode("choir.toml")),
        (0o600, 0o640)
    );
    assert_eq!(machine.files(), ["acme.key", "choir.toml"]);
    for shown in [&text, &ended.stdout, &ended.stderr] {
        assert!(!shown.contains("sk-piped-in"), "{shown}");
    }
    // A second one stands beside the first.
    machine.person.stdin = None;
    let ended = machine
        .add("local --kind openai --base-url http://127.0.0.1:8000/v1 --model tiny")
        .await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let parsed: toml::Table = machine.text().parse().unwrap();
    let providers = parsed["providers"].as_array().unwrap();
    assert_eq!(providers.len(), 2);
    assert!(providers[1].get("key_file").is_none() && providers[1].get("default").is_none());
}

#[tokio::test]
async fn what_the_hypervisor_would_refuse_is_not_written_and_leaves_no_key() {
    let mut machine = Machine::new();
    machine.person.stdin = Some(b"sk-piped-in-0123456789".to_vec());
    let ended = machine
        .add("acme --kind refuse-me --base-url https://a.example --model large --key-file -")
        .await;
    assert_ne!(ended.code, 0);
    assert!(
        ended.stderr.contains("refuse-me is refused"),
        "{}",
        ended.stderr
    );
    assert_eq!(machine.text(), BEFORE);
    assert_eq!(machine.files(), ["choir.toml"]);

    let mut machine = Machine::without_program();
    let ended = machine.add(ACME).await;
    assert_ne!(ended.code, 0);
    assert!(
        ended.stderr.contains("cannot be checked"),
        "{}",
        ended.stderr
    );
    assert_eq!(machine.text(), BEFORE);
    assert_eq!(machine.files(), ["choir.toml"]);
}

#[tokio::test]
async fn a_key_that_is_there_is_never_overwritten_and_an_empty_one_never_written() {
    let mut machine = Machine::new();
    let key_file = machine.config.with_file_name("acme.key");
    fs::write(&key_file, "the one in use").unwrap();
    machine.person.stdin = Some(b"another".to_vec());
    let ended = machine.add(&format!("{ACME} --key-file -")).await;
    assert_ne!(ended.code, 0);
    assert_eq!(fs::read_to_string(&key_file).unwrap(), "the one in use");
    assert_eq!(machine.text(), BEFORE);

    fs::remove_file(&key_file).unwrap();
    machine.person.stdin = Some(b" \n".to_vec());
    let ended = machine.add(&format!("{ACME} --key-file -")).await;
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("no key came"), "{}", ended.stderr);
    assert_eq!(machine.files(), ["choir.toml"]);
}

#[tokio::test]
async fn an_incomplete_provider_or_a_missing_configuration_is_said() {
    let mut machine = Machine::new();
    for (arguments, missing) in [
        ("acme --kind openai --base-url https://a.example", "--model"),
        ("acme --base-url https://a.example --model large", "--kind"),
        ("acme --kind openai --model large", "--base-url"),
        (
            "--kind openai --base-url https://a.example --model large",
            "NAME",
        ),
    ] {
        let ended = machine.add(arguments).await;
        assert_ne!(ended.code, 0, "{arguments}");
        assert!(ended.stderr.contains(missing), "{}", ended.stderr);
    }
    machine.person.stdin = Some(b"sk-piped-in-0123456789".to_vec());
    let named = ACME.replacen("acme", "../acme", 1);
    let ended = machine.add(&format!("{named} --key-file -")).await;
    assert_ne!(ended.code, 0);
    assert!(
        ended.stderr.contains("no name for a provider"),
        "{}",
        ended.stderr
    );
    assert!(!machine.config.with_file_name("../acme.key").exists());
    machine.config = machine.config.with_file_name("elsewhere.toml");
    let ended = machine.add(ACME).await;
    assert_ne!(ended.code, 0);
    assert!(
        ended.stderr.contains("elsewhere.toml cannot be read"),
        "{}",
        ended.stderr
    );
}
