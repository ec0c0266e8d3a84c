//! What is known so far of what is outside.

use std::collections::BTreeMap;

use crate::observe::{Databases, Nodes, Observed, Pending, StoreFault};

/// What [`super::Outside::look`] knows at once. Empty where nothing was asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub databases: Databases,
    pub nodes: Option<Nodes>,
    pub prefixes: BTreeMap<String, u64>,
    pub store_fault: Option<StoreFault>,
    pub release: Option<Result<(), String>>,
    pub pending: Pending,
}

impl Facts {
    /// Puts them where planning looks for them.
    pub fn fill(self, observed: &mut Observed) {
        // Destructured so that a new fact cannot be forgotten here.
        let Facts { databases, nodes, prefixes, store_fault, release, pending } = self;
        observed.databases = databases;
        observed.nodes = nodes;
        observed.prefixes = prefixes;
        observed.store_fault = store_fault;
        observed.release = release;
        observed.pending = pending;
    }
}
