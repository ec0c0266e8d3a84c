//! Starting, stopping and replacing nodes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::process::ZeroCache;

use super::{Cluster, READY};

/// The server's own grace is ten minutes; tests have less to drain.
const GRACE: Duration = Duration::from_secs(30);

impl Cluster {
    /// A node with what all roles share, not started.
    pub fn node(&mut self, role: &str) -> Result<ZeroCache> {
        self.numbers += 1;
        let mut node = ZeroCache::new(&self.database.url())?.named(&format!("{role} {}", self.numbers));
        if let Some(pooler) = &self.pooler {
            node.set("ZERO_CVR_DB", &pooler.url(&self.database.name));
            node.set("ZERO_CHANGE_DB", &pooler.url(&self.database.name));
        }
        if let Some(store) = &self.store {
            store.access().iter().for_each(|(name, value)| node.set(name, value));
        }
        for (name, value) in &self.plan.settings {
            node.set(name, value);
        }
        Ok(node)
    }

    /// A replication-manager with a folder of its own, not started.
    pub fn manager(&mut self) -> Result<ZeroCache> {
        let mut node = self.node("replication-manager")?;
        node.set("ZERO_NUM_SYNC_WORKERS", "0");
        // The old one is still there for so long, unless a view-syncer asks for the new one.
        node.set("ZERO_CHANGE_STREAMER_STARTUP_DELAY_MS", "500");
        if let Some(store) = &self.store {
            node.set("ZERO_LITESTREAM_BACKUP_URL", &store.url());
            node.set("ZERO_LITESTREAM_INCREMENTAL_BACKUP_INTERVAL_SECONDS", "1");
        }
        Ok(node)
    }

    /// A view-syncer with a folder of its own, not started.
    pub fn syncer(&mut self) -> Result<ZeroCache> {
        let mut node = self.node("view-syncer")?;
        node.set("ZERO_CHANGE_STREAMER_URI", &format!("http://127.0.0.1:{}", self.stream.port()));
        node.set("ZERO_NUM_SYNC_WORKERS", "1");
        node.set("ZERO_QUERY_URL", &self.api.query_url());
        node.set("ZERO_MUTATE_URL", &self.api.mutate_url());
        Ok(node)
    }

    /// Starts one more replication-manager and waits until both of its ports answer.
    pub async fn add_manager(&mut self) -> Result<()> {
        let node = self.manager()?;
        self.stream.add(node.change_port());
        self.managers.push(node);
        self.managers.last_mut().context("it was just added")?.spawn()?;
        self.await_manager().await
    }

    /// Waits until the newest replication-manager is ready and the balancer has seen it.
    pub async fn await_manager(&mut self) -> Result<()> {
        let node = self.managers.last_mut().context("there is a replication-manager")?;
        node.wait_ready(READY)?;
        let port = node.change_port();
        self.stream.wait_healthy(port, true, READY).await
    }

    /// Starts a view-syncer and lets the balancer find out when it is ready.
    pub fn spawn_syncer(&mut self) -> Result<u16> {
        let mut node = self.syncer()?;
        node.spawn()?;
        let port = node.port();
        self.door.add(port);
        self.syncers.push(node);
        Ok(port)
    }

    pub async fn await_syncers(&mut self) -> Result<()> {
        for node in &mut self.syncers {
            node.wait_ready(READY)?;
        }
        for node in &self.syncers {
            self.door.wait_healthy(node.port(), true, READY).await?;
        }
        Ok(())
    }

    /// The replication-manager dies and a new process takes its place, with the same disk or without.
    pub fn crash_manager(&mut self, loses_disk: bool) -> Result<()> {
        let node = self.managers.last_mut().context("there is a replication-manager")?;
        crash(node)?;
        if loses_disk {
            node.delete_replica()?;
        }
        node.spawn()
    }

    /// Waits until new nodes can start from the backup.
    pub async fn await_backup(&self) -> Result<()> {
        let node = self.managers.last().context("there is a replication-manager")?;
        let deadline = Instant::now() + READY;
        while node.metric("zero_backup_complete").unwrap_or(0.0) < 1.0 {
            ensure!(Instant::now() < deadline, "no complete backup within {READY:?}:\n{}", node.log_tail(20));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// A second replication-manager takes over; the first steps down by itself.
    pub async fn replace_manager(&mut self) -> Result<()> {
        self.add_manager().await?;
        while self.managers.len() > 1 {
            let mut old = self.managers.remove(0);
            let stepped_down = old.wait_exit(GRACE);
            self.stream.remove(old.change_port());
            let status = stepped_down.context("the old replication-manager must step down")?;
            let code = status.code();
            ensure!(matches!(code, Some(0 | 14)), "{} stepped down with {status}:\n{}", old.name(), old.log_tail(20));
            self.gone.push(old);
        }
        Ok(())
    }

    /// A new view-syncer joins, then the oldest is drained and leaves.
    pub async fn replace_syncer(&mut self) -> Result<Duration> {
        let port = self.spawn_syncer()?;
        self.syncers.last_mut().context("it was just added")?.wait_ready(READY)?;
        self.door.wait_healthy(port, true, READY).await?;
        self.retire_syncer()
    }

    /// Drains the oldest view-syncer; how long that took.
    fn retire_syncer(&mut self) -> Result<Duration> {
        let mut old = self.syncers.remove(0);
        // Balancers learn of it first, as Kubernetes does it.
        self.door.remove(old.port());
        let begin = Instant::now();
        let status = old.terminate_within(GRACE);
        let drain = begin.elapsed();
        let tail = old.log_tail(20);
        self.gone.push(old);
        let status = status?;
        ensure!(status.success(), "a drained view-syncer ended with {status}:\n{tail}");
        Ok(drain)
    }

    /// The documented order: the replication-manager, then the view-syncers one by one.
    pub async fn rolling_restart(&mut self) -> Result<()> {
        self.replace_manager().await?;
        for _ in 0..self.syncers.len() {
            self.replace_syncer().await?;
        }
        Ok(())
    }

    /// A view-syncer dies and is started again with its disk.
    pub fn crash_syncer(&mut self, index: usize) -> Result<()> {
        let node = &mut self.syncers[index];
        crash(node)?;
        node.spawn()
    }

    /// Starts again whoever has ended; the orchestrator's part.
    pub async fn revive(&mut self) -> Result<()> {
        for node in self.managers.iter_mut().chain(&mut self.syncers) {
            if !node.is_running() {
                node.spawn()?;
            }
        }
        self.await_manager().await?;
        self.await_syncers().await
    }
}

/// Whoever has ended by itself just before need not be killed.
fn crash(node: &mut ZeroCache) -> Result<()> {
    if node.is_running() { node.kill() } else { Ok(()) }
}
