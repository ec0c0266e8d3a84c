//! The charts, rendered by Helm: that what comes out is what the operator needs, and that wrong values are refused.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crds::names::{GROUP, port};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn chart() -> PathBuf {
    root().join("charts/zero-cache-operator")
}

/// The definition's chart is the definition, marked to survive the chart.
#[test]
fn the_chart_of_the_definition_is_current() {
    let path = root().join("charts/zero-cache-crds/templates/zerocaches.yaml");
    let keep = "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n";
    let current = crds::manifest().replacen("metadata:\n", keep, 1);
    assert!(!current.contains("{{"), "Helm would read a template in it");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, current).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == current, "{} is stale; write it anew with UPDATE_REFERENCE=1", path.display());
}

/// The charts' versions are the workspace's: an operator runs the image of its own version when a resource names none.
#[test]
fn charts_have_the_version_of_the_workspace() {
    for chart in ["zero-cache-crds", "zero-cache-operator"] {
        let text = std::fs::read_to_string(root().join("charts").join(chart).join("Chart.yaml")).unwrap();
        let chart: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"), "{chart}");
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"), "{chart}");
    }
}

/// `$HELM`, or that of the path, or the one that `e2e/kube/build` makes.
fn helm() -> &'static Path {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    HELM.get_or_init(|| {
        let given = std::env::var_os("HELM").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|folder| folder.join("helm"));
        if let Some(found) = given.into_iter().chain(on_path).find(|path| path.is_file()) {
            return found;
        }
        let output = Command::new(root().join("e2e/kube/build")).args(["-t", "helm"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let folder = text.lines().last().filter(|_| output.status.success());
        let folder = folder.unwrap_or_else(|| panic!("no helm: {}", String::from_utf8_lossy(&output.stderr)));
        Path::new(folder).join("helm")
    })
}

/// What Helm says, and whether it was content.
fn run(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(helm()).current_dir(root()).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn try_template(values: &[&str]) -> (bool, String) {
    try_template_with(None, values)
}

/// With a file of values besides, below the chart.
fn try_template_with(file: Option<&str>, values: &[&str]) -> (bool, String) {
    let mut arguments = vec!["template", "zero-cache-operator", "charts/zero-cache-operator"];
    arguments.extend(["--namespace", "system", "--kube-version", "1.35.4"]);
    let file = file.map(|name| chart().join(name).display().to_string());
    arguments.extend(file.iter().flat_map(|path| ["--values", path]));
    arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
    run(&arguments)
}

/// The objects that come out.
fn template(values: &[&str]) -> Vec<Value> {
    objects_of(try_template(values))
}

fn objects_of((is_ok, text): (bool, String)) -> Vec<Value> {
    assert!(is_ok, "{text}");
    let documents = text.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    documents.filter(Value::is_object).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in {:?}", kinds(objects)))
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["kind"].as_str().unwrap()).collect()
}

fn pod(objects: &[Value]) -> &Value {
    &find(objects, "Deployment", NAME)["spec"]["template"]
}

fn variable<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let variables = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    variables.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Groups, resources and verbs of a role, one line each.
fn rights(role: &Value) -> Vec<String> {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
    };
    let mut lines = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                lines.extend(list(&rule["verbs"]).iter().map(|verb| format!("{group}/{resource} {verb}")));
            }
        }
    }
    lines
}

const NAME: &str = "zero-cache-operator";

#[test]
fn both_charts_pass_helms_own_checks() {
    for chart in ["charts/zero-cache-crds", "charts/zero-cache-operator"] {
        let (is_ok, text) = run(&["lint", "--strict", chart]);
        assert!(is_ok, "{text}");
    }
    let (is_ok, text) = run(&["template", "crds", "charts/zero-cache-crds", "--kube-version", "1.35.4"]);
    assert!(is_ok, "{text}");
    let rendered: Value = serde_saphyr::from_str(&text).unwrap();
    let mut definition = crds::definition();
    definition["metadata"]["annotations"] = json!({ "helm.sh/resource-policy": "keep" });
    assert_eq!(rendered, definition);
}

#[test]
fn the_smallest_installation_is_closed_and_complete() {
    let objects = template(&[]);
    let mut found = kinds(&objects);
    found.sort_unstable();
    let expected = [
        "ClusterRole",
        "ClusterRole",
        "ClusterRole",
        "ClusterRoleBinding",
        "Deployment",
        "NetworkPolicy",
        "Role",
        "Role",
        "RoleBinding",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ];
    assert_eq!(found, expected);
    let pod = pod(&objects);
    // By this label the NetworkPolicies of ZeroCaches let it in.
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/name"], NAME);
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["spec"]["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], format!("zero-cache-operator:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(container["livenessProbe"]["httpGet"], json!({ "path": "/healthz", "port": "metrics" }));
    assert_eq!(container["readinessProbe"]["httpGet"], json!({ "path": "/readyz", "port": "metrics" }));
    assert_eq!(container["ports"][0]["containerPort"], 8080);
    assert!(container["resources"]["limits"]["memory"].is_string());
    assert_eq!(variable(pod, "POD_NAME")["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
    assert_eq!(variable(pod, "POD_NAMESPACE")["valueFrom"]["fieldRef"]["fieldPath"], "metadata.namespace");
    let plain = [
        ("WATCH_NAMESPACES", ""),
        ("LEADER_ELECTION", "true"),
        ("LEASE_NAME", "zerocache-operator"),
        ("METRICS_ADDR", "0.0.0.0:8080"),
        ("LOG_LEVEL", "info"),
        ("LOG_FORMAT", "json"),
        ("DEFAULT_IMAGE", "zero-cache"),
        ("DEFAULT_TAG", env!("CARGO_PKG_VERSION")),
        ("CLUSTER_DOMAIN", "cluster.local"),
    ];
    for (name, value) in plain {
        assert_eq!(variable(pod, name)["value"], value, "{name}");
    }
    let policy = &find(&objects, "NetworkPolicy", NAME)["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress"]));
    assert_eq!(policy["ingress"], json!([{ "ports": [{ "port": "metrics", "protocol": "TCP" }] }]));
    assert_eq!(find(&objects, "Service", NAME)["spec"]["type"], "ClusterIP");
    let lease = find(&objects, "Role", "zero-cache-operator-lease");
    assert_eq!(lease["metadata"]["namespace"], "system");
    assert!(rights(lease).iter().all(|right| right.starts_with("coordination.k8s.io/leases ")));
}

/// What releasing needs is kept where the operator is, and Secrets are written nowhere else.
#[test]
fn secrets_are_written_in_the_operators_namespace_only() {
    for values in [vec![], vec![r#"watchNamespaces=["shop"]"#]] {
        let objects = template(&values);
        for role in objects.iter().filter(|it| it["kind"] == "Role" || it["kind"] == "ClusterRole") {
            let writes =
                rights(role).iter().any(|right| ["/secrets patch", "/secrets delete"].contains(&right.as_str()));
            assert_eq!(writes, role["metadata"]["name"] == "zero-cache-operator-kept", "{role}");
        }
        let kept = find(&objects, "Role", "zero-cache-operator-kept");
        assert_eq!(kept["metadata"]["namespace"], find(&objects, "Deployment", NAME)["metadata"]["namespace"]);
    }
}

/// Two releases in one namespace, each for namespaces of its own, do not stand by for each other.
#[test]
fn each_release_has_a_lease_of_its_own() {
    for (values, name) in [(vec![], "zerocache-operator"), (vec![r#"fullnameOverride="second""#], "second")] {
        let objects = template(&values);
        let deployment = objects.iter().find(|it| it["kind"] == "Deployment").unwrap();
        assert_eq!(variable(&deployment["spec"]["template"], "LEASE_NAME")["value"], name);
        let role = objects.iter().find(|it| it["metadata"]["name"].as_str().is_some_and(|it| it.ends_with("-lease")));
        assert_eq!(role.unwrap()["rules"][1]["resourceNames"], json!([name]));
    }
}

/// Nothing is allowed by a wildcard, and Secrets are neither changed nor deleted.
#[test]
fn rights_are_named_one_by_one() {
    let objects = template(&[]);
    let rights = rights(find(&objects, "ClusterRole", NAME));
    assert!(rights.iter().all(|right| !right.contains('*')), "{rights:#?}");
    let of = |resource: &str| -> Vec<&str> {
        let lines = rights.iter().filter_map(|right| right.split_once(' '));
        lines.filter(|(name, _)| *name == resource).map(|(_, verb)| verb).collect()
    };
    assert_eq!(of("/secrets"), ["get", "list", "watch", "create"]);
    assert_eq!(of(&format!("{GROUP}/zerocaches")), ["list", "watch", "patch"]);
    assert!(!of("/pods").contains(&"create") && !of("/persistentvolumeclaims").contains(&"create"));
    let mut unique = rights.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), rights.len(), "a right is given twice: {rights:#?}");
}

/// Every kind that planning makes, as its own tests show them, can be made and changed; what a change of the resource takes away again
/// can be deleted.
#[test]
fn rights_cover_every_child() {
    let objects = template(&[]);
    let rights = rights(find(&objects, "ClusterRole", NAME));
    let folder = root().join("operator/tests/golden");
    let mut seen = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
            let child: Value = serde_saphyr::from_str(document).unwrap();
            let group = child["apiVersion"].as_str().unwrap().rsplit_once('/').map_or("", |(group, _)| group);
            let kind = child["kind"].as_str().unwrap().to_lowercase();
            let plural = match kind.as_str() {
                "networkpolicy" => "networkpolicies".to_owned(),
                "ingress" => "ingresses".to_owned(),
                other => format!("{other}s"),
            };
            let verbs: &[&str] = match kind.as_str() {
                "secret" => &["create"],
                "service" | "deployment" => &["create", "patch"],
                _ => &["create", "patch", "delete"],
            };
            for verb in ["list", "watch"].iter().chain(verbs) {
                let right = format!("{group}/{plural} {verb}");
                assert!(rights.contains(&right), "the chart lacks {right}");
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} children were looked at");
}

#[test]
fn watched_namespaces_have_roles_of_their_own_and_nothing_is_cluster_wide() {
    let objects = template(&[r#"watchNamespaces=["shop","system","shop"]"#, "rbac.aggregate=false"]);
    assert!(kinds(&objects).iter().all(|kind| !kind.starts_with("Cluster")), "{:?}", kinds(&objects));
    let cluster_wide = template(&[]);
    for namespace in ["shop", "system"] {
        let of = |kind: &str| {
            let is_it = |it: &&Value| {
                it["kind"] == kind && it["metadata"]["name"] == NAME && it["metadata"]["namespace"] == namespace
            };
            let found: Vec<&Value> = objects.iter().filter(is_it).collect();
            assert_eq!(found.len(), 1, "{kind} in {namespace}");
            found[0]
        };
        assert_eq!(of("Role")["rules"], find(&cluster_wide, "ClusterRole", NAME)["rules"]);
        assert_eq!(of("RoleBinding")["subjects"], find(&cluster_wide, "ClusterRoleBinding", NAME)["subjects"]);
        assert_eq!(of("RoleBinding")["roleRef"]["name"], NAME);
    }
    // The Lease is where the operator is, whatever it watches.
    let lease = "zero-cache-operator-lease";
    assert_eq!(find(&objects, "Role", lease), find(&cluster_wide, "Role", lease));
    let bound = |objects: &[Value]| -> Vec<String> {
        let all = objects.iter().filter(|it| it["kind"].as_str().is_some_and(|kind| kind.ends_with("RoleBinding")));
        all.map(|it| it["roleRef"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let kept = "zero-cache-operator-kept";
    assert_eq!(bound(&objects), [NAME, NAME, kept, lease]);
    assert_eq!(bound(&cluster_wide), [NAME, kept, lease]);
    assert_eq!(variable(pod(&objects), "WATCH_NAMESPACES")["value"], "shop,system");
}

/// The values for clusters with tenants, as they are handed out: rights in the named namespaces only, no way to where only the
/// operator could go, and nothing told that was read there.
#[test]
fn a_shared_cluster_gets_an_operator_that_is_no_way_in() {
    let objects = objects_of(try_template_with(
        Some("shared-cluster.yaml"),
        &[r#"watchNamespaces=["shop"]"#, "rbac.aggregate=false"],
    ));
    assert!(kinds(&objects).iter().all(|kind| !kind.starts_with("Cluster")), "{:?}", kinds(&objects));
    for name in ["COARSE_STATUS", "REFUSE_RAW_POD_FIELDS"] {
        assert_eq!(variable(pod(&objects), name)["value"], "true");
        assert_eq!(variable(pod(&template(&[])), name)["value"], "false");
    }
    let policy = &find(&objects, "NetworkPolicy", NAME)["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    let egress = policy["egress"].as_array().unwrap();
    assert_eq!(egress[0]["ports"][0]["port"], 53, "names are looked up");
    let blocks = egress.iter().flat_map(|rule| rule["to"].as_array().into_iter().flatten()).map(|to| &to["ipBlock"]);
    let public: Vec<&Value> = blocks.filter(|block| block.is_object()).collect();
    assert_eq!(public.len(), 1);
    for private in ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"] {
        assert!(public[0]["except"].as_array().unwrap().contains(&json!(private)), "{private}");
    }
    let default = template(&[]);
    let open = &find(&default, "NetworkPolicy", NAME)["spec"];
    assert_eq!((&open["policyTypes"], &open["egress"]), (&json!(["Ingress"]), &Value::Null));
}

#[test]
fn two_replicas_take_over_from_each_other() {
    let objects = template(&["replicas=2"]);
    let deployment = &find(&objects, "Deployment", NAME)["spec"];
    assert_eq!(deployment["replicas"], 2);
    assert_eq!(deployment["strategy"]["rollingUpdate"], json!({ "maxSurge": 1, "maxUnavailable": 0 }));
    assert!(deployment["template"]["spec"]["topologySpreadConstraints"].is_array());
    assert_eq!(find(&objects, "PodDisruptionBudget", NAME)["spec"]["maxUnavailable"], 1);
    // One replica has no budget: it would block the drain of its node for ever.
    assert!(!kinds(&template(&[])).contains(&"PodDisruptionBudget"));
    let alone = template(&["leaderElection=false"]);
    assert_eq!(find(&alone, "Deployment", NAME)["spec"]["strategy"]["type"], "Recreate");
    assert!(!alone.iter().any(|it| it["metadata"]["name"] == "zero-cache-operator-lease"));
}

#[test]
fn prometheus_finds_the_pod_by_annotation_or_by_monitor() {
    let annotations = |objects: &[Value]| pod(objects)["metadata"]["annotations"].clone();
    assert_eq!(annotations(&template(&[]))["prometheus.io/port"], "8080");
    let monitored = template(&["metrics.podMonitor.enabled=true", r#"metrics.podMonitor.labels={"release":"p"}"#]);
    assert!(annotations(&monitored).is_null());
    let monitor = find(&monitored, "PodMonitor", NAME);
    assert_eq!(monitor["metadata"]["labels"]["release"], "p");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((endpoint["port"].as_str(), endpoint["honorLabels"].as_bool()), (Some("metrics"), Some(true)));
    let rules = template(&["metrics.rules.enabled=true"]);
    let groups = find(&rules, "PrometheusRule", NAME)["spec"]["groups"].as_array().unwrap();
    let alerts = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    for alert in alerts {
        let expression = alert["expr"].as_str().unwrap();
        // A condition's name that is not one would never fire.
        for word in expression.split(|c: char| !c.is_ascii_alphanumeric()) {
            let is_type = expression.contains("type=") && word.starts_with(char::is_uppercase);
            let known = crds::conditions::kind::ALL.contains(&word)
                || ["True", "False", "Suspended", "Deleting"].contains(&word);
            assert!(!is_type || known, "{word} in {expression}");
        }
        assert!(alert["annotations"]["summary"].is_string() && alert["for"].is_string(), "{alert}");
    }
}

/// Promtool reads the alerts, and finds that they fire when they should and only then.
#[test]
fn alerts_fire_when_they_should() {
    let promtool =
        || Command::new("promtool").args(["test", "rules", "alerts.test.yaml"]).current_dir(chart()).output();
    let output = promtool().or_else(|_| {
        let installed = Command::new(root().join("e2e/kube/packages")).arg("prometheus").output()?;
        assert!(installed.status.success(), "no promtool: {}", String::from_utf8_lossy(&installed.stderr));
        promtool()
    });
    let output = output.expect("promtool comes with Prometheus");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn what_a_site_adds_gets_there_and_takes_nothing_away() {
    let objects = template(&[
        r#"podLabels={"team":"sync","app.kubernetes.io/name":"other"}"#,
        r#"podAnnotations={"note":"kept"}"#,
        r#"image={"repository":"r.example.com/op","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#,
        r#"zeroCache.image={"repository":"r.example.com/zc","tag":"9"}"#,
        r#"imagePullSecrets=[{"name":"registry"}]"#,
        r#"extraEnv=[{"name":"SSL_CERT_FILE","value":"/ca/bundle.pem"}]"#,
        r#"extraVolumes=[{"name":"ca","configMap":{"name":"ca"}}]"#,
        r#"extraVolumeMounts=[{"name":"ca","mountPath":"/ca"}]"#,
        r#"nodeSelector={"disk":"fast"}"#,
        r#"tolerations=[{"operator":"Exists"}]"#,
        r#"serviceAccount={"create":false,"name":"given"}"#,
        r#"networkPolicy.metricsFrom=[{"namespaceSelector":{}}]"#,
        r#"priorityClassName="high""#,
    ]);
    let pod = pod(&objects);
    let labels = &pod["metadata"]["labels"];
    assert_eq!((labels["team"].as_str(), labels["app.kubernetes.io/name"].as_str()), (Some("sync"), Some(NAME)));
    assert_eq!(pod["metadata"]["annotations"]["note"], "kept");
    let container = &pod["spec"]["containers"][0];
    assert!(container["image"].as_str().unwrap().starts_with("r.example.com/op@sha256:a"));
    assert_eq!(variable(pod, "DEFAULT_IMAGE")["value"], "r.example.com/zc");
    assert_eq!(variable(pod, "DEFAULT_TAG")["value"], "9");
    assert_eq!(variable(pod, "SSL_CERT_FILE")["value"], "/ca/bundle.pem");
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/ca");
    assert_eq!(pod["spec"]["volumes"][0]["name"], "ca");
    assert_eq!(pod["spec"]["serviceAccountName"], "given");
    assert!(!kinds(&objects).contains(&"ServiceAccount"));
    assert_eq!(find(&objects, "ClusterRoleBinding", NAME)["subjects"][0]["name"], "given");
    assert!(find(&objects, "NetworkPolicy", NAME)["spec"]["ingress"][0]["from"].is_array());
    for (field, value) in [("priorityClassName", json!("high")), ("nodeSelector", json!({ "disk": "fast" }))] {
        assert_eq!(pod["spec"][field], value);
    }
    let bare = template(&[
        "rbac.create=false",
        "networkPolicy.enabled=false",
        "metrics.annotations=false",
        r#"fullnameOverride="zco""#,
    ]);
    let mut found = kinds(&bare);
    found.sort_unstable();
    assert_eq!(found, ["Deployment", "Service", "ServiceAccount"]);
    assert!(bare.iter().all(|object| object["metadata"]["name"] == "zco"));
}

#[test]
fn wrong_values_are_refused() {
    let wrong = [
        ("replica=1", "replica"),
        ("replicas=3", "replicas"),
        ("replicas=-1", "replicas"),
        (r#"replicas="two""#, "replicas"),
        (r#"image.version="1""#, "version"),
        (r#"image.repository="""#, "repository"),
        (r#"image.digest="sha256:1""#, "digest"),
        (r#"image.pullPolicy="Sometimes""#, "pullPolicy"),
        (r#"zeroCache.image.digest="sha256:1""#, "digest"),
        (r#"watchNamespaces="shop""#, "watchNamespaces"),
        (r#"watchNamespaces=["Shop"]"#, "watchNamespaces"),
        (r#"log.level="verbose""#, "log/level"),
        (r#"log.format="yaml""#, "log/format"),
        (r#"metrics.podMonitor.interval="often""#, "interval"),
        ("service.port=0", "port"),
        (r#"leaderElection="yes""#, "leaderElection"),
        (r#"networkPolicy.metricsFrom={}"#, "metricsFrom"),
        (r#"networkPolicy.egress="none""#, "egress"),
        (r#"tenants.coarseStatus="yes""#, "coarseStatus"),
        ("tenants.refuseRawPodField=true", "refuseRawPodField"),
        (r#"podLabels={"a":1}"#, "podLabels"),
        (r#"resources.memory="1Gi""#, "memory"),
    ];
    for (value, named) in wrong {
        let (is_ok, text) = try_template(&[value]);
        assert!(!is_ok && text.contains(named), "{value}: {text}");
    }
    let (is_ok, text) = try_template(&["replicas=2", "leaderElection=false"]);
    assert!(!is_ok && text.contains("two replicas need leaderElection"), "{text}");
    let (is_ok, text) = try_template(&["serviceAccount.create=false"]);
    assert!(!is_ok && text.contains("serviceAccount.name is needed"), "{text}");
    // Every value that the chart has can be given, and every one that can be given it has.
    let read = |name: &str| std::fs::read_to_string(chart().join(name)).unwrap();
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut allowed: Vec<&String> =
        schema["properties"].as_object().unwrap().keys().filter(|key| *key != "global").collect();
    let mut given: Vec<&String> = values.as_object().unwrap().keys().collect();
    allowed.sort_unstable();
    given.sort_unstable();
    assert_eq!(allowed, given);
}

/// Nothing of the chart opens a port of the nodes.
#[test]
fn no_port_of_the_nodes_is_opened() {
    let text = serde_json::to_string(&template(&["replicas=2", "metrics.podMonitor.enabled=true"])).unwrap();
    for number in [port::SYNC, port::CHANGE_STREAM, port::ADMIN] {
        assert!(!text.contains(&number.to_string()), "{number}");
    }
}
