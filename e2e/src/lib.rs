//! Whole-process tests: real Postgres, the real server binary, and clients that see it only by its sockets. The tests are in
//! `tests/`, those with the published client in `real-client/`, the browser test in `browser/`. This library is empty on purpose:
//! nothing links to these tests.
