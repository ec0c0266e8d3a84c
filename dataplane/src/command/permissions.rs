//! `zero-cache permissions deploy|validate|show`: puts an application's permissions upstream, without Node.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use permissions::{BYTES_MAX, Permissions};
use serde_json::Value;
use upstream::{Address, App, Client};

use crate::config::{self, PermissionsSettings, Refusal};

const USAGE: &str = "\
usage: zero-cache permissions deploy FILE [--force]   puts the permissions in FILE upstream, for the application of ZERO_APP_ID
       zero-cache permissions validate FILE           says which of its rules name an unknown table or column
       zero-cache permissions show                    prints what is deployed

FILE is what `npx zero-deploy-permissions --output-file=FILE` writes, in any of its formats. The database is ZERO_UPSTREAM_DB; settings
may be given as flags as well (--upstream-db, --app-id). With --force, names are not compared with what is published.
Ends with 0 if all is well, with 13 if the permissions are not, and with 255 if something else stands in the way.";

#[derive(Debug, PartialEq)]
enum Command {
    Deploy { file: PathBuf, is_forced: bool },
    Validate(PathBuf),
    Show,
}

/// Carries `arguments` out (those after `permissions`) and prints what comes of it. `false`: the permissions are not as they should be.
pub async fn run(arguments: &[String]) -> Result<bool> {
    if super::is_help(arguments) {
        println!("{USAGE}");
        return Ok(true);
    }
    let Some((command, flags)) = parse(arguments) else { bail!("{USAGE}") };
    let settings = match config::permissions_from_process(&flags) {
        Ok(settings) => settings,
        Err(Refusal::Help(_)) => {
            println!("{USAGE}");
            return Ok(true);
        }
        Err(refusal) => bail!(refusal),
    };
    match command {
        Command::Deploy { file, is_forced } => deploy(&settings, &file, is_forced).await,
        Command::Validate(file) => validate(&settings, &file).await,
        Command::Show => show(&settings).await,
    }
}

/// The command, and the flags that are settings. `None` if that is no command.
fn parse(arguments: &[String]) -> Option<(Command, Vec<String>)> {
    let count = arguments.iter().take_while(|word| !word.starts_with('-')).count();
    let (words, rest) = arguments.split_at(count);
    let (forces, flags): (Vec<String>, Vec<String>) =
        rest.iter().cloned().partition(|flag| matches!(flag.as_str(), "--force" | "-f"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let is_forced = !forces.is_empty();
    let command = match words.as_slice() {
        ["deploy", file] => Command::Deploy { file: PathBuf::from(file), is_forced },
        ["validate", file] if !is_forced => Command::Validate(PathBuf::from(file)),
        ["show"] if !is_forced => Command::Show,
        _ => return None,
    };
    Some((command, flags))
}

async fn deploy(settings: &PermissionsSettings, file: &Path, is_forced: bool) -> Result<bool> {
    let text = read(file)?;
    let permissions = match Permissions::parse(&text) {
        Ok(permissions) => permissions,
        Err(error) => return Ok(refused(file, &error.to_string())),
    };
    let (client, app) = connect(settings).await?;
    if is_forced {
        println!("names are not compared with what is published: --force was given");
    } else if !compare(&client, &app, file, &permissions).await? {
        println!("nothing was deployed; --force deploys nevertheless");
        return Ok(false);
    }
    let before = upstream::deployed_permissions(&client, &app).await?.and_then(|deployed| deployed.hash);
    let hash = upstream::deploy_permissions(&client, &app, &text).await?;
    let short = hash.get(..7).unwrap_or(&hash);
    if before.as_ref() == Some(&hash) {
        println!("permissions of {} unchanged (hash {short})", app.id);
    } else {
        println!("deployed new permissions of {} (hash {short})", app.id);
    }
    Ok(true)
}

async fn validate(settings: &PermissionsSettings, file: &Path) -> Result<bool> {
    let permissions = match Permissions::parse(&read(file)?) {
        Ok(permissions) => permissions,
        Err(error) => return Ok(refused(file, &error.to_string())),
    };
    if settings.upstream.is_none() {
        println!("{}: can be read; names are not compared: ZERO_UPSTREAM_DB is not set", file.display());
        return Ok(true);
    }
    let (client, app) = connect(settings).await?;
    let is_good = compare(&client, &app, file, &permissions).await?;
    if is_good {
        println!("{}: rules for {} tables", file.display(), permissions.tables().count());
    }
    Ok(is_good)
}

async fn show(settings: &PermissionsSettings) -> Result<bool> {
    let (client, app) = connect(settings).await?;
    let deployed = upstream::deployed_permissions(&client, &app).await?;
    let Some(text) = deployed.and_then(|deployed| deployed.text) else {
        println!("no permissions of {} are deployed: client-defined queries have no rows", app.id);
        return Ok(true);
    };
    let value: Value = serde_json::from_str(&text).context("what is deployed is not JSON")?;
    println!("{value:#}");
    match Permissions::parse(&text) {
        Ok(_) => Ok(true),
        Err(error) => {
            eprintln!("the server cannot read this, and allows nothing: {error}");
            Ok(false)
        }
    }
}

async fn connect(settings: &PermissionsSettings) -> Result<(Client, App)> {
    let url = settings.upstream.as_ref().context("ZERO_UPSTREAM_DB is not set")?;
    let address: Address = url.expose().parse().context("ZERO_UPSTREAM_DB")?;
    let app = App::new(&settings.app.id, settings.app.shard_num)?;
    Ok((upstream::connect(&address, "zero-permissions").await?, app))
}

/// Whether all names are published. Prints those that are not.
async fn compare(client: &Client, app: &App, file: &Path, permissions: &Permissions) -> Result<bool> {
    let Some(columns) = upstream::published_columns(client, app).await? else {
        println!("names are not compared: no server has set the database up for {} yet", app.id);
        return Ok(true);
    };
    let problems = permissions.problems(&columns);
    let mut all = String::new();
    for problem in &problems {
        write!(all, "\n  {problem}")?;
    }
    Ok(problems.is_empty()
        || refused(file, &format!("{} rules or tables name what is not published:{all}", problems.len())))
}

fn refused(file: &Path, why: &str) -> bool {
    eprintln!("{}: {why}", file.display());
    false
}

/// The JSON in a file, which may be the statement that the original's tool writes.
fn read(file: &Path) -> Result<String> {
    let bytes = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?.len();
    ensure!(bytes <= 2 * BYTES_MAX as u64, "{}: {bytes} bytes are too many", file.display());
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(of_statement(&text).unwrap_or(text))
}

/// The value that `UPDATE app.permissions SET permissions = '...';` sets.
fn of_statement(text: &str) -> Option<String> {
    let rest = text.trim().strip_prefix("UPDATE ")?;
    let (_, value) = rest.split_once(".permissions SET permissions = ")?;
    let value = value.trim_end_matches([';', ' ', '\n', '\r']).trim();
    let (is_escaped, value) = match value.strip_prefix(['E', 'e']) {
        Some(value) => (true, value),
        None => (false, value),
    };
    let value = value.strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'");
    Some(if is_escaped { value.replace("\\\\", "\\") } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_about_permissions() {
        let deploy = |is_forced| Command::Deploy { file: PathBuf::from("p.json"), is_forced };
        for (text, command, flags) in [
            ("deploy p.json", deploy(false), ""),
            ("deploy p.json -f", deploy(true), ""),
            ("deploy p.json --app-id a --force --upstream-db=x", deploy(true), "--app-id a --upstream-db=x"),
            ("validate p.json", Command::Validate(PathBuf::from("p.json")), ""),
            ("show --app-id=b", Command::Show, "--app-id=b"),
        ] {
            assert_eq!(parse(&words(text)), Some((command, words(flags))), "{text}");
        }
        for none in
            ["", "deploy", "deploy a b", "show all", "validate p.json --force", "remove", "--force deploy p.json"]
        {
            assert_eq!(parse(&words(none)), None, "{none}");
        }
    }

    #[test]
    fn what_the_originals_tool_writes_is_read() {
        for (text, value) in [
            ("UPDATE zero.permissions SET permissions = '{\"a\":\"it''s\"}';", Some(r#"{"a":"it's"}"#)),
            ("UPDATE \"a1\".permissions SET permissions = E'{\"a\":\"x\\\\\\\\y\"}';\n", Some(r#"{"a":"x\\y"}"#)),
            (r#"{"tables":{}}"#, None),
            ("UPDATE zero.permissions SET permissions = nothing;", None),
        ] {
            assert_eq!(of_statement(text).as_deref(), value, "{text}");
        }
    }
}
