//! A small API server: `/query` maps named queries to ASTs by a table, `/mutate` runs SQL for named mutators with the same
//! bookkeeping as the published server library. It can be told to be down, to answer garbage, and it counts calls.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A database that restarts is waited for, as applications do.
const DATABASE_AWAY_MAX: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(100);

/// How the server behaves until told otherwise.
#[derive(Clone, Debug, Default)]
pub enum Mood {
    #[default]
    Normal,
    /// Accepts and hangs up.
    Down,
    /// Answers every request with this status and body.
    Says(u16, String),
}

type QueryFn = dyn Fn(&Value) -> Result<Value, String> + Send + Sync;
type MutatorFn = dyn Fn(&Value) -> Result<String, String> + Send + Sync;

/// The application: its named queries and mutators.
#[derive(Default)]
pub struct App {
    queries: HashMap<String, Box<QueryFn>>,
    mutators: HashMap<String, Box<MutatorFn>>,
    upstream: Option<String>,
}

impl App {
    /// A query whose arguments (the JSON array) become an AST in server names, or an application error.
    #[must_use]
    pub fn query(mut self, name: &str, ast: impl Fn(&Value) -> Result<Value, String> + Send + Sync + 'static) -> App {
        self.queries.insert(name.to_owned(), Box::new(ast));
        self
    }

    /// A query that is always the same AST.
    #[must_use]
    pub fn fixed(self, name: &str, ast: Value) -> App {
        self.query(name, move |_| Ok(ast.clone()))
    }

    /// A mutator: its argument becomes SQL, run in the transaction that counts the mutation, or an application error.
    #[must_use]
    pub fn mutator(
        mut self,
        name: &str,
        sql: impl Fn(&Value) -> Result<String, String> + Send + Sync + 'static,
    ) -> App {
        self.mutators.insert(name.to_owned(), Box::new(sql));
        self
    }

    /// The database mutators write to.
    #[must_use]
    pub fn upstream(mut self, url: &str) -> App {
        self.upstream = Some(url.to_owned());
        self
    }
}

/// A running API server.
#[derive(Debug)]
pub struct Api {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    app: App,
    mood: Mutex<Mood>,
    queries_served: AtomicU64,
    mutations_served: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Api {
    pub async fn start(app: App) -> Result<Api> {
        Self::start_at(app, Ipv4Addr::LOCALHOST).await
    }

    /// On another of this machine's addresses.
    pub async fn start_at(app: App, address: Ipv4Addr) -> Result<Api> {
        let listener = TcpListener::bind((address, 0)).await.context("bind the API server")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            app,
            mood: Mutex::new(Mood::Normal),
            queries_served: AtomicU64::new(0),
            mutations_served: AtomicU64::new(0),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        // A client that hangs up in the middle is no concern of the test.
                        let _ = shared.serve(stream).await;
                    });
                }
            }
        });
        Ok(Api { port, shared, task })
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn query_url(&self) -> String {
        format!("http://127.0.0.1:{}/query", self.port)
    }

    #[must_use]
    pub fn mutate_url(&self) -> String {
        format!("http://127.0.0.1:{}/mutate", self.port)
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// Named queries answered so far.
    #[must_use]
    pub fn queries_served(&self) -> u64 {
        self.shared.queries_served.load(Ordering::Relaxed)
    }

    /// Mutations run so far.
    #[must_use]
    pub fn mutations_served(&self) -> u64 {
        self.shared.mutations_served.load(Ordering::Relaxed)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn serve(&self, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut request = String::new();
            if stream.read_line(&mut request).await? == 0 {
                return Ok(());
            }
            let mut length = 0;
            loop {
                let mut line = String::new();
                ensure!(stream.read_line(&mut line).await? > 0, "the request ends in its header");
                if line.trim().is_empty() {
                    break;
                }
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse()?;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let mood = self.mood.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (status, answer) = match mood {
                Mood::Down => return Ok(()),
                Mood::Says(status, text) => (status, text),
                Mood::Normal => match self.answer(&request, &body).await {
                    Ok(answer) => (200, answer.to_string()),
                    Err(error) => (500, format!("{error:#}")),
                },
            };
            let head = format!(
                "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(answer.as_bytes()).await?;
        }
    }

    async fn answer(&self, request: &str, body: &[u8]) -> Result<Value> {
        let target = request.split(' ').nth(1).context("a request line has a target")?;
        let (path, parameters) = target.split_once('?').unwrap_or((target, ""));
        let body: Value = serde_json::from_slice(body).context("parse the request body")?;
        // Applications choose the path before it.
        match path.rsplit('/').next() {
            Some("query") => Ok(self.transform(&body)),
            Some("mutate") => {
                let schema = parameters
                    .split('&')
                    .find_map(|pair| pair.strip_prefix("schema="))
                    .context("no schema parameter")?;
                self.mutate(&body, schema).await
            }
            _ => anyhow::bail!("no endpoint {path}"),
        }
    }

    fn transform(&self, body: &Value) -> Value {
        let answers: Vec<_> = body[1]
            .as_array()
            .into_iter()
            .flatten()
            .map(|query| {
                self.queries_served.fetch_add(1, Ordering::Relaxed);
                let name = query["name"].as_str().unwrap_or_default();
                let made = match self.app.queries.get(name) {
                    Some(make) => make(&query["args"]),
                    None => Err(format!("unknown query {name}")),
                };
                match made {
                    Ok(ast) => json!({"id": query["id"], "name": name, "ast": ast}),
                    Err(message) => json!({"error": "app", "id": query["id"], "name": name, "message": message}),
                }
            })
            .collect();
        json!({"kind": "QueryResponse", "userID": "u1", "queries": answers})
    }

    async fn mutate(&self, body: &Value, schema: &str) -> Result<Value> {
        let url = self.app.upstream.as_deref().context("this app has no upstream for mutations")?;
        let group = body["clientGroupID"].as_str().context("clientGroupID is text")?;
        let mut results = Vec::new();
        for mutation in body["mutations"].as_array().context("mutations is a list")? {
            let name = mutation["name"].as_str().context("a mutation has a name")?;
            let client_id = mutation["clientID"].as_str().context("a mutation has a clientID")?;
            let id = mutation["id"].as_i64().context("a mutation has an id")?;
            if name == "_zero_cleanupResults" {
                continue;
            }
            self.mutations_served.fetch_add(1, Ordering::Relaxed);
            let sql = match self.app.mutators.get(name) {
                Some(make) => make(&mutation["args"][0]),
                None => Err(format!("unknown mutator {name}")),
            };
            let mutation = Mutation { schema, group, client_id, id, sql };
            let deadline = tokio::time::Instant::now() + DATABASE_AWAY_MAX;
            let result = loop {
                match mutation.run(url).await {
                    Err(error) if is_away(&error) && tokio::time::Instant::now() < deadline => {
                        tokio::time::sleep(RETRY).await
                    }
                    result => break result?,
                }
            };
            results.push(json!({"id": {"id": id, "clientID": client_id}, "result": result}));
        }
        Ok(json!({"kind": "MutateResponse", "userID": "u1", "mutations": results}))
    }
}

/// Whether the database is not there at the moment.
fn is_away(error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    // Connections that failed, were ended by an operator's command, or are too many.
    cause.is_some_and(|cause| {
        cause.code().is_none_or(|code| ["08", "53", "57"].iter().any(|class| code.code().starts_with(class)))
    })
}

/// A mutation and what it means.
struct Mutation<'a> {
    schema: &'a str,
    group: &'a str,
    client_id: &'a str,
    id: i64,
    sql: Result<String, String>,
}

impl Mutation<'_> {
    /// Runs it in one transaction with the counting of mutations. May be repeated after a failure: one that was committed is then
    /// found to be processed.
    async fn run(&self, url: &str) -> Result<Value> {
        let Mutation { schema, group, client_id, id, sql } = self;
        let mut client = crate::postgres::connect(url).await?;
        let transaction = client.transaction().await?;
        let count = format!(
            r#"INSERT INTO "{schema}".clients AS c ("clientGroupID", "clientID", "lastMutationID") VALUES ($1, $2, 1)
               ON CONFLICT ("clientGroupID", "clientID") DO UPDATE SET "lastMutationID" = c."lastMutationID" + 1
               RETURNING "lastMutationID""#
        );
        let counted: i64 = transaction.query_one(&count, &[group, client_id]).await?.get(0);
        if counted != *id {
            transaction.rollback().await?;
            return Ok(json!({"error": if counted > *id { "alreadyProcessed" } else { "oooMutation" }}));
        }
        let result = match sql {
            Ok(sql) => {
                transaction.batch_execute(sql).await.context("run the mutator's SQL")?;
                json!({})
            }
            Err(message) => {
                let result = json!({"error": "app", "message": message});
                let insert = format!(
                    r#"INSERT INTO "{schema}".mutations ("clientGroupID", "clientID", "mutationID", "result") VALUES ($1, $2, $3, $4)"#
                );
                transaction.execute(&insert, &[group, client_id, id, &result]).await?;
                result
            }
        };
        transaction.commit().await?;
        Ok(result)
    }
}
