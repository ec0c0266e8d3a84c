//! whole-process tests
