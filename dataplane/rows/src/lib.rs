//! Values, rows, keys, ordering, versions and the shape of an upstream transaction: the vocabulary of the data plane.
//!
//! Knows no SQLite, no Postgres wire format, no socket, no clock; it never blocks. Every other crate speaks in these
//! types, so that a row is decoded once and then shared by reference count all the way to the socket.
//!
//! Invariant: two rows of one table with equal column values have equal bytes, so bytes can be hashed and compared.

pub mod batch;
pub mod json;
pub mod order;
pub mod row;
pub mod schema;
pub mod transaction;
pub mod value;
pub mod version;

pub use batch::{Batch, RowChange, Schema, TableBatch};
pub use order::{Direction, SortKey};
pub use row::{Key, Row, RowBuilder};
pub use schema::{Column, ColumnType, Table, TableSpec};
pub use transaction::{Cell, CellRef, Change, CopyBlock, Transaction};
pub use value::{Value, ValueRef};
pub use version::{Cookie, Version};
