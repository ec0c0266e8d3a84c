//! Each of the chart's rights taken away once, on the API server: what the operator needed it for is refused.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt as _;
use hyper::{Method, Request, Uri};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use crate::account::Account;
use crate::proxy::Asked;
use crate::right::Right;
use crate::site::Site;

/// Sends a request of the operator again without the right that it needed, and with it; the rights that were missed.
pub async fn each_is_missed(site: &Site, account: &Account, asked: &[Asked]) -> Result<BTreeSet<Right>> {
    let mut missed = BTreeSet::new();
    for right in account.rights() {
        let needed_it = |it: &&Asked| it.needs.as_ref() == Some(&right) && it.status < 300;
        let asked = asked.iter().find(needed_it).with_context(|| format!("nothing needed {right}"))?;
        // An apply needs this right for an object that is not there.
        if right.verb == "create" && asked.head.method == Method::PATCH {
            remove(&site.client, asked.head.uri.path()).await?;
        }
        account.allow(|it| *it != right).await?;
        let refused = until(&account.client, asked, |it| it.is_for_want_of(&right)).await;
        refused.with_context(|| format!("without {right}"))?;
        account.allow(|_| true).await?;
        let answer = until(&account.client, asked, |it| it.status != 403).await;
        let status = answer.with_context(|| format!("with {right} again"))?.status;
        println!("removed: {right}: {} {} is refused; given back: {status}", asked.head.method, asked.head.uri.path());
        missed.insert(right);
    }
    Ok(missed)
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// Of a refusal.
    message: String,
}

impl Answer {
    fn is_for_want_of(&self, right: &Right) -> bool {
        self.status == 403 && self.message.contains(&right.refusal())
    }
}

/// Sends it until the API server has heard of the change.
async fn until(client: &Client, asked: &Asked, is_so: impl Fn(&Answer) -> bool) -> Result<Answer> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = client.send(without_effect(asked)?).await?;
        let status = answer.status().as_u16();
        let mut message = String::new();
        // What is not refused may be a watch, which goes on.
        if status == 403 {
            let body: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
            message = body["message"].as_str().unwrap_or_default().to_owned();
        }
        let answer = Answer { status, message };
        if is_so(&answer) {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "{} was answered with {answer:?}", asked.head.uri);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The same request, which changes nothing when it is allowed.
fn without_effect(asked: &Asked) -> Result<Request<Body>> {
    let (mut head, mut body) = (asked.head.clone(), asked.body.clone());
    if head.method != Method::GET {
        // Options in a body count before those in the query.
        if head.method == Method::DELETE && !body.is_empty() {
            let mut options: Value = serde_json::from_slice(&body)?;
            options["dryRun"] = json!(["All"]);
            body = serde_json::to_vec(&options)?.into();
        }
        let rest = head.uri.query().map(|query| format!("&{query}")).unwrap_or_default();
        head.uri = format!("{}?dryRun=All{rest}", head.uri.path()).parse::<Uri>()?;
        // The client counts anew.
        head.headers.remove(hyper::header::CONTENT_LENGTH);
    }
    Ok(Request::from_parts(head, Body::from(body.to_vec())))
}

async fn remove(administrator: &Client, path: &str) -> Result<()> {
    let status = administrator.send(Request::delete(path).body(Body::empty())?).await?.status().as_u16();
    ensure!([200, 202, 404].contains(&status), "delete {path}: {status}");
    Ok(())
}
