//! What becomes of a failed attempt. What Postgres' codes say is decided in the crate `fault`.

use fault::Write;
use tokio_postgres::error::DbError;

/// Why an attempt came to nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Others were faster: the same again may succeed.
    Conflict,
    /// The connection or the server went away; whether a commit arrived is not known.
    Away(String),
    /// Postgres refuses it. `is_schema`: because the database looks different from what is known of it,
    /// perhaps. `about` is for a log, where the message must not be: it may show values.
    Refused { message: String, is_schema: bool, about: String },
}

impl Fault {
    pub(crate) fn of(error: &tokio_postgres::Error) -> Fault {
        let Some(answer) = error.as_db_error() else { return Fault::Away(error.to_string()) };
        match fault::write(answer.code().code()) {
            Write::Conflicts => Fault::Conflict,
            Write::Away => Fault::Away(describe(answer)),
            Write::Misfits => refused(answer, true),
            Write::Refused => refused(answer, false),
        }
    }
}

impl From<&upstream::Error> for Fault {
    fn from(error: &upstream::Error) -> Fault {
        Fault::Away(error.to_string())
    }
}

/// For the client whose mutation it is: the message may show its own values.
fn describe(answer: &DbError) -> String {
    format!("{} (SQLSTATE {})", answer.message(), answer.code().code())
}

fn refused(answer: &DbError, is_schema: bool) -> Fault {
    let names = [("table", answer.table()), ("column", answer.column()), ("constraint", answer.constraint())];
    let names = names.into_iter().filter_map(|(kind, name)| Some(format!(", {kind} {}", name?)));
    let about = format!("SQLSTATE {}{}", answer.code().code(), names.collect::<String>());
    Fault::Refused { message: describe(answer), is_schema, about }
}
