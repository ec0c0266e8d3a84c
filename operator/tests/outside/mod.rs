//! What the operator learns from outside Kubernetes, from real servers: Postgres, a pooler, an S3 server, and a small HTTP server
//! in the data plane's place, with good and with bad answers.

mod background;
mod data_plane;
mod postgres;
mod release;
mod store;

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use zero_cache_operator::observe::outside::{Changes, Facts, Inputs, Key, Outside, Rhythm, SecretText, Shard, Timing};

/// Asks without end, so that tests need not wait.
pub fn quick() -> Timing {
    let rhythm = Rhythm { quick: Duration::from_millis(60), slow: Duration::from_millis(120) };
    Timing { databases: rhythm, nodes: rhythm, store: rhythm, forget_after: Duration::from_secs(60) }
}

pub fn key(name: &str) -> Key {
    Key { namespace: "web".to_owned(), name: name.to_owned() }
}

pub fn secret(text: impl Into<String>) -> Option<SecretText> {
    Some(SecretText::new(text))
}

pub fn shard(app_id: &str) -> Shard {
    Shard { app_id: app_id.to_owned(), number: 0 }
}

/// One resource under the operator's eyes.
pub struct Scene {
    pub outside: Outside,
    pub changes: Changes,
    pub inputs: Inputs,
}

impl Scene {
    pub fn new(inputs: Inputs) -> Scene {
        let (outside, changes) = Outside::start(quick());
        Scene { outside, changes, inputs }
    }

    pub fn look(&self) -> Facts {
        self.outside.look(&key("shop"), self.inputs.clone())
    }

    /// Waits, as the controller does, for what is known to become so.
    pub async fn until(&mut self, what: &str, is_so: impl Fn(&Facts) -> bool) -> Facts {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let facts = self.look();
            if is_so(&facts) {
                return facts;
            }
            assert!(Instant::now() < deadline, "not within 30 s: {what}; known is {facts:#?}");
            let told = tokio::time::timeout(Duration::from_secs(30), self.changes.next()).await;
            assert_eq!(told.unwrap_or_else(|_| panic!("nobody told of {what}")), Some(key("shop")));
        }
    }

    /// Everything that is asked has an answer.
    pub async fn answered(&mut self) -> Facts {
        self.until("answers", |facts| !(facts.pending.databases || facts.pending.nodes || facts.pending.store)).await
    }
}

/// Inputs about one upstream database.
pub fn upstream(url: impl Into<String>) -> Inputs {
    Inputs { upstream: secret(url), shard: shard("shop"), ..Inputs::default() }
}
