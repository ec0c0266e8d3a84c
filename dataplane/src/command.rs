//! `zero-cache backup list|verify|restore`: looks at a backup, or brings it back, without running a server.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use replica::Identity;

use crate::config::{self, BackupSettings};

const USAGE: &str = "\
usage: zero-cache backup list            what is in the backup and what it restores to
       zero-cache backup verify          reads and checks every file that a restoration would use
       zero-cache backup restore FILE    restores the replica of ZERO_APP_ID to FILE, which must not exist

The backup is that of ZERO_LITESTREAM_BACKUP_URL (and ZERO_LITESTREAM_ENDPOINT, ZERO_LITESTREAM_REGION, AWS_*).";

enum Command {
    List,
    Verify,
    Restore(PathBuf),
}

/// Carries `arguments` out (those after `backup`) and prints what is found. `false`: the backup is not what it should be.
pub async fn backup(arguments: &[String]) -> Result<bool> {
    let command = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["list"] => Command::List,
        ["verify"] => Command::Verify,
        ["restore", file] => Command::Restore(PathBuf::from(file)),
        ["--help" | "-h" | "help"] => {
            println!("{USAGE}");
            return Ok(true);
        }
        _ => bail!("{USAGE}"),
    };
    let BackupSettings { app, backup: settings } = config::backup_from_process()?;
    let url = settings.url.as_deref().context("ZERO_LITESTREAM_BACKUP_URL is not set")?;
    let target = backup::Target::open(&crate::options::backup(&settings, url)).await?;
    match command {
        Command::List => {
            println!("{}", backup::list(&target).await?);
            Ok(true)
        }
        Command::Verify => {
            let report = backup::verify(&target).await?;
            println!("{report}");
            Ok(report.is_good())
        }
        Command::Restore(file) => {
            if file.exists() {
                bail!("{} exists already", file.display());
            }
            let identity = Identity { app: app.id, shard: app.shard_num };
            let restored = backup::restore(&target, &file, &identity, None, |_, _| {}).await?;
            println!("restored version {} to {}", restored.version, file.display());
            Ok(true)
        }
    }
}
