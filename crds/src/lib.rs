//! resource types
