//! Whether upstream's history is still the one that is stored here.
//!
//! A server that was set back (a restored snapshot, a point-in-time recovery, a failover to a standby that lagged) goes on writing
//! other changes under positions that it has used before. No number that it states proves the opposite: it may have the same
//! identifier and timeline, and may be past our position again. What proves it is the last transaction that is stored here: either
//! the slot was told of it, which only we do, or it comes again, at its very position and with its time of commit. A promoted standby
//! that had received that transaction passes.
//!
//! Knows no connection. Invariant: nothing of the stream is believed before the proof.

use rows::Version;

use crate::options::lsn_text;
use crate::pgoutput::POSTGRES_EPOCH_US;
use crate::reader::Reader;
use crate::{Error, Result};

/// Before a message of logical decoding stand two positions and a time.
const HEADER_BYTES: usize = 24;

/// What the stream must show first.
#[derive(Debug)]
pub(crate) struct Continuity {
    version: Version,
    time_us: Option<i64>,
    is_within: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Of the transaction that is stored here already.
    Skip,
    /// The same, and its end: what follows is new.
    Proven,
    /// None of its business.
    Pass,
}

impl Continuity {
    /// `None` if the slot, which is at `confirmed`, was told of everything up to `version`.
    pub(crate) fn to_prove(version: Version, time_us: Option<i64>, confirmed: Version) -> Option<Continuity> {
        (confirmed <= version).then_some(Continuity { version, time_us, is_within: false })
    }

    /// Looks at the body of one CopyData message.
    pub(crate) fn look(&mut self, body: &[u8]) -> Result<Look> {
        let mut r = Reader::new(body);
        match r.u8()? {
            // Everything before this position was sent.
            b'k' if !self.is_within && r.u64()? > self.version.as_u64() => Err(self.refuted()),
            b'w' => {
                r.bytes(HEADER_BYTES)?;
                match r.u8()? {
                    b'B' => {
                        let (position, time) = (r.u64()?, r.i64()?.saturating_add(POSTGRES_EPOCH_US));
                        let is_it = position == self.version.as_u64() && self.time_us.is_none_or(|us| us == time);
                        self.is_within = is_it;
                        if is_it { Ok(Look::Skip) } else { Err(self.refuted()) }
                    }
                    b'C' if self.is_within => Ok(Look::Proven),
                    // A table is described once, for all that follows.
                    b'R' => Ok(Look::Pass),
                    _ if self.is_within => Ok(Look::Skip),
                    _ => Ok(Look::Pass),
                }
            }
            _ => Ok(Look::Pass),
        }
    }

    fn refuted(&self) -> Error {
        set_back(&format!("it does not know the transaction at {} that is stored here", lsn_text(self.version)))
    }
}

/// Why a replica cannot be continued from a server that has lost a part of what is stored here.
pub(crate) fn set_back(how: &str) -> Error {
    Error::reset(format!(
        "the upstream database was set back, by a restore or a failover that lost transactions: {how}, and what it writes now does not continue what is here"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(position: u64, time_us: i64) -> Vec<u8> {
        let mut body = vec![b'w'];
        body.extend([0; HEADER_BYTES]);
        body.push(b'B');
        body.extend(position.to_be_bytes());
        body.extend((time_us - POSTGRES_EPOCH_US).to_be_bytes());
        body.extend(7_u32.to_be_bytes());
        body
    }

    fn other(tag: u8) -> Vec<u8> {
        let mut body = vec![b'w'];
        body.extend([0; HEADER_BYTES]);
        body.push(tag);
        body
    }

    fn keepalive(position: u64) -> Vec<u8> {
        let mut body = vec![b'k'];
        body.extend(position.to_be_bytes());
        body.extend([0; 9]);
        body
    }

    #[test]
    fn a_slot_that_was_told_is_proof_enough() {
        let to_prove = |confirmed| Continuity::to_prove(Version::new(50), None, Version::new(confirmed)).is_some();
        assert_eq!([49, 50, 51].map(to_prove), [true, true, false]);
    }

    #[test]
    fn only_the_very_transaction_is_proof() {
        for (name, messages, expected) in [
            ("it comes again", vec![keepalive(50), begin(50, 9), other(b'I'), keepalive(90), other(b'C')], Some(true)),
            ("it is still coming", vec![keepalive(3), other(b'M'), begin(50, 9)], Some(false)),
            ("another one at its position", vec![begin(50, 8)], None),
            ("a later one first", vec![begin(51, 9)], None),
            ("nothing up to a later position", vec![keepalive(51)], None),
        ] {
            let mut continuity = Continuity::to_prove(Version::new(50), Some(9), Version::new(40)).unwrap();
            let looks: Result<Vec<Look>> = messages.iter().map(|message| continuity.look(message)).collect();
            assert_eq!(looks.ok().map(|looks| looks.contains(&Look::Proven)), expected, "{name}");
        }
    }

    #[test]
    fn what_is_stored_is_skipped_and_descriptions_of_tables_are_not() {
        let mut continuity = Continuity::to_prove(Version::new(50), None, Version::new(40)).unwrap();
        let messages = [begin(50, 9), other(b'R'), other(b'I'), other(b'M'), other(b'C')];
        let looks: Vec<Look> = messages.iter().map(|message| continuity.look(message).unwrap()).collect();
        assert_eq!(looks, [Look::Skip, Look::Pass, Look::Skip, Look::Skip, Look::Proven]);
    }

    #[test]
    fn cut_off_messages_are_survived() {
        let whole = begin(50, 9);
        for end in 0..whole.len() - 4 {
            let mut continuity = Continuity::to_prove(Version::new(50), None, Version::new(1)).unwrap();
            assert!(continuity.look(&whole[..end]).is_err(), "{end}");
        }
    }
}
