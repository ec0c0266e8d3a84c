//! The chart's ServiceAccount, with all or some of the chart's rights.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::right::Right;
use crate::site::{Site, root};

pub struct Account {
    /// Asks with the account's token.
    pub client: Client,
    /// As the chart makes them.
    charts: Vec<Value>,
    roles: Api<Role>,
}

impl Account {
    pub async fn new(site: &Site, is_allowed: impl Fn(&Right) -> bool) -> Result<Account> {
        let documents = chart(site).await?;
        let of = |kind: &str| documents.iter().filter(|it| it["kind"] == kind).cloned().collect::<Vec<Value>>();
        let (accounts, bindings) = (site.api::<ServiceAccount>(), site.api::<RoleBinding>());
        let mut account = Account { client: site.client.clone(), charts: of("Role"), roles: site.api() };
        account.allow(is_allowed).await?;
        for binding in of("RoleBinding") {
            bindings.patch(name(&binding)?, &by_helm(), &Patch::Apply(&binding)).await?;
        }
        let document = of("ServiceAccount").pop().context("the chart makes a ServiceAccount")?;
        let name = name(&document)?;
        accounts.patch(name, &by_helm(), &Patch::Apply(&document)).await?;
        let token = accounts.create_token_request(name, &PostParams::default(), &TokenRequest::default()).await?;
        let mut config = Config::infer().await?;
        config.auth_info = Default::default();
        config.auth_info.token = Some(token.status.context("a token was made")?.token.into());
        account.client = Client::try_from(config)?;
        Ok(account)
    }

    /// Everything that the chart's Roles allow.
    pub fn rights(&self) -> BTreeSet<Right> {
        self.charts.iter().flat_map(rules).map(|(right, _)| right).collect()
    }

    /// Leaves it these of the chart's rights.
    pub async fn allow(&self, is_allowed: impl Fn(&Right) -> bool) -> Result<()> {
        for chart in &self.charts {
            let left: Vec<Value> =
                rules(chart).into_iter().filter(|(right, _)| is_allowed(right)).map(|(_, rule)| rule).collect();
            let mut role = chart.clone();
            role["rules"] = json!(left);
            self.roles.patch(name(&role)?, &by_helm(), &Patch::Apply(&role)).await?;
        }
        Ok(())
    }
}

fn by_helm() -> PatchParams {
    PatchParams::apply("helm").force()
}

fn name(document: &Value) -> Result<&str> {
    document["metadata"]["name"].as_str().context("a document has a name")
}

/// The chart's ServiceAccount, its Roles and what binds them.
async fn chart(site: &Site) -> Result<Vec<Value>> {
    let output = Command::new("helm")
        .args(["template", "zero-cache-operator", "charts/zero-cache-operator", "--namespace", &site.name])
        // This Helm does not know of which Kubernetes it is.
        .args(["--kube-version", "1.35.4"])
        .args(["--set", &format!("watchNamespaces={{{}}}", site.name)])
        .current_dir(root())
        .output()
        .await
        .context("run helm")?;
    ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split("\n---").filter_map(|part| serde_saphyr::from_str::<Value>(part).ok()).collect())
}

/// The rights of a Role, each with a rule that grants it alone.
fn rules(role: &Value) -> Vec<(Right, Value)> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().map(|it| it.as_str().unwrap_or_default().to_owned()).collect()
    };
    let mut all = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    let right = Right { group: group.clone(), resource: resource.clone(), verb };
                    let mut alone = rule.clone();
                    alone["apiGroups"] = json!([right.group]);
                    alone["resources"] = json!([right.resource]);
                    alone["verbs"] = json!([right.verb]);
                    all.push((right, alone));
                }
            }
        }
    }
    all
}
