use types::{CommandExit, CommandId, TerminalSize};

use super::{
    Decoder, Event, Frame, MAX_DATA, MAX_JSON, Message, ProtocolError, Refusal, Reply, Request,
    Signal, Stream, encode_data, encode_json,
};
use crate::spec::Nonce;

#[test]
fn frames_survive_any_split() {
    let mut bytes = encode_json(&Request::Hello {
        nonce: Nonce::new("ab".into()),
    })
    .unwrap();
    bytes.extend(encode_data(Stream::Stderr, 7, b"hello").unwrap());
    bytes.extend(encode_json(&Request::Runners {}).unwrap());
    for split in 0..=bytes.len() {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for part in [&bytes[..split], &bytes[split..]] {
            decoder.feed(part);
            while let Some(frame) = decoder.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(frames.len(), 3);
        assert_eq!(
            frames[1],
            Frame::Data {
                stream: Stream::Stderr,
                offset: 7,
                bytes: b"hello".to_vec()
            }
        );
        assert_eq!(decoder.pending(), 0);
    }
}

#[test]
fn refuses_what_is_no_frame() {
    let broken = |bytes: &[u8]| {
        let mut decoder = Decoder::new();
        decoder.feed(bytes);
        decoder.next_frame().unwrap_err()
    };
    assert!(matches!(broken(&[0, 0, 0, 0]), ProtocolError::TooShort));
    assert!(matches!(broken(&[0xff; 8]), ProtocolError::TooLong { .. }));
    assert!(matches!(
        broken(&[0, 0, 0, 2, b'X', 0]),
        ProtocolError::Kind(b'X')
    ));
    assert!(matches!(
        broken(&[0, 0, 0, 3, b'D', 1, 0]),
        ProtocolError::TooShort
    ));
    assert!(matches!(
        broken(&[0, 0, 0, 10, b'D', 9, 0, 0, 0, 0, 0, 0, 0, 0]),
        ProtocolError::Stream(9)
    ));
    let long = u32::try_from(MAX_DATA + 11).unwrap().to_be_bytes();
    assert!(matches!(
        broken(&[long[0], long[1], long[2], long[3], b'D']),
        ProtocolError::TooLong { .. }
    ));
    let long = u32::try_from(MAX_JSON + 2).unwrap().to_be_bytes();
    assert!(matches!(broken(&long), ProtocolError::TooLong { .. }));
    assert!(encode_data(Stream::Stdin, 0, &vec![0; MAX_DATA + 1]).is_err());
}

#[test]
fn messages_have_their_documented_shape() {
    let id = CommandId::generate();
    let text = |value: &dyn erased::Json| value.json();
    assert_eq!(
        text(&Request::Resize(TerminalSize { cols: 80, rows: 24 })),
        r#"{"op":"resize","cols":80,"rows":24}"#
    );
    assert_eq!(text(&Request::CloseStdin {}), r#"{"op":"close_stdin"}"#);
    assert_eq!(
        text(&Request::Signal {
            command_id: id,
            signal: Signal::Kill
        }),
        format!(r#"{{"op":"signal","command_id":"{id}","signal":"kill"}}"#)
    );
    assert_eq!(
        text(&Reply::Attached { offset: 3, end: 7 }),
        r#"{"ok":"attached","offset":3,"end":7}"#
    );
    assert_eq!(text(&Reply::Done), r#"{"ok":"done"}"#);
    assert_eq!(
        text(&Refusal::new("not_found", "no such runner")),
        r#"{"error":"not_found","message":"no such runner"}"#
    );
}

#[test]
fn a_client_can_tell_replies_events_and_refusals_apart() {
    let parse = |text: &str| Message::parse(text.as_bytes()).unwrap();
    assert_eq!(parse(r#"{"ok":"done"}"#), Message::Reply(Reply::Done));
    assert_eq!(parse(r#"{"ok":"channel"}"#), Message::Reply(Reply::Channel));
    assert_eq!(
        parse(r#"{"event":"guest_exited","exit":{"code":0,"signal":null}}"#),
        Message::Event(Event::GuestExited {
            exit: CommandExit {
                code: Some(0),
                ..CommandExit::default()
            }
        })
    );
    assert_eq!(
        parse(r#"{"error":"x","message":"y","hint":"z"}"#),
        Message::Refusal(Refusal::new("x", "y").with_hint("z"))
    );
    assert!(Request::parse(br#"{"op":"channel","extra":1}"#).is_err());
}

#[test]
fn no_bytes_make_the_decoder_panic_or_hoard() {
    let valid = [
        encode_json(&Request::Runners {}).unwrap(),
        encode_data(Stream::Stdout, 9, b"some output").unwrap(),
    ]
    .concat();
    // A fixed sequence of pseudo-random numbers (Knuth's constants), so that a failure repeats.
    let mut state = 1_u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    };
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..=random() % 3 {
            let at = random() % bytes.len();
            bytes[at] = random().to_le_bytes()[0];
        }
        bytes.truncate(random() % (valid.len() + 1));
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        while let Ok(Some(frame)) = decoder.next_frame() {
            if let Frame::Json(body) = frame {
                let _ = (Request::parse(&body), Message::parse(&body));
            }
        }
        assert!(decoder.pending() <= bytes.len());
    }
}

mod erased {
    pub(super) trait Json {
        fn json(&self) -> String;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> String {
            serde_json::to_string(self).unwrap()
        }
    }
}
