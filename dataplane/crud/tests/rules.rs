//! Write rules, decided in the mutation's own transaction.

use crud::Outcome::{self, Applied, Denied};
use serde_json::{Value, json};

use crate::world::{World, anyone, op, op_on, open};

const SETUP: &str = "CREATE TABLE t (id text PRIMARY KEY, owner text, n int, f float8, g bool, at timestamptz, j jsonb, title text COLLATE \"C\",
    k uuid, pad char(4), net inet);
    CREATE TABLE member (id text PRIMARY KEY, who text, team text, role text);
    INSERT INTO t (id, owner, n) VALUES ('mine', 'u', 1), ('yours', 'v', 2), ('gone', 'u', 3);
    INSERT INTO member VALUES ('1', 'u', 'a', 'admin'), ('2', 'v', 'a', 'guest');";

fn yes() -> Value {
    json!({"type": "and", "conditions": []})
}

fn column(name: &str) -> Value {
    json!({"type": "column", "name": name})
}

fn value(value: Value) -> Value {
    json!({"type": "literal", "value": value})
}

fn auth(field: &str) -> Value {
    json!({"type": "static", "anchor": "authData", "field": field})
}

fn before(field: &str) -> Value {
    json!({"type": "static", "anchor": "preMutationRow", "field": field})
}

fn is(left: Value, op: &str, right: Value) -> Value {
    json!({"type": "simple", "op": op, "left": left, "right": right})
}

fn own() -> Value {
    is(column("owner"), "=", auth("sub"))
}

fn exists(op: &str, parent: &str, child: &str, filter: Value) -> Value {
    json!({"type": "correlatedSubquery", "op": op, "related": {"system": "permissions",
        "correlation": {"parentField": [parent], "childField": [child]},
        "subquery": {"table": "member", "alias": "zsubq_m", "where": filter}}})
}

fn allow(rules: &[Value]) -> Value {
    rules.iter().map(|rule| json!(["allow", rule])).collect()
}

/// The row rules of the table `t`.
fn table(row: Value) -> Value {
    json!({"tables": {"t": {"row": row}, "member": {"row": anyone()}}})
}

async fn rows(world: &World) -> String {
    world.ask("SELECT string_agg(id || ':' || coalesce(owner, '-') || ':' || coalesce(n::text, '-'), ' ' ORDER BY id) FROM t").await.unwrap()
}

const BEFORE: &str = "gone:u:3 mine:u:1 yours:v:2";

/// Applies operations to the rows of [`SETUP`] as user `u` and puts them back.
async fn check(world: &World, what: &str, permissions: &Value, ops: Value, expected: Outcome, after: &str) {
    world.deploy(permissions).await;
    world
        .run("DELETE FROM t; INSERT INTO t (id, owner, n) VALUES ('mine', 'u', 1), ('yours', 'v', 2), ('gone', 'u', 3)")
        .await;
    let number = world.number("c").await;
    let outcome = world.apply_as(&json!({"sub": "u", "team": "a", "ids": ["mine", "x"]}), &ops).await;
    assert_eq!(outcome, expected, "{what}");
    assert_eq!(rows(world).await, after, "{what}");
    assert_eq!(world.number("c").await, number + 1, "{what}: the number is taken");
}

#[tokio::test]
async fn what_no_policy_allows_is_denied() {
    let world = World::new("crud_default_deny", SETUP, &json!({})).await;
    let every = [
        json!([op("insert", json!({"id": "new"}))]),
        json!([op("upsert", json!({"id": "mine", "n": 9}))]),
        json!([op("upsert", json!({"id": "new", "n": 9}))]),
        json!([op("update", json!({"id": "mine", "n": 9}))]),
        json!([op("delete", json!({"id": "mine"}))]),
    ];
    let update = |phases: Value| table(json!({"update": phases}));
    let all = allow(&[yes()]);
    for permissions in [
        json!(null),
        json!({}),
        json!({"tables": {}}),
        table(json!({})),
        table(json!({"select": all})),
        table(json!({"insert": [], "update": {"preMutation": [], "postMutation": []}, "delete": []})),
        update(json!({"preMutation": all})),
        update(json!({"postMutation": all})),
        json!({"tables": {"t": {"cell": {"n": anyone()}}}}),
        json!({"tables": {"t": {"rows": {}}}}),
        json!("no rules"),
    ] {
        for ops in &every {
            check(&world, &format!("{permissions} {ops}"), &permissions, ops.clone(), Denied, BEFORE).await;
        }
    }
    check(&world, "all", &open(&["t"]), every[3].clone(), Applied, "gone:u:3 mine:u:9 yours:v:2").await;
    // Before anything was deployed at all.
    world.run("DELETE FROM zero.permissions").await;
    assert_eq!(world.apply(&every[0]).await, Denied);
}

/// One operation is denied, and Postgres refuses what is asked about another: the number must not get lost with the transaction.
#[tokio::test]
async fn the_number_is_taken_whatever_else_a_denied_mutation_asks_for() {
    let setup = format!("{SETUP} CREATE TABLE u (id uuid PRIMARY KEY, n int);");
    let world = World::new("crud_denied_and_refused", &setup, &json!({})).await;
    let first = allow(&[is(column("n"), "=", value(json!(1)))]);
    let of_u = json!({"row": {"update": {"preMutation": first, "postMutation": allow(&[yes()])}}});
    let permissions = json!({"tables": {"t": {"row": {"delete": allow(&[own()])}}, "u": of_u}});
    let ops = json!([op("delete", json!({"id": "yours"})), op_on("u", "update", json!({"id": "no uuid", "n": 2}))]);
    world.deploy(&permissions).await;
    let outcome = world.apply_as(&json!({"sub": "u"}), &ops).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    assert_eq!((rows(&world).await.as_str(), world.number("c").await), (BEFORE, 1));
}

#[tokio::test]
async fn phases_look_at_the_right_rows() {
    let world = World::new("crud_phases", SETUP, &json!({})).await;
    let all = allow(&[yes()]);
    let pre = table(
        json!({"update": {"preMutation": allow(&[own()]), "postMutation": all}, "delete": allow(&[own()]), "insert": all}),
    );
    let post = table(
        json!({"update": {"preMutation": all, "postMutation": allow(&[own()])}, "delete": all, "insert": allow(&[own()])}),
    );
    let same_owner = is(column("owner"), "=", before("owner"));
    let keeps = table(
        json!({"update": {"preMutation": all, "postMutation": allow(&[same_owner])}, "insert": allow(&[is(before("owner"), "IS", value(json!(null)))]), "delete": allow(&[is(column("n"), "=", before("n"))])}),
    );
    let small =
        table(json!({"update": {"preMutation": allow(&[is(before("n"), "<", value(json!(2)))]), "postMutation": all}}));
    let update = |id: &str, value: Value| {
        let mut value = value;
        value["id"] = json!(id);
        op("update", value)
    };
    for (what, permissions, ops, expected, after) in [
        ("own before", &pre, json!([update("mine", json!({"owner": "v"}))]), Applied, "gone:u:3 mine:v:1 yours:v:2"),
        ("others' before", &pre, json!([update("yours", json!({"owner": "u"}))]), Denied, BEFORE),
        ("own after", &post, json!([update("yours", json!({"owner": "u"}))]), Applied, "gone:u:3 mine:u:1 yours:u:2"),
        ("given away", &post, json!([update("mine", json!({"owner": "v"}))]), Denied, BEFORE),
        ("delete own", &pre, json!([op("delete", json!({"id": "gone"}))]), Applied, "mine:u:1 yours:v:2"),
        ("delete others'", &pre, json!([op("delete", json!({"id": "yours"}))]), Denied, BEFORE),
        (
            "insert own",
            &post,
            json!([op("insert", json!({"id": "new", "owner": "u"}))]),
            Applied,
            "gone:u:3 mine:u:1 new:u:- yours:v:2",
        ),
        ("insert others'", &post, json!([op("insert", json!({"id": "new", "owner": "v"}))]), Denied, BEFORE),
        ("insert what is there", &post, json!([op("insert", json!({"id": "yours", "owner": "u"}))]), Applied, BEFORE),
        ("upsert is an update", &pre, json!([op("upsert", json!({"id": "yours", "n": 5}))]), Denied, BEFORE),
        (
            "upsert is an insert",
            &pre,
            json!([op("upsert", json!({"id": "new", "owner": "x", "n": 5}))]),
            Applied,
            "gone:u:3 mine:u:1 new:x:5 yours:v:2",
        ),
        ("upsert inserts for others", &post, json!([op("upsert", json!({"id": "new", "owner": "v"}))]), Denied, BEFORE),
        ("nobody there to update", &pre, json!([update("nobody", json!({"n": 1}))]), Applied, BEFORE),
        ("nobody there to delete", &pre, json!([op("delete", json!({"id": "nobody"}))]), Applied, BEFORE),
        // The listed faults of the reference.
        (
            "update one and delete another",
            &pre,
            json!([update("mine", json!({"n": 7})), op("delete", json!({"id": "gone"}))]),
            Applied,
            "mine:u:7 yours:v:2",
        ),
        (
            "insert and update",
            &pre,
            json!([op("insert", json!({"id": "new", "owner": "u"})), update("new", json!({"n": 5}))]),
            Applied,
            "gone:u:3 mine:u:1 new:u:5 yours:v:2",
        ),
        (
            "insert for others and update",
            &pre,
            json!([op("insert", json!({"id": "new", "owner": "v"})), update("new", json!({"n": 5}))]),
            Denied,
            BEFORE,
        ),
        (
            "insert and give away",
            &post,
            json!([op("insert", json!({"id": "new", "owner": "u"})), update("new", json!({"owner": "v"}))]),
            Denied,
            BEFORE,
        ),
        (
            "take and delete",
            &pre,
            json!([update("yours", json!({"owner": "u"})), op("delete", json!({"id": "yours"}))]),
            Denied,
            BEFORE,
        ),
        (
            "update, then delete it",
            &pre,
            json!([update("mine", json!({"n": 5})), op("delete", json!({"id": "mine"}))]),
            Applied,
            "gone:u:3 yours:v:2",
        ),
        (
            "give away, then delete it",
            &pre,
            json!([update("mine", json!({"owner": "v"})), op("delete", json!({"id": "mine"}))]),
            Applied,
            "gone:u:3 yours:v:2",
        ),
        (
            "insert and delete",
            &post,
            json!([op("insert", json!({"id": "new", "owner": "v"})), op("delete", json!({"id": "new"}))]),
            Applied,
            BEFORE,
        ),
        (
            "delete and upsert",
            &post,
            json!([op("delete", json!({"id": "mine"})), op("upsert", json!({"id": "mine", "owner": "u"}))]),
            Applied,
            "gone:u:3 mine:u:- yours:v:2",
        ),
        (
            "one denied denies all",
            &pre,
            json!([update("mine", json!({"n": 7})), op("delete", json!({"id": "yours"}))]),
            Denied,
            BEFORE,
        ),
        ("keeps its owner", &keeps, json!([update("mine", json!({"n": 5}))]), Applied, "gone:u:3 mine:u:5 yours:v:2"),
        ("changes its owner", &keeps, json!([update("mine", json!({"owner": "v"}))]), Denied, BEFORE),
        (
            "has no row before",
            &keeps,
            json!([op("insert", json!({"id": "new"}))]),
            Applied,
            "gone:u:3 mine:u:1 new:-:- yours:v:2",
        ),
        (
            "upsert keeps its owner",
            &keeps,
            json!([op("upsert", json!({"id": "mine", "n": 8}))]),
            Applied,
            "gone:u:3 mine:u:8 yours:v:2",
        ),
        (
            "delete by its own value",
            &keeps,
            json!([op("delete", json!({"id": "mine"}))]),
            Applied,
            "gone:u:3 yours:v:2",
        ),
        ("small before", &small, json!([update("mine", json!({"n": 50}))]), Applied, "gone:u:3 mine:u:50 yours:v:2"),
        ("large before", &small, json!([update("yours", json!({"n": 0}))]), Denied, BEFORE),
    ] {
        check(&world, what, permissions, ops, expected, after).await;
    }
}

#[tokio::test]
async fn cells_are_guarded_as_they_are_named() {
    let world = World::new("crud_cells", SETUP, &json!({})).await;
    let with = |cell: Value| json!({"tables": {"t": {"row": anyone(), "cell": cell}}});
    let small = allow(&[is(column("n"), "<", value(json!(10)))]);
    let never = json!([]);
    let all = allow(&[yes()]);
    let update = |value: Value| json!([op("update", value)]);
    for (what, cell, ops, expected, after) in [
        (
            "named",
            json!({"n": {"update": {"preMutation": never}}}),
            update(json!({"id": "mine", "n": 5})),
            Denied,
            BEFORE,
        ),
        (
            "not named",
            json!({"n": {"update": {"preMutation": never}}}),
            update(json!({"id": "mine", "owner": "w"})),
            Applied,
            "gone:u:3 mine:w:1 yours:v:2",
        ),
        (
            "after",
            json!({"n": {"update": {"postMutation": small}}}),
            update(json!({"id": "mine", "n": 50})),
            Denied,
            BEFORE,
        ),
        (
            "small after",
            json!({"n": {"update": {"postMutation": small}}}),
            update(json!({"id": "mine", "n": 5})),
            Applied,
            "gone:u:3 mine:u:5 yours:v:2",
        ),
        (
            "only one phase",
            json!({"n": {"update": {"preMutation": all}}}),
            update(json!({"id": "mine", "n": 5})),
            Applied,
            "gone:u:3 mine:u:5 yours:v:2",
        ),
        (
            "insert without it",
            json!({"n": {"insert": small}}),
            json!([op("insert", json!({"id": "new"}))]),
            Denied,
            BEFORE,
        ),
        (
            "insert with it",
            json!({"n": {"insert": small}}),
            json!([op("insert", json!({"id": "new", "n": 1}))]),
            Applied,
            "gone:u:3 mine:u:1 new:-:1 yours:v:2",
        ),
        ("delete", json!({"n": {"delete": never}}), json!([op("delete", json!({"id": "mine"}))]), Denied, BEFORE),
        (
            "other actions",
            json!({"n": {"select": never, "insert": never}}),
            json!([op("delete", json!({"id": "mine"}))]),
            Applied,
            "gone:u:3 yours:v:2",
        ),
    ] {
        check(&world, what, &with(cell), ops, expected, after).await;
    }
}

#[tokio::test]
async fn conditions_mean_what_they_mean_to_clients() {
    let world = World::new("crud_conditions", SETUP, &json!({})).await;
    let admin = || is(column("role"), "=", value(json!("admin")));
    let own_team = || is(column("team"), "=", auth("team"));
    let cursor = {
        let mut rule = exists("EXISTS", "owner", "who", admin());
        rule["related"]["subquery"]["start"] = json!({"row": {"id": "1"}, "exclusive": true});
        rule
    };
    let limited = |op: &str| {
        let mut rule = exists(op, "owner", "who", admin());
        rule["related"]["subquery"]["limit"] = json!(0);
        rule
    };
    let or = |rules: Value| json!({"type": "or", "conditions": rules});
    let uuid = "6e9f3c1a-0000-4000-8000-000000000001";
    // The row: owner u, n 1, f 0.5, g true, at 1970-01-01 00:00:01, title "Äb_%\n", pad "ab", k a uuid, net an address, j JSON's null.
    for (rule, holds) in [
        (own(), true),
        (is(column("owner"), "!=", value(json!("v"))), true),
        (is(column("owner"), "=", auth("missing")), false),
        (is(column("owner"), "IS", auth("missing")), false),
        (is(column("owner"), "IS NOT", auth("missing")), true),
        (is(column("n"), "=", value(json!(1))), true),
        (is(column("n"), "=", value(json!(1.0))), true),
        (is(column("n"), "=", value(json!(1.5))), false),
        (is(column("n"), "!=", value(json!(1.5))), true),
        (is(column("n"), "=", value(json!("1"))), false),
        (is(column("n"), "!=", value(json!("1"))), true),
        (is(column("n"), "<", value(json!("2"))), false),
        (is(column("n"), "<=", value(json!(1.25))), true),
        (is(column("n"), "IN", value(json!([3, 1, "1"]))), true),
        (is(column("n"), "NOT IN", value(json!([]))), true),
        (is(column("n"), "IN", value(json!([]))), false),
        (is(column("f"), "=", value(json!(0.5))), true),
        (is(column("f"), ">", value(json!(0.4))), true),
        (is(column("g"), "=", value(json!(true))), true),
        (is(column("g"), "=", value(json!(1))), false),
        (is(column("at"), "=", value(json!(1000))), true),
        (is(column("at"), "<", value(json!(1000))), false),
        (is(column("k"), "=", value(json!(uuid))), true),
        (is(column("k"), "=", value(json!(uuid.to_uppercase()))), false),
        (is(column("k"), "!=", value(json!("no uuid"))), true),
        (is(column("k"), "LIKE", value(json!("6e9f%"))), true),
        (is(column("pad"), "=", value(json!("ab  "))), true),
        (is(column("pad"), "=", value(json!("ab"))), false),
        (is(column("net"), "=", value(json!("10.0.0.1"))), true),
        (is(column("j"), "IS", value(json!(null))), true),
        (is(column("j"), "IS NOT", value(json!(null))), false),
        (is(column("j"), "=", value(json!("x"))), false),
        (is(column("title"), "LIKE", value(json!("Ä__%"))), true),
        (is(column("title"), "LIKE", value(json!("äb%"))), false),
        (is(column("title"), "ILIKE", value(json!("äB%"))), true),
        (is(column("title"), "LIKE", value(json!("Äb\\_\\%_"))), true),
        (is(column("title"), "LIKE", value(json!("Äbx%"))), false),
        (is(column("title"), "NOT LIKE", value(json!("x%"))), true),
        (is(column("title"), "NOT ILIKE", value(json!("%B%"))), false),
        (is(column("title"), "LIKE", value(json!("%\\"))), false),
        (is(column("n"), "LIKE", value(json!("1"))), false),
        (is(column("title"), ">", value(json!("Z"))), true),
        (is(column("id"), "IN", auth("ids")), true),
        (is(column("id"), "NOT IN", auth("ids")), false),
        (is(value(json!(1)), "=", value(json!(1))), true),
        (is(value(json!(null)), "IS", value(json!(null))), true),
        (is(value(json!("a")), "=", value(json!(1))), false),
        (is(auth("sub"), "=", value(json!("u"))), true),
        (exists("EXISTS", "owner", "who", admin()), true),
        (exists("NOT EXISTS", "owner", "who", admin()), false),
        (exists("NOT EXISTS", "owner", "who", is(column("role"), "=", value(json!("guest")))), true),
        (
            exists(
                "EXISTS",
                "owner",
                "who",
                exists("NOT EXISTS", "team", "team", is(column("role"), "=", value(json!("banned")))),
            ),
            true,
        ),
        (
            exists(
                "EXISTS",
                "owner",
                "who",
                exists("NOT EXISTS", "team", "team", is(column("role"), "=", value(json!("guest")))),
            ),
            false,
        ),
        (exists("EXISTS", "owner", "who", json!({"type": "and", "conditions": [admin(), own_team()]})), true),
        (exists("EXISTS", "n", "who", yes()), false),
        (exists("EXISTS", "k", "who", yes()), false),
        (limited("EXISTS"), false),
        (limited("NOT EXISTS"), true),
        // What cannot be decided allows nothing, and keeps nobody else from allowing.
        (exists("NOT EXISTS", "owner", "nope", yes()), false),
        (is(column("nope"), "IS", value(json!(null))), false),
        (cursor.clone(), false),
        (or(json!([cursor, own()])), true),
        (or(json!([])), false),
    ] {
        world.deploy(&table(json!({"delete": allow(std::slice::from_ref(&rule))}))).await;
        world
            .run(&format!(
                "DELETE FROM t; INSERT INTO t (id, owner, n, f, g, at, j, title, k, pad, net)
                 VALUES ('mine', 'u', 1, 0.5, true, '1970-01-01 00:00:01Z', 'null', E'Äb_%\\n', '{uuid}', 'ab', '10.0.0.1')"
            ))
            .await;
        let claims = json!({"sub": "u", "team": "a", "ids": ["mine", "x"]});
        let outcome = world.apply_as(&claims, &json!([op("delete", json!({"id": "mine"}))])).await;
        assert_eq!(outcome, if holds { Applied } else { Denied }, "{rule}");
    }
}

#[tokio::test]
async fn a_rule_that_was_just_revoked_is_obeyed() {
    let world = World::new("crud_revoked", SETUP, &open(&["t"])).await;
    for n in 0..6 {
        let is_allowed = n % 2 == 0;
        world.deploy(&if is_allowed { open(&["t", "member"]) } else { open(&["member"]) }).await;
        let outcome = world.apply(&json!([op("update", json!({"id": "mine", "n": n}))])).await;
        assert_eq!(outcome, if is_allowed { Applied } else { Denied }, "{n}");
    }
    // So is what a rule looks at.
    let rule = exists("EXISTS", "owner", "who", is(column("role"), "=", value(json!("admin"))));
    world.deploy(&table(json!({"delete": allow(&[rule])}))).await;
    world.run("UPDATE member SET role = 'guest'").await;
    assert_eq!(world.apply(&json!([op("delete", json!({"id": "mine"}))])).await, Denied);
    assert_eq!(world.apply(&json!([op_on("member", "update", json!({"id": "1", "role": "admin"}))])).await, Applied);
    assert_eq!(world.apply(&json!([op("delete", json!({"id": "mine"}))])).await, Applied);
}

/// What is written at the same time by others is as if it came before or after: two who each look at what the other changes cannot
/// both go by what was.
#[tokio::test]
async fn rules_and_writes_are_serialisable() {
    let world = World::new("crud_write_skew", SETUP, &json!({})).await;
    // A member may leave as long as another one is there.
    let another = json!({"type": "correlatedSubquery", "op": "EXISTS", "related": {
        "correlation": {"parentField": ["team"], "childField": ["team"]},
        "subquery": {"table": "member", "where": is(column("id"), "!=", before("id"))}}});
    world.deploy(&json!({"tables": {"member": {"row": {"delete": allow(&[another])}}}})).await;
    let nobody = json!(null);
    for round in 0..8 {
        world.run("DELETE FROM member; INSERT INTO member VALUES ('1', 'u', 'a', 'x'), ('2', 'v', 'a', 'x')").await;
        let leave = |client: &'static str, id: &'static str| {
            let (world, nobody) = (&world, &nobody);
            async move {
                world
                    .apply_numbered(client, round + 1, nobody, &json!([op_on("member", "delete", json!({"id": id}))]))
                    .await
            }
        };
        let (a, b) = tokio::join!(leave("x", "1"), leave("y", "2"));
        assert!((a == Applied) != (b == Applied), "{a:?} {b:?}");
        assert_eq!(world.ask("SELECT count(*) FROM member").await.as_deref(), Some("1"));
    }
}
