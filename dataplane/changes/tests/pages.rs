//! Pages: encoded once, handed out as they are, bounded in bytes.

use changes::{Batch, Cursor, Error, Log, PAGE_BYTES, Page, Reader, decode_all};

use crate::{owner, start, table, transaction, v};

async fn pages_after(reader: &Reader, after: u64, bytes_max: usize) -> Vec<Page> {
    let mut cursor = Cursor::after(v(after));
    let mut all = Vec::new();
    loop {
        let chunk = reader.pages(&mut cursor, bytes_max).await.unwrap();
        let bytes: usize = chunk.pages.iter().map(|page| page.body.len()).sum();
        assert!(bytes < bytes_max.max(1) + PAGE_BYTES, "{bytes}");
        if chunk.pages.is_empty() {
            assert_eq!(cursor.version(), chunk.lineage.last);
            return all;
        }
        all.extend(chunk.pages);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_get_the_pages_that_were_appended() {
    let fixture = start();
    let table = table();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    let large = "y".repeat(1 << 20);
    let batches = [
        Batch::encode(&(11..31).map(|n| transaction(&table, n, 3, "x")).collect::<Vec<_>>()).unwrap(),
        Batch::encode(&[transaction(&table, 31, 1, "x"), transaction(&table, 32, 5, &large)]).unwrap(),
        Batch::encode(&[transaction(&table, 33, 1, "x")]).unwrap(),
    ];
    for batch in &batches {
        log.append_batch(batch).await.unwrap();
    }
    let appended: Vec<Page> = batches.iter().flat_map(|batch| batch.pages().to_vec()).collect();
    assert!(appended.iter().any(|page| !page.is_end), "one is in parts");
    assert_eq!(batches[1].range(), Some((v(31), v(32))));
    let reader = Reader::open(&fixture.options).await.unwrap();
    for bytes_max in [0, 1000, PAGE_BYTES, 3 * PAGE_BYTES, 1 << 30] {
        assert_eq!(pages_after(&reader, 10, bytes_max).await, appended, "{bytes_max}");
        // From within a page: the whole page.
        assert_eq!(pages_after(&reader, 31, bytes_max).await, appended[1..], "{bytes_max}");
        assert_eq!(pages_after(&reader, 33, bytes_max).await, []);
    }
    let versions: Vec<u64> = decode_all(&appended).unwrap().iter().map(|t| t.version.as_u64()).collect();
    assert_eq!(versions, (11..34).collect::<Vec<_>>());
    assert!(decode_all(&appended[..2]).is_err(), "a page without its end is no page");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_purged_while_it_is_read_is_missed() {
    let fixture = start();
    let table = table();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    log.append(&[transaction(&table, 11, 4, &"y".repeat(1 << 20))]).await.unwrap();
    let reader = Reader::open(&fixture.options).await.unwrap();
    let mut cursor = Cursor::after(v(10));
    let chunk = reader.pages(&mut cursor, 1).await.unwrap();
    assert!(!chunk.pages[0].is_end);
    assert_eq!((chunk.lineage.replica, chunk.lineage.start, chunk.lineage.last), (v(10), v(10), v(11)));
    log.purge(v(11), 0).await.unwrap();
    let missed = reader.pages(&mut cursor, 1).await;
    assert!(matches!(missed, Err(Error::TooOld { .. })), "{missed:?}");
}

#[test]
fn versions_must_ascend() {
    let table = table();
    for (a, b) in [(2, 1), (2, 2)] {
        let some = [transaction(&table, a, 1, "x"), transaction(&table, b, 1, "x")];
        assert!(matches!(Batch::encode(&some), Err(Error::OutOfOrder { .. })));
    }
    assert!(Batch::encode(&[]).unwrap().is_empty());
}
