//! The moment of a commit, made visible to readers: whoever holds the gate shared knows that no commit happens meanwhile, so
//! several read transactions opened under it see the same version.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rows::Version;

#[derive(Debug, Default)]
pub struct CommitGate(RwLock<Version>);

/// Keeps the replica at one version while it lives. Hold it only while opening read transactions.
#[derive(Debug)]
pub struct Pin<'a>(RwLockReadGuard<'a, Version>);

impl CommitGate {
    #[must_use]
    pub fn new(version: Version) -> CommitGate {
        CommitGate(RwLock::new(version))
    }

    /// Waits for a running commit and holds off the next.
    pub fn pin(&self) -> Pin<'_> {
        Pin(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The version of the last commit.
    #[must_use]
    pub fn version(&self) -> Version {
        self.pin().version()
    }

    /// Runs `commit` while nobody opens a read transaction; the gate then stands at the version it returns.
    pub(crate) fn commit<E>(&self, commit: impl FnOnce() -> Result<Version, E>) -> Result<(), E> {
        let mut version = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *version = commit()?;
        Ok(())
    }

    /// Runs `f` at the present version while nobody opens a read transaction.
    pub(crate) fn quiet<T>(&self, f: impl FnOnce(Version) -> T) -> T {
        let held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        f(*held)
    }
}

impl Pin<'_> {
    #[must_use]
    pub fn version(&self) -> Version {
        *self.0
    }
}
