//! The owner's side of a reservation: the log is kept while a node restores, and a snapshot is sent if it asks for one.

use bytes::Bytes;
use futures_util::StreamExt;
use rows::Version;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::fanout::{Fanout, Membership};
use crate::line::{Account, Counted, End, Line, Pace, Progress};
use crate::socket::{Sink, Source, receive};
use crate::wire::{FromOwner, FromSubscriber, Refusal};

/// A snapshot travels in pieces of at most this size.
const PIECE_BYTES: usize = 256 * 1024;

/// Serves a welcomed reservation until it ends.
pub(crate) async fn hold<S>(
    sink: &mut Sink<S>,
    source: &mut Source<S>,
    fanout: &Fanout,
    membership: &Membership,
    window: u64,
    pace: Pace,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _counted = Counted::new(fanout.metrics().reservations.clone());
    let account = Account::new(Version::ZERO);
    let fetch = Notify::new();
    let reading = async {
        let mut is_asked = false;
        loop {
            match receive(source, pace.silence_max).await.map(FromSubscriber::decode) {
                Ok(Ok(FromSubscriber::Ack { consumed, .. })) => {
                    if let Err(end) = account.note(Progress { applied: Version::ZERO, consumed }) {
                        return end;
                    }
                }
                Ok(Ok(FromSubscriber::Fetch)) if !is_asked => {
                    is_asked = true;
                    fetch.notify_one();
                }
                Ok(Ok(_)) => return End::protocol("a reservation fetches once and acknowledges"),
                Ok(Err(error)) => return End::protocol(&error.to_string()),
                Err(ended) => return ended.into(),
            }
        }
    };
    let mut line = Line::new(sink, fanout, &account, window, pace.heartbeat);
    let sending = async {
        let outcome = async {
            line.attend(fetch.notified()).await?;
            snapshot(&mut line, fanout, membership).await?;
            // The node restores now; its socket keeps the log.
            line.attend(std::future::pending::<End>()).await
        };
        outcome.await.unwrap_or_else(|end| end)
    };
    tokio::select! {
        end = reading => end,
        end = sending => end,
        refusal = account.stalled(pace.stall_max) => End::Refused(refusal),
        () = tokio::time::sleep(fanout.reservation_age_max()) => End::Refused(Refusal::Expired),
    }
}

async fn snapshot<S>(line: &mut Line<'_, S>, fanout: &Fanout, membership: &Membership) -> Result<(), End>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (source, permits) = fanout.snapshots().ok_or(Refusal::NoSnapshot)?;
    let _permit = line.attend(permits.acquire_owned()).await?.map_err(|_| Refusal::NoSnapshot)?;
    let _counted = Counted::new(fanout.metrics().snapshots.clone());
    let failed = |error: std::io::Error| {
        tracing::error!(%error, "make a snapshot for another node");
        Refusal::Busy { reason: "the snapshot cannot be made".to_owned() }
    };
    let (info, mut bytes) = line.attend(source.open()).await?.map_err(failed)?;
    membership.advance(info.version);
    tracing::info!(version = %info.version, "sending a snapshot to another node");
    line.feed(FromOwner::SnapshotStart(info).encode()).await?;
    let mut total = 0;
    while let Some(more) = line.attend(bytes.next()).await? {
        let mut more = more.map_err(failed)?;
        while !more.is_empty() {
            let piece: Bytes = more.split_to(more.len().min(PIECE_BYTES));
            total += piece.len() as u64;
            fanout.metrics().snapshot_bytes_sent.inc_by(piece.len() as u64);
            line.feed(FromOwner::SnapshotData(piece).encode()).await?;
        }
    }
    tracing::info!(bytes = total, "sent the snapshot");
    line.feed(FromOwner::SnapshotEnd { bytes: total }.encode()).await?;
    line.flush().await
}
