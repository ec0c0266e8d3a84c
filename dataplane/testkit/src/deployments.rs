//! Environments as existing deployments of Rocicorp's server have them, and what is expected of each.

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

/// All of them. Panics on a line that is none of the form.
#[must_use]
pub fn deployments() -> Vec<Deployment> {
    let mut found: Vec<Deployment> = Vec::new();
    for line in BLOCKS.lines().skip_while(|line| !line.starts_with("## ")).filter(|line| !line.is_empty()) {
        if let Some(title) = line.strip_prefix("## ") {
            found.push(Deployment { title, ..Deployment::default() });
            continue;
        }
        let block = found.last_mut().expect("the first line that is not skipped begins a block");
        let words = |text: &'static str| text.split_whitespace().collect();
        match line.strip_prefix("# ").map(|note| note.split_once(": ").expect("a note has a name")) {
            Some(("role", role)) => block.role = Some(role),
            Some(("change", variables)) => block.change = words(variables),
            Some(("foreign", variables)) => block.foreign = words(variables),
            Some((other, _)) => unreachable!("{}: unknown note {other}", block.title),
            None => block.environment.push(line.split_once('=').expect("a variable has a value")),
        }
    }
    found
}
