//! Writes that never stop by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::chaos::random;

/// A connection of an application that writes at a steady pace and comes back when Postgres does.
pub struct Writer {
    commits: Arc<AtomicU64>,
    /// Whether it may write; it answers through `is_idle`.
    may_write: watch::Sender<bool>,
    is_idle: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Random transactions over the application's tables.
    pub fn random(url: &str, seed: u64, pause: Duration) -> Writer {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut next_row = 0;
        Self::start(url, pause, move |_| {
            let statements: Vec<_> =
                (0..dice.random_range(1..6)).map(|_| random::statement(&mut dice, &mut next_row)).collect();
            format!("BEGIN; {}; COMMIT", statements.join("; "))
        })
    }

    /// Transactions made from their number, counted from 1; one that failed is made again with the same number.
    pub fn start(url: &str, pause: Duration, mut sql: impl FnMut(u64) -> String + Send + 'static) -> Writer {
        let commits = Arc::new(AtomicU64::new(0));
        let (may_write, mut may) = watch::channel(true);
        let is_idle = watch::Sender::new(false);
        let telling = is_idle.clone();
        let url = url.to_owned();
        let count = Arc::clone(&commits);
        let task = tokio::spawn(async move {
            let mut connection = None;
            loop {
                // Said only when it is seen here: whoever asks for a pause may do so at any moment.
                if !*may.borrow_and_update() {
                    telling.send_replace(true);
                    if may.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                let client = match connection.take() {
                    Some(client) => client,
                    None => match testkit::postgres::connect(&url).await {
                        Ok(client) => client,
                        Err(_) => {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                    },
                };
                let number = count.load(Ordering::Relaxed) + 1;
                if client.batch_execute(&sql(number)).await.is_ok() {
                    count.store(number, Ordering::Relaxed);
                    connection = Some(client);
                }
                tokio::time::sleep(pause).await;
            }
        });
        Writer { commits, may_write, is_idle, task }
    }

    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Returns when nothing is being written.
    pub async fn pause(&mut self) -> Result<()> {
        self.may_write.send_replace(false);
        self.is_idle.subscribe().wait_for(|idle| *idle).await?;
        Ok(())
    }

    pub fn go_on(&self) {
        self.is_idle.send_replace(false);
        self.may_write.send_replace(true);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
