//! A few connections to the log for subscribers that are behind. Each reading borrows one; while nobody is behind none is kept.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use changes::{Chunk, Cursor, Lineage, Reader, Result};
use tokio::sync::Semaphore;

#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    options: changes::Options,
    permits: Semaphore,
    idle: Mutex<Vec<Reader>>,
    users: AtomicUsize,
}

/// Somebody who reads now and then; connections are kept meanwhile.
pub(crate) struct User(Pool);

impl Drop for User {
    fn drop(&mut self) {
        let inner = &self.0.0;
        if inner.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            inner.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

impl Pool {
    pub(crate) fn new(options: changes::Options, connections_max: usize) -> Pool {
        Pool(Arc::new(Inner {
            options,
            permits: Semaphore::new(connections_max.max(1)),
            idle: Mutex::default(),
            users: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn user(&self) -> User {
        self.0.users.fetch_add(1, Ordering::AcqRel);
        User(self.clone())
    }
}

impl User {
    /// See [`Reader::pages`].
    pub(crate) async fn pages(&self, mut cursor: Cursor, bytes_max: usize) -> Result<(Chunk, Cursor)> {
        let chunk = self.read(async |reader| reader.pages(&mut cursor, bytes_max).await).await?;
        Ok((chunk, cursor))
    }

    pub(crate) async fn lineage(&self) -> Result<Option<Lineage>> {
        self.read(async |reader| reader.lineage().await).await
    }

    async fn read<T>(&self, reading: impl AsyncFnOnce(&Reader) -> Result<T>) -> Result<T> {
        let inner = &self.0.0;
        let _permit = inner.permits.acquire().await.expect("the semaphore is never closed");
        let idle = inner.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().filter(|reader| !reader.is_broken());
        let reader = match idle {
            Some(reader) => reader,
            None => Reader::open(&inner.options).await?,
        };
        let result = reading(&reader).await;
        if !reader.is_broken() {
            inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        }
        result
    }
}
