use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::collection::btree_map;
use proptest::option;
use proptest::prelude::*;
use types::{CommandId, RequestId, Role, SandboxId, SessionId, StartId, TokenId, UserId};
use uuid::Uuid;

use super::{MAX_RECORD, decode, encode};
use crate::record::{MAX_ACTION, MAX_DETAILS, MAX_KEY, MAX_NAME, MAX_TEXT};
use crate::{Actor, Channel, Outcome, Record, RecordError, User};

fn id() -> impl Strategy<Value = Uuid> {
    any::<[u8; 16]>().prop_map(Uuid::from_bytes)
}

fn user() -> impl Strategy<Value = User> {
    (id(), "[a-z]{0,20}").prop_map(|(id, name)| User {
        id: UserId::from_uuid(id),
        name,
    })
}

fn actor() -> impl Strategy<Value = Actor> {
    prop_oneof![
        Just(Actor::Nobody),
        Just(Actor::Internal),
        user().prop_map(Actor::User),
        (id(), id()).prop_map(|(id, start)| Actor::Sandbox {
            id: SandboxId::from_uuid(id),
            start: StartId::from_uuid(start),
        }),
        (id(), id(), id()).prop_map(|(sandbox, start, command)| Actor::Runner {
            sandbox: SandboxId::from_uuid(sandbox),
            start: StartId::from_uuid(start),
            command: CommandId::from_uuid(command),
        }),
    ]
}

fn channel() -> impl Strategy<Value = Channel> {
    prop_oneof![
        Just(Channel::Public),
        Just(Channel::Socket),
        Just(Channel::Internal),
        id().prop_map(|id| Channel::Session {
            id: SessionId::from_uuid(id)
        }),
        id().prop_map(|id| Channel::Token {
            id: TokenId::from_uuid(id)
        }),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Allowed),
        Just(Outcome::Denied),
        Just(Outcome::Succeeded),
        Just(Outcome::Failed),
    ]
}

prop_compose! {
    fn record()(
        micros in -1_000_000_000_000_000_i64..10_000_000_000_000_000,
        actor in actor(),
        channel in channel(),
        subject in option::of(user()),
        sandbox in option::of(id()),
        role in option::of(prop_oneof![Just(Role::Live), Just(Role::Dev)]),
        action in "[a-z.]{1,64}",
        target in option::of("\\PC{0,40}"),
        outcome in outcome(),
        reason in option::of("\\PC{0,40}"),
        request in option::of(id()),
        details in btree_map("[a-z_]{1,8}", "\\PC{0,20}", 0..MAX_DETAILS),
    ) -> Record {
        Record {
            at: Timestamp::from_microsecond(micros).unwrap(),
            actor,
            channel,
            subject,
            sandbox: sandbox.map(SandboxId::from_uuid),
            role,
            action,
            target,
            outcome,
            reason,
            request_id: request.map(RequestId::from_uuid),
            details,
        }
    }
}

proptest! {
    #[test]
    fn what_was_encoded_decodes(record in record()) {
        prop_assert_eq!(decode(&encode(&record).unwrap()).unwrap(), record);
    }

    #[test]
    fn different_records_have_different_encodings(one in record(), other in record()) {
        prop_assert_eq!(one == other, encode(&one).unwrap() == encode(&other).unwrap());
    }

    #[test]
    fn what_decodes_has_one_encoding(
        record in record(),
        at in any::<prop::sample::Index>(),
        to: u8,
    ) {
        let mut bytes = encode(&record).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(decoded) = decode(&bytes) {
            prop_assert_eq!(encode(&decoded).unwrap(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = decode(&bytes);
    }

    #[test]
    fn every_cut_and_every_addition_is_refused(record in record()) {
        let bytes = encode(&record).unwrap();
        for length in 0..bytes.len() {
            prop_assert!(decode(&bytes[..length]).is_err());
        }
        prop_assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn json_keeps_everything(record in record()) {
        let json = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }
}

fn smallest() -> Record {
    Record::new(
        Timestamp::UNIX_EPOCH,
        Actor::Nobody,
        Channel::Public,
        "a",
        Outcome::Allowed,
    )
}

#[test]
fn the_format_stays_what_it_is() {
    let bytes = encode(&smallest()).unwrap();
    let expected = [
        &[1][..],            // version
        &[0; 8],             // at
        &[0, 0],             // actor, channel
        &[0, 0, 0],          // subject, sandbox, role
        &[0, 0, 0, 1, b'a'], // action
        &[0, 0, 0, 0],       // target, outcome, reason, request
        &[0, 0, 0, 0],       // details
    ]
    .concat();
    assert_eq!(bytes, expected);
}

#[test]
fn the_largest_record_fits() {
    let text = "x".repeat(MAX_TEXT);
    let user = User {
        id: UserId::generate(),
        name: "x".repeat(MAX_NAME),
    };
    let mut record = smallest().for_user(user.clone());
    record.actor = Actor::User(user);
    record.channel = Channel::Session {
        id: SessionId::generate(),
    };
    record.action = "x".repeat(MAX_ACTION);
    record.target = Some(text.clone());
    record.reason = Some(text.clone());
    record.request_id = Some(RequestId::generate());
    record.sandbox = Some(SandboxId::generate());
    record.role = Some(Role::Dev);
    record.details = (0..MAX_DETAILS)
        .map(|n| (format!("{n:0>MAX_KEY$}"), text.clone()))
        .collect();
    assert!(encode(&record).unwrap().len() <= MAX_RECORD);
}

#[test]
fn what_exceeds_a_bound_is_refused() {
    let mut record = smallest();
    record.action = "x".repeat(MAX_ACTION + 1);
    assert_eq!(
        encode(&record),
        Err(RecordError::TooLong {
            field: "action",
            max: MAX_ACTION
        })
    );
    let mut record = smallest();
    record.target = Some("x".repeat(MAX_TEXT + 1));
    assert_eq!(
        encode(&record),
        Err(RecordError::TooLong {
            field: "target",
            max: MAX_TEXT
        })
    );
    let mut record = smallest();
    record.details = (0..=MAX_DETAILS)
        .map(|n| (n.to_string(), String::new()))
        .collect();
    assert_eq!(
        encode(&record),
        Err(RecordError::TooMany { max: MAX_DETAILS })
    );
}

#[test]
fn unsorted_and_repeated_keys_are_refused() {
    let mut record = smallest();
    record.details = BTreeMap::from([
        ("a".to_owned(), String::new()),
        ("b".to_owned(), String::new()),
    ]);
    let bytes = encode(&record).unwrap();
    let (first, second) = (bytes.len() - 14, bytes.len() - 5);
    assert_eq!((bytes[first], bytes[second]), (b'a', b'b'));
    for (one, other) in [(b'b', b'a'), (b'a', b'a')] {
        let mut changed = bytes.clone();
        changed[first] = one;
        changed[second] = other;
        let what = "its details are not in order";
        assert_eq!(decode(&changed), Err(RecordError::Malformed { what }));
    }
}
