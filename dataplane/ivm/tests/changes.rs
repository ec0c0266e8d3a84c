//! Several batches as one difference.

use std::sync::Arc;

use ivm::{AdvanceError, Changes};
use rows::{Batch, TableBatch};

use crate::fixture::{Db, Del, Put, Words, from, show, table};

fn shown(changes: &Changes) -> Vec<String> {
    let mut rows: Vec<String> = changes
        .tables()
        .flat_map(|t| t.rows().iter().map(move |c| format!("{} {:?} -> {:?}", t.table.name, c.old, c.new)))
        .collect();
    rows.sort();
    rows
}

#[test]
fn merging_keeps_the_first_old_and_the_last_new() {
    let mut db = Db::new(&[("t", &["id", "o"])]);
    db.commit(&[Put("t", &[1, 0]), Put("t", &[2, 0])]);
    let batches = [
        db.commit(&[Put("t", &[1, 1]), Put("t", &[3, 1]), Del("t", 2), Put("t", &[4, 1])]),
        db.commit(&[Put("t", &[1, 2]), Del("t", 3), Put("t", &[2, 2])]),
        db.commit(&[Put("t", &[4, 3])]),
    ];
    let changes = Changes::merge(&batches);
    assert_eq!(
        shown(&changes),
        [
            "t None -> Some([Int(4), Int(3)])",
            "t Some([Int(1), Int(0)]) -> Some([Int(1), Int(2)])",
            "t Some([Int(2), Int(0)]) -> Some([Int(2), Int(2)])",
        ]
    );
    let t = changes.table("t").unwrap();
    for i in 0..t.rows().len() {
        assert!(t.contains(t.key(i)));
    }
    assert!(!changes.is_empty());
    assert!(Changes::merge(&[]).is_empty());
    assert!(Changes::merge(&[db.commit(&[Put("t", &[9, 9])]), db.commit(&[Del("t", 9)])]).is_empty());
}

#[test]
fn a_reset_swallows_rows() {
    let mut db = Db::new(&[("t", &["id", "o"])]);
    let first = db.commit(&[Put("t", &[1, 1])]);
    let reset = TableBatch { table: Arc::clone(&db.schema.tables["t"]), reset: true, rows: Vec::new() };
    let reset: Arc<Batch> = Batch { tables: vec![reset], ..(*first).clone() }.into();
    let last = db.commit(&[Put("t", &[2, 1])]);
    let changes = Changes::merge(&[first, reset, last]);
    assert!(changes.table("t").unwrap().reset);
    assert!(shown(&changes).is_empty());
    assert!(!changes.is_empty());
}

#[test]
fn another_shape_of_a_table_needs_another_graph() {
    let mut db = Db::new(&[("t", &["id", "o"])]);
    let (mut graph, _) = db.hydrate(&from("t"));
    let batch = db.commit(&[Put("t", &[1, 1])]);
    let altered = TableBatch { table: table("t", &["id", "o", "new"]), reset: true, rows: Vec::new() };
    let altered = Batch { tables: vec![altered], ..(*batch).clone() };
    let error = graph.advance(&mut db.source, &Changes::merge(&[altered.into()])).unwrap_err();
    assert!(matches!(error, AdvanceError::SchemaChanged { table } if table == "t"));
}

#[test]
fn a_batch_beyond_the_budget_asks_for_hydration() {
    let mut db = Db::new(&[("t", &["id", "o"])]);
    let (mut graph, _) = db.hydrate(&from("t").limit(10));
    let cells: Vec<[i64; 2]> = (0..10_001).map(|i| [i, i]).collect();
    let writes: Vec<_> = cells.iter().map(|c| Put("t", c)).collect();
    let changes = Changes::merge(&[db.commit(&writes)]);
    let error = graph.advance(&mut db.source, &changes).unwrap_err();
    assert!(matches!(error, AdvanceError::NeedsRehydrate(_)), "{error}");
    let delta = graph.rehydrate(&mut db.source).unwrap();
    assert_eq!(delta.puts.len(), 10);
    graph.verify(&mut db.source).unwrap();
    assert_eq!(show(&graph.rehydrate(&mut db.source).unwrap()), "");
}
