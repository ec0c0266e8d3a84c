//! Random rules, rows and mutations against a judge of its own, which knows no SQL.

use std::collections::BTreeMap;

use crud::Outcome;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use crate::world::World;

const SETUP: &str = "CREATE TABLE item (id text PRIMARY KEY, owner text, n int, f float8, open bool, title text);
    CREATE TABLE member (id text PRIMARY KEY, item text, who text, level int);";

const CASES: usize = 150;

type Rows = Vec<Map<String, Value>>;
type Tables = BTreeMap<&'static str, Rows>;

struct Dice(StdRng);

impl Dice {
    fn chance(&mut self, of: f64) -> bool {
        self.0.random_bool(of)
    }

    fn pick(&mut self, from: &Value) -> Value {
        let from = from.as_array().unwrap();
        from[self.0.random_range(0..from.len())].clone()
    }

    fn value(&mut self, column: &str) -> Value {
        self.pick(&match column {
            "owner" | "who" => json!(["u0", "u1", "u2", null]),
            "n" | "level" => json!([0, 1, 2, 3, null]),
            "f" => json!([0.5, 1, 1.5, null]),
            "open" => json!([true, false, null]),
            _ => json!(["abc", "Abc", "xyz", "a_c", null]),
        })
    }

    fn known(&mut self, column: &str) -> Value {
        loop {
            let value = self.value(column);
            if !value.is_null() {
                return value;
            }
        }
    }

    fn simple(&mut self, table: &str) -> Value {
        let names = if table == "item" { json!(["owner", "n", "f", "open", "title"]) } else { json!(["who", "level"]) };
        let name = self.pick(&names);
        let name = name.as_str().unwrap();
        let is = |op: Value, right: Value| json!({"type": "simple", "op": op, "left": {"type": "column", "name": name}, "right": right});
        let auth = |field: &str| json!({"type": "static", "anchor": "authData", "field": field});
        let literal = |value: Value| json!({"type": "literal", "value": value});
        let is_person = matches!(name, "owner" | "who");
        match self.0.random_range(0..10) {
            3..6 if is_person => is(self.pick(&json!(["=", "!=", "IS", "IS NOT"])), auth("sub")),
            0 => is(self.pick(&json!(["IS", "IS NOT"])), literal(json!(null))),
            1 => is(self.pick(&json!(["IN", "NOT IN"])), literal(json!([self.known(name), self.known(name)]))),
            2 if is_person => is(self.pick(&json!(["IN", "NOT IN"])), auth("friends")),
            2..5 if name == "title" => {
                let op = self.pick(&json!(["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"]));
                is(op, literal(self.pick(&json!(["a%", "%c", "_b_", "A%", "%", "a\\_c"]))))
            }
            _ => is(self.pick(&json!(["=", "!=", "<", ">", "<=", ">=", "IS", "IS NOT"])), literal(self.known(name))),
        }
    }

    fn rule(&mut self, table: &str, depth: u32) -> Value {
        match self.0.random_range(0..8) {
            0..3 => self.simple(table),
            _ if depth == 0 => self.simple(table),
            3..6 => {
                let conditions: Vec<Value> =
                    (0..self.0.random_range(0..4)).map(|_| self.rule(table, depth - 1)).collect();
                json!({"type": self.pick(&json!(["and", "or"])), "conditions": conditions})
            }
            _ => {
                let (ours, theirs, other) =
                    if table == "item" { ("id", "item", "member") } else { ("item", "id", "item") };
                json!({"type": "correlatedSubquery", "op": self.pick(&json!(["EXISTS", "NOT EXISTS"])), "related": {
                    "correlation": {"parentField": [ours], "childField": [theirs]},
                    "subquery": {"table": other, "where": self.rule(other, depth - 1)}}})
            }
        }
    }

    fn policy(&mut self) -> Value {
        let rules = self.0.random_range(0..4);
        if rules == 3 || self.chance(0.1) {
            return json!([["allow", {"type": "and", "conditions": []}]]);
        }
        (0..=rules).map(|_| json!(["allow", self.rule("item", 3)])).collect()
    }

    fn permissions(&mut self) -> Value {
        let phases = json!({"preMutation": self.policy(), "postMutation": self.policy()});
        let row = json!({"insert": self.policy(), "update": phases, "delete": self.policy()});
        let cell = match self.chance(0.3) {
            true => {
                json!({"title": {"update": {"preMutation": self.policy(), "postMutation": self.policy()}, "insert": self.policy()}})
            }
            false => json!({}),
        };
        json!({"tables": {"item": {"row": row, "cell": cell}}})
    }

    fn row(&mut self, id: &str, is_partial: bool) -> Map<String, Value> {
        let mut row = Map::from_iter([("id".to_owned(), json!(id))]);
        for column in ["owner", "n", "f", "open", "title"] {
            if !is_partial || self.chance(0.5) {
                row.insert(column.to_owned(), self.value(column));
            }
        }
        row
    }

    /// On different rows, so that it does not matter what an operation sees of the one before it.
    fn ops(&mut self) -> Value {
        let mut ops = Vec::new();
        for id in ["a", "b", "new"] {
            if !ops.is_empty() && self.chance(0.6) {
                continue;
            }
            let kind = self.pick(&json!(["insert", "upsert", "update", "update", "delete"]));
            let value = match kind.as_str().unwrap() {
                "delete" => Map::from_iter([("id".to_owned(), json!(id))]),
                "insert" => self.row(id, false),
                _ => self.row(id, true),
            };
            ops.push(json!({"op": kind, "tableName": "item", "primaryKey": ["id"], "value": value}));
        }
        json!(ops)
    }
}

/// The judge.
struct Judge<'a> {
    permissions: &'a Value,
    claims: &'a Value,
}

impl Judge<'_> {
    /// The rows after the mutation; `None` if it is denied.
    fn apply(&self, before: &Tables, ops: &Value) -> Option<Rows> {
        let mut after = before.clone();
        let mut checks = Vec::new();
        for op in ops.as_array().unwrap() {
            let value = op["value"].as_object().unwrap();
            let find = |rows: &Rows| rows.iter().position(|row| row["id"] == value["id"]);
            let old = find(&before["item"]);
            let kind = match (op["op"].as_str().unwrap(), old) {
                ("upsert", Some(_)) => "update",
                ("upsert", None) => "insert",
                (kind, _) => kind,
            };
            let items = after.get_mut("item").unwrap();
            match (kind, old) {
                ("insert", None) => {
                    let nothing = ["owner", "n", "f", "open", "title"].map(|name| (name.to_owned(), Value::Null));
                    items.push(nothing.into_iter().chain(value.clone()).collect());
                    checks.push((value["id"].clone(), self.policies(&["insert"], None)));
                }
                ("update", Some(at)) => {
                    self.all(&self.policies(&["update", "preMutation"], Some(value)), &before["item"][at], before)?;
                    let place = find(items).unwrap();
                    // What names nothing but the key changes nothing.
                    if value.len() > 1 {
                        items[place].extend(value.clone());
                        checks.push((value["id"].clone(), self.policies(&["update", "postMutation"], Some(value))));
                    } else if op["op"] == "upsert" {
                        continue;
                    }
                }
                ("delete", Some(at)) => {
                    self.all(&self.policies(&["delete"], None), &before["item"][at], before)?;
                    let place = find(items).unwrap();
                    items.remove(place);
                }
                _ => {}
            }
        }
        for (id, policies) in checks {
            let row = after["item"].iter().find(|row| row["id"] == id).unwrap();
            self.all(&policies, row, &after)?;
        }
        after.remove("item")
    }

    fn policies(&self, path: &[&str], named: Option<&Map<String, Value>>) -> Vec<Value> {
        let item = &self.permissions["tables"]["item"];
        let at = |from: &Value| path.iter().fold(from.clone(), |value, step| value[*step].clone());
        let cells = item["cell"].as_object().unwrap().iter();
        let cells = cells.filter(|(column, _)| named.is_none_or(|named| named.contains_key(*column)));
        let cells = cells.map(|(_, policies)| at(policies)).filter(|policy| !policy.is_null());
        std::iter::once(at(&item["row"])).chain(cells).collect()
    }

    fn all(&self, policies: &[Value], row: &Map<String, Value>, tables: &Tables) -> Option<()> {
        let allows = |policy: &Value| policy.as_array().unwrap().iter().any(|rule| self.holds(&rule[1], row, tables));
        policies.iter().all(allows).then_some(())
    }

    fn holds(&self, rule: &Value, row: &Map<String, Value>, tables: &Tables) -> bool {
        let conditions = || rule["conditions"].as_array().unwrap().iter();
        match rule["type"].as_str().unwrap() {
            "and" => conditions().all(|rule| self.holds(rule, row, tables)),
            "or" => conditions().any(|rule| self.holds(rule, row, tables)),
            "correlatedSubquery" => {
                let (related, text) = (&rule["related"], |value: &Value| value[0].as_str().unwrap().to_owned());
                let ours = &row[&text(&related["correlation"]["parentField"])];
                let theirs = text(&related["correlation"]["childField"]);
                let table = related["subquery"]["table"].as_str().unwrap();
                let is_there = !ours.is_null()
                    && tables[table].iter().any(|child| {
                        child[&theirs] == *ours && self.holds(&related["subquery"]["where"], child, tables)
                    });
                is_there == (rule["op"] == "EXISTS")
            }
            _ => {
                let left = &row[rule["left"]["name"].as_str().unwrap()];
                let right = match rule["right"]["field"].as_str() {
                    Some(field) => &self.claims[field],
                    None => &rule["right"]["value"],
                };
                compare(left, rule["op"].as_str().unwrap(), right)
            }
        }
    }
}

fn compare(left: &Value, op: &str, right: &Value) -> bool {
    let same = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    };
    match op {
        "IS" => return same(left, right),
        "IS NOT" => return !same(left, right),
        _ if left.is_null() || right.is_null() => return false,
        _ => {}
    }
    let order = || match (left, right) {
        (Value::String(a), Value::String(b)) => a.as_bytes().partial_cmp(b.as_bytes()),
        (Value::Bool(a), Value::Bool(b)) => a.partial_cmp(b),
        _ => left.as_f64().partial_cmp(&right.as_f64()),
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    match op {
        "=" => same(left, right),
        "!=" => !same(left, right),
        "<" => order().unwrap().is_lt(),
        ">" => order().unwrap().is_gt(),
        "<=" => order().unwrap().is_le(),
        ">=" => order().unwrap().is_ge(),
        "IN" => right.as_array().unwrap().iter().any(|one| same(left, one)),
        "NOT IN" => !right.as_array().unwrap().iter().any(|one| same(left, one)),
        "LIKE" => matches(&text(left), &text(right)),
        "NOT LIKE" => !matches(&text(left), &text(right)),
        "ILIKE" => matches(&text(left).to_lowercase(), &text(right).to_lowercase()),
        _ => !matches(&text(left).to_lowercase(), &text(right).to_lowercase()),
    }
}

fn matches(text: &str, pattern: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('%') => (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(&text[at..], rest.as_str())),
        Some(letter) => {
            let wanted = if letter == '\\' { rest.next() } else { Some(letter).filter(|letter| *letter != '_') };
            let mut left = text.chars();
            let is_there = left.next().is_some_and(|found| wanted.is_none_or(|wanted| wanted == found));
            is_there && matches(left.as_str(), rest.as_str())
        }
    }
}

#[tokio::test]
async fn verdicts_are_those_of_a_judge_who_knows_no_sql() {
    let world = World::new("crud_random", SETUP, &json!({})).await;
    let mut dice = Dice(StdRng::seed_from_u64(testkit::seed("crud_random")));
    let mut applied = 0;
    for case in 0..CASES {
        let permissions = dice.permissions();
        let mut tables = Tables::new();
        tables.insert("item", ["a", "b"].map(|id| dice.row(id, false)).into());
        let member = |n: usize, dice: &mut Dice| {
            let item = dice.pick(&json!(["a", "b", "new", "x"]));
            let (who, level) = (dice.value("who"), dice.value("level"));
            let row = json!({"id": n.to_string(), "item": item, "who": who, "level": level});
            row.as_object().unwrap().clone()
        };
        tables.insert("member", (0..3).map(|n| member(n, &mut dice)).collect());
        let fill = |table: &str| {
            let rows = json!(tables[table]).to_string().replace('\'', "''");
            format!(
                "DELETE FROM {table}; INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, '{rows}');"
            )
        };
        world.run(&format!("{}{}", fill("item"), fill("member"))).await;
        world.deploy(&permissions).await;
        let claims = json!({"sub": "u1", "friends": ["u0", "u2"]});
        let ops = dice.ops();
        let judged = Judge { permissions: &permissions, claims: &claims }.apply(&tables, &ops);
        let outcome = world.apply_as(&claims, &ops).await;
        let about = format!("case {case}: {permissions} {tables:?} {ops}");
        assert_eq!(outcome, if judged.is_some() { Outcome::Applied } else { Outcome::Denied }, "{about}");
        applied += usize::from(judged.is_some());
        let found =
            world.ask("SELECT json_agg(to_json(i) ORDER BY id) FROM item i").await.unwrap_or_else(|| "[]".to_owned());
        let mut wanted = judged.unwrap_or_else(|| tables["item"].clone());
        wanted.sort_by_key(|row| row["id"].to_string());
        let found: Rows = serde_json::from_str(&found).unwrap();
        let plain = |rows: &Rows| {
            rows.iter()
                .map(|row| {
                    row.iter()
                        .map(|(k, v)| (k.clone(), v.as_f64().map_or_else(|| v.clone(), |f| json!(f))))
                        .collect::<BTreeMap<_, _>>()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(plain(&found), plain(&wanted), "{about}");
    }
    assert!(applied > CASES / 10 && applied < CASES * 9 / 10, "{applied} of {CASES} were applied");
}
