//! The wire format: the first version as recorded bytes, and what is refused.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use streamer::wire::{
    Backup, FromOwner, FromSubscriber, Hello, PageFrame, Refusal, SnapshotInfo, Welcome, negotiate, parse_versions,
    print_versions,
};

use crate::harness::{bytes, transaction, v};

/// Recorded when version 1 was made. Nodes of that version exist: a change here needs a new version beside it.
const RECORDED: &str = include_str!("wire_v1.txt");

fn subscriber_frames() -> Vec<(&'static str, FromSubscriber)> {
    let hello = Hello {
        app: "zero".to_owned(),
        shard: 3,
        node: "node-1".to_owned(),
        replica: Some(v(0x0102_0304)),
        after: v(0x1112_1314_1516),
        window: 16 << 20,
    };
    vec![
        ("hello", FromSubscriber::Hello(hello.clone())),
        ("hello-without-replica", FromSubscriber::Hello(Hello { replica: None, after: v(0), ..hello })),
        ("ack", FromSubscriber::Ack { applied: v(0xa1a2), consumed: 0xb1b2_b3b4_b5b6 }),
        ("fetch", FromSubscriber::Fetch),
    ]
}

fn owner_frames() -> Vec<(&'static str, FromOwner)> {
    let welcome = Welcome {
        epoch: 7,
        replica: v(0x0102_0304),
        start: v(0x0506),
        head: v(0x0708),
        backup: Some(Backup { url: "s3://bucket/path".to_owned(), version: v(0x0607) }),
        has_snapshot: true,
        owner_clock_us: 1_700_000_000_000_000,
    };
    let body = Bytes::from(bytes(&transaction(0x21, 1, "é")));
    let page = PageFrame { first: v(0x20), last: v(0x21), is_start: true, is_end: true, body };
    let text = || "why".to_owned();
    vec![
        ("welcome", FromOwner::Welcome(welcome.clone())),
        ("welcome-bare", FromOwner::Welcome(Welcome { backup: None, has_snapshot: false, ..welcome })),
        ("page", FromOwner::Page(page.clone())),
        (
            "page-middle",
            FromOwner::Page(PageFrame { is_start: false, is_end: false, body: Bytes::from_static(b"xyz"), ..page }),
        ),
        ("head", FromOwner::Head { head: v(0x31), owner_clock_us: -1 }),
        (
            "snapshot-start",
            FromOwner::SnapshotStart(SnapshotInfo { replica: v(0x41), version: v(0x42), bytes: Some(0x43) }),
        ),
        ("snapshot-data", FromOwner::SnapshotData(Bytes::from_static(b"\x00\x01\x02"))),
        ("snapshot-end", FromOwner::SnapshotEnd { bytes: 3 }),
        ("too-old", FromOwner::Refused(Refusal::TooOld { start: v(0x51) })),
        ("other-replica", FromOwner::Refused(Refusal::OtherReplica { replica: v(0x52) })),
        ("ahead", FromOwner::Refused(Refusal::Ahead { head: v(0x53) })),
        ("other-app", FromOwner::Refused(Refusal::OtherApp { app: "zero/0".to_owned() })),
        ("not-owner", FromOwner::Refused(Refusal::NotOwner { owner: "rm:4849".to_owned() })),
        ("starting", FromOwner::Refused(Refusal::Starting)),
        ("draining", FromOwner::Refused(Refusal::Draining)),
        ("stalled", FromOwner::Refused(Refusal::Stalled { reason: text() })),
        ("expired", FromOwner::Refused(Refusal::Expired)),
        ("busy", FromOwner::Refused(Refusal::Busy { reason: text() })),
        ("no-snapshot", FromOwner::Refused(Refusal::NoSnapshot)),
        ("protocol", FromOwner::Refused(Refusal::Protocol { reason: text() })),
        ("of-a-newer-peer", FromOwner::Refused(Refusal::Other { code: 200, reason: text() })),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn version_1_is_as_recorded() {
    let ours = subscriber_frames().into_iter().map(|(name, frame)| (name, frame.encode()));
    let theirs = owner_frames().into_iter().map(|(name, frame)| (name, frame.encode()));
    let now: String = ours.chain(theirs).map(|(name, frame)| format!("{name}: {}\n", hex(&frame))).collect();
    if std::env::var_os("ZERO_RECORD_WIRE").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire_v1.txt"), &now).unwrap();
    }
    assert_eq!(now, RECORDED);
}

#[test]
fn recorded_frames_are_read() {
    for (name, frame) in subscriber_frames() {
        assert_eq!(FromSubscriber::decode(frame.encode()).unwrap(), frame, "{name}");
    }
    for (name, frame) in owner_frames() {
        assert_eq!(FromOwner::decode(frame.encode()).unwrap(), frame, "{name}");
    }
}

/// Nodes that speak version 2 exist as well.
#[test]
fn version_2_adds_one_frame() {
    let frame = FromOwner::Abreast { version: v(0x61) };
    assert_eq!(hex(&frame.encode()), "886100000000000000");
    assert_eq!(FromOwner::decode(frame.encode()).unwrap(), frame);
    for end in 0..9 {
        assert!(FromOwner::decode(frame.encode().slice(..end)).is_err(), "cut to {end}");
    }
    assert!(FromOwner::decode(Bytes::from([&frame.encode()[..], b"x"].concat())).is_err());
}

#[test]
fn frames_are_read_to_their_end() {
    let has_body = |name: &str| name.starts_with("page") || name == "snapshot-data";
    for (name, frame) in owner_frames().into_iter().map(|(name, frame)| (name, frame.encode())) {
        for end in 0..frame.len() {
            let is_body = has_body(name) && (end >= 18 || name == "snapshot-data" && end > 0);
            assert_eq!(FromOwner::decode(frame.slice(..end)).is_ok(), is_body, "{name} cut to {end}");
        }
        let longer = Bytes::from([&frame[..], b"x"].concat());
        assert_eq!(FromOwner::decode(longer).is_ok(), has_body(name), "{name}");
    }
    for (name, frame) in subscriber_frames().into_iter().map(|(name, frame)| (name, frame.encode())) {
        for end in 0..frame.len() {
            assert!(FromSubscriber::decode(frame.slice(..end)).is_err(), "{name} cut to {end}");
        }
        assert!(FromSubscriber::decode(Bytes::from([&frame[..], b"x"].concat())).is_err(), "{name}");
    }
}

#[test]
fn the_highest_common_version_is_chosen() {
    for (ours, theirs, chosen) in [
        (1..=1, 1..=1, Some(1)),
        (1..=2, 1..=1, Some(1)),
        (1..=1, 1..=2, Some(1)),
        (1..=2, 2..=3, Some(2)),
        (2..=3, 2..=3, Some(3)),
        (1..=1, 2..=3, None),
        (3..=4, 1..=2, None),
    ] {
        assert_eq!(negotiate(&ours, &theirs), chosen, "{ours:?} {theirs:?}");
        assert_eq!(parse_versions(&print_versions(&ours)), Some(ours));
    }
    assert_eq!(parse_versions("4"), Some(4..=4));
    for bad in ["", "-", "2-1", "1-", "x", "1-2-3", "-1", "99999"] {
        assert_eq!(parse_versions(bad), None, "{bad}");
    }
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let frame = FromOwner::Refused(Refusal::Busy { reason: "é".repeat(40_000) }).encode();
    let Ok(FromOwner::Refused(Refusal::Busy { reason })) = FromOwner::decode(frame) else { panic!() };
    assert_eq!(reason, "é".repeat(2048));
}

proptest! {
    #[test]
    fn garbage_never_panics(garbage in vec(any::<u8>(), 0..80), kind in 0x80_u8..0x8a) {
        let _ = FromSubscriber::decode(Bytes::from(garbage.clone()));
        let _ = FromOwner::decode(Bytes::from(garbage.clone()));
        let framed = [&[kind][..], &garbage].concat();
        let _ = FromOwner::decode(Bytes::from(framed));
        let framed = [&[kind - 0x80][..], &garbage].concat();
        let _ = FromSubscriber::decode(Bytes::from(framed));
    }
}
