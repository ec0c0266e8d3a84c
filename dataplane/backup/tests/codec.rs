//! The file format: golden bytes, round trips, and anything but panics on damage.

use std::collections::BTreeMap;

use backup::ltx::{Decoder, Encoder, Header, lock_page, merge};
use backup::{Error, Txid};
use proptest::prelude::*;

fn header(min: u64, max: u64, commit: u32) -> Header {
    Header { page_size: 512, commit, min: Txid::new(min), max: Txid::new(max), timestamp_ms: 1000, version: 7 }
}

fn encode(header: Header, pages: &BTreeMap<u32, Vec<u8>>) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (&number, page) in pages {
        encoder.page(number, page).unwrap();
    }
    let (bytes, size) = encoder.finish().unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

fn decode(bytes: &[u8]) -> Result<(Header, BTreeMap<u32, Vec<u8>>), Error> {
    let mut decoder = Decoder::new(bytes, "the file")?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size as usize];
    let mut pages = BTreeMap::new();
    while let Some(number) = decoder.page(&mut page)? {
        pages.insert(number, page.clone());
    }
    decoder.finish()?;
    Ok((header, pages))
}

fn is_damaged(bytes: &[u8]) -> bool {
    matches!(decode(bytes), Err(Error::Damaged { .. }))
}

#[test]
fn golden_bytes() {
    let pages = BTreeMap::from([(1, vec![0; 512]), (2, (0..512).map(|i| (i % 3) as u8).collect())]);
    let bytes = encode(header(1, 0x0000_0100_0000_0002, 2), &pages);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let expected = concat!(
        // header: magic, flags, page size, commit, range, time, no checksum, no place in a WAL, version, padding
        "4c545831",
        "00000002",
        "00000200",
        "00000002",
        "0000000000000001",
        "0000010000000002",
        "00000000000003e8",
        "0000000000000000",
        "0000000000000000",
        "0000000000000000",
        "00000000",
        "00000000",
        "0000000000000007",
        "0000000000000000000000000000000000000000",
    );
    assert_eq!(&hex[..200], expected);
    assert_eq!(&hex[200..212], "000000010001");
    // The end of the pages, the index (1, 100, ...), its size, no checksum of the database.
    let size = u32::from_str_radix(&hex[212..220], 16).unwrap() as usize;
    assert_eq!(&hex[220 + 2 * size..220 + 2 * size + 12], "000000020001");
    assert_eq!(&hex[hex.len() - 32..hex.len() - 16], "0000000000000000");
    assert_eq!(hex, std::fs::read_to_string("tests/golden.hex").unwrap_or_default().trim(), "the format changed");
}

#[test]
fn the_lock_page_is_left_out() {
    assert_eq!(lock_page(4096), 262_145);
    let mut encoder = Encoder::new(Vec::new(), header(5, 5, 4_000_000)).unwrap();
    assert!(encoder.page(lock_page(512), &[1; 512]).is_err());
    assert!(encoder.page(lock_page(512) + 1, &[1; 512]).is_ok());
}

#[test]
fn a_snapshot_must_be_complete() {
    let mut encoder = Encoder::new(Vec::new(), header(1, 5, 3)).unwrap();
    encoder.page(1, &[1; 512]).unwrap();
    assert!(encoder.page(3, &[1; 512]).is_err());
    assert!(encoder.finish().is_err());
    // As if a page had been cut out with everything else in order.
    let pages = BTreeMap::from([(1, vec![1; 512]), (2, vec![2; 512])]);
    let mut bytes = encode(header(1, 5, 2), &pages);
    bytes[15] = 3;
    assert!(decode(&bytes).unwrap_err().to_string().contains("ends after page 2 of 3"));
}

fn pages(commit: u32) -> impl Strategy<Value = BTreeMap<u32, Vec<u8>>> {
    let page = prop_oneof![
        any::<u8>().prop_map(|b| vec![b; 512]),
        prop::collection::vec(any::<u8>(), 512),
        any::<u8>().prop_map(|b| (0..512).map(|i| if i % 5 == 0 { b } else { i as u8 }).collect::<Vec<u8>>()),
    ];
    prop::collection::btree_map(1..=commit, page, 1..12)
}

proptest! {
    #[test]
    fn what_is_written_is_read(pages in pages(40)) {
        let header = header(3, 9, 40);
        prop_assert_eq!(decode(&encode(header, &pages)).unwrap(), (header, pages));
    }

    #[test]
    fn damage_is_found(pages in pages(40), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut bytes = encode(header(3, 9, 40), &pages);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        // A page can be packed in several ways: damage that unpacks to the same changes nothing.
        match decode(&bytes) {
            Err(Error::Damaged { offset, .. }) => prop_assert!(offset <= bytes.len() as u64),
            Err(error) => prop_assert!(false, "{error}"),
            Ok((found, same)) => prop_assert!(found == header(3, 9, 40) && same == pages, "damage at {at} is not found"),
        }
    }

    #[test]
    fn a_part_is_no_file(pages in pages(40), at in any::<prop::sample::Index>()) {
        let bytes = encode(header(3, 9, 40), &pages);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert!(is_damaged(cut));
        let longer = [&bytes[..], b"x"].concat();
        prop_assert!(is_damaged(&longer));
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..600), keeps_header in any::<bool>()) {
        let bytes = if keeps_header {
            let whole = encode(header(3, 9, 40), &BTreeMap::from([(1, vec![0; 512])]));
            [&whole[..100], &noise].concat()
        } else {
            noise
        };
        prop_assert!(is_damaged(&bytes));
    }

    /// Merging equals applying one after the other.
    #[test]
    fn merging_keeps_the_newest(
        parts in prop::collection::vec((1..=40_u32).prop_flat_map(|commit| (Just(commit), pages(commit))), 1..5),
    ) {
        let mut expected = BTreeMap::new();
        let mut files = Vec::new();
        for (i, (commit, pages)) in parts.iter().enumerate() {
            let n = 10 + i as u64;
            files.push(encode(header(n, n, *commit), pages));
            expected.extend(pages.clone());
            expected.retain(|number, _| number <= commit);
        }
        let inputs = files.iter().map(|f| Decoder::new(&f[..], "a part").unwrap()).collect();
        let (merged, _) = merge(inputs, Vec::new()).unwrap();
        let (found, pages) = decode(&merged).unwrap();
        prop_assert_eq!((found.min, found.max), (Txid::new(10), Txid::new(9 + parts.len() as u64)));
        prop_assert_eq!(found.commit, parts.last().unwrap().0);
        // What was cut off and added again keeps its old content where nobody wrote it: nothing refers to it.
        for (number, page) in &expected {
            prop_assert_eq!(&pages[number], page);
        }
    }
}
