//! What is asked, and of whom. Values of Secrets are here and nowhere else, and are never printed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crds::ZeroCache;
use crds::names::{child, port, service_host, tls};
use crds::spec::SecretKeyRef;
use crds::status::DeletionStep;

use crate::observe::kept::Access;

/// A value of a Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    #[must_use]
    pub fn new(text: impl Into<String>) -> SecretText {
        SecretText(text.into())
    }

    /// To be handed to the server that it is for, never to a log.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// All that may be asked about one resource. What is missing is not asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// Tells a resource from an earlier one of the same name.
    pub uid: String,
    /// Where its pods look for names without dots.
    pub namespace: String,
    pub shard: Shard,
    /// The upstream database as it was when it was last asked: nothing is taken away from another.
    pub database: Option<String>,
    /// Connection URLs.
    pub upstream: Option<SecretText>,
    /// Nothing where it is the upstream database.
    pub cvr: Option<SecretText>,
    /// Nothing where it is the upstream database.
    pub change: Option<SecretText>,
    /// Processes of which one owns the replication slot.
    pub nodes: Vec<Node>,
    pub store: Option<Store>,
    /// Something is under way or wrong: ask more often.
    pub is_busy: bool,
}

/// The name by which the operator finds what a resource's pods find by a name without dots: a Service beside them. Nothing
/// where there are dots, or no name.
pub(super) fn beside(host: &str, namespace: &str) -> Option<String> {
    let is_bare = !host.is_empty() && !host.contains(['.', ':']) && host != "localhost";
    (is_bare && !namespace.is_empty()).then(|| format!("{host}.{namespace}.svc"))
}

/// Whose schemas, slots and publications are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    pub app_id: String,
    pub number: i32,
}

/// A process that owns the replication slot or could: a replication-manager, or the single node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub pod: String,
    pub address: SocketAddr,
    /// Nothing where it is asked in plain.
    pub tls: Option<Encryption>,
    pub password: SecretText,
    /// The generation its pod serves.
    pub generation: String,
}

/// How a node is known that is reached by its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// That its certificate is for.
    pub name: String,
    /// PEM; nothing for the system's.
    pub authorities: Option<SecretText>,
}

/// Where the process in a pod answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    pub ip: IpAddr,
    /// It speaks TLS: what the pod was made with, whatever its resource says by now.
    pub is_encrypted: bool,
}

/// A pod with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    pub name: String,
    pub door: Door,
    /// Its generation annotation.
    pub generation: String,
}

/// The place of one generation's backup, and keys that let the operator look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// `s3://bucket/path`, without the generation.
    pub url: String,
    pub generation: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Where its pods look for names without dots.
    pub namespace: String,
    pub access_key_id: SecretText,
    pub secret_access_key: SecretText,
    pub session_token: Option<SecretText>,
}

impl Inputs {
    /// Fills in what the Secrets do not say any longer.
    pub fn fall_back(&mut self, kept: Access) {
        let Access { upstream, cvr, change } = kept;
        self.upstream.get_or_insert(upstream);
        self.cvr = self.cvr.take().or(cvr);
        self.change = self.change.take().or(change);
    }

    /// What can be asked about a resource. `secret` reads a key of a Secret in the resource's namespace, `pods` are those of which
    /// one owns the slot, `domain` is the cluster's.
    #[must_use]
    pub fn of(
        cache: &ZeroCache,
        secret: &dyn Fn(&SecretKeyRef) -> Option<SecretText>,
        pods: &[Reached],
        domain: &str,
    ) -> Inputs {
        let spec = &cache.spec;
        let databases = &spec.databases;
        let other = |reference: &Option<SecretKeyRef>| reference.as_ref().and_then(secret);
        Inputs {
            uid: cache.metadata.uid.clone().unwrap_or_default(),
            namespace: cache.metadata.namespace.clone().unwrap_or_default(),
            shard: Shard { app_id: spec.app_id.clone(), number: spec.shard_num },
            database: cache.status.as_ref().and_then(|it| it.upstream.as_ref()?.database.clone()),
            upstream: secret(&databases.upstream.url_secret_ref),
            cvr: other(&databases.cvr.url_secret_ref),
            change: other(&databases.change.url_secret_ref),
            nodes: pods.iter().filter_map(|pod| node(cache, secret, pod, domain)).collect(),
            store: store(cache, secret),
            is_busy: is_busy(cache),
        }
    }
}

fn node(
    cache: &ZeroCache,
    secret: &dyn Fn(&SecretKeyRef) -> Option<SecretText>,
    pod: &Reached,
    domain: &str,
) -> Option<Node> {
    let name = cache.metadata.name.as_deref().unwrap_or_default();
    let reference = cache
        .spec
        .admin_password
        .clone()
        .unwrap_or_else(|| SecretKeyRef { name: child::admin_password(name), key: child::SECRET_KEY.to_owned() });
    let port = u16::try_from(port::CHANGE_STREAM).expect("ports of the data plane are ports");
    Some(Node {
        pod: pod.name.clone(),
        address: SocketAddr::new(pod.door.ip, port),
        tls: if pod.door.is_encrypted { Some(encryption(cache, secret, domain)?) } else { None },
        password: secret(&reference)?,
        generation: pod.generation.clone(),
    })
}

fn encryption(
    cache: &ZeroCache,
    secret: &dyn Fn(&SecretKeyRef) -> Option<SecretText>,
    domain: &str,
) -> Option<Encryption> {
    let (name, namespace) = (cache.metadata.name.as_deref()?, cache.metadata.namespace.as_deref()?);
    let given = cache.spec.security.change_stream.tls_secret_name.clone();
    let authority = given.map(|name| SecretKeyRef { name, key: tls::AUTHORITY.to_owned() });
    Some(Encryption {
        name: service_host(&child::replication_manager(name), namespace, domain),
        authorities: authority.and_then(|reference| secret(&reference)),
    })
}

/// Nothing where the pods have an identity of their own: the operator has none of their rights.
fn store(cache: &ZeroCache, secret: &dyn Fn(&SecretKeyRef) -> Option<SecretText>) -> Option<Store> {
    let backup = cache.spec.backup.as_ref()?;
    let given = backup.credentials_secret_ref.as_ref()?;
    let value = |key: &str| secret(&SecretKeyRef { name: given.name.clone(), key: key.to_owned() });
    let session_token = match &given.session_token_key {
        Some(key) => Some(value(key)?),
        None => None,
    };
    Some(Store {
        url: backup.url.clone(),
        generation: cache.spec.generation.clone(),
        endpoint: backup.endpoint.clone(),
        region: backup.region.clone(),
        namespace: cache.metadata.namespace.clone().unwrap_or_default(),
        access_key_id: value(&given.access_key_id_key)?,
        secret_access_key: value(&given.secret_access_key_key)?,
        session_token,
    })
}

fn is_busy(cache: &ZeroCache) -> bool {
    let Some(status) = &cache.status else { return true };
    let is_ready = status.conditions.iter().any(|it| it.type_ == crds::conditions::kind::READY && it.status == "True");
    let is_deleting = status.deletion.as_ref().is_some_and(|deletion| deletion.step != DeletionStep::Done);
    let is_flowing = status.upgrade.is_some() || status.reset.is_some() || status.current_revision.is_none();
    is_flowing || is_deleting || (!is_ready && !cache.spec.suspended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(spec: serde_json::Value) -> ZeroCache {
        let document = serde_json::json!({
            "apiVersion": "zerocache.dev/v1alpha1", "kind": "ZeroCache",
            "metadata": { "name": "shop", "namespace": "web" },
            "spec": spec,
        });
        serde_json::from_value(document).unwrap()
    }

    fn by_key(reference: &SecretKeyRef) -> Option<SecretText> {
        (reference.key != "missing").then(|| SecretText::new(format!("{}/{}", reference.name, reference.key)))
    }

    fn pod() -> Reached {
        let door = Door { ip: [10, 0, 0, 7].into(), is_encrypted: false };
        Reached { name: "shop-rm-0".to_owned(), door, generation: "v1".to_owned() }
    }

    #[test]
    fn what_can_be_asked_follows_from_the_spec() {
        let full = cache(serde_json::json!({
            "appId": "shop", "shardNum": 3,
            "databases": {
                "upstream": { "urlSecretRef": { "name": "db", "key": "url" } },
                "cvr": { "urlSecretRef": { "name": "db", "key": "cvr" } },
            },
            "backup": { "url": "s3://b/p", "credentialsSecretRef":
                { "name": "s3", "accessKeyIdKey": "id", "secretAccessKeyKey": "key" } },
        }));
        let inputs = Inputs::of(&full, &by_key, &[pod()], "cluster.local");
        assert_eq!(inputs.upstream.unwrap().reveal(), "db/url");
        assert_eq!((inputs.cvr.unwrap().reveal(), inputs.change), ("db/cvr", None));
        let node = &inputs.nodes[0];
        assert_eq!((node.address.to_string().as_str(), node.password.reveal()), ("10.0.0.7:4849", "shop-admin/value"));
        assert_eq!(inputs.store.unwrap().secret_access_key.reveal(), "s3/key");
        assert!(inputs.is_busy, "nothing runs yet");
    }

    /// While a certificate is given to nodes that run without one, or taken away, both sorts are there.
    #[test]
    fn a_pod_is_asked_the_way_it_was_made() {
        let full = cache(serde_json::json!({
            "databases": { "upstream": { "urlSecretRef": { "name": "db", "key": "url" } } },
            "security": { "changeStream": { "tlsSecretName": "stream" } },
        }));
        let mut newer = pod();
        newer.door.is_encrypted = true;
        let inputs = Inputs::of(&full, &by_key, &[pod(), newer], "cluster.local");
        assert_eq!(inputs.nodes[0].tls, None);
        let name = "shop-rm.web.svc.cluster.local".to_owned();
        let authorities = Some(SecretText::new("stream/ca.crt".to_owned()));
        assert_eq!(inputs.nodes[1].tls, Some(Encryption { name, authorities }));
    }

    #[test]
    fn what_is_missing_is_not_asked() {
        let bare = cache(serde_json::json!({
            "topology": "SingleNode",
            "databases": { "upstream": { "urlSecretRef": { "name": "db", "key": "missing" } } },
            "backup": { "url": "s3://b/p", "credentialsSecretRef":
                { "name": "s3", "accessKeyIdKey": "id", "secretAccessKeyKey": "key", "sessionTokenKey": "missing" } },
        }));
        let inputs = Inputs::of(&bare, &by_key, &[pod()], "cluster.local");
        assert_eq!((inputs.upstream, inputs.store), (None, None));
        assert_eq!(inputs.nodes[0].address.port(), 4849);
    }

    #[test]
    fn names_without_dots_are_those_of_services_beside_the_pods() {
        assert_eq!(beside("postgres", "web").as_deref(), Some("postgres.web.svc"));
        for (host, namespace) in [
            ("postgres.web", "web"),
            ("10.0.0.1", "web"),
            ("::1", "web"),
            ("localhost", "web"),
            ("", "web"),
            ("db", ""),
        ] {
            assert_eq!(beside(host, namespace), None, "{host}");
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let store = Store {
            url: "s3://b".to_owned(),
            generation: "v1".to_owned(),
            endpoint: None,
            region: None,
            namespace: String::new(),
            access_key_id: SecretText::new("id-value"),
            secret_access_key: SecretText::new("key-value"),
            session_token: Some(SecretText::new("token-value")),
        };
        let inputs = Inputs { store: Some(store), upstream: Some(SecretText::new("url-value")), ..Inputs::default() };
        assert!(!format!("{inputs:?}").contains("-value"));
    }
}
