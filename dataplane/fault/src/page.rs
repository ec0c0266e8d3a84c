//! `ERRORS.md`: the tables as a page for people.

use std::fmt::Write as _;

use crate::{Entry, IO_KINDS, SQLITE_CODES, SQLSTATES, path};

const HEAD: &str = "\
# Errors

Generated from the crate `fault`; `UPDATE_REFERENCE=1 cargo test -p zero-cache --lib` writes it anew. Do not edit it by hand.

Every error on the way from Postgres to a client has one class, and one when it comes again where the stream stood before: the
same bytes bring the same error, so that is not waited out.

| class | what happens |
|---|---|
| passes by itself | it is tried again, with pauses that grow up to a bound; clients are served what is here |
| one thing is left out | a table, column, row, query or client is left out, the log says which, and everything else goes on |
| needs a new copy | the replica is made anew if `ZERO_AUTO_RESET` is on, otherwise the node stays up, is not ready, and says so |
| needs a person | the node stays up and is not ready, says what to do, and goes on by itself when it was done |

While replication does not advance, `/statz` (group `node`, field `fault`), the metric `zero_replication_fault` and the log say
why, since when, at which position, and what to do.
";

/// The whole page.
#[must_use]
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for (title, entries) in [
        ("Postgres, by SQLSTATE (five characters, or the two of a class)", SQLSTATES),
        ("The operating system", IO_KINDS),
        ("SQLite", SQLITE_CODES),
        ("Errors of the server's own parts", path::ERRORS),
    ] {
        let _ = write!(
            page,
            "\n## {title}\n\n| error | meaning | class | again at the same position | what to do |\n|---|---|---|---|---|\n"
        );
        for Entry { name, meaning, class, repeated, remedy } in entries {
            let repeated = if class == repeated { "the same" } else { repeated.described() };
            let _ = writeln!(page, "| `{name}` | {meaning} | {} | {repeated} | {remedy} |", class.described());
        }
    }
    page
}
