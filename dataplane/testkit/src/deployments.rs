//! Environments as existing deployments of Rocicorp's server have them, and what is expected of each.

use anyhow::{Context, Result, bail};

const BLOCKS: &str = include_str!("deployments.env");

/// One process of a deployment.
#[derive(Clone, Debug, Default)]
pub struct Deployment {
    pub title: &'static str,
    /// The role in which it starts with nothing changed.
    pub role: Option<&'static str>,
    /// The variables that it must be told to change, when it does not.
    pub change: Vec<&'static str>,
    /// Variables that are no settings of any server.
    pub foreign: Vec<&'static str>,
    pub environment: Vec<(&'static str, &'static str)>,
}

/// All of them. An error on a line that is none of the form.
pub fn deployments() -> Result<Vec<Deployment>> {
    let mut found: Vec<Deployment> = Vec::new();
    for line in BLOCKS.lines().skip_while(|line| !line.starts_with("## ")).filter(|line| !line.is_empty()) {
        if let Some(title) = line.strip_prefix("## ") {
            found.push(Deployment { title, ..Deployment::default() });
            continue;
        }
        let block = found.last_mut().context("a line before the first title")?;
        let words = |text: &'static str| text.split_whitespace().collect();
        let pair =
            |sign| line.trim_start_matches("# ").split_once(sign).with_context(|| format!("{}: {line}", block.title));
        match line.strip_prefix("# ").map(|_| pair(": ")).transpose()? {
            Some(("role", role)) => block.role = Some(role),
            Some(("change", variables)) => block.change = words(variables),
            Some(("foreign", variables)) => block.foreign = words(variables),
            Some((other, _)) => bail!("{}: unknown note {other}", block.title),
            None => block.environment.push(pair("=")?),
        }
    }
    Ok(found)
}
