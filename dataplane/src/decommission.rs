//! `zero-cache decommission`: removes what an application and shard has in the three databases.
//!
//! Says what goes, and does it only when told the name of what is to go. Replicas and backups are files: they stay.

use anyhow::{Context, Result, bail, ensure};
use upstream::{Address, App, Schema};

use crate::config::{DatabaseSettings, SecretUrl};

pub const USAGE: &str = "\
usage: zero-cache decommission                               what this server, or Rocicorp's, has made for ZERO_APP_ID
       zero-cache decommission --confirm=SHARD               removes it: SHARD is the name that the list begins with
       zero-cache decommission --permissions=delete ...      with the permissions of the application, which stay otherwise

In ZERO_UPSTREAM_DB: slots, event triggers, publications and the schema of the shard, where API servers note which mutations
were applied. In ZERO_CVR_DB and ZERO_CHANGE_DB: one schema each. It is refused while a server streams. Other applications
and other shards keep what they have. Replica files and backups stay: see zero-cache backup delete.";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wish {
    pub confirmed: Option<String>,
    pub with_permissions: bool,
}

async fn schema(setting: &'static str, url: &SecretUrl, name: String) -> Result<(&'static str, Schema)> {
    let address: Address = url.expose().parse().context(setting)?;
    Ok((setting, Schema::open(&address, name).await.context(setting)?))
}

/// Lists, or removes.
pub async fn run(wish: &Wish, settings: &DatabaseSettings) -> Result<()> {
    let app = App::new(&settings.app.id, settings.app.shard_num)?;
    let shard = app.shard_schema();
    let address: Address = settings.upstream.expose().parse().context("ZERO_UPSTREAM_DB")?;
    let mut client = upstream::connect(&address, "zero-decommission").await.context("ZERO_UPSTREAM_DB")?;
    let others = [
        schema("ZERO_CVR_DB", &settings.cvr, format!("{shard}/cvr")).await?,
        schema("ZERO_CHANGE_DB", &settings.change, format!("{shard}/cdc")).await?,
    ];
    let found = upstream::belongings(&client, &app, wish.with_permissions).await?;
    let mut goes: Vec<String> = found.goes.iter().map(|what| format!("ZERO_UPSTREAM_DB: {what}")).collect();
    for (setting, schema) in &others {
        if schema.is_there().await.context(*setting)? {
            goes.push(format!("{setting}: schema {}", schema.name()));
        }
    }
    println!("{shard}:");
    for what in &goes {
        println!("  {what}");
    }
    for what in &found.stays {
        println!("  stays: {what}");
    }
    if goes.is_empty() {
        println!("  nothing is there");
        return Ok(());
    }
    let confirmed = wish.confirmed.as_deref();
    if confirmed.is_some_and(|name| name != shard) {
        bail!(
            "--confirm names another shard than {shard}, which ZERO_APP_ID and ZERO_SHARD_NUM name: nothing was removed"
        );
    }
    if let Some(who) = found.streaming {
        println!("{who}: stop it first");
        ensure!(confirmed.is_none(), "nothing was removed");
    }
    if confirmed.is_none() {
        println!("nothing was removed: --confirm={shard} removes it");
        return Ok(());
    }
    upstream::decommission(&mut client, &app, wish.with_permissions).await?;
    for (setting, schema) in &others {
        schema.remove().await.context(*setting)?;
    }
    println!("removed");
    Ok(())
}
