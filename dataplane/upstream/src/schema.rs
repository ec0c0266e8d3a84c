//! The published schema as of a position of the stream: the catalog, with the texts that it was read from.
//!
//! Knows no stream: it applies what an event says. The texts are remembered upstream, so that a restart decodes with the schema
//! of its position; most often only those of the tables that one transaction changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::catalog::Catalog;
use crate::{Error, Result};

#[derive(Clone, Debug, Default)]
pub(crate) struct Schema {
    pub catalog: Catalog,
    texts: BTreeMap<u32, Box<RawValue>>,
    /// How many were remembered since the last whole schema.
    differences: u32,
}

/// After so many differences the whole schema is remembered again.
const DIFFERENCES_MAX: u32 = 64;

/// Descriptions of tables, and tables that are not published any more.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Difference {
    /// Never called `tables`: whoever knows only whole schemas must not take it for one.
    #[serde(rename = "changed")]
    pub tables: Vec<Box<RawValue>>,
    pub gone: Vec<u32>,
}

#[derive(Deserialize, Serialize)]
struct Whole {
    tables: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Numbered {
    oid: u32,
}

/// What is remembered of one transaction.
pub(crate) struct Entry {
    pub json: String,
    /// Whether it stands on its own, or is the difference to the entry before it.
    pub is_whole: bool,
}

impl Schema {
    /// Reads a whole schema.
    pub(crate) fn parse(json: &str) -> Result<Schema> {
        let whole: Whole = serde_json::from_str(json).map_err(unreadable)?;
        Schema::default().changed(Difference { tables: whole.tables, gone: Vec::new() })
    }

    /// Reads the difference to this schema, as [`Schema::entry`] wrote it.
    pub(crate) fn continued(&self, json: &str) -> Result<Schema> {
        let mut next = self.changed(serde_json::from_str(json).map_err(unreadable)?)?;
        next.differences += 1;
        Ok(next)
    }

    pub(crate) fn changed(&self, difference: Difference) -> Result<Schema> {
        let mut next = self.clone();
        for oid in difference.gone {
            next.texts.remove(&oid);
            next.catalog.remove(oid);
        }
        next.catalog.warnings.clear();
        for text in difference.tables {
            let oid = serde_json::from_str::<Numbered>(text.get()).map_err(unreadable)?.oid;
            next.catalog.put(text.get())?;
            next.texts.insert(oid, text);
        }
        Ok(next)
    }

    /// The difference that leads from this schema to a whole one, and the tables that it is about.
    pub(crate) fn difference_to(&self, json: &str) -> Result<Difference> {
        let whole: Whole = serde_json::from_str(json).map_err(unreadable)?;
        let mut gone: BTreeSet<u32> = self.texts.keys().copied().collect();
        for text in &whole.tables {
            gone.remove(&serde_json::from_str::<Numbered>(text.get()).map_err(unreadable)?.oid);
        }
        Ok(Difference { tables: whole.tables, gone: gone.into_iter().collect() })
    }

    /// What to remember of a transaction that concerned `oids`.
    pub(crate) fn entry(&mut self, oids: &BTreeSet<u32>) -> Result<Entry> {
        let is_whole = self.differences >= DIFFERENCES_MAX;
        self.differences = if is_whole { 0 } else { self.differences + 1 };
        let json = if is_whole {
            serde_json::to_string(&Whole { tables: self.texts.values().cloned().collect() })
        } else {
            let (there, gone): (Vec<u32>, Vec<u32>) = oids.iter().partition(|oid| self.texts.contains_key(oid));
            let tables = there.iter().filter_map(|oid| self.texts.get(oid)).cloned().collect();
            serde_json::to_string(&Difference { tables, gone })
        };
        let json = json.map_err(|e| Error::transient_from("cannot write the schema", e))?;
        Ok(Entry { json, is_whole })
    }
}

impl Difference {
    /// The tables that it is about.
    pub(crate) fn oids(&self) -> BTreeSet<u32> {
        let described = self.tables.iter().filter_map(|text| serde_json::from_str::<Numbered>(text.get()).ok());
        described.map(|table| table.oid).chain(self.gone.iter().copied()).collect()
    }
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::reset(format!("a description of the published schema cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(oid: u32, name: &str) -> String {
        format!(
            r#"{{"oid":{oid},"schema":"public","name":"{name}","identity":"d","attributes":1,"conflict":false,"filter":null,"partitions":null,
                "columns":[{{"attnum":1,"name":"id","typeOid":23,"type":"int4","class":"b","element":null,"dimensions":0,"notNull":true,
                "filled":false,"missing":null,"labels":null}}],"indexes":[]}}"#
        )
    }

    fn whole(tables: &[String]) -> String {
        format!(r#"{{"tables":[{}]}}"#, tables.join(","))
    }

    fn names(schema: &Schema) -> Vec<&str> {
        schema.catalog.tables.values().map(|t| t.spec.name.as_str()).collect()
    }

    #[test]
    fn entries_lead_from_one_schema_to_the_next() {
        let first = Schema::parse(&whole(&[table(1, "a"), table(2, "b"), table(3, "c")])).unwrap();
        let difference = first.difference_to(&whole(&[table(1, "a"), table(2, "x"), table(4, "d y")])).unwrap();
        assert_eq!((difference.oids(), &difference.gone[..]), (BTreeSet::from([1, 2, 3, 4]), &[3][..]));
        let mut next = first.changed(difference).unwrap();
        assert_eq!(names(&next), ["a", "x"]);
        assert!(next.catalog.excluded.contains(&4), "a name that cannot be used");
        let entry = next.entry(&BTreeSet::from([2, 3, 4])).unwrap();
        assert!(!entry.is_whole && !entry.json.contains("\"a\""));
        let mut again = first.continued(&entry.json).unwrap();
        assert_eq!(names(&again), ["a", "x"]);
        let more: Vec<bool> =
            (0..2 * DIFFERENCES_MAX).map(|_| again.entry(&BTreeSet::new()).unwrap().is_whole).collect();
        assert_eq!(more.iter().position(|whole| *whole), Some(DIFFERENCES_MAX as usize - 1), "one was there");
        again.differences = DIFFERENCES_MAX;
        let entry = again.entry(&BTreeSet::new()).unwrap();
        assert_eq!(names(&Schema::parse(&entry.json).unwrap()), ["a", "x"]);
        // A table that cannot be used any more, and one that can again.
        let swapped =
            again.continued(&format!(r#"{{"changed":[{},{}],"gone":[]}}"#, table(1, "a a"), table(4, "d"))).unwrap();
        assert_eq!(names(&swapped), ["x", "d"]);
        assert_eq!(swapped.catalog.excluded, BTreeSet::from([1]));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_a_difference_is_not_a_whole() {
        let schema = Schema::default();
        for bad in ["", "{", "[]", r#"{"tables":[{"oid":"x"}]}"#, r#"{"changed":[],"gone":[]}"#] {
            assert!(Schema::parse(bad).is_err(), "{bad}");
        }
        assert!(schema.continued(r#"{"changed":[{}],"gone":[]}"#).is_err());
        assert!(schema.continued(r#"{"tables":[]}"#).is_err());
    }
}
