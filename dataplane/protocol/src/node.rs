//! A JSON value together with its place in the message, so that every refusal can say where.

use std::fmt;

use serde_json::{Map, Value};

/// What was wrong with a message and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {reason}")]
pub struct ParseError {
    pub at: String,
    pub reason: String,
}

enum Step<'a> {
    Root(&'a str),
    Field(&'a Node<'a>, &'a str),
    Index(&'a Node<'a>, usize),
}

/// A borrowed value and the steps that led to it.
pub(crate) struct Node<'a> {
    value: &'a Value,
    step: Step<'a>,
}

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Step::Root(name) => f.write_str(name),
            Step::Field(parent, name) => write!(f, "{parent}.{name}"),
            Step::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl<'a> Node<'a> {
    pub(crate) fn root(name: &'a str, value: &'a Value) -> Node<'a> {
        Node { value, step: Step::Root(name) }
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    pub(crate) fn refuse(&self, reason: impl Into<String>) -> ParseError {
        ParseError { at: self.to_string(), reason: reason.into() }
    }

    fn expected(&self, what: &str) -> ParseError {
        self.refuse(format!("expected {what}, got {}", kind(self.value)))
    }

    /// The named property; absent and `null` are told apart by [`Node::optional`] only where the protocol does so.
    pub(crate) fn field<'n>(&'n self, name: &'n str) -> Result<Node<'n>, ParseError> {
        match self.object()?.get(name) {
            Some(value) => Ok(Node { value, step: Step::Field(self, name) }),
            None => Err(self.refuse(format!("missing property \"{name}\""))),
        }
    }

    /// The named property, if it is present and not null.
    pub(crate) fn optional<'n>(&'n self, name: &'n str) -> Result<Option<Node<'n>>, ParseError> {
        Ok(match self.object()?.get(name) {
            None | Some(Value::Null) => None,
            Some(value) => Some(Node { value, step: Step::Field(self, name) }),
        })
    }

    pub(crate) fn object(&self) -> Result<&'a Map<String, Value>, ParseError> {
        self.value.as_object().ok_or_else(|| self.expected("an object"))
    }

    /// Every property of an object, in order.
    pub(crate) fn properties<T>(
        &self,
        mut parse: impl FnMut(&str, Node<'_>) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        self.object()?.iter().map(|(name, value)| parse(name, Node { value, step: Step::Field(self, name) })).collect()
    }

    /// Every element of an array.
    pub(crate) fn elements<T>(
        &self,
        mut parse: impl FnMut(Node<'_>) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        let items = self.value.as_array().ok_or_else(|| self.expected("an array"))?;
        items.iter().enumerate().map(|(i, value)| parse(Node { value, step: Step::Index(self, i) })).collect()
    }

    pub(crate) fn text(&self) -> Result<&'a str, ParseError> {
        self.value.as_str().ok_or_else(|| self.expected("a string"))
    }

    pub(crate) fn string(&self) -> Result<String, ParseError> {
        self.text().map(str::to_owned)
    }

    pub(crate) fn boolean(&self) -> Result<bool, ParseError> {
        self.value.as_bool().ok_or_else(|| self.expected("a boolean"))
    }

    pub(crate) fn number(&self) -> Result<f64, ParseError> {
        self.value.as_f64().ok_or_else(|| self.expected("a number"))
    }

    /// A number without fraction. JavaScript does not tell `5` from `5.0`, so neither do we.
    pub(crate) fn integer(&self) -> Result<i64, ParseError> {
        if let Some(i) = self.value.as_i64() {
            return Ok(i);
        }
        let n = self.number()?;
        if n.fract() == 0.0 && n.abs() <= rows::json::MAX_SAFE_INTEGER as f64 {
            // Lossless: the range was just checked.
            Ok(n as i64)
        } else {
            Err(self.refuse("expected an integer that a JavaScript number can hold"))
        }
    }

    pub(crate) fn strings(&self) -> Result<Vec<String>, ParseError> {
        self.elements(|item| item.string())
    }

    pub(crate) fn string_field(&self, name: &str) -> Result<String, ParseError> {
        self.field(name)?.string()
    }

    pub(crate) fn optional_string(&self, name: &str) -> Result<Option<String>, ParseError> {
        self.optional(name)?.map(|node| node.string()).transpose()
    }

    pub(crate) fn optional_strings(&self, name: &str) -> Result<Option<Vec<String>>, ParseError> {
        self.optional(name)?.map(|node| node.strings()).transpose()
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
