//! What every HTTP port of a node does: bind, accept, serve one connection, answer plainly, wait for what is under way.
//!
//! Must not know: who connects, what is asked for, any message of ours.
//!
//! Invariants: a panic in the work of one connection ends that connection only, and nobody waits for it in vain; the admin
//! password is compared in constant time, can be guessed at a walking pace only, and is never logged.

mod addresses;
mod attempts;
mod inside;
mod listen;
mod liveness;
mod pages;
mod plain;
mod statz;
mod tasks;
pub mod websocket;

pub use addresses::{Addresses, Guest};
pub use attempts::network_of;
pub use inside::serve_pages;
pub use listen::{BindError, HeadLimits, accept, bind, prepare, serve};
pub use liveness::{Liveness, Pulse, Watched};
pub use pages::{Health, Inside, Pages};
pub use plain::{respond, text};
pub use statz::{Status, StatusFuture, StatusPage};
pub use tasks::{Member, Tasks};
