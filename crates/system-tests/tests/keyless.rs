//! A sandbox never holds a provider credential, and refuses to start with one (arch §5).

use system_tests::Identity;
use system_tests::walls::Sandbox;

/// Values that only a credential has, under a name that says nothing.
const SHAPED: &str = "sk-0123456789abcdef0123456789abcdef";

#[test]
fn the_guest_refuses_a_credential_by_name_and_by_shape_and_never_says_its_value() {
    for (name, value) in [
        ("OPENAI_API_KEY", "whatever-it-is"),
        ("anthropic_api_key", "whatever-it-is"),
        ("SOMEBODYS_NEW_API_KEY", "whatever-it-is"),
        ("OPENAI_API_KEY", "choirgw_too_short"),
        ("NOTE", SHAPED),
    ] {
        let output = guest_with(name, value);
        assert!(output.contains(name), "{name}: {output}");
        assert!(
            !output.contains(value),
            "the value of {name} is in: {output}"
        );
        assert!(output.contains("credential"), "{name}: {output}");
    }
}

/// The same guest without a credential gets further: it complains about something else.
#[test]
fn without_a_credential_the_guest_does_not_speak_of_one() {
    let output = guest_with("NOTE", "just a word");
    assert!(!output.contains("provider credential"), "{output}");
}

/// What the guest says when it is started with one more variable.
fn guest_with(name: &str, value: &str) -> String {
    let assignment = format!("{name}={value}");
    let sandbox = Sandbox::start(
        Identity::Caller,
        "sandbox",
        &["/usr/bin/env", &assignment, isolation::spec::GUEST_BINARY],
    );
    match sandbox {
        Ok(sandbox) => sandbox.guest_output(),
        Err(refusal) => refusal.to_string(),
    }
}
