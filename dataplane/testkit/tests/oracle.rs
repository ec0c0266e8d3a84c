use anyhow::Result;
use serde_json::{Value, json};
use testkit::client::{Store, row_key};
use testkit::oracle::{Snapshot, check_store, evaluate};
use testkit::postgres::{Postgres, Version};

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE author (id text PRIMARY KEY, name text);
    CREATE TABLE book (
        id int PRIMARY KEY, title text NOT NULL, author_id text, price numeric(8,2), published date, seen timestamptz,
        mood mood, tags text[], extra jsonb, raw bytea, opened time);
    INSERT INTO author VALUES ('a', 'Ann'), ('b', 'Bob'), ('c', NULL);
    INSERT INTO book VALUES
        (1, 'Alpha', 'a', 10.50, '2024-02-29', '2024-01-01 00:00:00.123456Z', 'sad', '{x,y}', '{\"n\":1}', '\\x00', '01:00'),
        (2, 'Beta', 'a', NULL, NULL, NULL, 'glad', '{}', NULL, NULL, NULL),
        (3, 'Gamma', 'b', 3, NULL, NULL, NULL, NULL, '[1,null]', NULL, NULL),
        (4, 'alphabet', NULL, 7, NULL, NULL, NULL, NULL, NULL, NULL, NULL);";

async fn snapshot() -> Result<Snapshot> {
    let database = Postgres::shared(Version::V15)?.create_database("oracle").await?;
    database.execute(SCHEMA).await?;
    Snapshot::read(&mut database.connect().await?, &["author", "book"]).await
}

fn keys(tree: &Value) -> Vec<Value> {
    tree.as_array().into_iter().flatten().map(|node| node[0][0].clone()).collect()
}

fn column(name: &str, op: &str, value: Value) -> Value {
    json!({"type": "simple", "op": op, "left": {"type": "column", "name": name}, "right": {"type": "literal", "value": value}})
}

fn books_of_author() -> Value {
    json!({"correlation": {"parentField": ["id"], "childField": ["author_id"]}, "subquery": {"table": "book", "alias": "books"}})
}

#[tokio::test]
async fn values_become_the_json_of_the_wire() -> Result<()> {
    let snapshot = snapshot().await?;
    let row = snapshot.tables["book"].rows.iter().find(|row| row["id"] == json!(1)).unwrap();
    let expected = json!({
        "id": 1, "title": "Alpha", "author_id": "a", "price": 10.5, "published": 1_709_164_800_000_i64,
        "seen": 1_704_067_200_123.456, "mood": "sad", "tags": ["x", "y"], "extra": {"n": 1}, "opened": 3_600_000,
    });
    assert_eq!(testkit::oracle::row_difference(row, expected.as_object().unwrap()), None);
    Ok(())
}

#[tokio::test]
async fn conditions_order_start_and_limit() -> Result<()> {
    let snapshot = snapshot().await?;
    let cases = [
        (json!({"table": "book"}), json!([1, 2, 3, 4])),
        (json!({"table": "book", "orderBy": [["price", "asc"]]}), json!([2, 3, 4, 1])),
        (json!({"table": "book", "orderBy": [["price", "desc"]], "limit": 2}), json!([1, 4])),
        (
            json!({"table": "book", "orderBy": [["price", "asc"]], "start": {"row": {"price": 3, "id": 3}, "exclusive": true}}),
            json!([4, 1]),
        ),
        (json!({"table": "book", "start": {"row": {"id": 3}, "exclusive": false}}), json!([3, 4])),
        (json!({"table": "book", "where": column("title", "ILIKE", json!("alpha%"))}), json!([1, 4])),
        (json!({"table": "book", "where": column("title", "NOT LIKE", json!("_eta"))}), json!([1, 3, 4])),
        (json!({"table": "book", "where": column("price", "!=", json!(3))}), json!([1, 4])),
        (json!({"table": "book", "where": column("price", "IS", json!(null))}), json!([2])),
        (json!({"table": "book", "where": column("id", "IN", json!([1, 9, 4]))}), json!([1, 4])),
        (
            json!({"table": "book", "where": {"type": "or", "conditions": [column("id", "<", json!(2)), column("price", ">=", json!(7))]}}),
            json!([1, 4]),
        ),
        (json!({"table": "book", "where": {"type": "or", "conditions": []}}), json!([])),
        (
            json!({"table": "author", "where": {"type": "correlatedSubquery", "op": "EXISTS", "related": books_of_author()}}),
            json!(["a", "b"]),
        ),
        (
            json!({"table": "author", "where": {"type": "correlatedSubquery", "op": "NOT EXISTS", "related": books_of_author()}}),
            json!(["c"]),
        ),
    ];
    for (ast, expected) in cases {
        assert_eq!(json!(keys(&evaluate(&snapshot, &ast)?.tree)), expected, "{ast}");
    }
    let ast = json!({"table": "author", "orderBy": [["id", "desc"]], "related": [books_of_author()]});
    let tree = evaluate(&snapshot, &ast)?.tree;
    assert_eq!(tree, json!([[["c"], ["books", []]], [["b"], ["books", [[[3]]]]], [["a"], ["books", [[[1]], [[2]]]]]]));
    Ok(())
}

#[tokio::test]
async fn a_store_is_checked_for_lack_excess_and_content() -> Result<()> {
    let snapshot = snapshot().await?;
    let schema = json!({"tables": {
        "author": {"columns": {"id": {"type": "string"}}, "primaryKey": ["id"]},
        "book": {"columns": {"id": {"type": "number"}}, "primaryKey": ["id"]},
    }});
    let queries = [
        json!({"table": "author", "where": {"type": "correlatedSubquery", "op": "EXISTS", "related": books_of_author()}}),
    ];
    let mut store = Store::default();
    let mut give = |table: &str, column: &str, value: Value| {
        let row = snapshot.tables[table].rows.iter().find(|row| row[column] == value).unwrap();
        store.rows.entry(table.into()).or_default().insert(row_key(&["id".into()], row), row.clone());
        store.clone()
    };
    let check = |store: &Store| check_store(&snapshot, store, &queries, &schema).map_err(|error| format!("{error:#}"));
    give("author", "id", json!("a"));
    let without_b = give("book", "id", json!(1));
    assert!(check(&without_b).unwrap_err().contains("another result"));
    give("author", "id", json!("b"));
    let right = give("book", "id", json!(3));
    assert_eq!(check(&right), Ok(()));

    let mut stale = right.clone();
    stale.rows.get_mut("author").unwrap().get_mut("[\"a\"]").unwrap().insert("name".into(), json!("Anna"));
    assert!(check(&stale).unwrap_err().contains("differs"));
    let mut ghost = right;
    ghost
        .rows
        .get_mut("author")
        .unwrap()
        .insert("[\"z\"]".into(), json!({"id": "z", "name": null}).as_object().unwrap().clone());
    assert!(check(&ghost).is_err());
    let excess = give("book", "id", json!(4));
    assert!(check(&excess).unwrap_err().contains("none of its queries"));
    Ok(())
}
