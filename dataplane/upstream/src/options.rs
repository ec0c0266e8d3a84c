//! What a caller decides.

use std::time::Duration;

use rows::Version;

use crate::address::Address;
use crate::{Error, Result};

/// The application and shard whose objects are used upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub id: String,
    pub shard: u32,
}

impl App {
    pub fn new(id: &str, shard: u32) -> Result<App> {
        let valid = !id.is_empty() && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !valid || id.len() > 40 {
            return Err(Error::configuration(format!(
                "the application id '{id}' is not valid: use at most 40 of the characters a-z, 0-9 and _"
            )));
        }
        Ok(App { id: id.to_owned(), shard })
    }

    /// Schema with the tables `clients`, `mutations`, `replicas` and the DDL functions.
    #[must_use]
    pub fn shard_schema(&self) -> String {
        format!("{}_{}", self.id, self.shard)
    }

    #[must_use]
    pub fn metadata_publication(&self) -> String {
        format!("_{}_metadata_{}", self.id, self.shard)
    }

    #[must_use]
    pub fn default_publication(&self) -> String {
        format!("_{}_public_{}", self.id, self.shard)
    }

    /// Prefix of the logical messages that carry schema snapshots.
    #[must_use]
    pub fn ddl_prefix(&self) -> String {
        format!("{}/{}/ddl", self.id, self.shard)
    }

    /// Of messages that carry nothing: their commit does.
    pub(crate) fn carrier_prefix(&self) -> String {
        format!("{}/{}/carrier", self.id, self.shard)
    }
}

/// The values of a row have at most so many bytes. SQLite takes rows of 1 GB, made of what several changes left.
pub const ROW_BYTES_MAX: usize = 128 << 20;

#[derive(Clone, Debug)]
pub struct Options {
    pub address: Address,
    pub app: App,
    /// `ZERO_APP_PUBLICATIONS`; empty for the default publication of schema `public`.
    pub publications: Vec<String>,
    /// Create the slot so that it survives a failover of Postgres (17 and newer; ignored before).
    pub slot_failover: bool,
    /// Connections that copy tables at the same time.
    pub copy_workers: usize,
    /// Written to the `replicas` table so that a person can tell who made a replica.
    pub task_id: String,
    /// Terminate another process's stream from our slot instead of failing with [`Error::SlotInUse`].
    pub take_over: bool,
    /// Silence of Postgres after which the replication stream counts as broken; twice its `wal_sender_timeout` if not given.
    pub inbound_timeout: Option<Duration>,
    /// A transaction with more cell bytes than this is reported in the log. It is assembled all the same, because a
    /// transaction is applied wholly or not at all; the process needs the memory.
    pub transaction_bytes_warn: usize,
    /// Cell bytes of decoded transactions that may wait for the caller.
    pub queue_bytes_max: usize,
    /// Bytes of a row's values, as Postgres sends them. A value that would exceed it is left out.
    pub row_bytes_max: usize,
    /// A table larger than this upstream is not re-read within a schema change; the replica is rebuilt instead.
    pub backfill_bytes_max: u64,
}

impl Options {
    #[must_use]
    pub fn new(address: Address, app: App) -> Options {
        Options {
            address,
            app,
            publications: Vec::new(),
            slot_failover: false,
            copy_workers: 5,
            task_id: String::new(),
            take_over: true,
            inbound_timeout: None,
            transaction_bytes_warn: 256 << 20,
            queue_bytes_max: 64 << 20,
            row_bytes_max: ROW_BYTES_MAX,
            backfill_bytes_max: 512 << 20,
        }
    }

    /// Every publication that is replicated, sorted.
    #[must_use]
    pub fn all_publications(&self) -> Vec<String> {
        let mut all = self.publications.clone();
        if all.is_empty() {
            all.push(self.app.default_publication());
        }
        all.push(self.app.metadata_publication());
        all.sort();
        all.dedup();
        all
    }
}

/// `X/Y`, as Postgres writes positions.
pub(crate) fn lsn_text(version: Version) -> String {
    let lsn = version.as_u64();
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

pub(crate) fn parse_lsn(text: &str) -> Result<Version> {
    text.split_once('/')
        .and_then(|(high, low)| Some((u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?)))
        .map(|(high, low)| Version::new((u64::from(high) << 32) | u64::from(low)))
        .ok_or_else(|| Error::transient(format!("Postgres sent '{text}' where a WAL position was expected")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_round_trip() {
        for (text, n) in [("0/0", 0), ("0/16B3748", 0x016b_3748), ("16/B374D848", 0x16_b374_d848)] {
            assert_eq!(parse_lsn(text).unwrap(), Version::new(n));
            assert_eq!(lsn_text(Version::new(n)), text);
        }
        for bad in ["", "1", "1/", "/1", "x/1", "1/100000000"] {
            assert!(parse_lsn(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn application_ids_are_checked() {
        assert!(App::new("zero", 0).is_ok());
        for bad in ["", "Zero", "a-b", "a\"b", "é"] {
            assert!(App::new(bad, 0).is_err(), "{bad}");
        }
    }
}
