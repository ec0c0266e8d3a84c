//! An operator that starts without any right: it tells of each that it lacks, and goes on as soon as it has it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::account::Account;
use crate::everything::everything;
use crate::operator::Operator;
use crate::proxy::Proxy;
use crate::right::Right;
use crate::site::Site;

/// Gives the account what the operator says that it was refused.
async fn give(site: &Site, account: &Account, operator: &Operator, given: &mut BTreeSet<Right>) -> Result<Infallible> {
    let (began, rights) = (Instant::now(), account.rights());
    loop {
        let log = operator.log().replace("\\\"", "\"");
        let told: Vec<&Right> =
            rights.iter().filter(|right| !given.contains(right) && log.contains(&right.refusal())).collect();
        let is_new = !told.is_empty();
        for right in told {
            println!("told of after {:.1} s: {right}", began.elapsed().as_secs_f64());
            given.insert(right.clone());
        }
        if is_new {
            account.allow(|right| given.contains(right)).await?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // It would look again by itself, ever later the more it was refused.
        if is_new && site.caches().get_opt("shop").await?.is_some() {
            site.change("shop", json!({ "metadata": { "annotations": { "test/given": given.len().to_string() } } }))
                .await?;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_missing_right_is_told_of_and_nothing_is_lost_by_it() -> Result<()> {
    let mut site = Site::new("told").await?;
    // What is refused again before the API server has heard of a right waits.
    site.patience = 3;
    let account = Account::new(&site, |_| false).await?;
    let proxy = Proxy::start(account.client.clone()).await?;
    let operator = Operator::start_behind(&site, &proxy).await?;
    let mut given = BTreeSet::new();
    let done = tokio::select! {
        done = everything(&site) => done,
        given = give(&site, &account, &operator, &mut given) => given.map(drop),
    };
    done.map_err(|error| error.context(operator.log()))?;
    let untold: Vec<String> = account.rights().difference(&given).map(Right::to_string).collect();
    ensure!(
        untold.is_empty(),
        "the operator was not refused these, or did not tell of it: {untold:#?}\n{}",
        operator.log()
    );
    ensure!(operator.ask("/healthz").await?.0 == 200);
    println!("{} rights, each told of when it was missing", given.len());
    Ok(())
}
