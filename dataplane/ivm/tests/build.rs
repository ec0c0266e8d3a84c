//! Queries that cannot be run, and why.

use std::sync::Arc;

use ivm::query::{Condition, Literal, Op, Query, Start};
use ivm::{MAX_DEPTH, MAX_IN_VALUES, MAX_LEVELS};
use rows::Direction::Asc;
use rows::{Column, ColumnType, Table, Value};

use crate::fixture::{Db, Words, compare, exists, from, join};

fn db() -> Db {
    let mut db = Db::new(&[("t", &["id", "o"])]);
    let types = [
        ("id", ColumnType::Str),
        ("flag", ColumnType::Bool),
        ("doc", ColumnType::Json),
        ("text", ColumnType::Str),
        ("n", ColumnType::Float),
    ];
    let columns = types.iter().map(|(name, ty)| Column { name: (*name).into(), ty: *ty, not_null: *name == "id" });
    let mixed = Table {
        name: "mixed".into(),
        columns: columns.collect(),
        key: vec![0],
        unique_keys: vec![vec![0]],
        indexes: Vec::new(),
    };
    db.schema.tables.insert("mixed".into(), Arc::new(mixed));
    db.schema.hidden.insert("secret".into(), "it has no primary key".to_owned());
    db
}

fn with(column: &str, op: Op, value: Literal) -> Query {
    from("mixed").filter(Condition::Compare { column: column.to_owned(), op, value })
}

fn text(s: &str) -> Literal {
    Literal::One(Value::Str(s.into()))
}

fn number(n: f64) -> Literal {
    Literal::One(Value::Float(n))
}

fn nested(depth: usize) -> Query {
    (0..depth).fold(from("t"), |inner, _| from("t").related("id", "id", inner))
}

/// A query with so many patterns.
fn likes(count: usize, pattern: &str) -> Query {
    let like = Condition::Compare { column: "text".to_owned(), op: Op::NotLike, value: text(pattern) };
    from("mixed").filter(Condition::And(vec![like; count]))
}

fn below_exists(query: Query) -> Query {
    from("mixed").filter(exists("text", "text", query))
}

#[test]
fn errors_say_what_and_where() {
    let start = Some(Start { row: vec![("o".to_owned(), Value::Str("x".into()))], exclusive: true });
    let mut two_to_one = from("t");
    two_to_one
        .related
        .push(ivm::query::Related { parent: vec!["id".to_owned(), "o".to_owned()], ..join("id", "id", from("t")) });
    let wide = (0..MAX_LEVELS).fold(from("t"), |query, _| query.related("id", "id", from("t")));
    let many = Literal::Many(vec![Value::Float(1.0); MAX_IN_VALUES + 1]);
    for (query, expected) in [
        (from("nope"), "unknown table nope; the replica has: mixed, t"),
        (from("secret"), "table secret cannot be queried: it has no primary key"),
        (from("t").related("id", "id", from("nope")), "unknown table nope; the replica has: mixed, t"),
        (from("t").filter(compare("nope", Op::Eq, 1)), "unknown column t.nope; the table has: id, o"),
        (from("t").order("nope", Asc), "unknown column t.nope; the table has: id, o"),
        (from("t").related("id", "nope", from("t")), "unknown column t.nope; the table has: id, o"),
        (with("text", Op::Lt, number(1.0)), "Lt on mixed.text needs a string"),
        (with("n", Op::Ge, text("x")), "Ge on mixed.n needs a number"),
        (with("n", Op::Like, text("x")), "Like on mixed.n needs a string column and a string pattern"),
        (with("text", Op::Like, number(1.0)), "Like on mixed.text needs a string column and a string pattern"),
        (with("n", Op::In, number(1.0)), "In on mixed.n needs a list of values"),
        (with("n", Op::Eq, Literal::Many(Vec::new())), "Eq on mixed.n needs one value"),
        (with("doc", Op::Eq, text("{}")), "Eq on mixed.doc needs IS null or IS NOT null: JSON cannot be compared"),
        (from("mixed").order("doc", Asc), "mixed.doc holds JSON and cannot be used in orderBy"),
        (from("mixed").related("doc", "doc", from("mixed")), "mixed.doc holds JSON and cannot be used in a join"),
        (Query { start, ..from("t").order("o", Asc) }, "start on t.o needs a number"),
        (two_to_one, "join from t to t: 2 columns on one side and 1 on the other"),
        (wide, "the query has more than 128 levels (related queries and synced EXISTS)"),
        (nested(MAX_DEPTH + 1), "the query has more than 48 nested queries and conditions"),
        (with("n", Op::NotIn, many), "the query has more than 10000 values in one IN list"),
        (
            with("text", Op::ILike, text(&"%a".repeat(9_000))),
            "the query has more than 16384 bytes of LIKE and ILIKE patterns",
        ),
        (likes(257, "%a"), "the query has more than 256 LIKE and ILIKE patterns"),
        (below_exists(likes(200, &"%a".repeat(50))), "the query has more than 16384 bytes of LIKE and ILIKE patterns"),
        (with("text", Op::Eq, text(&"a".repeat((1 << 20) + 1))), "the query has more than 1048576 bytes of literals"),
    ] {
        assert_eq!(db().build(&query).unwrap_err().to_string(), expected);
    }
    assert!(db().build(&nested(MAX_DEPTH)).is_ok());
    let keyless = ivm::Graph::build(&from("t"), &db().schema, &|_| Vec::new());
    assert_eq!(keyless.unwrap_err().to_string(), "the key chosen for table t is not a list of its columns");
}

#[test]
fn literals_of_another_class_fold() {
    let mut db = db();
    let mut row = rows::RowBuilder::new(5);
    for cell in
        [Value::Str("a".into()), Value::Null, Value::Json("{}".into()), Value::Str("x".into()), Value::Float(2.0)]
    {
        row.push(cell.as_ref());
    }
    let table = Arc::clone(&db.schema.tables["mixed"]);
    db.source.memory.put(&table, row.finish(rows::Version::new(1)));
    let null = || Literal::One(Value::Null);
    let list = |values: &[Value]| Literal::Many(values.to_vec());
    for (column, op, value, found) in [
        ("text", Op::Eq, number(1.0), false),
        ("text", Op::Ne, number(1.0), true),
        ("text", Op::Is, number(1.0), false),
        ("text", Op::IsNot, number(1.0), true),
        ("flag", Op::Ne, number(1.0), false),
        ("flag", Op::IsNot, number(1.0), true),
        ("text", Op::In, list(&[Value::Float(1.0)]), false),
        ("text", Op::NotIn, list(&[Value::Float(1.0)]), true),
        ("text", Op::NotIn, list(&[Value::Null]), true),
        ("flag", Op::NotIn, list(&[]), false),
        ("text", Op::In, list(&[Value::Float(1.0), Value::Str("x".into())]), true),
        ("n", Op::Eq, Literal::One(Value::Int(2)), true),
        ("n", Op::In, list(&[Value::Int(3), Value::Int(2)]), true),
        ("n", Op::Lt, null(), false),
        ("n", Op::Ne, null(), false),
        ("flag", Op::Is, null(), true),
        ("doc", Op::IsNot, null(), true),
        ("text", Op::Like, text("x"), true),
        ("text", Op::NotLike, text("x"), false),
        ("text", Op::Like, text("x\\"), false),
    ] {
        let case = format!("{column} {op:?} {value:?}");
        assert_eq!(!db.hydrate(&with(column, op, value)).1.is_empty(), found, "{case}");
    }
}

#[test]
fn joins_between_classes_are_empty() {
    let mut db = db();
    db.commit(&[crate::fixture::Put("t", &[1, 1])]);
    let other = || from("mixed");
    assert_eq!(db.hydrate(&from("t").related("id", "text", other())).1, "+t(1,1)");
    assert_eq!(db.hydrate(&from("t").filter(exists("id", "text", other()))).1, "");
}
