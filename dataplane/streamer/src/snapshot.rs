//! What the owner offers to a subscriber that has no backup to restore from.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;

use crate::wire::SnapshotInfo;

/// A replica as bytes; what they mean is agreed between the two who make and restore them.
pub type SnapshotBytes = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Makes consistent snapshots of the owner's replica.
pub trait SnapshotSource: Send + Sync + 'static {
    /// Begins a snapshot. Everything after its version will be kept in the log until the receiver streams.
    fn open(&self) -> BoxFuture<'static, io::Result<(SnapshotInfo, SnapshotBytes)>>;
}
