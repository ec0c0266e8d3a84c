//! Parameters to values.
//!
//! A parameter without a value is null, which only `IS` and `IS NOT` see. One whose value cannot stand where the parameter stands makes
//! the whole rule unusable, and not just false where it stands: under a NOT EXISTS that would allow what is forbidden.

use std::fmt;

use protocol::ast::{Anchor, Ast, Condition, CorrelatedSubquery, Field, Literal, Operator, ValuePosition};
use serde_json::{Map, Value};

use crate::deployed::Policy;

/// Longest list in a claim.
pub const LIST_MAX: usize = 10_000;

/// Where the values come from. The default gives none, so that every parameter is null.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parameters<'a> {
    /// `authData`: the claims of a verified token.
    pub claims: Option<&'a Map<String, Value>>,
    /// `preMutationRow`: the row before it is changed.
    pub row: Option<&'a Map<String, Value>>,
}

/// A parameter whose value is of the wrong kind. Says which and what, and never the value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unusable {
    pub parameter: String,
    pub reason: &'static str,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.parameter, self.reason)
    }
}

/// A policy for one user.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// Holds for what is allowed. Without parameters.
    pub condition: Condition,
    /// Why some of the rules allow this user nothing.
    pub unusable: Vec<Unusable>,
}

impl Policy {
    /// The policy for whoever has `parameters`.
    #[must_use]
    pub fn bind(&self, parameters: &Parameters<'_>) -> Bound {
        let mut unusable = Vec::new();
        let mut allowing = Vec::with_capacity(self.rules.len());
        for rule in &self.rules {
            match bind(rule, parameters) {
                Ok(rule) => allowing.push(rule),
                Err(why) => unusable.push(why),
            }
        }
        let condition = if allowing.len() == 1 { allowing.remove(0) } else { Condition::Or { conditions: allowing } };
        Bound { condition, unusable }
    }
}

/// One condition with values in place of its parameters.
pub fn bind(condition: &Condition, parameters: &Parameters<'_>) -> Result<Condition, Unusable> {
    let all = |conditions: &[Condition]| conditions.iter().map(|c| bind(c, parameters)).collect::<Result<Vec<_>, _>>();
    Ok(match condition {
        Condition::And { conditions } => Condition::And { conditions: all(conditions)? },
        Condition::Or { conditions } => Condition::Or { conditions: all(conditions)? },
        Condition::CorrelatedSubquery { related, op, flip, scalar } => Condition::CorrelatedSubquery {
            related: Box::new(CorrelatedSubquery {
                subquery: Box::new(bind_ast(&related.subquery, parameters)?),
                ..(**related).clone()
            }),
            op: *op,
            flip: *flip,
            scalar: *scalar,
        },
        Condition::Simple { left, right, op } => Condition::Simple {
            left: side(left, *op, false, parameters)?,
            right: side(right, *op, true, parameters)?,
            op: *op,
        },
    })
}

fn bind_ast(ast: &Ast, parameters: &Parameters<'_>) -> Result<Ast, Unusable> {
    let related = ast.related.iter().map(|related| {
        let subquery = Box::new(bind_ast(&related.subquery, parameters)?);
        Ok(CorrelatedSubquery { subquery, ..related.clone() })
    });
    let related = related.collect::<Result<_, Unusable>>()?;
    let filter = ast.filter.as_ref().map(|filter| bind(filter, parameters)).transpose()?;
    Ok(Ast { filter, related, ..ast.clone() })
}

fn side(
    position: &ValuePosition,
    op: Operator,
    is_right: bool,
    parameters: &Parameters<'_>,
) -> Result<ValuePosition, Unusable> {
    let ValuePosition::Static { anchor, field } = position else { return Ok(position.clone()) };
    let (name, root) = match anchor {
        Anchor::AuthData => ("authData", parameters.claims),
        Anchor::PreMutationRow => ("preMutationRow", parameters.row),
    };
    let path = match field {
        Field::Name(name) => std::slice::from_ref(name),
        Field::Path(path) => path.as_slice(),
    };
    let refuse = |reason| Unusable { parameter: format!("{name}.{}", path.join(".")), reason };
    let value = match root {
        None => Literal::Null,
        Some(root) => match find(root, path).map_err(refuse)? {
            None => Literal::Null,
            Some(found) => literal(&found, op, is_right).map_err(refuse)?,
        },
    };
    Ok(ValuePosition::Literal { value })
}

/// What a path leads to, with positions and the length of lists as JavaScript has them.
fn find(root: &Map<String, Value>, path: &[String]) -> Result<Option<Value>, &'static str> {
    let (Some(first), rest) = (path.first(), path.get(1..).unwrap_or_default()) else {
        return Err("names no value");
    };
    let Some(mut value) = root.get(first) else { return Ok(None) };
    for (n, step) in rest.iter().enumerate() {
        let next = match value {
            Value::Object(fields) => fields.get(step),
            Value::Array(list) if step == "length" && n + 1 == rest.len() => return Ok(Some(list.len().into())),
            Value::Array(list) => step.parse::<usize>().ok().and_then(|position| list.get(position)),
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => return Ok(None),
        }
    }
    Ok(Some(value.clone()).filter(|value| !value.is_null()))
}

fn literal(value: &Value, op: Operator, is_right: bool) -> Result<Literal, &'static str> {
    use Operator::{ILike, In, Like, NotILike, NotIn, NotLike};
    match (op, value) {
        (In | NotIn, Value::Array(list)) if is_right => {
            if list.len() > LIST_MAX {
                return Err("is too long a list");
            }
            // Nothing equals null, so under IN it says nothing; under NOT IN SQL makes everything unknown.
            let said = list.iter().filter(|member| op == NotIn || !member.is_null());
            said.map(|member| scalar(member).ok_or("is a list of something else than text, numbers and booleans"))
                .collect::<Result<Vec<_>, _>>()
                .map(Literal::Array)
        }
        (In | NotIn, _) if is_right => Err("is no list"),
        (Like | NotLike | ILike | NotILike, value) if !value.is_string() => Err("is no text"),
        (_, value) => scalar(value).ok_or("is neither text nor a number nor a boolean"),
    }
}

fn scalar(value: &Value) -> Option<Literal> {
    match value {
        Value::Bool(b) => Some(Literal::Bool(*b)),
        Value::String(text) => Some(Literal::String(text.clone())),
        Value::Number(number) => number.as_i64().map(Literal::Int).or_else(|| number.as_f64().map(Literal::Float)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn simple(op: &str, left: &Value, right: &Value) -> Condition {
        let value = json!({"type": "simple", "op": op, "left": left, "right": right});
        Condition::from_value("condition", &value).unwrap()
    }

    fn parameter(anchor: &str, field: &Value) -> Value {
        json!({"type": "static", "anchor": anchor, "field": field})
    }

    fn claims() -> Map<String, Value> {
        json!({
            "sub": "u1", "n": 5, "f": 1.5, "admin": true, "nothing": null, "roles": ["a", "b"], "gaps": ["a", null], "empty": [],
            "deep": {"er": {"x": "y"}}, "pairs": [["a"], {"k": 1}], "sub.dot": "z", "long": vec![1; LIST_MAX + 1],
            "big": 18_446_744_073_709_551_615_u64,
        })
        .as_object()
        .unwrap()
        .clone()
    }

    fn bound(op: &str, field: &Value) -> Result<Value, &'static str> {
        let condition = simple(op, &json!({"type": "column", "name": "c"}), &parameter("authData", field));
        let claims = claims();
        match bind(&condition, &Parameters { claims: Some(&claims), row: None }) {
            Ok(Condition::Simple { right: ValuePosition::Literal { value }, .. }) => {
                Ok(serde_json::to_value(value).unwrap())
            }
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why.reason),
        }
    }

    #[test]
    fn claims_become_literals() {
        for (op, field, expected) in [
            ("=", json!("sub"), json!("u1")),
            ("=", json!(["sub"]), json!("u1")),
            ("<", json!("n"), json!(5)),
            (">=", json!("f"), json!(1.5)),
            ("IS", json!("admin"), json!(true)),
            ("=", json!("big"), json!(18_446_744_073_709_552_000.0)),
            ("=", json!("nothing"), json!(null)),
            ("=", json!("missing"), json!(null)),
            ("IN", json!("missing"), json!(null)),
            ("NOT IN", json!("nothing"), json!(null)),
            ("=", json!(["deep", "er", "x"]), json!("y")),
            ("=", json!(["deep", "er", "nope"]), json!(null)),
            ("=", json!(["sub", "length", "x"]), json!(null)),
            ("=", json!(["missing", "er"]), json!(null)),
            ("=", json!("sub.dot"), json!("z")),
            ("=", json!(["roles", "1"]), json!("b")),
            ("=", json!(["roles", "2"]), json!(null)),
            (">", json!(["roles", "length"]), json!(2)),
            ("IN", json!("roles"), json!(["a", "b"])),
            ("NOT IN", json!("empty"), json!([])),
            ("IN", json!("gaps"), json!(["a"])),
            ("LIKE", json!("sub"), json!("u1")),
        ] {
            assert_eq!(bound(op, &field), Ok(expected), "{op} {field}");
        }
    }

    #[test]
    fn claims_of_the_wrong_kind_are_unusable() {
        for (op, field, reason) in [
            ("=", json!("roles"), "neither"),
            ("=", json!("deep"), "neither"),
            ("IS NOT", json!("deep"), "neither"),
            ("IN", json!("sub"), "no list"),
            ("NOT IN", json!("deep"), "no list"),
            ("NOT IN", json!("gaps"), "something else"),
            ("IN", json!("pairs"), "something else"),
            ("IN", json!("long"), "too long"),
            ("LIKE", json!("n"), "no text"),
            ("NOT ILIKE", json!("roles"), "no text"),
            ("=", json!([]), "names no value"),
        ] {
            let error = bound(op, &field).expect_err(op);
            assert!(error.contains(reason), "{op} {field}: {error}");
        }
    }

    #[test]
    fn values_come_from_where_the_parameter_says() {
        let claims = claims();
        let row = json!({"sub": "row"}).as_object().unwrap().clone();
        let both = simple("=", &parameter("authData", &json!("sub")), &parameter("preMutationRow", &json!("sub")));
        let text = |parameters: &Parameters<'_>| serde_json::to_string(&bind(&both, parameters).unwrap()).unwrap();
        let literal = |value: &str| format!(r#"{{"type":"literal","value":{value}}}"#);
        for (parameters, left, right) in [
            (Parameters { claims: Some(&claims), row: Some(&row) }, "\"u1\"", "\"row\""),
            (Parameters { claims: Some(&claims), row: None }, "\"u1\"", "null"),
            (Parameters { claims: None, row: Some(&row) }, "null", "\"row\""),
            (Parameters::default(), "null", "null"),
        ] {
            let text = text(&parameters);
            assert!(text.contains(&literal(left)) && text.contains(&literal(right)), "{text}");
        }
    }

    #[test]
    fn an_unusable_rule_allows_nothing_wherever_the_parameter_stands() {
        let blocked = json!({"type": "correlatedSubquery", "op": "NOT EXISTS", "related": {
            "correlation": {"parentField": ["owner"], "childField": ["who"]},
            "subquery": {"table": "blocked", "where": {"type": "simple", "op": "=", "left": {"type": "column", "name": "by"},
                "right": parameter("authData", &json!("deep"))}},
        }});
        let policy = |rules: Vec<Condition>| Policy { rules };
        let not_blocked = Condition::from_value("rule", &blocked).unwrap();
        let own = simple("=", &json!({"type": "column", "name": "c"}), &parameter("authData", &json!("sub")));
        let claims = claims();
        let parameters = Parameters { claims: Some(&claims), row: None };
        let bound = policy(vec![not_blocked.clone()]).bind(&parameters);
        assert_eq!(bound.condition, Condition::Or { conditions: Vec::new() });
        assert_eq!(bound.unusable[0].to_string(), "authData.deep is neither text nor a number nor a boolean");
        let bound = policy(vec![not_blocked, own.clone()]).bind(&parameters);
        assert_eq!(bound.condition, bind(&own, &parameters).unwrap());
        assert_eq!(Policy::default().bind(&parameters).condition, Condition::Or { conditions: Vec::new() });
    }
}
