//! The replica against models that share no code with it, on real files, and killed at any moment.

mod apply;
mod crash;
mod differential;
mod files;
mod fixture;
mod model;
mod plans;
mod roundtrip;
