//! Which keys clients can have: different rows must have different keys as a client receives them.

use rows::{Cell, Table};
use upstream::Stream;

use crate::model::{Fixture, MARK, Model, assert_equals_copy, catch_up, copied, resume, settle};

const TABLES: &str = "
CREATE TABLE n (id numeric(20) PRIMARY KEY, v text);
CREATE TABLE unbounded (id numeric PRIMARY KEY);
CREATE TABLE short (id numeric(15, 2) PRIMARY KEY);
CREATE TABLE other (id numeric(20) PRIMARY KEY, code uuid NOT NULL UNIQUE);
CREATE TABLE by_code (id numeric(20) PRIMARY KEY, code uuid NOT NULL CONSTRAINT by_code_code UNIQUE);
ALTER TABLE by_code REPLICA IDENTITY USING INDEX by_code_code;
CREATE TABLE whole (id numeric(20) PRIMARY KEY, code uuid NOT NULL UNIQUE);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE times (at time PRIMARY KEY);
CREATE TABLE milliseconds (at time(3) PRIMARY KEY);
CREATE TABLE zoned (at timetz(3), id int, PRIMARY KEY (id, at));
CREATE TABLE readings (at timestamptz, id int8, PRIMARY KEY (at, id));
CREATE TABLE extra (id int PRIMARY KEY, n numeric(20) NOT NULL UNIQUE, at time NOT NULL UNIQUE, name text NOT NULL UNIQUE);
";

/// The key by which clients may know rows; `None` if they see no rows.
fn key(model: &Model, table: &str) -> Option<String> {
    let visible = Table::visible(model.spec(table).unwrap()).ok()?;
    let names: Vec<&str> = visible.key.iter().map(|&k| &*visible.columns[k].name).collect();
    Some(names.join(", "))
}

fn check(model: &Model) {
    for (table, expected) in [
        ("n", None),
        ("unbounded", None),
        ("short", Some("id")),
        // Its changes name rows by the number.
        ("other", None),
        ("by_code", Some("code")),
        ("whole", Some("code")),
        ("times", None),
        ("milliseconds", Some("at")),
        ("zoned", None),
        ("readings", Some("at, id")),
        ("extra", Some("id")),
    ] {
        assert_eq!(key(model, table).as_deref(), expected, "{table}");
    }
    let extra = Table::visible(model.spec("extra").unwrap()).unwrap();
    assert_eq!(extra.unique_keys, [vec![0], vec![3]], "id or name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_tells_rows_apart() {
    let fixture = Fixture::start(&format!("{MARK}{TABLES}")).await;
    let rows = "INSERT INTO n VALUES (1234567890123456789, 'a'), (1234567890123456790, 'b')";
    fixture.run(rows).await;
    let (plan, mut model) = copied(&fixture.options).await;
    check(&model);
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    // The same, made later; a key that becomes too wide, and one that becomes narrow enough.
    fixture.run(&TABLES.replace("TABLE ", "TABLE later_").replace("by_code_code", "later_by_code_code")).await;
    fixture.run("ALTER TABLE later_short ALTER id TYPE numeric(20, 2); ALTER TABLE later_n ALTER id TYPE int8").await;
    fixture
        .run(
            "ALTER TABLE later_times ADD COLUMN id bigserial UNIQUE;
             ALTER TABLE later_times REPLICA IDENTITY USING INDEX later_times_id_key; INSERT INTO later_n VALUES (1, 'c')",
        )
        .await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
    assert_eq!(key(&model, "later_short"), None);
    assert_eq!(key(&model, "later_n").as_deref(), Some("id"));
    assert_eq!(key(&model, "later_times").as_deref(), Some("id"));
    assert_eq!(key(&model, "later_other"), None);
    assert_eq!(key(&model, "later_whole").as_deref(), Some("code"));
    assert_equals_copy(&model, &fixture.postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_too_large_lacks_what_does_not_fit() {
    let mut fixture = Fixture::start(&format!(
        "{MARK} CREATE TABLE big (id int PRIMARY KEY, a text NOT NULL, b text, c bytea NOT NULL, d jsonb NOT NULL, n int)"
    ))
    .await;
    fixture.options.row_bytes_max = 100_000;
    let insert = |id: i32| {
        format!(
            "INSERT INTO big SELECT {id}, repeat('a', 60000), repeat('b', 60000), convert_to(repeat('c', 120000), 'UTF8'),
               to_jsonb(repeat('d', 100000)), 7"
        )
    };
    fixture.run(&insert(1)).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let expected = |id: i64, n: i64| {
        let text = |s: &str| Cell::Text(s.into());
        vec![Cell::Int(id), text(&"a".repeat(60_000)), Cell::Null, Cell::Bytes([].into()), text("null"), Cell::Int(n)]
    };
    assert_eq!(model.row("big"), &expected(1, 7));
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    fixture.run(&format!("DELETE FROM big; {}; UPDATE big SET n = 8", insert(2))).await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!(model.row("big"), &expected(2, 8));
    // It comes when it fits.
    fixture.run("UPDATE big SET a = 'short', b = 'here'").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!((&model.row("big")[1], &model.row("big")[2]), (&Cell::Text("short".into()), &Cell::Text("here".into())));
}
