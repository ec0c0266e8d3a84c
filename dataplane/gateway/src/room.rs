//! How much memory messages of clients may take between their arrival and the moment when the views are done with them.
//!
//! A message may have to wait: for the API server's word on its sender, for the database, for the replica. A socket that sends
//! more meanwhile is read no further; when all sockets together hold too much, whoever comes with more is sent away.

use std::sync::Arc;

use protocol::error::ErrorBody;
use tokio::sync::Semaphore;
use views::api::Credit;

/// What a JSON value takes in memory, at the least, however short its text.
const VALUE_BYTES: usize = 80;

/// The part of one socket.
#[derive(Debug)]
pub(crate) struct Room {
    socket: Arc<Semaphore>,
    all: Arc<Semaphore>,
    bytes_max: usize,
}

impl Room {
    /// `bytes_max`: of this socket, and of one message. `all`: of all sockets, in bytes.
    pub(crate) fn new(bytes_max: usize, all: Arc<Semaphore>) -> Room {
        Room { socket: Arc::new(Semaphore::new(bytes_max)), all, bytes_max }
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
        let bytes = u32::try_from(memory_of(text).min(self.bytes_max)).unwrap_or(u32::MAX);
        // Neither semaphore is ever closed.
        let Ok(own) = Arc::clone(&self.socket).acquire_many_owned(bytes).await else { return Ok(Credit::default()) };
        let Ok(shared) = Arc::clone(&self.all).try_acquire_many_owned(bytes) else {
            return Err(ErrorBody::overloaded("too many messages wait to be handled", 1_000, 30_000));
        };
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
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn short_texts_of_many_values_count_as_what_they_become() {
        assert_eq!(memory_of(""), VALUE_BYTES);
        assert_eq!(memory_of(r#"["a,b[\",",{}]"#), 14 + 4 * VALUE_BYTES);
        assert!(memory_of(&"0,".repeat(1_000)) > 1_000 * VALUE_BYTES);
        let room = Room::new(10_000, Arc::new(Semaphore::new(10_000)));
        let zeros = "0,".repeat(1_000);
        assert!(room.check(&format!("[\"inspect\",[{zeros}0]]")).is_err());
        assert!(room.check(&format!("[\"push\",[{zeros}0]]")).is_ok());
        assert!(room.check(&format!("[\"inspect\",\"{zeros}\"]")).is_ok());
    }

    #[tokio::test]
    async fn one_socket_waits_and_all_are_bounded() {
        let all = Arc::new(Semaphore::new(1_000));
        let (first, second) = (Room::new(600, Arc::clone(&all)), Room::new(600, Arc::clone(&all)));
        let text = "x".repeat(500);
        let credit = first.take(&text).await.unwrap();
        assert!(first.take(&text).now_or_never().is_none(), "waits for the message before");
        assert!(second.take(&text).await.is_err(), "all together hold too much");
        drop(credit);
        assert!(second.take(&text).await.is_ok());
        assert_eq!(all.available_permits(), 1_000);
    }
}
