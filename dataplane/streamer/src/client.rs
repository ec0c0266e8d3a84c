//! A subscriber: follows the owner's log from a position, transaction by transaction.
//!
//! A task of its own reads, decodes and gives signs of life while the caller is busy. The queue between it and the caller is bounded
//! by the window: the owner sends no more than what has been taken out of the queue makes room for.

use std::sync::Arc;

use bytes::Bytes;
use changes::decode;
use rows::{Transaction, Version};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dial::{Dialled, Ledger, Options, dial};
use crate::error::{Error, Result};
use crate::socket::{Ended, Source, receive};
use crate::tls::Connection;
use crate::wire::{FromOwner, PageFrame, TELLS_ABREAST, Welcome};

/// Events that may wait, in number; their bytes are bounded by the window.
const QUEUE_EVENTS: usize = 256;

#[derive(Clone, Debug)]
pub enum Event {
    /// The next transactions, whole and in commit order.
    Transactions(Vec<Transaction>),
    /// The log ended at `head` when the owner's clock showed `owner_clock_us`. Told every few seconds, also when nothing changes.
    Head { head: Version, owner_clock_us: i64 },
    /// Whoever has applied `version` is where upstream was when the owner was connected to it. Told once, unless the owner is of a
    /// version that does not ([`Subscriber::is_told_abreast`]).
    Abreast { version: Version },
}

/// Tells the owner what is durable here, so that the log need not keep it for this node. Cheap to clone; cumulative.
#[derive(Clone, Debug)]
pub struct Acks(Arc<Ledger>);

impl Acks {
    /// Everything up to `version` is applied here and will never be asked for again.
    pub fn ack(&self, version: Version) {
        self.0.apply(version);
    }
}

/// The receiving end. Dropping it ends the connection.
#[derive(Debug)]
pub struct Subscriber {
    events: mpsc::Receiver<(Result<Event>, u64)>,
    ledger: Arc<Ledger>,
    task: JoinHandle<()>,
    is_told_abreast: bool,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Subscriber {
    /// Connects a replica that descends from the copy at `replica` and has everything up to `after`.
    pub async fn connect(options: &Options, replica: Version, after: Version) -> Result<(Welcome, Subscriber)> {
        let Dialled { welcome, version, mut sink, source } = dial(options, "changes", Some(replica), after).await?;
        if welcome.replica != replica {
            return Err(Error::Reset {
                message: format!("the owner's log belongs to the copy of {}", welcome.replica),
            });
        }
        let (sender, events) = mpsc::channel(QUEUE_EVENTS);
        let ledger = Ledger::new(after, options.window_bytes);
        let mut pump = Pump {
            source,
            after,
            parts: Vec::new(),
            events: sender.clone(),
            ledger: Arc::clone(&ledger),
            options: options.clone(),
        };
        let (telling, heartbeat) = (Arc::clone(&ledger), options.heartbeat);
        let task = tokio::spawn(async move {
            let error = tokio::select! {
                error = pump.run() => error,
                ended = telling.tell(&mut sink, heartbeat) => broken(&ended),
            };
            // If the queue is closed, nobody is interested any more.
            let _ = sender.send((Err(error), 0)).await;
        });
        let is_told_abreast = version >= TELLS_ABREAST;
        Ok((welcome, Subscriber { events, ledger, task, is_told_abreast }))
    }

    #[must_use]
    pub fn acks(&self) -> Acks {
        Acks(Arc::clone(&self.ledger))
    }

    /// Whether [`Event::Abreast`] comes.
    #[must_use]
    pub fn is_told_abreast(&self) -> bool {
        self.is_told_abreast
    }

    /// The next event. After an error there are no more.
    pub async fn next(&mut self) -> Result<Event> {
        let event = self.events.recv().await;
        self.take(event)
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Result<Event>> {
        match self.events.try_recv() {
            Ok(event) => Some(self.take(Some(event))),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(self.take(None)),
        }
    }

    fn take(&self, event: Option<(Result<Event>, u64)>) -> Result<Event> {
        let (event, bytes) = event.ok_or_else(|| Error::transient("the change stream has ended"))?;
        self.ledger.consume(bytes);
        event
    }
}

pub(crate) fn broken(ended: &Ended) -> Error {
    Error::transient(format!("the change stream ended: {ended}"))
}

struct Pump {
    source: Source<Connection>,
    /// The last transaction that was handed out.
    after: Version,
    /// Of a page that has not ended. However large it is: the owner has applied it, so this node must.
    parts: Vec<Bytes>,
    events: mpsc::Sender<(Result<Event>, u64)>,
    ledger: Arc<Ledger>,
    options: Options,
}

impl Pump {
    /// Returns the error that ended the stream.
    async fn run(&mut self) -> Error {
        loop {
            let frame = match receive(&mut self.source, self.options.silence_max).await {
                Ok(frame) => frame,
                Err(ended) => return broken(&ended),
            };
            let bytes = frame.len() as u64;
            let taken = match FromOwner::decode(frame) {
                Ok(FromOwner::Page(page)) => self.page(page, bytes).await,
                Ok(FromOwner::Head { head, owner_clock_us }) => {
                    self.ledger.consume(bytes);
                    // When the queue is full there is more interesting news in it, and another one comes soon.
                    let _ = self.events.try_send((Ok(Event::Head { head, owner_clock_us }), 0));
                    Ok(())
                }
                Ok(FromOwner::Abreast { version }) => self.hand_out(Event::Abreast { version }, bytes).await,
                Ok(FromOwner::Refused(refusal)) => Err(Error::refused(&refusal)),
                Ok(_) => Err(Error::transient("the owner sent a frame that has no place in a change stream")),
                Err(error) => Err(Error::transient(error.to_string())),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }

    async fn page(&mut self, page: PageFrame, bytes: u64) -> Result<()> {
        if page.is_start {
            self.parts.clear();
        } else if self.parts.is_empty() {
            return Err(Error::transient("the owner sent the end of a page without its beginning"));
        }
        if !page.is_end {
            // A page may be larger than the window: what waits for its end must not keep it from coming.
            self.parts.push(page.body);
            self.ledger.consume(bytes);
            return Ok(());
        }
        let transactions = if self.parts.is_empty() {
            self.decode(&page.body)?
        } else {
            self.parts.push(page.body);
            let whole = std::mem::take(&mut self.parts).concat();
            self.decode(&whole)?
        };
        if transactions.is_empty() {
            self.ledger.consume(bytes);
            return Ok(());
        }
        self.hand_out(Event::Transactions(transactions), bytes).await
    }

    async fn hand_out(&self, event: Event, bytes: u64) -> Result<()> {
        let event = (Ok(event), bytes);
        self.events.send(event).await.map_err(|_| Error::transient("the receiver of the change stream is gone"))
    }

    /// The transactions of a page that were not handed out yet.
    fn decode(&mut self, mut page: &[u8]) -> Result<Vec<Transaction>> {
        let mut transactions = Vec::new();
        while !page.is_empty() {
            let transaction = decode(&mut page)
                .map_err(|error| Error::transient(format!("the owner may be of a newer version: {error}")))?;
            if transaction.version > self.after {
                self.after = transaction.version;
                transactions.push(transaction);
            }
        }
        Ok(transactions)
    }
}
