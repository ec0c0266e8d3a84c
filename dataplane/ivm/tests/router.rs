//! Which graphs a batch visits.

use ivm::query::{Condition, Op, Query};
use ivm::{Changes, Graph, Router};
use rows::{Batch, TableBatch};

use crate::fixture::{Db, Del, N, Put, Words, Write, compare, exists, from};

fn db() -> Db {
    let mut db = Db::new(&[("issue", &["id", "owner"]), ("c", &["id", "iid"]), ("other", &["id"])]);
    db.commit(&[Put("issue", &[1, 7]), Put("issue", &[2, 8]), Put("c", &[10, 1]), Put("c", &[20, 2])]);
    db
}

fn routes(query: &Query, writes: &[Write<'_>]) -> bool {
    let mut db = db();
    let (graph, _) = db.hydrate(query);
    let mut router = Router::default();
    router.insert(5, &graph);
    let changes = Changes::merge(&[db.commit(writes)]);
    let found = router.route(&changes);
    assert!(found.is_empty() || found == [5]);
    !found.is_empty()
}

#[test]
fn constants_are_indexed_through_joins() {
    let one = || compare("id", Op::Eq, 1);
    let both = || Condition::And(vec![one(), exists("id", "iid", from("c"))]);
    let always = || Condition::Or(vec![Condition::And(Vec::new()), exists("id", "iid", from("c"))]);
    let alternative = Condition::Or(vec![one(), compare("owner", Op::Eq, 8)]);
    for (query, writes, expected) in [
        (from("issue"), Put("issue", &[9, 9]), true),
        (from("issue"), Put("other", &[9]), false),
        (from("issue").filter(one()), Put("issue", &[1, 9]), true),
        (from("issue").filter(one()), Put("issue", &[2, 9]), false),
        (from("issue").filter(one()), Del("issue", 1), true),
        (from("issue").filter(compare("owner", Op::Eq, 7)), Put("issue", &[1, N]), true),
        (from("issue").filter(compare("owner", Op::Eq, 7)), Put("issue", &[2, 7]), true),
        (from("issue").filter(compare("owner", Op::Eq, 7)), Put("issue", &[2, N]), false),
        (from("issue").filter(compare("owner", Op::Gt, 7)), Put("issue", &[2, N]), true),
        (from("issue").filter(alternative), Put("issue", &[2, 9]), true),
        // The comments of one issue: only those of this issue matter.
        (from("issue").filter(one()).related("id", "iid", from("c")), Put("c", &[11, 1]), true),
        (from("issue").filter(one()).related("id", "iid", from("c")), Put("c", &[20, 1]), true),
        (from("issue").filter(one()).related("id", "iid", from("c")), Put("c", &[21, 2]), false),
        (from("issue").related("id", "iid", from("c")), Put("c", &[21, 2]), true),
        (from("issue").filter(both()), Del("c", 10), true),
        (from("issue").filter(both()), Del("c", 20), false),
        // What cannot change the answer is not read.
        (from("issue").filter(always()), Put("c", &[21, 2]), false),
        (from("issue").limit(0), Put("issue", &[1, 9]), false),
        (from("issue").filter(compare("owner", Op::Eq, N)), Put("issue", &[1, 9]), false),
    ] {
        assert_eq!(routes(&query, &[writes]), expected, "{writes:?} and {query:?}");
    }
}

#[test]
fn resets_reach_every_reader() {
    let mut db = db();
    let query = from("issue").filter(compare("id", Op::Eq, 1));
    let (mut graph, _) = db.hydrate(&query);
    let mut router = Router::default();
    router.insert(1, &graph);
    let table = std::sync::Arc::clone(&db.schema.tables["issue"]);
    let empty = db.commit(&[]);
    let reset = TableBatch { table, reset: true, rows: Vec::new() };
    let changes = Changes::merge(&[Batch { tables: vec![reset], ..(*empty).clone() }.into()]);
    assert_eq!(router.route(&changes), [1]);
    let error = graph.advance(&mut db.source, &changes).unwrap_err().to_string();
    assert_eq!(error, "the query must be hydrated anew: the contents of table issue changed as a whole");
}

#[test]
fn removal_leaves_nothing_behind() {
    let mut db = db();
    let queries = [from("issue").filter(compare("id", Op::Eq, 1)), from("issue").related("id", "iid", from("c"))];
    let graphs: Vec<Graph> = queries.iter().map(|q| db.hydrate(q).0).collect();
    let mut router = Router::default();
    for (id, graph) in graphs.iter().enumerate() {
        router.insert(id as u64, graph);
        router.insert(id as u64, graph);
    }
    assert_eq!(router.len(), 2);
    let changes = Changes::merge(&[db.commit(&[Put("issue", &[1, 0])])]);
    assert_eq!(router.route(&changes), [0, 1]);
    router.remove(1);
    assert_eq!(router.route(&changes), [0]);
    router.remove(0);
    assert!(router.is_empty());
    assert!(router.route(&changes).is_empty());
    assert_eq!(format!("{router:?}"), format!("{:?}", Router::default()));
}
