//! The owner's side of one subscriber: catch-up from the log, then live from the ring, and back if it falls behind.

use std::sync::atomic::Ordering;

use changes::Cursor;
use rows::Version;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::fanout::{Fanout, Membership, unreadable};
use crate::line::{Account, Counted, End, Line, Pace, Progress};
use crate::ring::{Entry, Taken};
use crate::socket::{Sink, Source, receive};
use crate::wire::{FromSubscriber, Refusal};

/// Read from the log at once, and held per subscriber that catches up.
const CHUNK_BYTES: usize = 2 << 20;
/// Taken from the ring at once.
const BURST_BYTES: usize = 1 << 20;

/// Streams to a welcomed subscriber that has everything up to `after`, until the first of reading, sending and the watch on progress
/// ends. `behind` says whether the owner is yet to get where upstream is, to one who wants to know.
pub(crate) async fn stream<S>(
    sink: &mut Sink<S>,
    source: &mut Source<S>,
    fanout: &Fanout,
    membership: &Membership,
    (after, window): (Version, u64),
    behind: Option<watch::Receiver<bool>>,
    pace: Pace,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let account = Account::new(after);
    let reading = async {
        loop {
            match receive(source, pace.silence_max).await.map(FromSubscriber::decode) {
                Ok(Ok(FromSubscriber::Ack { applied, consumed })) => {
                    if let Err(end) = account.note(Progress { applied, consumed }) {
                        return end;
                    }
                    membership.advance(applied);
                }
                Ok(Ok(_)) => return End::protocol("a subscriber sends acknowledgements only"),
                Ok(Err(error)) => return End::protocol(&error.to_string()),
                Err(ended) => return ended.into(),
            }
        }
    };
    let line = Line::new(sink, fanout, &account, window, pace.heartbeat).telling(behind);
    let mut sender = Sender { line, fanout, account: &account, at: after };
    tokio::select! {
        end = reading => end,
        end = sender.run() => end,
        refusal = account.stalled(pace.stall_max) => End::Refused(refusal),
    }
}

struct Sender<'a, S> {
    line: Line<'a, S>,
    fanout: &'a Fanout,
    account: &'a Account,
    /// The last version whose page was sent to its end.
    at: Version,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sender<'_, S> {
    async fn run(&mut self) -> End {
        loop {
            let turn = match self.fanout.join(self.at) {
                Some(next) => self.live(next).await,
                None => self.catch_up().await,
            };
            if let Err(end) = turn {
                return end;
            }
        }
    }

    /// Sends from the ring until what comes next has left it.
    async fn live(&mut self, mut next: u64) -> Result<(), End> {
        let _counted = Counted::new(self.fanout.metrics().subscribers.with_label_values(&["live"]));
        let mut published = self.fanout.published();
        loop {
            published.borrow_and_update();
            match self.fanout.take(&mut next, BURST_BYTES) {
                Taken::Fallen => return Ok(()),
                Taken::Entries(entries) => {
                    // The log may have been read beyond what was published then.
                    for entry in entries {
                        if entry.last > self.at {
                            self.page(entry).await?;
                        }
                    }
                }
                // The sender lives as long as the fanout.
                Taken::Nothing => drop(self.line.attend(published.changed()).await?),
            }
        }
    }

    /// Sends from the log until the ring has what follows.
    async fn catch_up(&mut self) -> Result<(), End> {
        let _counted = Counted::new(self.fanout.metrics().subscribers.with_label_values(&["catch_up"]));
        let reader = self.fanout.reader();
        let mut cursor = Cursor::after(self.at);
        loop {
            let read = self.line.attend(reader.pages(cursor, CHUNK_BYTES)).await?;
            let (chunk, next) = read.map_err(|error| match error {
                changes::Error::TooOld { start, .. } => Refusal::TooOld { start },
                error => unreadable(&error),
            })?;
            self.fanout.check_owner(&chunk.lineage)?;
            self.fanout.metrics().pages_read.inc_by(chunk.pages.len() as u64);
            cursor = next;
            let Some(last) = chunk.pages.last() else {
                // The ring lacks what the log lacks too: they cannot both be right.
                return Err(Refusal::Busy { reason: "the change log ends too early".to_owned() }.into());
            };
            let is_whole = last.is_end;
            for page in &chunk.pages {
                self.page(Entry::of(page)).await?;
            }
            if is_whole && self.fanout.join(self.at).is_some() {
                return Ok(());
            }
        }
    }

    async fn page(&mut self, entry: Entry) -> Result<(), End> {
        if entry.is_end {
            self.account.sent.version.fetch_max(entry.last.as_u64(), Ordering::AcqRel);
        }
        let bytes = entry.frame.len() as u64;
        self.line.feed(entry.frame).await?;
        if entry.is_end {
            self.at = entry.last;
        }
        let metrics = self.fanout.metrics();
        metrics.frames_sent.inc();
        metrics.bytes_sent.inc_by(bytes);
        Ok(())
    }
}
