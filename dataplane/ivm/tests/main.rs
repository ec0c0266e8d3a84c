//! The engine against an oracle that shares no code with it.

mod oracle;
mod property;
