//! SQLite takes the index that the shape of a scan calls for.

use std::sync::Arc;

use ivm::filter::{Exists, Filter};
use ivm::like::Pattern;
use ivm::query::Op;
use ivm::source::{ScanArgs, ScanPlan, Start};
use replica::{Reader, Writer};
use rows::{CellRef, ColumnType, CopyBlock, Direction, Key, SortKey, Table, Value};

use crate::fixture::{column, index, load, plan, rows, table};

struct Issues {
    _directory: tempfile::TempDir,
    reader: Reader,
    writer: Writer,
    issue: Arc<Table>,
    label: Arc<Table>,
}

/// 20,000 issues, of which 1 in 100 has label 7 and all have label 1; `note` has no index on `issue`.
fn issues() -> Issues {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    use ColumnType::{Bool, Int, Str};
    let issue = table(
        1,
        "issue",
        vec![
            column(1, "id", Str, true),
            column(2, "modified", Int, true),
            column(3, "open", Bool, true),
            column(4, "owner", Str, false),
            column(5, "title", Str, true),
            column(6, "rank", Int, false),
        ],
        &["id"],
        vec![
            index("m", false, &["modified"]),
            index("om", false, &["open", "modified"]),
            index("o", false, &["owner"]),
            index("r", false, &["rank"]),
            index("t", false, &["title"]),
        ],
    );
    let label = table(
        2,
        "label",
        vec![column(1, "issue", Str, true), column(2, "label", Int, true)],
        &["issue", "label"],
        vec![index("l", false, &["label"])],
    );
    let note = table(3, "note", vec![column(1, "id", Int, true), column(2, "issue", Str, true)], &["id"], Vec::new());
    let mut blocks = [CopyBlock::new(6), CopyBlock::new(2), CopyBlock::new(2)];
    for i in 0..20_000_i64 {
        let id = format!("i{i:06}");
        let owner = format!("u{}", i % 500);
        let title = format!("title {:05}", (i * 7919) % 20_000);
        blocks[0].push(CellRef::Text(&id));
        blocks[0].push(CellRef::Int((i * 7919) % 10_007));
        blocks[0].push(CellRef::Bool(i % 3 == 0));
        blocks[0].push(if i % 5 == 0 { CellRef::Null } else { CellRef::Text(&owner) });
        blocks[0].push(CellRef::Text(&title));
        blocks[0].push(if i % 4 == 0 { CellRef::Null } else { CellRef::Int((i * 31) % 1000) });
        for label in if i % 100 == 0 { &[1, 7][..] } else { &[1] } {
            blocks[1].push(CellRef::Text(&id));
            blocks[1].push(CellRef::Int(*label));
        }
        blocks[2].push(CellRef::Int(i));
        blocks[2].push(CellRef::Text(&id));
    }
    let [a, b, c] = blocks;
    let replica = load(&path, &[Arc::new(issue), Arc::new(label), Arc::new(note)], &[(0, a), (1, b), (2, c)]);
    let schema = replica.schema();
    let mut reader = replica.reader().unwrap();
    reader.begin().unwrap();
    let writer = replica.writer().unwrap();
    Issues {
        _directory: directory,
        reader,
        writer,
        issue: Arc::clone(&schema.tables["issue"]),
        label: Arc::clone(&schema.tables["label"]),
    }
}

impl Issues {
    fn steps(&mut self, plan: &ScanPlan, args: ScanArgs<'_>) -> String {
        let statements = self.reader.explain(plan, args).unwrap();
        statements.into_iter().map(|(sql, steps)| format!("{sql}\n  {}\n", steps.join("\n  "))).collect()
    }

    fn labelled(&self, label: i64, negated: bool) -> Filter {
        let mut child =
            plan(&self.label, compare(1, Op::Eq, Value::Int(label)), vec![(0, Direction::Asc), (1, Direction::Asc)]);
        child.constraint = vec![0];
        Filter::Exists(Exists { id: 0, negated, parent: vec![0], plan: Arc::new(child) })
    }

    fn recent(&self, filter: Filter) -> ScanPlan {
        plan(&self.issue, filter, vec![(1, Direction::Desc), (0, Direction::Asc)])
    }
}

fn compare(column: usize, op: Op, value: Value) -> Filter {
    Filter::Compare { column, op, value }
}

fn text(s: &str) -> Value {
    Value::Str(s.into())
}

fn limit(n: u64) -> ScanArgs<'static> {
    ScanArgs { limit: Some(n), ..ScanArgs::default() }
}

/// Neither reads a whole table nor sorts, except ties.
#[track_caller]
fn assert_direct(steps: &str) {
    let tie = "USE TEMP B-TREE FOR LAST TERM OF ORDER BY";
    assert!(!steps.contains("SCAN") && !steps.replace(tie, "").contains("TEMP B-TREE"), "{steps}");
}

#[test]
fn point_lookups_search_the_key() {
    let mut i = issues();
    let lookup = plan(&i.issue, compare(0, Op::Eq, text("i000005")), vec![(0, Direction::Asc)]);
    let steps = i.steps(&lookup, limit(1));
    assert!(steps.contains("SEARCH t0 USING INDEX k1_1 (c1=?)"), "{steps}");
    assert_direct(&steps);
    assert_eq!(rows(&mut i.reader, &lookup, limit(1)).len(), 1);
    let mut child = plan(&i.issue, Filter::And(vec![]), vec![(0, Direction::Asc)]);
    child.constraint = vec![3];
    let key = Key::from_values(&[text("u7")]);
    let args = ScanArgs { constraint: Some(&key), ..ScanArgs::default() };
    let steps = i.steps(&child, args);
    assert!(steps.contains("(c4=?)"), "{steps}");
    assert_direct(&steps);
    assert_eq!(rows(&mut i.reader, &child, args).len(), 40);
}

#[test]
fn limited_orders_walk_their_index() {
    let mut i = issues();
    for filter in [Filter::And(vec![]), compare(2, Op::Eq, Value::Bool(true))] {
        let recent = i.recent(filter);
        let steps = i.steps(&recent, limit(50));
        assert!(!steps.replace("USE TEMP B-TREE FOR LAST TERM OF ORDER BY", "").contains("TEMP B-TREE"), "{steps}");
        assert_eq!(rows(&mut i.reader, &recent, limit(50)).len(), 50);
    }
}

#[test]
fn bounds_are_ranges_of_the_index() {
    let mut i = issues();
    let position = Key::from_values(&[Value::Int(5000), text("i000000")]);
    for reverse in [false, true] {
        for inclusive in [false, true] {
            let recent = i.recent(Filter::And(vec![]));
            let steps = i.steps(&recent, ScanArgs { after: Some((&position, inclusive)), reverse, ..limit(10) });
            assert!(steps.contains(if reverse { "(c2>?)" } else { "(c2<?)" }), "{steps}");
            assert_direct(&steps);
        }
    }
    // All one direction: a row value.
    let same =
        ScanPlan { order: SortKey(vec![(1, Direction::Desc), (0, Direction::Desc)]), ..i.recent(Filter::And(vec![])) };
    let steps = i.steps(&same, ScanArgs { after: Some((&position, false)), ..limit(10) });
    assert!(steps.contains("((c2,c1)<(?,?))"), "{steps}");
    assert_direct(&steps);
    // From the query's own start.
    let started = ScanPlan { start: Some(Start { position, inclusive: false }), ..i.recent(Filter::And(vec![])) };
    let steps = i.steps(&started, limit(10));
    assert_direct(&steps);
}

#[test]
fn nulls_last_are_a_range_of_their_own() {
    let mut i = issues();
    let by_rank = plan(&i.issue, Filter::And(vec![]), vec![(5, Direction::Desc), (0, Direction::Asc)]);
    let position = Key::from_values(&[Value::Int(500), text("i000000")]);
    let args = ScanArgs { after: Some((&position, false)), ..ScanArgs::default() };
    let steps = i.steps(&by_rank, args);
    assert_direct(&steps);
    assert_eq!(i.reader.explain(&by_rank, args).unwrap().len(), 2);
    let found = rows(&mut i.reader, &by_rank, args);
    assert_eq!(found.iter().filter(|r| r.get(5).is_null()).count(), 5000);
    assert!(found.iter().skip_while(|r| !r.get(5).is_null()).all(|r| r.get(5).is_null()));
    // The limit holds over both parts.
    assert_eq!(rows(&mut i.reader, &by_rank, ScanArgs { limit: Some(9_000), ..args }).len(), 9_000);
}

#[test]
fn rare_children_are_listed_and_common_ones_probed() {
    let mut i = issues();
    let rare = i.recent(i.labelled(7, false));
    let steps = i.steps(&rare, limit(100));
    assert!(steps.contains("IN (SELECT"), "{steps}");
    assert_eq!(rows(&mut i.reader, &rare, limit(100)).len(), 100);
    // A few of them are found sooner by going through the newest issues.
    let newest = i.recent(i.labelled(7, false));
    let steps = i.steps(&newest, limit(1));
    assert!(steps.contains("+t0.c1 IN (SELECT") && !steps.contains("B-TREE FOR ORDER BY"), "{steps}");
    let common = i.recent(i.labelled(1, false));
    let steps = i.steps(&common, limit(100));
    assert!(steps.contains("EXISTS (SELECT"), "{steps}");
    assert!(!steps.replace("FOR LAST TERM OF ORDER BY", "").contains("B-TREE FOR ORDER BY"), "{steps}");
    assert_eq!(rows(&mut i.reader, &common, limit(100)).len(), 100);
    let without = i.recent(i.labelled(7, true));
    assert_eq!(rows(&mut i.reader, &without, ScanArgs::default()).len(), 19_800);
}

#[test]
fn alternatives_by_index_are_united() {
    let mut i = issues();
    let either = i.recent(Filter::Or(vec![compare(3, Op::Eq, text("u7")), i.labelled(7, false)]));
    let steps = i.steps(&either, ScanArgs::default());
    assert!(steps.contains("MULTI-INDEX OR"), "{steps}");
    assert_eq!(rows(&mut i.reader, &either, ScanArgs::default()).len(), 240);
}

#[test]
fn prefixes_of_patterns_are_ranges() {
    let mut i = issues();
    let titled = |pattern: &str| {
        let like = Filter::Like { column: 4, negated: false, pattern: Arc::new(Pattern::new(pattern, false)) };
        plan(&i.issue, like, vec![(4, Direction::Asc), (0, Direction::Asc)])
    };
    let (range, whole) = (titled("title 0123%"), titled("%0123_"));
    let steps = i.steps(&range, ScanArgs::default());
    assert!(steps.contains("(c5>? AND c5<?)"), "{steps}");
    assert_eq!(rows(&mut i.reader, &range, ScanArgs::default()).len(), 10);
    assert_eq!(rows(&mut i.reader, &whole, ScanArgs::default()).len(), 10);
}

#[test]
fn long_lists_are_one_parameter() {
    let mut i = issues();
    let ids = |step: usize| (0..20_000).step_by(step).map(|n| text(&format!("i{n:06}"))).collect::<Vec<Value>>();
    for (negated, expected) in [(false, 10_000), (true, 10_000)] {
        let listed =
            plan(&i.issue, Filter::In { column: 0, negated, values: ids(2).into() }, vec![(0, Direction::Asc)]);
        assert_eq!(rows(&mut i.reader, &listed, ScanArgs::default()).len(), expected);
    }
    let listed =
        plan(&i.issue, Filter::In { column: 0, negated: false, values: ids(200).into() }, vec![(0, Direction::Asc)]);
    let steps = i.steps(&listed, ScanArgs::default());
    assert!(steps.contains("json_each") && steps.contains("SEARCH t0 USING INDEX k1_1 (c1=?)"), "{steps}");
    let ranks: Vec<Value> = (0..200).map(Value::Int).collect();
    let listed =
        plan(&i.issue, Filter::In { column: 5, negated: false, values: ranks.into() }, vec![(0, Direction::Asc)]);
    assert_eq!(rows(&mut i.reader, &listed, ScanArgs::default()).len(), 3000);
}

#[test]
fn a_missing_index_is_made_once() {
    let mut i = issues();
    assert!(!i.writer.ensure_index("issue", &["owner"]).unwrap());
    assert!(!i.writer.ensure_index("label", &["label", "issue"]).unwrap());
    assert!(!i.writer.ensure_index("nothing", &["owner"]).unwrap());
    let note = Arc::clone(&i.reader.schema().tables["note"]);
    let mut child = plan(&note, Filter::And(vec![]), vec![(0, Direction::Asc)]);
    child.constraint = vec![1];
    let key = Key::from_values(&[text("i000009")]);
    let args = ScanArgs { constraint: Some(&key), ..ScanArgs::default() };
    assert!(!i.steps(&child, args).contains("(c2=?)"));
    assert!(i.writer.ensure_index("note", &["issue"]).unwrap());
    assert!(!i.writer.ensure_index("note", &["issue"]).unwrap());
    i.reader.end();
    i.reader.begin().unwrap();
    let steps = i.steps(&child, args);
    assert!(steps.contains("x3_2_1 (c2=?)"), "{steps}");
    assert_eq!(rows(&mut i.reader, &child, args).len(), 1);
}
