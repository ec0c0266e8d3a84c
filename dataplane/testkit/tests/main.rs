//! The test kit's own tests: a judge that cannot fail is worth nothing.

mod oracle;
mod pgbouncer;
mod postgres;
mod proxy;
