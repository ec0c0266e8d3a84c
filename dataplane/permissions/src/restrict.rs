//! A client's query to one that yields only what its user may see.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use protocol::ast::{self, Ast, Condition, CorrelatedSubquery, System};

use crate::bind::{Parameters, Unusable, bind};
use crate::deployed::{Action, Permissions};
use crate::parse::RULE_DEPTH_MAX;

/// Deepest nesting of what results.
pub const DEPTH_MAX: usize = ast::MAX_DEPTH + RULE_DEPTH_MAX;

/// A query with the rules in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Restricted {
    /// Without parameters.
    pub ast: Ast,
    /// How many conditions and subqueries it has.
    pub nodes: usize,
    /// Tables of the query that nobody may read, for there is no rule.
    pub ruleless: BTreeSet<String>,
    /// Why some rules allow this user nothing, by table.
    pub unusable: BTreeSet<(String, Unusable)>,
}

/// Why a query cannot be served. The message is for the developer of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestrictError {
    TooDeep,
    TooLarge,
    /// A parameter in the client's own part.
    Unusable(Unusable),
}

impl fmt::Display for RestrictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestrictError::TooDeep => {
                write!(f, "with the read rules in it, the query is nested deeper than {DEPTH_MAX} levels")
            }
            RestrictError::TooLarge => {
                write!(
                    f,
                    "with the read rules in it, the query has more than {} conditions and subqueries",
                    ast::MAX_NODES
                )
            }
            RestrictError::Unusable(why) => write!(f, "a parameter of the query cannot be used: {why}"),
        }
    }
}

impl std::error::Error for RestrictError {}

/// Puts the read rules of `permissions` into a client's query: at its root, in what is related and in every EXISTS, for each table
/// that it names. What a rule itself looks at is not restricted.
pub fn restrict(
    ast: &Ast,
    permissions: &Permissions,
    parameters: &Parameters<'_>,
) -> Result<Restricted, RestrictError> {
    let mut work = Work {
        permissions,
        parameters,
        policies: BTreeMap::new(),
        nodes: ast::MAX_NODES,
        ruleless: BTreeSet::new(),
        unusable: BTreeSet::new(),
    };
    let restricted = work.ast(ast, 0)?;
    let nodes = ast::MAX_NODES - work.nodes;
    Ok(Restricted { ast: restricted, nodes, ruleless: work.ruleless, unusable: work.unusable })
}

/// A bound policy and its extent.
struct Prepared {
    condition: Condition,
    nodes: usize,
    depth: usize,
}

struct Work<'a> {
    permissions: &'a Permissions,
    parameters: &'a Parameters<'a>,
    policies: BTreeMap<String, Prepared>,
    nodes: usize,
    ruleless: BTreeSet<String>,
    unusable: BTreeSet<(String, Unusable)>,
}

impl Work<'_> {
    fn ast(&mut self, ast: &Ast, depth: usize) -> Result<Ast, RestrictError> {
        self.spend(1, depth)?;
        let mut conditions = match &ast.filter {
            None => Vec::new(),
            Some(filter) => match self.condition(filter, depth + 2)? {
                Condition::And { conditions } => conditions,
                other => vec![other],
            },
        };
        conditions.push(self.policy(&ast.table, depth + 2)?);
        let filter = if conditions.len() == 1 { conditions.remove(0) } else { Condition::And { conditions } };
        let related = ast.related.iter().map(|related| self.related(related, depth + 1));
        Ok(Ast { related: related.collect::<Result<_, _>>()?, filter: Some(filter), ..ast.clone() })
    }

    fn related(&mut self, related: &CorrelatedSubquery, depth: usize) -> Result<CorrelatedSubquery, RestrictError> {
        let subquery = Box::new(self.ast(&related.subquery, depth)?);
        // What a client asks for it gets: only rules look at rows that are not sent.
        let system = related.system.map(|_| System::Client);
        Ok(CorrelatedSubquery { subquery, system, ..related.clone() })
    }

    fn condition(&mut self, condition: &Condition, depth: usize) -> Result<Condition, RestrictError> {
        self.spend(1, depth)?;
        let mut all = |conditions: &[Condition]| {
            conditions.iter().map(|c| self.condition(c, depth + 1)).collect::<Result<Vec<_>, _>>()
        };
        Ok(match condition {
            Condition::And { conditions } => Condition::And { conditions: all(conditions)? },
            Condition::Or { conditions } => Condition::Or { conditions: all(conditions)? },
            Condition::Simple { .. } => bind(condition, self.parameters).map_err(RestrictError::Unusable)?,
            Condition::CorrelatedSubquery { related, op, flip, scalar } => Condition::CorrelatedSubquery {
                related: Box::new(self.related(related, depth + 1)?),
                op: *op,
                flip: *flip,
                scalar: *scalar,
            },
        })
    }

    fn policy(&mut self, table: &str, depth: usize) -> Result<Condition, RestrictError> {
        let known = self.policies.get(table).map(|prepared| (prepared.nodes, prepared.depth));
        let (nodes, deepest) = match known {
            Some(extent) => extent,
            None => {
                let prepared = self.prepare(table);
                let extent = (prepared.nodes, prepared.depth);
                self.policies.insert(table.to_owned(), prepared);
                extent
            }
        };
        self.spend(nodes, depth + deepest)?;
        Ok(self.policies.get(table).map_or_else(nothing, |prepared| prepared.condition.clone()))
    }

    fn prepare(&mut self, table: &str) -> Prepared {
        let condition = match self.permissions.row(table, Action::Select).filter(|policy| !policy.is_empty()) {
            None => {
                self.ruleless.insert(table.to_owned());
                nothing()
            }
            Some(policy) => {
                let bound = policy.bind(self.parameters);
                self.unusable.extend(bound.unusable.into_iter().map(|why| (table.to_owned(), why)));
                bound.condition
            }
        };
        let (nodes, depth) = extent(&condition);
        Prepared { condition, nodes, depth }
    }

    fn spend(&mut self, nodes: usize, depth: usize) -> Result<(), RestrictError> {
        if depth > DEPTH_MAX {
            return Err(RestrictError::TooDeep);
        }
        self.nodes = self.nodes.checked_sub(nodes).ok_or(RestrictError::TooLarge)?;
        Ok(())
    }
}

fn nothing() -> Condition {
    Condition::Or { conditions: Vec::new() }
}

/// How many nodes, and how deep.
fn extent(condition: &Condition) -> (usize, usize) {
    let inner = |extents: &mut dyn Iterator<Item = (usize, usize)>| {
        extents.fold((1, 0), |(nodes, depth), (n, d)| (nodes + n, depth.max(d + 1)))
    };
    match condition {
        Condition::Simple { .. } => (1, 0),
        Condition::And { conditions } | Condition::Or { conditions } => inner(&mut conditions.iter().map(extent)),
        Condition::CorrelatedSubquery { related, .. } => {
            let (nodes, depth) = inner(&mut related.subquery.filter.iter().map(extent));
            (nodes + 1, depth + 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn permissions(value: &Value) -> Permissions {
        Permissions::parse(&value.to_string()).unwrap()
    }

    fn ast(value: &Value) -> Ast {
        Ast::from_value("ast", value).unwrap()
    }

    fn equals(column: &str, value: &Value) -> Value {
        json!({"type": "simple", "op": "=", "left": {"type": "column", "name": column}, "right": value})
    }

    fn literal(value: &Value) -> Value {
        json!({"type": "literal", "value": value})
    }

    fn sub(name: &str) -> Value {
        json!({"type": "static", "anchor": "authData", "field": name})
    }

    fn below(subquery: &Value, system: &str) -> Value {
        json!({"correlation": {"parentField": ["id"], "childField": ["t"]}, "subquery": subquery, "system": system})
    }

    fn exists(op: &str, related: &Value) -> Value {
        json!({"type": "correlatedSubquery", "related": related, "op": op})
    }

    fn all(conditions: &[&Value]) -> Value {
        json!({"type": "and", "conditions": conditions})
    }

    fn rules() -> Permissions {
        let member =
            exists("EXISTS", &below(&json!({"table": "member", "where": equals("user", &sub("sub"))}), "permissions"));
        permissions(&json!({"tables": {
            "open": {"row": {"select": [["allow", {"type": "and", "conditions": []}]]}},
            "own": {"row": {"select": [["allow", equals("owner", &sub("sub"))], ["allow", equals("public", &literal(&json!(true)))]]}},
            "team": {"row": {"select": [["allow", member]]}},
            "shut": {"row": {"select": []}},
            "written": {"row": {"insert": [["allow", {"type": "and", "conditions": []}]]}},
        }}))
    }

    fn restricted(query: &Value, claims: &Value) -> Restricted {
        let parameters = Parameters { claims: claims.as_object(), row: None };
        restrict(&ast(query), &rules(), &parameters).unwrap()
    }

    #[test]
    fn every_table_of_a_query_gets_its_rules_and_only_once() {
        let owned = json!({"type": "or", "conditions": [equals("owner", &literal(&json!("u1"))), equals("public", &literal(&json!(true)))]});
        let no = json!({"type": "or", "conditions": []});
        let yes = all(&[]);
        let mine = equals("a", &literal(&json!(1)));
        let given = json!({
            "table": "own",
            "where": all(&[&mine, &exists("NOT EXISTS", &below(&json!({"table": "shut"}), "client"))]),
            "related": [below(&json!({"table": "open", "alias": "o", "related": [below(&json!({"table": "team", "alias": "t"}), "client")]}), "client")],
            "limit": 5,
            "orderBy": [["a", "desc"]],
        });
        let member = exists(
            "EXISTS",
            &below(&json!({"table": "member", "where": equals("user", &literal(&json!("u1")))}), "permissions"),
        );
        let expected = json!({
            "table": "own",
            "where": all(&[&mine, &exists("NOT EXISTS", &below(&json!({"table": "shut", "where": no}), "client")), &owned]),
            "related": [below(&json!({"table": "open", "alias": "o", "where": yes, "related": [
                below(&json!({"table": "team", "alias": "t", "where": member}), "client")]}), "client")],
            "limit": 5,
            "orderBy": [["a", "desc"]],
        });
        let result = restricted(&given, &json!({"sub": "u1"}));
        assert_eq!(result.ast, ast(&expected));
        assert_eq!(result.ruleless, BTreeSet::from(["shut".to_owned()]));
    }

    #[test]
    fn without_rules_there_is_nothing() {
        for table in ["shut", "written", "unheard_of"] {
            let result = restricted(&json!({"table": table}), &json!({"sub": "u1"}));
            assert_eq!(result.ast.filter, Some(nothing()));
            assert_eq!(result.ruleless, BTreeSet::from([table.to_owned()]));
        }
        let result =
            restrict(&ast(&json!({"table": "open"})), &Permissions::default(), &Parameters::default()).unwrap();
        assert_eq!(result.ast.filter, Some(nothing()));
    }

    #[test]
    fn nobody_is_null() {
        let result = restricted(&json!({"table": "team"}), &json!(null));
        assert!(serde_json::to_string(&result.ast).unwrap().contains(r#""right":{"type":"literal","value":null}"#));
    }

    #[test]
    fn claims_of_the_wrong_kind_are_named_and_allow_nothing() {
        let result = restricted(&json!({"table": "team"}), &json!({"sub": {"secret": 1}}));
        assert_eq!(result.ast.filter, Some(nothing()));
        let (table, why) = result.unusable.first().unwrap();
        assert_eq!((table.as_str(), why.parameter.as_str()), ("team", "authData.sub"));
        let client = restrict(
            &ast(&json!({"table": "open", "where": equals("a", &sub("sub"))})),
            &rules(),
            &Parameters { claims: json!({"sub": []}).as_object(), row: None },
        );
        assert!(matches!(client, Err(RestrictError::Unusable(_))));
    }

    #[test]
    fn a_client_cannot_pass_its_subqueries_off_as_rules() {
        for system in ["permissions", "test", "client"] {
            let hidden = exists("EXISTS", &below(&json!({"table": "own"}), system));
            let query = json!({"table": "open", "where": hidden, "related": [below(&json!({"table": "own"}), system)]});
            let text = serde_json::to_string(&restricted(&query, &json!({"sub": "u1"})).ast).unwrap();
            assert!(!text.contains(r#""system":"permissions""#) && !text.contains(r#""system":"test""#), "{text}");
            assert_eq!(text.matches(r#""value":"u1""#).count(), 2, "both are restricted: {text}");
        }
    }

    #[test]
    fn a_clients_parameters_are_its_own_claims() {
        let query = json!({"table": "open", "where": equals("a", &sub("sub")), "related": [below(&json!({"table": "open",
            "where": equals("b", &json!({"type": "static", "anchor": "preMutationRow", "field": "x"}))}), "client")]});
        let text = serde_json::to_string(&restricted(&query, &json!({"sub": "u1"})).ast).unwrap();
        assert!(
            text.contains(r#""value":"u1""#) && text.contains(r#""value":null"#) && !text.contains("static"),
            "{text}"
        );
    }

    #[test]
    fn what_results_is_bounded() {
        let leaf = || equals("a", &literal(&json!(1)));
        let wide = json!({"type": "or", "conditions": (0..1000).map(|_| leaf()).collect::<Vec<_>>()});
        let permissions = permissions(&json!({"tables": {"t": {"row": {"select": [["allow", wide]]}}}}));
        let query = |n: usize| {
            ast(
                &json!({"table": "t", "related": (0..n).map(|_| below(&json!({"table": "t"}), "client")).collect::<Vec<_>>()}),
            )
        };
        assert!(restrict(&query(10), &permissions, &Parameters::default()).is_ok());
        assert_eq!(restrict(&query(30), &permissions, &Parameters::default()), Err(RestrictError::TooLarge));
        let mut rule = leaf();
        for _ in 0..10 {
            rule = all(&[&rule]);
        }
        let permissions = self::permissions(&json!({"tables": {"t": {"row": {"select": [["allow", rule]]}}}}));
        let mut deep = json!({"table": "t"});
        for _ in 0..ast::MAX_DEPTH / 2 - 1 {
            deep = json!({"table": "t", "where": exists("EXISTS", &below(&deep, "client"))});
        }
        assert_eq!(restrict(&ast(&deep), &permissions, &Parameters::default()), Err(RestrictError::TooDeep));
    }
}
