use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

use super::*;
use crate::websocket::CloseNotice;

fn frame(opcode: OpCode, payload: Vec<u8>, mask: Option<[u8; 4]>, last: bool) -> Vec<u8> {
    let header = FrameHeader {
        is_final: last,
        opcode,
        mask,
        ..FrameHeader::default()
    };
    let frame = Frame::from_payload(header, payload.into());
    let mut bytes = Vec::new();
    frame.format(&mut bytes).unwrap();
    bytes
}

fn any_frame() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let data = (
        prop_oneof![
            Just(OpCode::Data(Data::Text)),
            Just(OpCode::Data(Data::Binary)),
            Just(OpCode::Data(Data::Continue))
        ],
        prop_oneof![
            0usize..200,
            Just(125),
            Just(126),
            Just(127),
            Just(65_535),
            Just(65_536)
        ],
        any::<Option<[u8; 4]>>(),
        any::<bool>(),
    )
        .prop_map(|(opcode, size, mask, last)| {
            (frame(opcode, vec![0x81; size], mask, last), size > 0)
        });
    let control = (
        prop_oneof![
            Just(OpCode::Control(Control::Ping)),
            Just(OpCode::Control(Control::Pong)),
            Just(OpCode::Control(Control::Close))
        ],
        0usize..=125,
        any::<Option<[u8; 4]>>(),
    )
        .prop_map(|(opcode, size, mask)| (frame(opcode, vec![7; size], mask, true), false));
    prop_oneof![data, control]
}

proptest! {
    #[test]
    fn boundaries_are_found_however_the_stream_is_cut(
        frames in proptest::collection::vec(any_frame(), 1..6),
        cuts in proptest::collection::vec(1usize..5_000, 1..20),
    ) {
        let mut stream = Vec::new();
        let mut ends = vec![0];
        for (bytes, _) in &frames {
            stream.extend_from_slice(bytes);
            ends.push(stream.len());
        }
        let mut tracker = FrameTracker::new();
        let mut at = 0;
        let mut data = false;
        for cut in cuts.iter().cycle() {
            prop_assert_eq!(tracker.at_boundary(), ends.contains(&at));
            if at == stream.len() {
                break;
            }
            let next = (at + cut).min(stream.len());
            let tracked = tracker.feed(&stream[at..next], false);
            prop_assert_eq!(tracked.consumed, next - at);
            data |= tracked.data;
            at = next;
        }
        prop_assert_eq!(data, frames.iter().any(|(_, data)| *data));
    }

    #[test]
    fn stopping_goes_exactly_to_the_next_boundary(
        frames in proptest::collection::vec(any_frame(), 2..5),
        into in 0usize..70_000,
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let into = into.min(stream.len());
        let mut tracker = FrameTracker::new();
        tracker.feed(&stream[..into], false);
        let tracked = tracker.feed(&stream[into..], true);
        let mut end = 0;
        for (bytes, _) in &frames {
            if end >= into {
                break;
            }
            end += bytes.len();
        }
        prop_assert_eq!(into + tracked.consumed, end);
        prop_assert!(tracker.at_boundary());
    }

    #[test]
    fn no_bytes_make_it_panic_or_hold_anything_back(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let mut tracker = FrameTracker::new();
        for chunk in chunks {
            prop_assert_eq!(tracker.feed(&chunk, false).consumed, chunk.len());
        }
    }
}

#[test]
fn a_stream_that_breaks_the_protocol_has_no_boundaries_any_more() {
    for bad in [
        &[0x83, 0x00][..],                       // reserved opcode
        &[0x09, 0x00],                           // fragmented ping
        &[0x89, 126, 0, 126],                    // long ping
        &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], // negative length
    ] {
        let mut tracker = FrameTracker::new();
        tracker.feed(bad, false);
        tracker.feed(&[0x81, 0x00, 0x81, 0x00], false);
        assert!(!tracker.at_boundary(), "{bad:x?}");
    }
}

#[test]
fn a_close_frame_of_ours_is_one_that_others_can_read() {
    let long = "é".repeat(200);
    for (reason, masked) in [
        ("{\"generation\":7}", false),
        ("", true),
        (long.as_str(), true),
    ] {
        let notice = CloseNotice::new(CloseNotice::SERVICE_RESTART, reason);
        let bytes = notice.frame(masked);
        let mut tracker = FrameTracker::new();
        let tracked = tracker.feed(&bytes, false);
        assert!(tracker.at_boundary() && tracker.close_seen() && !tracked.data);
        let mut cursor = std::io::Cursor::new(&bytes);
        let (header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        assert_eq!(header.mask.is_some(), masked);
        let mut payload = bytes[bytes.len() - usize::try_from(length).unwrap()..].to_vec();
        if let Some(mask) = header.mask {
            for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
                *byte ^= key;
            }
        }
        assert_eq!(payload[..2], 1012_u16.to_be_bytes());
        assert_eq!(std::str::from_utf8(&payload[2..]).unwrap(), notice.reason());
    }
}
