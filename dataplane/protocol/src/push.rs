//! Pushes. The text of every mutation is kept as the client wrote it, so that what the API server gets is what was sent.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::node::{Node, ParseError};

/// A push, ready to be combined with others and forwarded.
#[derive(Clone, Debug)]
pub struct Push {
    pub client_group_id: String,
    pub request_id: String,
    pub mutations: Vec<Mutation>,
    /// Every property but `mutations`, in order, as JSON text.
    rest: Vec<(String, Box<RawValue>)>,
}

#[derive(Clone, Debug)]
pub struct Mutation {
    pub kind: MutationKind,
    pub id: i64,
    pub client_id: String,
    pub name: String,
    raw: Box<RawValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MutationKind {
    Crud,
    Custom,
}

impl Push {
    pub(crate) fn parse(body: &RawValue) -> Result<Push, ParseError> {
        let refuse = |reason: String| ParseError { at: "push".to_owned(), reason };
        let mut rest = properties(body).map_err(|e| refuse(e.to_string()))?;
        let at = rest
            .iter()
            .position(|(name, _)| name == "mutations")
            .ok_or_else(|| refuse("missing property \"mutations\"".to_owned()))?;
        let (_, mutations) = rest.remove(at);
        let head: Value = Value::Object(
            rest.iter()
                .map(|(name, raw)| Ok((name.clone(), outline(raw)?)))
                .collect::<Result<_, serde_json::Error>>()
                .map_err(|e| refuse(e.to_string()))?,
        );
        let node = Node::root("push", &head);
        node.field("pushVersion")?.number()?;
        node.field("timestamp")?.number()?;
        let mutations: Vec<Box<RawValue>> =
            serde_json::from_str(mutations.get()).map_err(|e| refuse(format!("mutations: {e}")))?;
        let mutations =
            mutations.into_iter().enumerate().map(|(i, raw)| Mutation::parse(i, raw)).collect::<Result<Vec<_>, _>>()?;
        Ok(Push {
            client_group_id: node.string_field("clientGroupID")?,
            request_id: node.string_field("requestID")?,
            mutations,
            rest,
        })
    }

    /// The body for the API server: this push's properties and the mutations of all of `pushes`, in order.
    #[must_use]
    pub fn combined_body<'a>(&self, pushes: impl Iterator<Item = &'a Push>) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.push(b'{');
        for (name, raw) in &self.rest {
            rows::json::write_string(&mut out, name);
            out.push(b':');
            out.extend_from_slice(raw.get().as_bytes());
            out.push(b',');
        }
        out.extend_from_slice(b"\"mutations\":[");
        let mut first = true;
        for mutation in pushes.flat_map(|push| &push.mutations) {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(mutation.raw.get().as_bytes());
        }
        out.extend_from_slice(b"]}");
        out
    }

    /// Bytes of text that this push keeps in memory.
    #[must_use]
    pub fn size(&self) -> usize {
        let rest: usize = self.rest.iter().map(|(name, raw)| name.len() + raw.get().len()).sum();
        rest + self.mutations.iter().map(|m| m.raw.get().len() + m.client_id.len() + m.name.len()).sum::<usize>()
    }
}

impl Mutation {
    /// The text of one property.
    pub(crate) fn property(&self, wanted: &str) -> Result<Box<RawValue>, serde_json::Error> {
        let found = properties(&self.raw)?.into_iter().find(|(name, _)| name == wanted);
        found.map(|(_, text)| text).ok_or_else(|| serde::de::Error::custom(format!("missing property \"{wanted}\"")))
    }

    fn parse(index: usize, raw: Box<RawValue>) -> Result<Mutation, ParseError> {
        let at = format!("push.mutations[{index}]");
        let unusable = |e: serde_json::Error| ParseError { at: at.clone(), reason: format!("not usable JSON: {e}") };
        let value: Value = match raw.get().starts_with('{') {
            true => properties(&raw)
                .and_then(|all| all.iter().map(|(name, raw)| Ok((name.clone(), outline(raw)?))).collect())
                .map(Value::Object),
            false => outline(&raw),
        }
        .map_err(unusable)?;
        let node = Node::root(&at, &value);
        let kind = node.field("type")?;
        let kind = match kind.text()? {
            "custom" => MutationKind::Custom,
            "crud" => MutationKind::Crud,
            _ => return Err(kind.refuse("expected \"custom\" or \"crud\"")),
        };
        node.field("args")?.elements(|_| Ok(()))?;
        node.field("timestamp")?.number()?;
        Ok(Mutation {
            kind,
            id: node.field("id")?.integer()?,
            client_id: node.string_field("clientID")?,
            name: node.string_field("name")?,
            raw,
        })
    }
}

/// The value of a scalar, and an empty one of the same kind for everything that has values of its own: those are passed on as text, and
/// reading them would take many times as much memory.
fn outline(raw: &RawValue) -> Result<Value, serde_json::Error> {
    match raw.get().as_bytes().first() {
        Some(b'[') => Ok(Value::Array(Vec::new())),
        Some(b'{') => Ok(Value::Object(serde_json::Map::new())),
        _ => serde_json::from_str(raw.get()),
    }
}

/// The properties of a JSON object with their texts; a repeated name keeps its last value, as in JavaScript.
fn properties(body: &RawValue) -> Result<Vec<(String, Box<RawValue>)>, serde_json::Error> {
    struct Properties;

    impl<'de> serde::de::Visitor<'de> for Properties {
        type Value = Vec<(String, Box<RawValue>)>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut properties: Self::Value = Vec::new();
            while let Some((name, raw)) = map.next_entry::<String, Box<RawValue>>()? {
                match properties.iter().position(|(n, _)| *n == name) {
                    Some(at) => properties[at].1 = raw,
                    None if properties.len() == MAX_PROPERTIES => {
                        return Err(serde::de::Error::custom(format!("more than {MAX_PROPERTIES} properties")));
                    }
                    None => properties.push((name, raw)),
                }
            }
            Ok(properties)
        }
    }

    serde::Deserializer::deserialize_map(&mut serde_json::Deserializer::from_str(body.get()), Properties)
}

/// A push has eight; the bound keeps the search for repeated names cheap.
const MAX_PROPERTIES: usize = 64;
