//! The engine against an oracle that shares no code with it, and case by case.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where its assumption does")]

mod build;
mod changes;
mod exists;
mod fixture;
mod oracle;
mod property;
mod router;
mod window;
