//! How much memory messages of clients may take between their arrival and the moment when the views are done with them.
//!
//! A message may have to wait: for the API server's word on its sender, for the database, for the replica. A socket that sends
//! more meanwhile is read no further; when all sockets together hold too much, whoever comes with more is sent away.

use std::sync::Arc;

use protocol::error::ErrorBody;
use tokio::sync::Semaphore;
use views::api::Credit;

use crate::standing::Standing;

/// What a JSON value takes in memory, at the least, however short its text.
const VALUE_BYTES: usize = 80;

/// The part of one socket.
#[derive(Debug)]
pub(crate) struct Room {
    socket: Arc<Semaphore>,
    standing: Arc<Standing>,
    bytes_max: usize,
}

/// There is no room for what a client sent, for the moment.
pub(crate) fn no_room() -> ErrorBody {
    ErrorBody::overloaded("too many messages wait to be handled", 1_000, 30_000)
}

impl Room {
    /// `bytes_max`: of this socket, and of one message. What it may take of all sockets' memory is up to its standing.
    pub(crate) fn new(bytes_max: usize, standing: Arc<Standing>) -> Room {
        Room { socket: Arc::new(Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS))), standing, bytes_max }
    }

    /// Whether a message may be read at all.
    pub(crate) fn check(&self, text: &str) -> Result<(), ErrorBody> {
        // Mutations are kept as text: they take no more than that.
        if text.starts_with("[\"push\"") || memory_of(text) <= self.bytes_max {
            return Ok(());
        }
        Err(ErrorBody::invalid_message("the message has too many JSON values: ask for less at once"))
    }

    /// Waits until there is room for a message on this socket.
    pub(crate) async fn take(&self, text: &str) -> Result<Credit, ErrorBody> {
        let bytes = memory_of(text).min(self.bytes_max);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let Ok(own) = Arc::clone(&self.socket).acquire_many_owned(permits).await else { return Ok(Credit::default()) };
        let shared = self.standing.purse.take(bytes).ok_or_else(no_room)?;
        Ok(Credit::of((own, shared)))
    }
}

/// An estimate of what a message takes once it is read.
fn memory_of(text: &str) -> usize {
    let (mut values, mut is_string, mut is_escaped) = (1, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_string,
            b'"' => is_string = !is_string,
            b',' | b'[' | b'{' if !is_string => values += 1,
            _ => {}
        }
    }
    text.len() + values * VALUE_BYTES
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;
    use port::Addresses;
    use prometheus::IntGauge;

    use super::*;
    use crate::budget::Budget;

    fn budget(bytes: usize) -> (Arc<Budget>, IntGauge) {
        let taken = IntGauge::new("taken", "taken").unwrap();
        (Budget::new(bytes, &taken), taken)
    }

    fn standing(budget: &Arc<Budget>) -> Arc<Standing> {
        let guest = Addresses::new(None).admit(Ipv4Addr::LOCALHOST.into()).expect("no limit");
        let standing = Standing::stranger(budget.purse(), guest);
        standing.become_known();
        standing
    }

    #[test]
    fn short_texts_of_many_values_count_as_what_they_become() {
        assert_eq!(memory_of(""), VALUE_BYTES);
        assert_eq!(memory_of(r#"["a,b[\",",{}]"#), 14 + 4 * VALUE_BYTES);
        assert!(memory_of(&"0,".repeat(1_000)) > 1_000 * VALUE_BYTES);
        let room = Room::new(10_000, standing(&budget(10_000).0));
        let zeros = "0,".repeat(1_000);
        assert!(room.check(&format!("[\"inspect\",[{zeros}0]]")).is_err());
        assert!(room.check(&format!("[\"push\",[{zeros}0]]")).is_ok());
        assert!(room.check(&format!("[\"inspect\",\"{zeros}\"]")).is_ok());
    }

    #[tokio::test]
    async fn one_socket_waits_and_all_are_bounded() {
        let (budget, taken) = budget(1_600);
        let (first, second) = (Room::new(600, standing(&budget)), Room::new(600, standing(&budget)));
        let text = "x".repeat(500);
        let credit = first.take(&text).await.unwrap();
        assert!(first.take(&text).now_or_never().is_none(), "waits for the message before");
        assert!(second.take(&text).await.is_err(), "all together hold too much");
        drop(credit);
        assert!(second.take(&text).await.is_ok());
        assert_eq!(taken.get(), 0);
    }
}
