//! Names of the files of a backup: level, first and last transaction.

use std::fmt;

/// Number of a transaction of the backup: one per captured increment. The upper bits are the epoch of the process that wrote it,
/// so that whatever a former owner still writes sorts before everything of the present one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(u64);

/// Increments an owner can write: one a second lasts 34,000 years.
const EPOCH_BITS: u32 = 40;

impl Txid {
    /// Before the first transaction.
    pub const ZERO: Txid = Txid(0);
    /// Where every snapshot starts.
    pub const FIRST: Txid = Txid(1);
    /// Epochs are less than this.
    pub const EPOCH_END: u64 = 1 << (63 - EPOCH_BITS);

    #[must_use]
    pub fn new(n: u64) -> Txid {
        Txid(n)
    }

    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The first transaction of an owner.
    #[must_use]
    pub fn first_of(epoch: u64) -> Txid {
        debug_assert!(epoch < Txid::EPOCH_END);
        Txid((epoch << EPOCH_BITS) + 1)
    }

    #[must_use]
    pub fn epoch(self) -> u64 {
        self.0 >> EPOCH_BITS
    }

    #[must_use]
    pub fn next(self) -> Txid {
        Txid(self.0 + 1)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The level of snapshots. Levels below hold increments; the higher, the longer.
pub const SNAPSHOT: u8 = 9;
/// The highest level of increments that is written.
pub const TOP: u8 = 3;

/// One file of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub level: u8,
    pub min: Txid,
    pub max: Txid,
}

impl Name {
    #[must_use]
    pub fn snapshot(max: Txid) -> Name {
        Name { level: SNAPSHOT, min: Txid::FIRST, max }
    }

    /// The key below the backup's path.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{:04x}/{}-{}.ltx", self.level, self.min, self.max)
    }

    /// Reads a key; `None` for anything that is not such a name, exactly as it is written.
    #[must_use]
    pub fn parse(key: &str) -> Option<Name> {
        let (level, file) = key.split_once('/')?;
        let (min, max) = file.strip_suffix(".ltx")?.split_once('-')?;
        let hex = |text: &str, digits: usize| {
            let plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if plain { u64::from_str_radix(text, 16).ok() } else { None }
        };
        let level = u8::try_from(hex(level, 4)?).ok()?;
        let (min, max) = (Txid(hex(min, 16)?), Txid(hex(max, 16)?));
        let is_sound = level <= SNAPSHOT && min > Txid::ZERO && min <= max && (level < SNAPSHOT || min == Txid::FIRST);
        is_sound.then_some(Name { level, min, max })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}
