use std::fs;
use std::os::unix::fs::PermissionsExt;

use insta::assert_snapshot;
use jiff::Timestamp;
use ledger::{Actor, Channel, Filter, Ledger, Options, Outcome, Record, User, verify};
use serde_json::{Value, json};
use types::UserId;

use super::Person;
use super::server::Plane;

/// A log of three records, and its directory within a person's home.
fn log(person: &Person) -> std::path::PathBuf {
    let dir = person.home.path().join("audit");
    let ledger = Ledger::open(&dir, Options::default()).unwrap();
    let alice = User {
        id: UserId::generate(),
        name: "alice".to_owned(),
    };
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    let records = [
        Record::new(
            at,
            Actor::Internal,
            Channel::Internal,
            "hypervisor.start",
            Outcome::Succeeded,
        ),
        Record::new(
            at,
            Actor::User(alice.clone()),
            Channel::Public,
            "auth.login",
            Outcome::Denied,
        )
        .target("passkey")
        .reason("it is not known\u{1b}[2J"),
        Record::new(
            at,
            Actor::Internal,
            Channel::Internal,
            "sandbox.stop",
            Outcome::Allowed,
        )
        .for_user(alice)
        .target("live"),
    ];
    for record in records {
        ledger.append(&record).wait().unwrap();
    }
    dir
}

fn words(parts: &[&str]) -> Vec<std::ffi::OsString> {
    parts.iter().map(Into::into).collect()
}

#[tokio::test]
async fn tail_reads_the_files_without_a_server() {
    let mut person = Person::new();
    let dir = log(&person);
    let dir = dir.to_str().unwrap();
    let ended = person
        .run_words(words(&["choir", "audit", "tail", "--dir", dir]))
        .await;
    assert_snapshot!(ended.stdout, @r"
    SEQ     TIME                  ACTOR           ACTION                  OUTCOME    TARGET
    1       2027-01-15T08:00:00Z  hypervisor      hypervisor.start        succeeded
    2       2027-01-15T08:00:00Z  alice           auth.login              denied     passkey: it is not known�[2J
    3       2027-01-15T08:00:00Z  hypervisor      sandbox.stop            allowed    live (of alice)
    ");
    let ended = person
        .run_words(words(&[
            "choir", "audit", "tail", "-n1", "--json", "--dir", dir,
        ]))
        .await;
    let entry: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&entry["seq"], &entry["subject"]["name"]),
        (&json!(3), &json!("alice"))
    );
}

#[tokio::test]
async fn tail_follows_the_server() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let entries = ledger::Reader::new(log(&person))
        .tail(9, &Filter::default())
        .unwrap();
    let lines: String = entries
        .iter()
        .map(|e| serde_json::to_string(e).unwrap() + "\n")
        .collect();
    plane.answer_text("GET /admin/audit?tail=5&follow=true", &lines);
    let ended = person.run(&plane, "audit tail -n 5 -f").await;
    assert_eq!(
        (ended.code, ended.stdout.lines().count()),
        (0, 4),
        "{}",
        ended.stderr
    );
    let ended = person.run(&plane, "audit tail -n 5 -f --json").await;
    assert_eq!(ended.stdout, lines);
}

#[tokio::test]
async fn verify_works_on_the_files_alone_and_names_the_record() {
    let mut person = Person::new();
    let dir = log(&person);
    let line = words(&["choir", "audit", "verify", "--dir", dir.to_str().unwrap()]);
    let report = verify(&dir).unwrap();
    let show = |ended: super::Ended| {
        format!("exit code {}\n{}{}", ended.code, ended.stdout, ended.stderr)
            .replace(&report.head.to_string(), "HEAD")
            .replace(&report.log.unwrap().to_string(), "LOG")
            .replace(dir.to_str().unwrap(), "DIR")
    };
    assert_snapshot!(show(person.run_words(line.clone()).await), @r"
    exit code 0
    The audit log is whole: 3 records (1 to 3) in 1 segment.
    log:  LOG
    head: HEAD
    ");
    let path = dir.join("segment-00000001.log");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 200;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let ended = person.run_words(line.clone()).await;
    assert_eq!(ended.code, 1);
    assert!(
        ended.stdout.contains("record 2: its bytes were changed")
            || ended.stdout.contains("record 3: its bytes were changed"),
        "{}",
        ended.stdout
    );
    let json = person.run_words([line, words(&["--json"])].concat()).await;
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&json["ok"], &json["fault"]["kind"]),
        (&json!(false), &json!("changed"))
    );
}

#[tokio::test]
async fn verify_without_files_asks_the_server() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let report = verify(&log(&person)).unwrap();
    plane.answer(
        "GET /admin/audit/verify",
        serde_json::to_value(&report).unwrap(),
    );
    let ended = person.run(&plane, "audit verify").await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended
            .stdout
            .starts_with("The audit log is whole: 3 records (1 to 3)"),
        "{}",
        ended.stdout
    );
}

#[tokio::test]
async fn a_directory_without_a_log_says_where_to_look() {
    let mut person = Person::new();
    let empty = person.home.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let line = words(&["choir", "audit", "verify", "--dir", empty.to_str().unwrap()]);
    let ended = person.run_words(line).await;
    assert_snapshot!(ended.stderr.replace(empty.to_str().unwrap(), "DIR"), @r"
    error: the audit log cannot be read
    cause: there is no audit log in DIR
    hint: the log is in the directory `audit` of the hypervisor's data directory
    ");
}

fn install_doctor(person: &Person, script: &str) {
    let path = person.home.path().join("hypervisor");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn doctor_shows_what_the_hypervisor_found() {
    let mut person = Person::new();
    let found = json!({"checks": [
        {"name": "user namespaces", "ok": true, "mandatory": true, "detail": "works"},
        {"name": "seccomp", "ok": false, "mandatory": true, "detail": "the kernel has none",
         "remedy": "use a kernel with CONFIG_SECCOMP_FILTER"},
        {"name": "cgroup limits", "ok": false, "mandatory": false, "detail": "not delegated"},
    ]});
    install_doctor(
        &person,
        &format!("[ \"$*\" = 'doctor --json' ] || exit 9\necho '{found}'; exit 1"),
    );
    let ended = person.run_words(words(&["choir", "doctor"])).await;
    assert_snapshot!(format!("exit code {}\n{}{}", ended.code, ended.stdout, ended.stderr), @r"
    exit code 1
    ok       user namespaces  works
    MISSING  seccomp          the kernel has none
                              hint: use a kernel with CONFIG_SECCOMP_FILTER
    absent   cgroup limits    not delegated

    This machine cannot run sandboxes until what is missing is there.
    ");
    let ended = person
        .run_words(words(&["choir", "doctor", "--json"]))
        .await;
    assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap(), found);
}

#[tokio::test]
async fn doctor_tells_when_there_is_nobody_to_ask() {
    let mut person = Person::new();
    let ended = person.run_words(words(&["choir", "doctor"])).await;
    assert_snapshot!(ended.stderr, @r"
    error: cannot ask the hypervisor's doctor: hypervisor is not next to this program
    hint: `choir doctor` runs on the hypervisor's machine, from the directory of its programs
    ");
    install_doctor(
        &person,
        "echo 'the configuration has an unknown key' >&2; exit 2",
    );
    let ended = person.run_words(words(&["choir", "doctor"])).await;
    assert_snapshot!(ended.stderr, @r"
    error: cannot ask the hypervisor's doctor: the configuration has an unknown key
    hint: `choir doctor` runs on the hypervisor's machine, from the directory of its programs
    ");
}
