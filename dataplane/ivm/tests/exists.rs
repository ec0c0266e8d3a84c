//! EXISTS and NOT EXISTS: when they flip, what is sampled, what stays here.

use ivm::query::{Condition, Op};
use rows::Direction::Asc;

use crate::fixture::{Db, Del, N, Put, Words, compare, exists, from, not_exists, permitted};

fn issues() -> Db {
    let mut db = Db::new(&[("issue", &["id", "o"]), ("c", &["id", "iid"]), ("d", &["id", "cid"])]);
    db.commit(&[Put("issue", &[1, 1]), Put("issue", &[2, 2]), Put("issue", &[3, 3])]);
    db.commit(&[Put("c", &[10, 1]), Put("c", &[11, 1]), Put("c", &[12, 1]), Put("c", &[13, 1]), Put("c", &[14, 2])]);
    db
}

#[test]
fn samples_are_the_first_three_by_key() {
    let mut db = issues();
    let (mut graph, rows) = db.hydrate(&from("issue").filter(exists("id", "iid", from("c"))));
    assert_eq!(rows, "+c(10,1) +c(11,1) +c(12,1) +c(14,2) +issue(1,1) +issue(2,2)");
    for (write, expected) in [
        (Del("c", 10), "-c(10) +c(13,1)"),
        (Put("c", &[20, 1]), ""),
        (Put("c", &[30, 3]), "+c(30,3) +issue(3,3)"),
        (Put("issue", &[1, 9]), "+issue(1,9)"),
        (Put("c", &[11, 3]), "+c(11,3) +c(20,1)"),
        (Put("c", &[14, N]), "-c(14) -issue(2)"),
    ] {
        assert_eq!(db.advance(&mut graph, &[write]).0, expected, "{write:?}");
    }
}

#[test]
fn rows_of_permission_rules_stay_here() {
    let mut db = issues();
    let (mut graph, rows) = db.hydrate(&from("issue").filter(permitted("id", "iid", from("c"))));
    assert_eq!(rows, "+issue(1,1) +issue(2,2)");
    // The answer stays: nothing to tell, and one look at the other rows.
    assert_eq!(db.advance(&mut graph, &[Del("c", 10)]), (String::new(), 1));
    assert_eq!(db.advance(&mut graph, &[Del("c", 14)]).0, "-issue(2)");
    assert_eq!(db.advance(&mut graph, &[Put("c", &[15, 2])]).0, "+issue(2,2)");
    // One goes and one comes: no look is needed.
    assert_eq!(db.advance(&mut graph, &[Del("c", 15), Put("c", &[16, 2])]), (String::new(), 0));
}

#[test]
fn a_change_that_the_condition_does_not_read_counts_as_no_change() {
    let mut db = Db::new(&[("issue", &["id"]), ("c", &["id", "iid", "text"])]);
    db.commit(&[Put("issue", &[1]), Put("c", &[10, 1, 0]), Put("c", &[11, 1, 0])]);
    let (mut graph, _) = db.hydrate(&from("issue").filter(permitted("id", "iid", from("c"))));
    assert_eq!(db.advance(&mut graph, &[Put("c", &[10, 1, 5])]), (String::new(), 0));
    // The other row goes; the one that was only edited still holds the answer.
    assert_eq!(db.advance(&mut graph, &[Put("c", &[10, 1, 6]), Del("c", 11)]).0, "");
    assert_eq!(db.advance(&mut graph, &[Del("c", 10)]).0, "-issue(1)");
}

#[test]
fn null_joins_nothing() {
    let mut db = Db::new(&[("p", &["id", "x"]), ("c", &["id", "x"])]);
    db.commit(&[Put("p", &[1, N]), Put("p", &[2, 5]), Put("c", &[10, N]), Put("c", &[11, 5])]);
    assert_eq!(db.hydrate(&from("p").filter(exists("x", "x", from("c")))).1, "+c(11,5) +p(2,5)");
    let (mut graph, rows) = db.hydrate(&from("p").filter(not_exists("x", "x", from("c"))));
    assert_eq!(rows, "+p(1,null)");
    assert_eq!(db.advance(&mut graph, &[Put("c", &[11, N])]).0, "+p(2,5)");
    assert_eq!(db.advance(&mut graph, &[Put("p", &[2, N])]).0, "+p(2,null)");
}

#[test]
fn flips_bubble_up_from_any_depth() {
    let mut db = issues();
    let inner = from("c").filter(not_exists("id", "cid", from("d")));
    let (mut graph, rows) = db.hydrate(&from("issue").filter(permitted("id", "iid", inner)));
    assert_eq!(rows, "+issue(1,1) +issue(2,2)");
    assert_eq!(db.advance(&mut graph, &[Put("d", &[100, 14])]).0, "-issue(2)");
    assert_eq!(db.advance(&mut graph, &[Put("d", &[101, 10])]).0, "");
    // In one batch: the last c of issue 1 without a d gets one, and issue 2 gets a c that has none.
    let writes = [Put("d", &[102, 11]), Put("d", &[103, 12]), Put("d", &[104, 13]), Put("c", &[50, 2])];
    assert_eq!(db.advance(&mut graph, &writes).0, "-issue(1) +issue(2,2)");
    assert_eq!(db.advance(&mut graph, &[Del("d", 102), Del("c", 50)]).0, "-issue(2) +issue(1,1)");
}

#[test]
fn an_unread_edit_and_an_inner_flip_meet_in_one_row() {
    let mut db = Db::new(&[("issue", &["id"]), ("c", &["id", "iid", "text"]), ("d", &["id", "cid"])]);
    db.commit(&[Put("issue", &[1]), Put("c", &[10, 1, 0])]);
    let inner = from("c").filter(exists("id", "cid", from("d")));
    let (mut graph, rows) = db.hydrate(&from("issue").filter(permitted("id", "iid", inner)));
    assert_eq!(rows, "");
    assert_eq!(db.advance(&mut graph, &[Put("c", &[10, 1, 5]), Put("d", &[100, 10])]).0, "+issue(1)");
    assert_eq!(db.advance(&mut graph, &[Put("c", &[10, 1, 6]), Del("d", 100)]).0, "-issue(1)");
}

#[test]
fn several_parents_leave_a_full_window_at_once() {
    let mut db = issues();
    db.commit(&[Put("issue", &[4, 4]), Put("issue", &[5, 5])]);
    let query = from("issue")
        .filter(not_exists("o", "iid", from("c").filter(compare("id", Op::Ge, 100))))
        .order("o", Asc)
        .limit(2);
    let (mut graph, rows) = db.hydrate(&query);
    assert_eq!(rows, "+issue(1,1) +issue(2,2)");
    // Those that would follow are hit by the same batch.
    let writes = [Put("c", &[100, 1]), Put("c", &[101, 2]), Put("c", &[102, 3])];
    assert_eq!(db.advance(&mut graph, &writes).0, "-issue(1) -issue(2) +issue(4,4) +issue(5,5)");
    assert_eq!(
        db.advance(&mut graph, &[Del("c", 101), Del("c", 102)]).0,
        "-issue(4) -issue(5) +issue(2,2) +issue(3,3)"
    );
}

#[test]
fn alternatives_and_self_joins() {
    let mut db = Db::new(&[("n", &["id", "up"])]);
    db.commit(&[Put("n", &[1, N]), Put("n", &[2, 1]), Put("n", &[3, 2])]);
    let either = Condition::Or(vec![compare("up", Op::Is, N), exists("id", "up", from("n"))]);
    let (mut graph, rows) = db.hydrate(&from("n").filter(either));
    // 1 and 2 pass; 2 and 3 are their samples too.
    assert_eq!(rows, "+n(1,null) +n(2,1) +n(3,2)");
    assert_eq!(db.advance(&mut graph, &[Put("n", &[3, N])]).0, "+n(3,null)");
    assert_eq!(db.advance(&mut graph, &[Del("n", 1), Put("n", &[2, 3])]).0, "-n(1) +n(2,3)");
    assert_eq!(db.advance(&mut graph, &[Del("n", 3)]).0, "-n(2) -n(3)");
}

#[test]
fn a_limit_inside_is_ignored_unless_it_is_zero() {
    let mut db = issues();
    for (query, expected) in [
        (from("issue").filter(permitted("id", "iid", from("c").limit(1))), "+issue(1,1) +issue(2,2)"),
        (from("issue").filter(exists("id", "iid", from("c").limit(0))), ""),
        (from("issue").filter(not_exists("id", "iid", from("c").limit(0))), "+issue(1,1) +issue(2,2) +issue(3,3)"),
        (from("issue").filter(not_exists("id", "iid", from("c").limit(1))), "+issue(3,3)"),
    ] {
        assert_eq!(db.hydrate(&query).1, expected, "{query:?}");
    }
}
