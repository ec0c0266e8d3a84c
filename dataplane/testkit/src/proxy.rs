//! A load balancer as simple as they come: TCP, no stickiness, backends checked by `GET /`. Tests take backends in and out of
//! rotation, cut or hold connections, and make the way slow or broken.
//!
//! With a single backend and without checks it is a relay in front of any server.

mod connection;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const CHECK_EVERY: Duration = Duration::from_millis(100);
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    RoundRobin,
    Random,
}

/// How the way to the backends is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Good,
    /// Hangs up on everybody, at once.
    Refuses,
    /// Answers every request itself with this HTTP status.
    Answers(u16),
    /// Passes so many bytes at a time, with this pause after each.
    Slow(usize, Duration),
    /// Takes bytes and passes none on.
    Holds,
}

/// A running proxy. It needs a runtime with free threads: tests that block must not block all of them.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    choice: Choice,
    is_checking: bool,
    backends: Mutex<BTreeMap<u16, Backend>>,
    mood: watch::Sender<Mood>,
    turn: AtomicUsize,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Backend {
    is_in_rotation: bool,
    is_healthy: bool,
    opened: u64,
    /// Each open connection holds a clone.
    open: Arc<()>,
    link: watch::Sender<Link>,
}

/// The state of all connections of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Passing,
    Held,
    /// How often connections were cut: a connection ends when it changes.
    Cut(u64),
}

impl Proxy {
    /// Balances over backends that answer `GET /` with 200.
    pub async fn balance(backends: &[u16], choice: Choice) -> Result<Proxy> {
        Self::start(backends, choice, true).await
    }

    /// Stands in front of one server whatever it speaks.
    pub async fn relay(server: u16) -> Result<Proxy> {
        Self::start(&[server], Choice::RoundRobin, false).await
    }

    async fn start(backends: &[u16], choice: Choice, is_checking: bool) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind the proxy")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            choice,
            is_checking,
            backends: Mutex::default(),
            mood: watch::Sender::default(),
            turn: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        });
        let mut tasks = vec![tokio::spawn(Arc::clone(&shared).accept(listener))];
        if is_checking {
            tasks.push(tokio::spawn(Arc::clone(&shared).check()));
        }
        let proxy = Proxy { port, shared, tasks };
        backends.iter().for_each(|backend| proxy.add(*backend));
        Ok(proxy)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Puts a backend into rotation.
    pub fn add(&self, port: u16) {
        let is_healthy = !self.shared.is_checking;
        let mut backends = self.shared.backends();
        let backend = backends.entry(port).or_insert_with(|| Backend {
            is_in_rotation: true,
            is_healthy,
            opened: 0,
            open: Arc::default(),
            link: watch::Sender::new(Link::Passing),
        });
        backend.is_in_rotation = true;
    }

    /// No new connections for this backend; those it has go on.
    pub fn remove(&self, port: u16) {
        self.change(port, |backend| backend.is_in_rotation = false);
    }

    /// Ends all connections of a backend.
    pub fn cut(&self, port: u16) {
        self.change(port, Backend::cut);
    }

    /// Ends all connections.
    pub fn cut_all(&self) {
        self.shared.backends().values_mut().for_each(Backend::cut);
    }

    /// Nothing passes to and from a backend until [`Proxy::release`].
    pub fn hold(&self, port: u16) {
        self.change(port, |backend| _ = backend.link.send_replace(Link::Held));
    }

    pub fn release(&self, port: u16) {
        self.change(port, |backend| _ = backend.link.send_replace(Link::Passing));
    }

    pub fn set_mood(&self, mood: Mood) {
        self.shared.mood.send_replace(mood);
    }

    /// Connections made to a backend so far.
    #[must_use]
    pub fn opened(&self, port: u16) -> u64 {
        self.shared.backends().get(&port).map_or(0, |backend| backend.opened)
    }

    /// Connections that live now.
    #[must_use]
    pub fn open_now(&self, port: u16) -> usize {
        self.shared.backends().get(&port).map_or(0, |backend| Arc::strong_count(&backend.open) - 1)
    }

    /// Connections refused because no backend would have them.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Waits until the proxy has seen that a backend is ready, or is not.
    pub async fn wait_healthy(&self, port: u16, wanted: bool, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.shared.backends().get(&port).is_some_and(|backend| backend.is_healthy) != wanted {
            ensure!(Instant::now() < deadline, "backend {port} was not seen healthy = {wanted} within {limit:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn change(&self, port: u16, change: impl FnOnce(&mut Backend)) {
        if let Some(backend) = self.shared.backends().get_mut(&port) {
            change(backend);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set_mood(Mood::Refuses);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Backend {
    fn cut(&mut self) {
        let cuts = match *self.link.borrow() {
            Link::Cut(cuts) => cuts + 1,
            Link::Passing | Link::Held => 1,
        };
        self.link.send_replace(Link::Cut(cuts));
    }
}

impl Shared {
    fn backends(&self) -> MutexGuard<'_, BTreeMap<u16, Backend>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((client, _)) = listener.accept().await {
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                let mood = shared.mood.subscribe();
                let now = mood.borrow().clone();
                match now {
                    Mood::Refuses => {}
                    Mood::Answers(status) => connection::answer(client, status).await,
                    Mood::Good | Mood::Slow(..) | Mood::Holds => match shared.connect().await {
                        Some((server, link, open)) => {
                            connection::forward(client, server, link, mood).await;
                            drop(open);
                        }
                        None => drop(shared.refused.fetch_add(1, Ordering::Relaxed)),
                    },
                }
            });
        }
    }

    /// A connection to the first backend, in the order of choice, that takes one.
    async fn connect(&self) -> Option<(TcpStream, watch::Receiver<Link>, Arc<()>)> {
        let usable: Vec<u16> = {
            let backends = self.backends();
            let usable = backends.iter().filter(|(_, backend)| backend.is_in_rotation && backend.is_healthy);
            usable.map(|(port, _)| *port).collect()
        };
        let first = match self.choice {
            Choice::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
            Choice::Random => rand::random_range(0..usable.len().max(1)),
        };
        for n in 0..usable.len() {
            let port = usable[(first + n) % usable.len()];
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
                && let Some(backend) = self.backends().get_mut(&port)
            {
                backend.opened += 1;
                return Some((stream, backend.link.subscribe(), Arc::clone(&backend.open)));
            }
        }
        None
    }

    async fn check(self: Arc<Self>) {
        loop {
            let ports: Vec<_> = self.backends().keys().copied().collect();
            let checks = ports.into_iter().map(|port| async move {
                let healthy = tokio::time::timeout(CHECK_LIMIT, connection::is_healthy(port)).await.unwrap_or(false);
                (port, healthy)
            });
            for (port, is_healthy) in futures_util::future::join_all(checks).await {
                if let Some(backend) = self.backends().get_mut(&port) {
                    backend.is_healthy = is_healthy;
                }
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }
}
