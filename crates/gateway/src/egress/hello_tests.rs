use super::{Hello, HelloError, MAX_HELLO, inspect};
use proptest::prelude::*;

/// The body of an extension that names hosts.
fn names(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|name| [vec![0], sized16(name)].concat())
        .collect();
    sized16(&list)
}

fn sized16(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), sized16(body)].concat()
}

/// A handshake message with these extensions.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([9; 32]);
    body.extend(sized16(&[0x13, 1, 0x13, 2]));
    body.extend([1, 0]);
    body.extend(sized16(&extensions.concat()));
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [vec![1, length[1], length[2], length[3]], body].concat()
}

/// Records of at most this much each.
fn records(message: &[u8], most: usize) -> Vec<u8> {
    message
        .chunks(most)
        .flat_map(|fragment| [vec![22, 3, 1], sized16(fragment)].concat())
        .collect()
}

fn hello(name: &str) -> Vec<u8> {
    let extensions = [
        extension(0x0a, &[0, 2, 0, 0x1d]),
        extension(0, &names(&[name.as_bytes()])),
        extension(0x2b, &[2, 3, 4]),
    ];
    records(&message(&extensions), 1 << 14)
}

fn named(bytes: &[u8]) -> Option<String> {
    match inspect(bytes) {
        Ok(Hello::Names(name)) => Some(name.to_string()),
        _ => None,
    }
}

#[test]
fn a_hello_says_which_server_it_wants() {
    assert_eq!(named(&hello("crates.io")).as_deref(), Some("crates.io"));
    assert_eq!(named(&hello("CRATES.io")).as_deref(), Some("crates.io"));
}

#[test]
fn split_at_every_byte_it_says_the_same() {
    let whole = hello("static.crates.io");
    for at in 0..whole.len() {
        match inspect(&whole[..at]).unwrap() {
            Hello::Partial(needed) => assert!(needed > at && needed <= whole.len(), "{at}"),
            Hello::Names(name) => panic!("{name} after {at} bytes"),
        }
    }
}

#[test]
fn spread_over_records_of_every_size_it_says_the_same() {
    let message = message(&[extension(0, &names(&[b"static.crates.io"]))]);
    for most in 1..message.len() {
        let bytes = records(&message, most);
        assert_eq!(named(&bytes).as_deref(), Some("static.crates.io"), "{most}");
        // Read as a tunnel does: never asked to wait for more than there is to come.
        let mut have = 0;
        while let Hello::Partial(needed) = inspect(&bytes[..have]).unwrap() {
            assert!(needed > have && needed <= bytes.len());
            have = needed;
        }
    }
}

#[test]
fn what_is_not_tls_is_known_by_its_first_bytes() {
    for text in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00",
        b"\x80\x2e\x01\x03\x01",
        b"\x16\x02\x00",
        b"\x16\x03\x05\x00\x10",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
    ] {
        assert_eq!(inspect(text), Err(HelloError::NotTls), "{text:?}");
    }
    for text in [
        // Another handshake message, known before the record is complete.
        &b"\x16\x03\x01\x00\x10\x02"[..],
        // Another kind of record in the middle of the message.
        b"\x16\x03\x01\x00\x01\x01\x17",
        b"\x15",
    ] {
        let expected = if text[0] == 0x15 {
            HelloError::NotTls
        } else {
            HelloError::Malformed
        };
        assert_eq!(inspect(text), Err(expected), "{text:?}");
    }
}

#[test]
fn a_hello_that_two_servers_could_read_differently_is_refused() {
    let of = |extensions: &[Vec<u8>]| inspect(&records(&message(extensions), 1 << 14));
    let sni = || extension(0, &names(&[b"a.example"]));
    assert_eq!(of(&[]), Err(HelloError::NoName));
    assert_eq!(of(&[extension(0x2b, &[2, 3, 4])]), Err(HelloError::NoName));
    for ech in [0xfe0d, 0xffce] {
        assert_eq!(
            of(&[sni(), extension(ech, &[0])]),
            Err(HelloError::Encrypted)
        );
        assert_eq!(of(&[extension(ech, &[0])]), Err(HelloError::Encrypted));
    }
    let other = extension(0, &names(&[b"b.example"]));
    let mut trailing = names(&[b"a.example"]);
    trailing.push(0);
    let wrong_kind = {
        let mut body = names(&[b"a.example"]);
        body[2] = 1;
        body
    };
    for extensions in [
        vec![sni(), other],
        vec![sni(), extension(0x0a, &[]), extension(0x0a, &[])],
        vec![extension(0, &names(&[b"a.example", b"b.example"]))],
        vec![extension(0, &names(&[]))],
        vec![extension(0, &names(&[b""]))],
        vec![extension(0, &names(&[b"a.example\0"]))],
        vec![extension(0, &names(&[b"a.example."]))],
        vec![extension(0, &names(&[b"a_b.example"]))],
        vec![extension(0, &names(&[b"127.0.0.1"]))],
        vec![extension(0, &names(&["bücher.example".as_bytes()]))],
        vec![extension(0, &trailing)],
        vec![extension(0, &wrong_kind)],
        vec![extension(0, &[])],
        vec![extension(0, &[0, 200, 0, 0, 1, b'a'])],
    ] {
        assert_eq!(
            of(&extensions),
            Err(HelloError::Malformed),
            "{extensions:?}"
        );
    }
    // Another message behind it, in the same record and in the next one's beginning.
    let one = message(&[sni()]);
    let two = [one.clone(), one.clone()].concat();
    assert_eq!(inspect(&records(&two, 1 << 14)), Err(HelloError::Malformed));
    assert_eq!(
        inspect(&records(&two, one.len() + 1)),
        Err(HelloError::Malformed)
    );
    // What follows the record (early data) is not looked at.
    let early = [records(&one, 1 << 14), b"\x17\x03\x03\x00\x01x".to_vec()].concat();
    assert_eq!(named(&early).as_deref(), Some("a.example"));
}

#[test]
fn a_hello_has_a_bound() {
    let padded = |length: usize| {
        let extensions = [
            extension(21, &vec![0; length]),
            extension(0, &names(&[b"a.example"])),
        ];
        records(&message(&extensions), 1 << 14)
    };
    assert!(named(&padded(15_000)).is_some());
    let long = padded(20_000);
    assert_eq!(inspect(&long), Err(HelloError::TooLong));
    // Known as soon as a length says so.
    assert_eq!(
        inspect(&long[..9]),
        Ok(Hello::Partial(5 + (1 << 14))).and(Err(HelloError::TooLong))
    );
    // Tiny records do not stretch it.
    let tiny = records(&message(&[extension(21, &[0; 4000])]), 1);
    assert!(tiny.len() > MAX_HELLO);
    assert_eq!(inspect(&tiny), Err(HelloError::TooLong));
}

proptest! {
    #[test]
    fn no_bytes_confuse_it(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(Hello::Partial(needed)) = inspect(&bytes) {
            prop_assert!(needed > bytes.len() && needed <= MAX_HELLO);
        }
    }

    /// A hello with some bytes changed names its host, or is refused, or waits: never does a
    /// prefix of it name another host than the whole.
    #[test]
    fn a_damaged_hello_has_one_reading(
        most in 1..400_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = records(&message(&[extension(0, &names(&[b"static.crates.io"]))]), most);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let whole = inspect(&bytes);
        let part = inspect(&bytes[..cut.index(bytes.len())]);
        match (part, whole) {
            (Ok(Hello::Names(part)), Ok(Hello::Names(whole))) => prop_assert_eq!(part, whole),
            (Ok(Hello::Names(name)), other) => {
                prop_assert!(false, "{} and then {:?}", name, other);
            }
            (Err(part), whole) => prop_assert!(whole.is_err(), "{:?} and then {:?}", part, whole),
            (Ok(Hello::Partial(_)), _) => {}
        }
    }
}
