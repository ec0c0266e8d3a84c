//! How much a client group may be remembered of. What is larger than the database takes would be tried again for ever, and each
//! change of a record stores all of it.

use protocol::up::{QueryDefinition, UpQueryOp};
use serde::Serialize;

use super::record::{Definition, Record, Refused};

/// Longest ids of clients and hashes of queries.
const ID_BYTES_MAX: usize = 1 << 10;
/// Longest name of a query.
const NAME_BYTES_MAX: usize = 1 << 10;
/// Longest arguments of a query, or AST, as JSON.
const ARGS_BYTES_MAX: usize = 1 << 20;
/// Longest record, as JSON.
pub const RECORD_BYTES_MAX: usize = 16 << 20;
/// What stands around the texts of a query or a desire.
const AROUND_BYTES: usize = 128;

pub fn check_id(what: &'static str, id: &str) -> Result<(), Refused> {
    if id.len() > ID_BYTES_MAX { Err(Refused::TooLong { what, limit: ID_BYTES_MAX }) } else { Ok(()) }
}

/// Refuses operations with which the record would become too large, before any of them is applied.
pub fn make(record: &mut Record, client: &str, ops: &[UpQueryOp]) -> Result<(), Refused> {
    let mut added = 0;
    for op in ops {
        let UpQueryOp::Put { hash, query, .. } = op else { continue };
        check_id("a query's hash", hash)?;
        added += client.len() + AROUND_BYTES;
        if let Some(query) = query
            && !record.queries.contains_key(hash)
        {
            let bytes = match query {
                QueryDefinition::Ast(ast) => json_bytes(ast),
                QueryDefinition::Named { name, args } => name.len() + json_bytes(args),
            };
            let kept = if bytes > ARGS_BYTES_MAX + NAME_BYTES_MAX { 0 } else { bytes };
            added += hash.len() + AROUND_BYTES + kept;
        }
    }
    if record.bytes + added > RECORD_BYTES_MAX {
        // What was counted before may be gone.
        record.bytes = json_bytes(record);
    }
    if record.bytes + added > RECORD_BYTES_MAX {
        return Err(Refused::TooLarge { limit: RECORD_BYTES_MAX });
    }
    record.bytes += added;
    Ok(())
}

/// Why a query is too large to be kept, if it is.
pub fn too_large(definition: &Definition) -> Option<String> {
    match definition {
        Definition::Named { name, .. } if name.len() > NAME_BYTES_MAX => {
            Some(format!("the query's name is longer than {NAME_BYTES_MAX} bytes"))
        }
        Definition::Named { args, .. } if json_bytes(args) > ARGS_BYTES_MAX => {
            Some(format!("the query's arguments take more than {ARGS_BYTES_MAX} bytes"))
        }
        Definition::Ast(ast) if json_bytes(ast) > ARGS_BYTES_MAX => {
            Some(format!("the query takes more than {ARGS_BYTES_MAX} bytes"))
        }
        Definition::Named { .. } | Definition::Ast(_) => None,
    }
}

/// Bytes of the text of a value.
pub fn json_bytes(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What has no text takes no room.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}
