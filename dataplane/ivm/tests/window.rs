//! Every way in which a batch can meet a limit: what changes, and how many scans that takes.

use ivm::query::Op;
use rows::Direction::{Asc, Desc};

use crate::fixture::{Db, Del, N, Put, Words, Write, compare, from};

struct Case<'a> {
    name: &'a str,
    limit: u64,
    /// Rows (id, o) before.
    before: &'a [[i64; 2]],
    writes: &'a [Write<'a>],
    delta: &'a str,
    scans: usize,
}

const ROWS: &[[i64; 2]] = &[[1, 10], [2, 20], [3, 30], [4, 40]];

fn cases() -> Vec<Case<'static>> {
    let case = |name, limit, before, writes, delta, scans| Case { name, limit, before, writes, delta, scans };
    vec![
        case("enters while there is room", 9, ROWS, &[Put("t", &[5, 5])], "+t(5,5)", 0),
        case("fills the window", 5, ROWS, &[Put("t", &[5, 5])], "+t(5,5)", 1),
        case("enters a full window", 2, ROWS, &[Put("t", &[5, 5])], "-t(2) +t(5,5)", 1),
        case("enters just before the bound", 2, ROWS, &[Put("t", &[5, 15])], "-t(2) +t(5,15)", 1),
        case("ties with the bound and sorts after it", 2, ROWS, &[Put("t", &[5, 20])], "", 0),
        case("comes behind the bound", 2, ROWS, &[Put("t", &[5, 25])], "", 0),
        case("goes from behind the bound", 2, ROWS, &[Del("t", 4)], "", 0),
        case("moves behind the bound", 2, ROWS, &[Put("t", &[4, 35])], "", 0),
        case("leaves, another one follows", 2, ROWS, &[Del("t", 1)], "-t(1) +t(3,30)", 1),
        case("the bound leaves, another one follows", 2, ROWS, &[Del("t", 2)], "-t(2) +t(3,30)", 1),
        case("leaves, none follows", 4, ROWS, &[Del("t", 2)], "-t(2)", 1),
        case("leaves a window with room", 9, ROWS, &[Del("t", 2)], "-t(2)", 0),
        case("changes in place", 2, ROWS, &[Put("t", &[1, 11])], "+t(1,11)", 0),
        case("the bound moves forward", 2, ROWS, &[Put("t", &[2, 5])], "+t(2,5)", 1),
        case("the bound moves back and stays", 2, ROWS, &[Put("t", &[2, 29])], "+t(2,29)", 1),
        case("the bound moves back and goes", 2, ROWS, &[Put("t", &[2, 31])], "-t(2) +t(3,30)", 1),
        case(
            "moves past the bound and returns by refill",
            3,
            &[[1, 10], [2, 20], [3, 30]],
            &[Put("t", &[1, 99])],
            "+t(1,99)",
            1,
        ),
        case("comes from behind the bound", 2, ROWS, &[Put("t", &[4, 1])], "-t(2) +t(4,1)", 1),
        case("one comes, one goes", 2, ROWS, &[Put("t", &[5, 5]), Del("t", 1)], "-t(1) +t(5,5)", 0),
        case("one comes, the bound goes", 2, ROWS, &[Put("t", &[5, 5]), Del("t", 2)], "-t(2) +t(5,5)", 1),
        case(
            "too many newcomers",
            2,
            ROWS,
            &[Put("t", &[5, 5]), Put("t", &[6, 6]), Put("t", &[7, 7])],
            "-t(1) -t(2) +t(5,5) +t(6,6)",
            1,
        ),
        case("everything goes", 2, ROWS, &[Del("t", 1), Del("t", 2), Del("t", 3), Del("t", 4)], "-t(1) -t(2)", 1),
        case("a limit of one", 1, ROWS, &[Put("t", &[1, 15])], "+t(1,15)", 1),
        case("the next one takes a window of one", 1, ROWS, &[Put("t", &[1, 25])], "-t(1) +t(2,20)", 1),
        case("null sorts first", 2, ROWS, &[Put("t", &[9, N])], "-t(2) +t(9,null)", 1),
        case("the first row of an empty window", 1, &[], &[Put("t", &[1, 1])], "+t(1,1)", 1),
        case("more than a limit into an empty window", 1, &[], &[Put("t", &[1, 1]), Put("t", &[2, 0])], "+t(2,0)", 1),
    ]
}

#[test]
fn a_limit_at_the_root() {
    for case in cases() {
        let mut db = Db::new(&[("t", &["id", "o"])]);
        let before: Vec<Write<'_>> = case.before.iter().map(|cells| Put("t", cells)).collect();
        db.commit(&before);
        let (mut graph, _) = db.hydrate(&from("t").order("o", Asc).limit(case.limit));
        let (delta, scans) = db.advance(&mut graph, case.writes);
        assert_eq!((delta.as_str(), scans), (case.delta, case.scans), "{}", case.name);
    }
}

/// The same cases in one of two partitions of a related level; the other one stays as it is.
#[test]
fn a_limit_in_a_partition() {
    for case in cases() {
        let mut db = Db::new(&[("p", &["id"]), ("t", &["id", "o", "p"])]);
        let cells = |cells: &[i64]| vec![cells[0], cells[1], 7];
        let before: Vec<Vec<i64>> = case.before.iter().map(|c| cells(c)).collect();
        let mut writes: Vec<Write<'_>> = before.iter().map(|c| Put("t", c)).collect();
        writes.extend([Put("p", &[7]), Put("p", &[8]), Put("t", &[100, 0, 8]), Put("t", &[101, 1, 8])]);
        db.commit(&writes);
        let children = from("t").order("o", Asc).limit(case.limit);
        let (mut graph, _) = db.hydrate(&from("p").related("id", "p", children));
        let after: Vec<Vec<i64>> = case
            .writes
            .iter()
            .map(|w| match w {
                Put(_, c) => cells(c),
                Del(_, key) => vec![*key],
            })
            .collect();
        let writes: Vec<Write<'_>> =
            after.iter().map(|c| if c.len() == 1 { Del("t", c[0]) } else { Put("t", c) }).collect();
        let (delta, scans) = db.advance(&mut graph, &writes);
        let expected: Vec<String> = case
            .delta
            .split(' ')
            .map(|part| if part.starts_with('+') { part.replace(')', ",7)") } else { part.to_owned() })
            .collect();
        assert_eq!((delta, scans), (expected.join(" "), case.scans), "{}", case.name);
    }
}

#[test]
fn probed_steps_of_a_limited_root() {
    let mut db = Db::new(&[("issue", &["id", "o"])]);
    db.commit(&[Put("issue", &[1, 1]), Put("issue", &[2, 2]), Put("issue", &[3, 3])]);
    let (mut graph, rows) = db.hydrate(&from("issue").order("o", Asc).limit(2));
    assert_eq!(rows, "+issue(1,1) +issue(2,2)");
    for (write, expected) in [
        (Put("issue", &[4, 0]), "-issue(2) +issue(4,0)"),
        (Put("issue", &[4, 100]), "-issue(4) +issue(2,2)"),
        (Del("issue", 1), "-issue(1) +issue(3,3)"),
    ] {
        assert_eq!(db.advance(&mut graph, &[write]).0, expected, "{write:?}");
    }
}

#[test]
fn descending_windows_have_nulls_last() {
    let mut db = Db::new(&[("t", &["id", "o"])]);
    db.commit(&[Put("t", &[1, N]), Put("t", &[2, 5])]);
    let (mut graph, rows) = db.hydrate(&from("t").order("o", Desc).limit(1));
    assert_eq!(rows, "+t(2,5)");
    assert_eq!(db.advance(&mut graph, &[Put("t", &[2, N])]).0, "-t(2) +t(1,null)");
}

#[test]
fn a_filter_decides_before_the_window() {
    let mut db = Db::new(&[("t", &["id", "o", "done"])]);
    db.commit(&[Put("t", &[1, 1, 0]), Put("t", &[2, 2, 0]), Put("t", &[3, 3, 1])]);
    let (mut graph, rows) = db.hydrate(&from("t").filter(compare("done", Op::Eq, 0)).order("o", Asc).limit(2));
    assert_eq!(rows, "+t(1,1,0) +t(2,2,0)");
    assert_eq!(db.advance(&mut graph, &[Put("t", &[1, 1, 1])]).0, "-t(1)");
    assert_eq!(db.advance(&mut graph, &[Put("t", &[3, 3, 0])]).0, "+t(3,3,0)");
    assert_eq!(db.advance(&mut graph, &[Put("t", &[1, 1, N])]).0, "");
}

#[test]
fn children_follow_their_parents_through_a_window() {
    let mut db = Db::new(&[("p", &["id", "o"]), ("c", &["id", "p"])]);
    db.commit(&[
        Put("p", &[1, 1]),
        Put("p", &[2, 2]),
        Put("c", &[10, 1]),
        Put("c", &[11, 1]),
        Put("c", &[20, 2]),
        Put("c", &[30, N]),
    ]);
    let (mut graph, rows) = db.hydrate(&from("p").order("o", Asc).limit(1).related("id", "p", from("c")));
    assert_eq!(rows, "+c(10,1) +c(11,1) +p(1,1)");
    // In one batch: the parent leaves the window, one child goes, one moves to the parent that follows.
    let writes = [Put("p", &[1, 9]), Del("c", 10), Put("c", &[11, 2])];
    assert_eq!(db.advance(&mut graph, &writes).0, "-c(10) -p(1) +c(11,2) +c(20,2) +p(2,2)");
    assert_eq!(db.advance(&mut graph, &[Put("c", &[30, 1])]), (String::new(), 0));
    assert_eq!(db.advance(&mut graph, &[Put("c", &[11, N])]).0, "-c(11)");
}

#[test]
fn a_limit_of_zero_is_an_empty_relation() {
    let mut db = Db::new(&[("p", &["id"]), ("c", &["id", "p"])]);
    db.commit(&[Put("p", &[1]), Put("c", &[10, 1])]);
    assert_eq!(db.hydrate(&from("p").limit(0)).1, "");
    assert_eq!(db.hydrate(&from("p").related("id", "p", from("c").limit(0).related("id", "id", from("p")))).1, "+p(1)");
}
