//! The classes, and what is known of one error.

use std::fmt;

/// What is done about an error. Exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// It is tried again, with pauses that grow; clients are served what is here meanwhile.
    Passes,
    /// One table, column, row, query or client is left out, by name, and everything else goes on.
    OneThing,
    /// The replica cannot be continued: another copy is made, if `ZERO_AUTO_RESET` allows it.
    NewCopy,
    /// It is said what to do; the node stays alive, is not ready, and looks now and then whether it was done.
    Person,
}

impl Class {
    /// For status, metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::Passes => "passes",
            Class::OneThing => "one-thing",
            Class::NewCopy => "new-copy",
            Class::Person => "person",
        }
    }

    /// For people.
    pub(crate) fn described(self) -> &'static str {
        match self {
            Class::Passes => "passes by itself",
            Class::OneThing => "one thing is left out",
            Class::NewCopy => "needs a new copy",
            Class::Person => "needs a person",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// A code, a kind or a variant of an error type.
    pub name: &'static str,
    pub meaning: &'static str,
    pub class: Class,
    /// When it comes again at the same position: the same bytes bring the same error.
    pub repeated: Class,
    /// What to do. For what passes by itself: where to look if it does not.
    pub remedy: &'static str,
}

impl Entry {
    pub(crate) const fn new(
        name: &'static str,
        meaning: &'static str,
        class: Class,
        repeated: Class,
        remedy: &'static str,
    ) -> Entry {
        Entry { name, meaning, class, repeated, remedy }
    }
}
