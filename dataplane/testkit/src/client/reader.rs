//! Reads one connection and applies it to the store.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::store::OpenPoke;
use super::{Options, Socket, Store, Watch, row_key};

/// The reader of one connection.
pub(super) struct Reader {
    watch: Watch,
    keys: BTreeMap<String, Vec<String>>,
    columns: BTreeMap<String, Vec<String>>,
    /// table, column
    rising: Option<(String, String)>,
    connection: u64,
}

impl Reader {
    pub(super) fn new(watch: Watch, options: &Options) -> Reader {
        let connection = watch.lock().connection;
        Reader {
            keys: primary_keys(&options.client_schema),
            columns: columns(&options.client_schema),
            rising: options.rising.clone(),
            connection,
            watch,
        }
    }

    pub(super) async fn run(self, mut source: SplitStream<Socket>) {
        let reason = loop {
            match source.next().await {
                Some(Ok(Message::Text(text))) => self.take(text.as_str()),
                Some(Ok(Message::Binary(_))) => self.fail("binary frame to a client of protocol 51 or less".to_owned()),
                Some(Ok(Message::Close(frame))) => {
                    break frame.map_or_else(
                        || "close without a code".to_owned(),
                        |f| format!("close {} {}", u16::from(f.code), f.reason),
                    );
                }
                Some(Ok(_)) => {}
                Some(Err(SocketError::ConnectionClosed)) | None => break "end of stream".to_owned(),
                Some(Err(error)) => break format!("{error}"),
            }
        };
        self.with_store(|store| store.closed = Some(reason));
    }

    /// Changes the store unless this connection is over for the client.
    fn with_store(&self, change: impl FnOnce(&mut Store)) {
        let mut store = self.watch.lock();
        if store.connection == self.connection {
            change(&mut store);
            drop(store);
            self.watch.announce();
        }
    }

    fn fail(&self, violation: String) {
        self.with_store(|store| {
            store.violation.get_or_insert(violation);
        });
    }

    fn take(&self, text: &str) {
        self.with_store(|store| {
            store.record('<', text);
            let outcome = serde_json::from_str::<(String, Value)>(text)
                .map_err(|error| anyhow!("not a [tag, body] array: {error}"))
                .and_then(|(tag, body)| self.message(store, &tag, body).with_context(|| format!("in {tag}")));
            if let Err(error) = outcome {
                store.violation.get_or_insert_with(|| format!("{error:#}"));
            }
        });
    }

    fn message(&self, store: &mut Store, tag: &str, body: Value) -> Result<()> {
        ensure!(store.connected || matches!(tag, "connected" | "error"), "the first message must be `connected`");
        match tag {
            "connected" => {
                ensure!(!store.connected, "a second `connected`");
                ensure!(body["wsid"].is_string(), "no wsid");
                store.connected = true;
            }
            "pong" => store.counts.pongs += 1,
            "error" => store.error = Some(body),
            "transformError" => store.transform_errors.extend(body.as_array().context("not a list")?.iter().cloned()),
            "deleteClients" | "inspect" => {}
            "pokeStart" => {
                ensure!(store.open.is_none(), "a poke is open already");
                let base = optional_text(&body["baseCookie"])?;
                ensure!(base == store.cookie, "base cookie {base:?} but the client is at {:?}", store.cookie);
                store.open = Some(OpenPoke { id: text(&body["pokeID"])?, parts: Vec::new() });
            }
            "pokePart" => {
                let open = store.open.as_mut().context("no poke is open")?;
                ensure!(text(&body["pokeID"])? == open.id, "another poke's ID");
                open.parts.push(body);
            }
            "pokeEnd" => {
                let open = store.open.take().context("no poke is open")?;
                ensure!(text(&body["pokeID"])? == open.id, "another poke's ID");
                if body["cancel"] != json!(true) {
                    self.apply(store, &open.parts, text(&body["cookie"])?)?;
                }
            }
            _ => bail!("unknown tag"),
        }
        Ok(())
    }

    fn apply(&self, store: &mut Store, parts: &[Value], cookie: String) -> Result<()> {
        ensure!(Some(&cookie) >= store.cookie.as_ref(), "cookie {cookie} after {:?}", store.cookie);
        let has_content = parts.iter().any(|part| {
            part.as_object().is_some_and(|fields| {
                fields
                    .iter()
                    .any(|(name, value)| name != "pokeID" && value.as_array().is_none_or(|list| !list.is_empty()))
            })
        });
        ensure!(
            !has_content || Some(&cookie) > store.cookie.as_ref(),
            "content without a new cookie ({cookie}): the client would discard it"
        );
        for part in parts {
            for (client, patch) in part["desiredQueriesPatches"].as_object().into_iter().flatten() {
                patch_set(store.desired.entry(client.clone()).or_default(), patch)?;
            }
            if let patch @ Value::Array(_) = &part["gotQueriesPatch"] {
                patch_set(&mut store.got, patch)?;
            }
            for (client, id) in part["lastMutationIDChanges"].as_object().into_iter().flatten() {
                let id = id.as_u64().context("a last mutation ID that is no number")?;
                let before = store.last_mutation_ids.insert(client.clone(), id).unwrap_or(0);
                ensure!(id >= before, "last mutation ID of {client} went from {before} back to {id}");
            }
            for op in part["mutationsPatch"].as_array().into_iter().flatten() {
                let id = if op["op"] == json!("put") { &op["mutation"]["id"] } else { &op["id"] };
                let key = (text(&id["clientID"])?, id["id"].as_u64().context("a mutation without an id")?);
                match op["op"].as_str() {
                    Some("put") => drop(store.mutation_results.insert(key, op["mutation"]["result"].clone())),
                    Some("del") => drop(store.mutation_results.remove(&key)),
                    _ => bail!("unknown op in mutationsPatch: {op}"),
                }
            }
            for op in part["rowsPatch"].as_array().into_iter().flatten() {
                self.apply_row(store, op)?;
            }
        }
        store.counts.pokes += 1;
        store.note_poke();
        store.cookie = Some(cookie);
        Ok(())
    }

    fn apply_row(&self, store: &mut Store, op: &Value) -> Result<()> {
        let kind = op["op"].as_str().context("a row op without op")?;
        ensure!(kind == "put" || kind == "del", "row op {kind:?}, which would wipe or merge: servers do not send it");
        let table = op["tableName"].as_str().context("a row op without table")?;
        let Some(key) = self.keys.get(table) else { return Ok(()) };
        let row = op[if kind == "put" { "value" } else { "id" }]
            .as_object()
            .with_context(|| format!("{kind} without a row"))?;
        for column in key {
            let value = row.get(column).unwrap_or(&Value::Null);
            ensure!(
                value.is_string() || value.is_number() || value.is_boolean(),
                "{kind} of {table} has no usable primary key column {column}"
            );
        }
        let text = row_key(key, row);
        let rows = store.rows.entry(table.to_owned()).or_default();
        if kind == "put" {
            for column in self.columns.get(table).into_iter().flatten() {
                ensure!(row.contains_key(column), "put of {table} lacks the column {column}");
            }
            store.counts.puts += 1;
            let before = rows.insert(text, row.clone());
            if before.as_ref() == Some(row) {
                store.counts.redundant_puts += 1;
            }
            if let (Some((of, column)), Some(before)) = (&self.rising, before)
                && of == table
            {
                let (old, new) = (before[column].as_f64(), row[column].as_f64());
                ensure!(new >= old, "{column} of {table} went from {} back to {}", before[column], row[column]);
            }
        } else {
            store.counts.deletes += 1;
            if rows.remove(&text).is_none() {
                store.counts.redundant_deletes += 1;
            }
        }
        Ok(())
    }
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("expected text, not {value}"))
}

fn optional_text(value: &Value) -> Result<Option<String>> {
    if value.is_null() { Ok(None) } else { text(value).map(Some) }
}

fn patch_set(set: &mut BTreeSet<String>, patch: &Value) -> Result<()> {
    for op in patch.as_array().context("a patch that is no list")? {
        match op["op"].as_str() {
            Some("put") => drop(set.insert(text(&op["hash"])?)),
            Some("del") => drop(set.remove(&text(&op["hash"])?)),
            Some("clear") => set.clear(),
            _ => bail!("unknown query op {op}"),
        }
    }
    Ok(())
}
fn primary_keys(schema: &Value) -> BTreeMap<String, Vec<String>> {
    per_table(schema, |table| {
        table["primaryKey"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    })
}

fn columns(schema: &Value) -> BTreeMap<String, Vec<String>> {
    per_table(schema, |table| {
        table["columns"].as_object().into_iter().flat_map(|columns| columns.keys().cloned()).collect()
    })
}

fn per_table(schema: &Value, of: impl Fn(&Value) -> Vec<String>) -> BTreeMap<String, Vec<String>> {
    schema["tables"].as_object().into_iter().flatten().map(|(name, table)| (name.clone(), of(table))).collect()
}
