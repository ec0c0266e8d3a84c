//! Nodes without a replica: the log is kept for them, and a snapshot comes over the same port.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use streamer::{
    Backup, Error, Reservation, Role, SnapshotBytes, SnapshotInfo, SnapshotSource, Subscriber, fetch_snapshot,
};
use tokio::io::AsyncReadExt;

use crate::harness::{Owner, Relay, database, read_to, server_options, some, subscriber_at, until, v};

/// Made-up bytes, in pieces of many sizes.
struct Source {
    version: u64,
    pieces: Vec<Bytes>,
    /// Breaks instead of ending.
    is_broken: bool,
    open: Arc<AtomicUsize>,
    most_open: Arc<AtomicUsize>,
}

fn pieces(total: usize) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut made = 0;
    for n in 0.. {
        let length = [1, 5000, 70_000, 1_000_000][n % 4].min(total - made);
        if length == 0 {
            break;
        }
        pieces.push((made..made + length).map(|i| (i / 7 % 251) as u8).collect());
        made += length;
    }
    pieces
}

fn source(version: u64, total: usize) -> Source {
    Source { version, pieces: pieces(total), is_broken: false, open: Arc::default(), most_open: Arc::default() }
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SnapshotSource for Source {
    fn open(&self) -> BoxFuture<'static, io::Result<(SnapshotInfo, SnapshotBytes)>> {
        let bytes = self.pieces.iter().map(Bytes::len).sum::<usize>() as u64;
        let info = SnapshotInfo { replica: v(10), version: v(self.version), bytes: Some(bytes) };
        let open = Open(Arc::clone(&self.open));
        let now = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_open.fetch_max(now, Ordering::SeqCst);
        let mut items: Vec<io::Result<Bytes>> = self.pieces.iter().cloned().map(Ok).collect();
        if self.is_broken {
            items.push(Err(io::Error::other("the disk is gone")));
        }
        let stream = stream::iter(items).map(move |item| {
            let _open = &open;
            item
        });
        async move { Ok((info, Box::pin(stream) as SnapshotBytes)) }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_from_a_snapshot() {
    let database = database("snapshot").await;
    let total = 30 << 20;
    let mut owner = Owner::begin_with(&database, server_options(), |options| {
        options.snapshots = Some(Arc::new(source(15, total)));
    })
    .await;
    for n in 11..21 {
        owner.append(&some([n])).await;
    }
    let mut options = owner.subscriber("new");
    options.window_bytes = 1 << 20;
    let (welcome, info, mut reader, reservation) = fetch_snapshot(&options).await.unwrap();
    assert!(welcome.has_snapshot && welcome.backup.is_none());
    assert_eq!(info, SnapshotInfo { replica: v(10), version: v(15), bytes: Some(total as u64) });
    // Not read yet: no more than the window is on its way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(owner.server.metrics.snapshot_bytes_sent.get() < 2 << 20);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).await.unwrap();
    assert!(read == pieces(total).concat(), "{} bytes", read.len());
    // The log is kept from the snapshot on, while the node restores.
    assert_eq!(owner.fanout.floor(), v(15));
    owner.append(&some([21])).await;
    owner.purge(0).await;
    assert_eq!(owner.log.lineage().await.unwrap().unwrap().start, v(15));
    let (_, mut subscriber) = Subscriber::connect(&options, v(10), v(15)).await.unwrap();
    assert_eq!(read_to(&mut subscriber, 21).await.len(), 6);
    until("the position to replace the reservation", || owner.fanout.floor() == v(21)).await;
    drop(reservation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_announced_and_the_log_kept_for_it() {
    let database = database("backup").await;
    let mut owner = Owner::begin(&database).await;
    for n in 11..21 {
        owner.append(&some([n])).await;
    }
    let backup = Backup { url: "s3://bucket/generation".to_owned(), version: v(14) };
    owner.fanout.set_backup(Some(backup.clone()));
    assert_eq!(owner.fanout.floor(), v(14), "whoever restores it needs what follows");
    owner.purge(0).await;
    let (welcome, mut reservation) = Reservation::open(&owner.subscriber("new")).await.unwrap();
    assert_eq!((welcome.start, welcome.backup.clone()), (v(14), Some(backup)));
    assert!(welcome.backup.unwrap().reaches(welcome.start));
    // The backup moves on while the node still restores the old state.
    owner.fanout.set_backup(Some(Backup { url: "s3://bucket/generation".to_owned(), version: v(19) }));
    owner.purge(0).await;
    assert_eq!(owner.fanout.floor(), v(14));
    let error = reservation.fetch().await.err().unwrap();
    assert!(matches!(error, Error::Configuration { .. }), "there is no snapshot to fetch: {error}");
    until("the reservation to end", || owner.fanout.floor() == v(19)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_ends_with_its_socket_and_with_time() {
    let database = database("reservation").await;
    let mut owner = Owner::begin_with(&database, server_options(), |options| {
        options.reservation_age_max = Duration::from_millis(700);
    })
    .await;
    owner.append(&some(11..21)).await;
    let (_, reservation) = Reservation::open(&owner.subscriber("a")).await.unwrap();
    assert_eq!(owner.fanout.floor(), v(10));
    drop(reservation);
    until("the socket to be gone", || owner.fanout.floor() == v(20)).await;
    let (_, reservation) = Reservation::open(&owner.subscriber("b")).await.unwrap();
    assert_eq!(owner.fanout.floor(), v(10));
    let error = reservation.lost().await;
    assert!(error.to_string().contains("expired"), "{error}");
    assert_eq!(owner.fanout.floor(), v(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_snapshot_is_an_error() {
    let database = database("cut_snapshot").await;
    let owner = Owner::begin_with(&database, server_options(), |options| {
        options.snapshots = Some(Arc::new(source(10, 3 << 20)));
    })
    .await;
    for budget in [300_000, 1_500_000, (3 << 20) - 1, 3 << 20] {
        let relay = Relay::start(owner.server.address, move || Some(budget)).await;
        let (_, _, mut reader, _reservation) = match fetch_snapshot(&subscriber_at(relay.address, "n")).await {
            Ok(begun) => begun,
            // The cut may overtake the beginning.
            Err(Error::Transient { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        let mut read = Vec::new();
        let error = reader.read_to_end(&mut read).await.expect_err("the end is missing");
        assert!((read.len() as u64) < budget, "{} {error}", read.len());
    }
    let broken = Source { is_broken: true, ..source(10, 100_000) };
    let owner = Owner::take_over(&database, "broken", server_options(), |options| {
        options.snapshots = Some(Arc::new(broken));
    })
    .await;
    let (_, _, mut reader, reservation) = fetch_snapshot(&owner.subscriber("n")).await.unwrap();
    reader.read_to_end(&mut Vec::new()).await.expect_err("it broke");
    assert!(matches!(reservation.lost().await, Error::Transient { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_snapshots_are_sent_at_once() {
    let database = database("few_snapshots").await;
    let source = source(10, 8 << 20);
    let (open, most_open) = (Arc::clone(&source.open), Arc::clone(&source.most_open));
    let mut owner = Owner::begin_with(&database, server_options(), |options| {
        options.snapshots = Some(Arc::new(source));
        options.snapshots_max = 2;
    })
    .await;
    let nodes: Vec<_> = (0..6)
        .map(|n| {
            let mut options = owner.subscriber(&format!("n{n}"));
            options.window_bytes = 1 << 20;
            tokio::spawn(async move {
                let (_, _, mut reader, _reservation) = fetch_snapshot(&options).await.unwrap();
                let mut total = 0;
                while let Some(bytes) = reader.next().await {
                    total += bytes.unwrap().len();
                }
                total
            })
        })
        .collect();
    for node in nodes {
        assert_eq!(node.await.unwrap(), 8 << 20);
    }
    assert_eq!(most_open.load(Ordering::SeqCst), 2);
    until("all to be closed", || open.load(Ordering::SeqCst) == 0).await;
    let (_, reservation) = Reservation::open(&owner.subscriber("x")).await.unwrap();
    owner.server.gate.set(Role::Standby { owner: "other:4849".to_owned(), is_ready: true });
    assert!(matches!(reservation.lost().await, Error::Transient { owner: Some(_), .. }));
    assert!(owner.server.stop().await.is_graceful);
}
