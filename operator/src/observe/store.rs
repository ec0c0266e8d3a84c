//! What the backup's store says to the operator, where it was given keys.

/// Why a backup's place cannot be looked at, with what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreFault {
    NoSuchBucket(String),
    AccessDenied(String),
    Unreachable(String),
}

/// What was asked for the first time and is not answered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    pub databases: bool,
    pub nodes: bool,
    pub store: bool,
}
