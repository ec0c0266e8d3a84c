//! What these tests read of a compose file. Anything they do not know fails them, so that no mistake hides in a misspelt key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub services: BTreeMap<String, Service>,
    #[serde(default)]
    pub volumes: BTreeMap<String, Option<serde_json::Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    image: String,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub entrypoint: Vec<String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    #[serde(default)]
    pub ports: Vec<String>,
    #[serde(default)]
    pub expose: Vec<String>,
    #[serde(default)]
    pub volumes: Vec<String>,
    #[serde(default)]
    pub extra_hosts: Vec<String>,
    #[serde(default)]
    pub depends_on: BTreeMap<String, Condition>,
    pub healthcheck: Option<Probe>,
    pub stop_grace_period: Option<String>,
    pub restart: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub condition: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    pub test: Vec<String>,
    #[serde(rename = "interval")]
    _interval: String,
    #[serde(rename = "timeout")]
    _timeout: String,
    pub start_period: Option<String>,
}

impl File {
    /// One of `examples/compose`.
    pub fn read(name: &str) -> Result<File> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/compose").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }
}

impl Service {
    pub fn is_zero_cache(&self) -> bool {
        self.image.contains("zero-cache")
    }

    /// Names of other machines in the environment's URLs, apart from buckets.
    pub fn hosts(&self) -> BTreeSet<String> {
        let urls = self.environment.values().filter_map(|value| value.split_once("://"));
        let urls = urls.filter(|(scheme, _)| *scheme != "s3");
        urls.filter_map(|(_, rest)| {
            let authority = rest.split('/').next()?;
            let host = authority.rsplit('@').next()?;
            Some(host.split(':').next()?.to_owned())
        })
        .collect()
    }
}

impl Probe {
    /// Arguments of our own program, which is all that its image has to probe with.
    pub fn arguments(&self) -> Result<&[String]> {
        let [mark, program, arguments @ ..] = self.test.as_slice() else { bail!("{:?} is no command", self.test) };
        ensure!((mark.as_str(), program.as_str()) == ("CMD", "/zero-cache"), "the image has no {program}");
        Ok(arguments)
    }

    /// Port and path that it asks.
    pub fn url(&self) -> Result<(u16, String)> {
        let url = self.arguments()?.iter().find_map(|word| word.strip_prefix("--url=http://localhost:"));
        let url = url.context("no URL is probed")?;
        let (port, path) = url.split_once('/').context("the probed URL has a path")?;
        Ok((port.parse()?, format!("/{path}")))
    }
}

/// The port inside of an entry of `ports`.
pub fn container_port(entry: &str) -> Result<u16> {
    let port = entry.rsplit(':').next().and_then(|port| port.split('/').next());
    port.context("an entry of ports has a port")?.parse().with_context(|| format!("in ports: {entry}"))
}
