//! Random query changes, row changes, mutations, lost connections and killed servers; at every quiet point each client's rows
//! must equal what its queries give in Postgres, and every mutation must have run exactly once.

pub mod random;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use testkit::client::{Client, Query};
use testkit::oracle::check_store;

use crate::app::{Site, asts, client_schema, fence, query, with_log};

const STEPS: usize = 50;
/// The server is killed at these steps whatever the dice say.
const KILLS: [usize; 4] = [9, 22, 35, 47];

#[tokio::test(flavor = "multi_thread")]
async fn clients_agree_with_postgres_fixed_seed() -> Result<()> {
    run("chaos_fixed", 20_261_122).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_agree_with_postgres_fresh_seed() -> Result<()> {
    run("chaos_fresh", testkit::seed("clients_agree_with_postgres_fresh_seed")).await
}

struct Run {
    site: Site,
    clients: Vec<Client>,
    /// Every query ever wanted, by hash: clients of a group receive each other's.
    known: BTreeMap<String, Query>,
    dice: StdRng,
    next_row: u32,
    /// Mutations that every client has asked for, by client.
    pushed: BTreeMap<String, u64>,
    log: Vec<String>,
}

async fn run(test: &str, seed: u64) -> Result<()> {
    let mut run = Run {
        site: Site::start(test).await?,
        clients: Vec::new(),
        known: BTreeMap::new(),
        dice: StdRng::seed_from_u64(seed),
        next_row: 0,
        pushed: BTreeMap::new(),
        log: Vec::new(),
    };
    let outcome = run.all_steps().await;
    let outcome = with_log(outcome, &run.site.server);
    outcome.with_context(|| {
        format!("ZERO_SEED={seed}; the last steps were\n  {}", run.log[run.log.len().saturating_sub(25)..].join("\n  "))
    })?;
    run.site.server.check_log()
}

impl Run {
    async fn all_steps(&mut self) -> Result<()> {
        for _ in 0..3 {
            self.add_client().await?;
        }
        for step in 0..STEPS {
            if KILLS.contains(&step) {
                self.kill_server().await?;
            }
            match self.dice.random_range(0..100) {
                0..35 => self.change_rows().await?,
                35..60 => self.change_queries().await?,
                60..70 => self.push().await?,
                70..80 => self.drop_connection(),
                80..88 => self.reconnect_one().await?,
                88..95 => self.add_client().await?,
                _ => self.kill_server().await?,
            }
            if self.dice.random_bool(0.3) {
                self.quiet_point().await.with_context(|| format!("at the quiet point after step {step}"))?;
            }
        }
        self.quiet_point().await.context("at the last quiet point")
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    fn random_query(&mut self) -> Query {
        let query = query(random::ast(&mut self.dice));
        self.known.insert(query.hash(), query.clone());
        query
    }

    async fn add_client(&mut self) -> Result<()> {
        let mut options = match self.clients.len() {
            0 => self.site.options(),
            count if self.dice.random_bool(0.4) => self.clients[self.dice.random_range(0..count)].options.sibling(),
            _ => self.site.options(),
        };
        options.init_in_header = self.dice.random();
        options.ttl_ms = if self.dice.random_bool(0.3) { 0 } else { 300_000 };
        let mut client = Client::new(options);
        self.known.insert(fence().hash(), fence());
        client.want(&[fence(), self.random_query()]);
        client.connect().await?;
        self.note(format!("client {} joins group {}", self.clients.len(), client.options.client_group_id));
        self.clients.push(client);
        Ok(())
    }

    async fn change_rows(&mut self) -> Result<()> {
        let statements: Vec<_> =
            (0..self.dice.random_range(1..6)).map(|_| random::statement(&mut self.dice, &mut self.next_row)).collect();
        let sql = format!("BEGIN; {}; COMMIT", statements.join("; "));
        self.note(sql.clone());
        self.site.database.execute(&sql).await
    }

    async fn change_queries(&mut self) -> Result<()> {
        let index = self.dice.random_range(0..self.clients.len());
        let wanted: Vec<_> = self.clients[index].wanted().filter(|query| **query != fence()).cloned().collect();
        let remove = if wanted.len() > 3 || (!wanted.is_empty() && self.dice.random_bool(0.3)) {
            vec![wanted[self.dice.random_range(0..wanted.len())].clone()]
        } else {
            Vec::new()
        };
        let reuse = self.dice.random_bool(0.3);
        let add = if reuse {
            let known: Vec<_> = self.known.values().cloned().collect();
            known[self.dice.random_range(0..known.len())].clone()
        } else {
            self.random_query()
        };
        let add = if remove.contains(&add) { Vec::new() } else { vec![add] };
        self.note(format!("client {index} adds {} removes {}", Value::from(asts(&add)), Value::from(asts(&remove))));
        let client = &mut self.clients[index];
        if !client.is_connected() {
            client.kill();
        }
        client.change_queries(&add, &remove).await
    }

    async fn push(&mut self) -> Result<()> {
        let index = self.dice.random_range(0..self.clients.len());
        self.note(format!("client {index} runs a mutator"));
        let client = &mut self.clients[index];
        if !client.is_connected() {
            client.kill();
        }
        let id = client.push("count", Value::Null).await?;
        self.pushed.insert(client.options.client_id.clone(), id);
        Ok(())
    }

    fn drop_connection(&mut self) {
        let index = self.dice.random_range(0..self.clients.len());
        self.note(format!("client {index} loses its connection"));
        self.clients[index].kill();
    }

    async fn reconnect_one(&mut self) -> Result<()> {
        let index = self.dice.random_range(0..self.clients.len());
        self.note(format!("client {index} reconnects"));
        self.clients[index].connect().await
    }

    async fn kill_server(&mut self) -> Result<()> {
        self.note("the server is killed and started again".to_owned());
        let pause = std::time::Duration::from_millis(self.dice.random_range(0..60));
        tokio::time::sleep(pause).await;
        self.site.server.kill()?;
        self.site.server.start()?;
        for client in &mut self.clients {
            client.kill();
        }
        Ok(())
    }

    /// Everybody comes back, the fence passes, and all rows are compared.
    async fn quiet_point(&mut self) -> Result<()> {
        self.note("quiet point".to_owned());
        for client in &mut self.clients {
            if !client.is_connected() {
                client.connect().await?;
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            let wanted: Vec<_> = client.wanted().cloned().collect();
            client.wait_got(&wanted).await.with_context(|| format!("client {index}"))?;
            let own = &client.options.client_id;
            if let Some(last) = self.pushed.get(own) {
                let confirmed =
                    client.wait_for("the mutations", |store| store.last_mutation_ids.get(own) == Some(last)).await;
                confirmed.with_context(|| format!("client {index}, mutation {last}"))?;
            }
        }
        let counted = "SELECT COALESCE(sum(value), 0)::int8 FROM fence WHERE id = 2";
        let ran: i64 = self.site.database.connect().await?.query_one(counted, &[]).await?.get(0);
        let asked = self.pushed.values().sum::<u64>();
        ensure!(ran == i64::try_from(asked)?, "{asked} mutations were asked for and {ran} ran");
        self.site.settle(&self.clients.iter().collect::<Vec<_>>()).await?;
        let snapshot = self.site.snapshot().await?;
        for (index, client) in self.clients.iter().enumerate() {
            let store = client.store();
            let got: Vec<_> = store.got.iter().filter_map(|hash| self.known.get(hash)).cloned().collect();
            client.check().with_context(|| format!("client {index}"))?;
            check_store(&snapshot, &store, &asts(&got), &client_schema())
                .with_context(|| format!("client {index} at {:?} with {}", store.cookie, json!(asts(&got))))?;
        }
        Ok(())
    }
}
