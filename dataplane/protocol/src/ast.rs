//! A query as clients and API servers send it, in server names.
//!
//! Unknown properties are ignored, a wrong structure is refused. Serialising gives the property order of the reference's
//! normal form, so that the text of a normalised tree can be hashed.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::node::{Node, ParseError};

/// Deepest nesting of conditions and subqueries; beyond it a query is an attack or a mistake, and recursion is not free.
pub const MAX_DEPTH: usize = 64;
/// Most conditions and subqueries in one query.
pub const MAX_NODES: usize = 20_000;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ast {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    pub table: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<Condition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<CorrelatedSubquery>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub order_by: Vec<(String, Direction)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Asc,
    Desc,
}

/// A cursor. The row may be partial.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Start {
    pub row: Map<String, Value>,
    pub exclusive: bool,
}

/// `And` of nothing is true, `Or` of nothing is false.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Condition {
    Simple {
        left: ValuePosition,
        right: ValuePosition,
        op: Operator,
    },
    And {
        conditions: Vec<Condition>,
    },
    Or {
        conditions: Vec<Condition>,
    },
    CorrelatedSubquery {
        related: Box<CorrelatedSubquery>,
        op: ExistsOperator,
        #[serde(skip_serializing_if = "Option::is_none")]
        flip: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        scalar: Option<bool>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Operator {
    #[serde(rename = "=")]
    Eq,
    #[serde(rename = "!=")]
    Ne,
    #[serde(rename = "IS")]
    Is,
    #[serde(rename = "IS NOT")]
    IsNot,
    #[serde(rename = "<")]
    Lt,
    #[serde(rename = ">")]
    Gt,
    #[serde(rename = "<=")]
    Le,
    #[serde(rename = ">=")]
    Ge,
    #[serde(rename = "LIKE")]
    Like,
    #[serde(rename = "NOT LIKE")]
    NotLike,
    #[serde(rename = "ILIKE")]
    ILike,
    #[serde(rename = "NOT ILIKE")]
    NotILike,
    #[serde(rename = "IN")]
    In,
    #[serde(rename = "NOT IN")]
    NotIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ExistsOperator {
    #[serde(rename = "EXISTS")]
    Exists,
    #[serde(rename = "NOT EXISTS")]
    NotExists,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ValuePosition {
    Literal {
        value: Literal,
    },
    /// On the left side only.
    Column {
        name: String,
    },
    /// A parameter of a permission rule, bound before execution.
    Static {
        anchor: Anchor,
        field: Field,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Anchor {
    AuthData,
    PreMutationRow,
}

/// One name or a path of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Field {
    Name(String),
    Path(Vec<String>),
}

/// Integers and other numbers stay what the text said.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    /// Of scalars other than null.
    Array(Vec<Literal>),
}

/// Rows of `subquery` whose `child_field`s equal the parent's `parent_field`s.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CorrelatedSubquery {
    pub correlation: Correlation,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<bool>,
    pub subquery: Box<Ast>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<System>,
}

/// Two lists of equal, non-zero length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Correlation {
    pub parent_field: Vec<String>,
    pub child_field: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Rows of such a subquery never reach clients.
    Permissions,
    Client,
    Test,
}

impl Ast {
    /// Reads a tree; `name` is how an error calls its root.
    pub fn from_value(name: &str, value: &Value) -> Result<Ast, ParseError> {
        parse(&Node::root(name, value))
    }
}

impl Condition {
    /// Reads a condition alone, as permission rules carry them.
    pub fn from_value(name: &str, value: &Value) -> Result<Condition, ParseError> {
        let mut budget = Budget { nodes: MAX_NODES };
        condition(&Node::root(name, value), &mut budget, 0)
    }
}

impl Operator {
    #[must_use]
    pub fn parse(text: &str) -> Option<Operator> {
        Some(match text {
            "=" => Operator::Eq,
            "!=" => Operator::Ne,
            "IS" => Operator::Is,
            "IS NOT" => Operator::IsNot,
            "<" => Operator::Lt,
            ">" => Operator::Gt,
            "<=" => Operator::Le,
            ">=" => Operator::Ge,
            "LIKE" => Operator::Like,
            "NOT LIKE" => Operator::NotLike,
            "ILIKE" => Operator::ILike,
            "NOT ILIKE" => Operator::NotILike,
            "IN" => Operator::In,
            "NOT IN" => Operator::NotIn,
            _ => return None,
        })
    }
}

impl<'de> Deserialize<'de> for Ast {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ast, D::Error> {
        Ast::from_value("ast", &Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Condition, D::Error> {
        Condition::from_value("condition", &Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

struct Budget {
    nodes: usize,
}

impl Budget {
    fn spend(&mut self, node: &Node<'_>, depth: usize) -> Result<(), ParseError> {
        if depth > MAX_DEPTH {
            return Err(node.refuse(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.nodes = self
            .nodes
            .checked_sub(1)
            .ok_or_else(|| node.refuse(format!("more than {MAX_NODES} conditions and subqueries")))?;
        Ok(())
    }
}

pub(crate) fn parse(node: &Node<'_>) -> Result<Ast, ParseError> {
    ast(node, &mut Budget { nodes: MAX_NODES }, 0)
}

fn ast(node: &Node<'_>, budget: &mut Budget, depth: usize) -> Result<Ast, ParseError> {
    budget.spend(node, depth)?;
    Ok(Ast {
        schema: node.optional_string("schema")?,
        table: node.string_field("table")?,
        alias: node.optional_string("alias")?,
        filter: node.optional("where")?.map(|n| condition(&n, budget, depth + 1)).transpose()?,
        related: match node.optional("related")? {
            Some(list) => list.elements(|n| correlated(&n, budget, depth + 1))?,
            None => Vec::new(),
        },
        start: node.optional("start")?.map(|n| start(&n)).transpose()?,
        limit: node.optional("limit")?.map(|n| limit(&n)).transpose()?,
        order_by: match node.optional("orderBy")? {
            Some(list) => list.elements(|n| ordering(&n))?,
            None => Vec::new(),
        },
    })
}

fn start(node: &Node<'_>) -> Result<Start, ParseError> {
    Ok(Start { row: node.field("row")?.object()?.clone(), exclusive: node.field("exclusive")?.boolean()? })
}

fn limit(node: &Node<'_>) -> Result<u64, ParseError> {
    u64::try_from(node.integer()?).map_err(|_| node.refuse("a limit cannot be negative"))
}

fn ordering(node: &Node<'_>) -> Result<(String, Direction), ParseError> {
    let parts = node.elements(|n| n.string())?;
    let [column, direction] = <[String; 2]>::try_from(parts)
        .map_err(|parts| node.refuse(format!("expected [column, direction], got {} elements", parts.len())))?;
    match direction.as_str() {
        "asc" => Ok((column, Direction::Asc)),
        "desc" => Ok((column, Direction::Desc)),
        _ => Err(node.refuse("expected the direction \"asc\" or \"desc\"")),
    }
}

fn correlated(node: &Node<'_>, budget: &mut Budget, depth: usize) -> Result<CorrelatedSubquery, ParseError> {
    let correlation = node.field("correlation")?;
    let parent_field = correlation.field("parentField")?.strings()?;
    let child_field = correlation.field("childField")?.strings()?;
    if parent_field.is_empty() || parent_field.len() != child_field.len() {
        return Err(correlation.refuse("parentField and childField must have the same length, at least 1"));
    }
    Ok(CorrelatedSubquery {
        correlation: Correlation { parent_field, child_field },
        hidden: node.optional("hidden")?.map(|n| n.boolean()).transpose()?,
        subquery: Box::new(ast(&node.field("subquery")?, budget, depth)?),
        system: node.optional("system")?.map(|n| system(&n)).transpose()?,
    })
}

fn system(node: &Node<'_>) -> Result<System, ParseError> {
    match node.text()? {
        "permissions" => Ok(System::Permissions),
        "client" => Ok(System::Client),
        "test" => Ok(System::Test),
        _ => Err(node.refuse("expected \"permissions\", \"client\" or \"test\"")),
    }
}

fn condition(node: &Node<'_>, budget: &mut Budget, depth: usize) -> Result<Condition, ParseError> {
    budget.spend(node, depth)?;
    let kind = node.field("type")?;
    match kind.text()? {
        "simple" => {
            let op = node.field("op")?;
            Ok(Condition::Simple {
                left: value_position(&node.field("left")?)?,
                right: right_position(&node.field("right")?)?,
                op: Operator::parse(op.text()?).ok_or_else(|| op.refuse("unknown operator"))?,
            })
        }
        "and" => {
            Ok(Condition::And { conditions: node.field("conditions")?.elements(|n| condition(&n, budget, depth + 1))? })
        }
        "or" => {
            Ok(Condition::Or { conditions: node.field("conditions")?.elements(|n| condition(&n, budget, depth + 1))? })
        }
        "correlatedSubquery" => {
            let op = node.field("op")?;
            Ok(Condition::CorrelatedSubquery {
                related: Box::new(correlated(&node.field("related")?, budget, depth + 1)?),
                op: match op.text()? {
                    "EXISTS" => ExistsOperator::Exists,
                    "NOT EXISTS" => ExistsOperator::NotExists,
                    _ => return Err(op.refuse("expected \"EXISTS\" or \"NOT EXISTS\"")),
                },
                flip: node.optional("flip")?.map(|n| n.boolean()).transpose()?,
                scalar: node.optional("scalar")?.map(|n| n.boolean()).transpose()?,
            })
        }
        _ => Err(kind.refuse("expected \"simple\", \"and\", \"or\" or \"correlatedSubquery\"")),
    }
}

fn right_position(node: &Node<'_>) -> Result<ValuePosition, ParseError> {
    match value_position(node)? {
        ValuePosition::Column { .. } => Err(node.refuse("a column is allowed on the left side only")),
        position => Ok(position),
    }
}

fn value_position(node: &Node<'_>) -> Result<ValuePosition, ParseError> {
    let kind = node.field("type")?;
    match kind.text()? {
        "literal" => Ok(ValuePosition::Literal { value: literal(&node.field("value")?)? }),
        "column" => Ok(ValuePosition::Column { name: node.string_field("name")? }),
        "static" => {
            let anchor = node.field("anchor")?;
            let field = node.field("field")?;
            Ok(ValuePosition::Static {
                anchor: match anchor.text()? {
                    "authData" => Anchor::AuthData,
                    "preMutationRow" => Anchor::PreMutationRow,
                    _ => return Err(anchor.refuse("expected \"authData\" or \"preMutationRow\"")),
                },
                field: match field.value() {
                    Value::String(name) => Field::Name(name.clone()),
                    _ => Field::Path(field.strings()?),
                },
            })
        }
        _ => Err(kind.refuse("expected \"literal\", \"column\" or \"static\"")),
    }
}

fn literal(node: &Node<'_>) -> Result<Literal, ParseError> {
    match node.value() {
        Value::Null => Ok(Literal::Null),
        Value::Array(_) => Ok(Literal::Array(node.elements(|n| match n.value() {
            Value::Null => Err(n.refuse("null is not allowed in a list")),
            _ => scalar(&n),
        })?)),
        _ => scalar(node),
    }
}

fn scalar(node: &Node<'_>) -> Result<Literal, ParseError> {
    match node.value() {
        Value::Bool(b) => Ok(Literal::Bool(*b)),
        Value::String(s) => Ok(Literal::String(s.clone())),
        Value::Number(n) => match n.as_i64() {
            Some(i) => Ok(Literal::Int(i)),
            None => Ok(Literal::Float(node.number()?)),
        },
        _ => Err(node.refuse("expected a string, number or boolean")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Ast, ParseError> {
        Ast::from_value("ast", &value)
    }

    #[test]
    fn reads_what_it_writes_in_the_reference_order() {
        let text = r#"{"schema":"","table":"issue","alias":"i","where":{"type":"and","conditions":[{"type":"simple","left":{"type":"column","name":"a"},"right":{"type":"literal","value":[1,2.5,"x",true]},"op":"NOT IN"},{"type":"simple","left":{"type":"literal","value":null},"right":{"type":"static","anchor":"authData","field":["a","b"]},"op":"IS NOT"},{"type":"correlatedSubquery","related":{"correlation":{"parentField":["a"],"childField":["b"]},"hidden":true,"subquery":{"table":"u"},"system":"permissions"},"op":"NOT EXISTS","flip":true,"scalar":false}]},"related":[{"correlation":{"parentField":["a"],"childField":["b"]},"subquery":{"table":"c","alias":"comments"},"system":"client"}],"start":{"row":{"z":1,"a":null},"exclusive":true},"limit":10,"orderBy":[["a","asc"],["b","desc"]]}"#;
        let ast: Ast = serde_json::from_str(text).expect("valid");
        assert_eq!(serde_json::to_string(&ast).expect("text"), text);
    }

    #[test]
    fn numbers_keep_their_kind() {
        let literal = |text: &str| {
            let ast: Ast = serde_json::from_str(&format!(
                r#"{{"table":"t","where":{{"type":"simple","op":"=","left":{{"type":"column","name":"c"}},"right":{{"type":"literal","value":{text}}}}}}}"#
            ))
            .expect("valid");
            match ast.filter {
                Some(Condition::Simple { right: ValuePosition::Literal { value }, .. }) => value,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(literal("1"), Literal::Int(1));
        assert_eq!(literal("1.0"), Literal::Float(1.0));
        assert_eq!(literal("-9007199254740991"), Literal::Int(-9_007_199_254_740_991));
        assert_eq!(literal("18446744073709551615"), Literal::Float(18_446_744_073_709_551_615.0));
    }

    #[test]
    fn unknown_properties_are_ignored_and_wrong_structure_is_placed() {
        assert!(parse(json!({"table": "t", "future": {"x": 1}})).is_ok());
        let simple = |right: Value| json!({"table": "t", "where": {"type": "simple", "op": "=", "left": {"type": "column", "name": "c"}, "right": right}});
        for (value, at, reason) in [
            (json!([]), "ast", "expected an object"),
            (json!({}), "ast", "missing property \"table\""),
            (json!({"table": "t", "limit": -1}), "ast.limit", "negative"),
            (json!({"table": "t", "limit": 1.5}), "ast.limit", "integer"),
            (json!({"table": "t", "orderBy": [["a"]]}), "ast.orderBy[0]", "[column, direction]"),
            (json!({"table": "t", "orderBy": [["a", "up"]]}), "ast.orderBy[0]", "direction"),
            (json!({"table": "t", "where": {"type": "xor"}}), "ast.where.type", "expected"),
            (simple(json!({"type": "column", "name": "d"})), "ast.where.right", "left side only"),
            (simple(json!({"type": "literal", "value": {}})), "ast.where.right.value", "expected a string"),
            (simple(json!({"type": "literal", "value": [null]})), "ast.where.right.value[0]", "null"),
            (simple(json!({"type": "literal", "value": [[1]]})), "ast.where.right.value[0]", "expected a string"),
            (
                json!({"table": "t", "related": [{"correlation": {"parentField": [], "childField": []}, "subquery": {"table": "u"}}]}),
                "ast.related[0].correlation",
                "same length",
            ),
        ] {
            let error = parse(value.clone()).expect_err(&value.to_string());
            assert_eq!(error.at, at, "{value}");
            assert!(error.reason.contains(reason), "{value}: {error}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let leaf = json!({"type": "simple", "op": "=", "left": {"type": "column", "name": "c"}, "right": {"type": "literal", "value": 1}});
        let wide = |n: usize| json!({"table": "t", "where": {"type": "or", "conditions": vec![leaf.clone(); n]}});
        assert!(parse(wide(1000)).is_ok());
        assert!(parse(wide(MAX_NODES)).expect_err("too many").reason.contains("more than"));
        let mut deep = json!({"table": "t"});
        for _ in 0..MAX_DEPTH + 1 {
            deep = json!({"table": "t", "related": [{"correlation": {"parentField": ["a"], "childField": ["a"]}, "subquery": deep}]});
        }
        assert!(parse(deep).expect_err("too deep").reason.contains("deeper"));
    }
}
