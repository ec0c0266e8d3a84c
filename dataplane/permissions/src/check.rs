//! Rules against the tables that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use protocol::ast::{Ast, Condition, ValuePosition};

use crate::deployed::{Permissions, Policies};

/// The columns of every table, by names as the rules have them.
pub type Columns = BTreeMap<String, BTreeSet<String>>;

/// A rule that names what is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The rule's place in the text, or the table's.
    pub at: String,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.reason)
    }
}

impl Permissions {
    /// Every name in the rules that none of `columns` is.
    #[must_use]
    pub fn problems(&self, columns: &Columns) -> Vec<Problem> {
        let mut work = Work { columns, at: String::new(), problems: Vec::new() };
        for (table, rules) in &self.tables {
            work.at = format!("tables.{table}");
            let Some(of_table) = columns.get(table) else {
                work.add(unknown_table(table, columns));
                continue;
            };
            work.policies(&format!("tables.{table}.row"), table, &rules.row);
            for (column, policies) in &rules.cells {
                let at = format!("tables.{table}.cell.{column}");
                if !of_table.contains(column) {
                    work.at.clone_from(&at);
                    work.add(unknown_column(column, table, of_table));
                }
                work.policies(&at, table, policies);
            }
        }
        work.problems
    }
}

struct Work<'a> {
    columns: &'a Columns,
    at: String,
    problems: Vec<Problem>,
}

impl Work<'_> {
    fn add(&mut self, reason: String) {
        let problem = Problem { at: self.at.clone(), reason };
        if self.problems.last() != Some(&problem) {
            self.problems.push(problem);
        }
    }

    fn policies(&mut self, at: &str, table: &str, policies: &Policies) {
        for (action, policy) in policies {
            for (n, rule) in policy.rules.iter().enumerate() {
                self.at = format!("{at}.{}[{n}]", action.name());
                self.condition(rule, table);
            }
        }
    }

    fn condition(&mut self, condition: &Condition, table: &str) {
        match condition {
            Condition::Simple { left, right, .. } => {
                for position in [left, right] {
                    if let ValuePosition::Column { name } = position {
                        self.column(name, table);
                    }
                }
            }
            Condition::And { conditions } | Condition::Or { conditions } => {
                for condition in conditions {
                    self.condition(condition, table);
                }
            }
            Condition::CorrelatedSubquery { related, .. } => {
                for column in &related.correlation.parent_field {
                    self.column(column, table);
                }
                self.ast(&related.subquery, &related.correlation.child_field);
            }
        }
    }

    fn ast(&mut self, ast: &Ast, correlated: &[String]) {
        if !self.columns.contains_key(&ast.table) {
            self.add(unknown_table(&ast.table, self.columns));
            return;
        }
        for column in correlated.iter().chain(ast.order_by.iter().map(|(column, _)| column)) {
            self.column(column, &ast.table);
        }
        if let Some(filter) = &ast.filter {
            self.condition(filter, &ast.table);
        }
    }

    fn column(&mut self, column: &str, table: &str) {
        if let Some(of_table) = self.columns.get(table).filter(|of_table| !of_table.contains(column)) {
            self.add(unknown_column(column, table, of_table));
        }
    }
}

fn unknown_table(table: &str, columns: &Columns) -> String {
    format!("no table \"{table}\" is published; there are: {}", list(columns.keys()))
}

fn unknown_column(column: &str, table: &str, of_table: &BTreeSet<String>) -> String {
    format!("table \"{table}\" has no published column \"{column}\"; there are: {}", list(of_table.iter()))
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_names_are_found_wherever_they_stand() {
        let column = |name: &str| json!({"type": "simple", "op": "=", "left": {"type": "column", "name": name}, "right": {"type": "literal", "value": 1}});
        let exists = |parent: &str, child: &str, table: &str, order: &str, inner: &str| {
            json!({"type": "correlatedSubquery", "op": "EXISTS", "related": {
                "correlation": {"parentField": [parent], "childField": [child]},
                "subquery": {"table": table, "orderBy": [[order, "asc"]], "where": column(inner)}}})
        };
        let rules = json!({"tables": {
            "t": {
                "row": {
                    "select": [["allow", column("id")], ["allow", {"type": "or", "conditions": [column("nope"), column("nope")]}]],
                    "update": {"postMutation": [["allow", exists("p", "c", "u", "o", "i")]]},
                    "delete": [["allow", exists("id", "id", "v", "id", "id")]],
                },
                "cell": {"id": {"insert": [["allow", column("x")]]}, "y": {}},
            },
            "w": {"row": {"select": [["allow", column("id")]]}},
        }});
        let ids: BTreeSet<String> = ["id".to_owned()].into();
        let columns = Columns::from([("t".to_owned(), ids.clone()), ("u".to_owned(), ids)]);
        let problems = Permissions::parse(&rules.to_string()).unwrap().problems(&columns);
        let found: Vec<(&str, &str)> =
            problems.iter().map(|p| (p.at.as_str(), p.reason.split(';').next().unwrap())).collect();
        assert_eq!(
            found,
            [
                ("tables.t.row.select[1]", "table \"t\" has no published column \"nope\""),
                ("tables.t.row.update.postMutation[0]", "table \"t\" has no published column \"p\""),
                ("tables.t.row.update.postMutation[0]", "table \"u\" has no published column \"c\""),
                ("tables.t.row.update.postMutation[0]", "table \"u\" has no published column \"o\""),
                ("tables.t.row.update.postMutation[0]", "table \"u\" has no published column \"i\""),
                ("tables.t.row.delete[0]", "no table \"v\" is published"),
                ("tables.t.cell.id.insert[0]", "table \"t\" has no published column \"x\""),
                ("tables.t.cell.y", "table \"t\" has no published column \"y\""),
                ("tables.w", "no table \"w\" is published"),
            ]
        );
        let all = Columns::from([("t".to_owned(), BTreeSet::new())]);
        assert!(problems[0].to_string().ends_with("there are: \"id\""), "{}", problems[0]);
        assert_eq!(Permissions::default().problems(&all), []);
    }
}
