//! TLS between nodes: the Secret's files in pods, and what pods and others are told of them.
//!
//! Nodes read the files anew when they change, so a renewed certificate restarts nobody. View-syncers get no private key.

use crds::names::{child, port, tls};
use crds::spec::SecretKeyRef;
use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume, VolumeMount};

use super::super::wanted::Wanted;
use crate::observe::Role;

/// For the pods' group, which is theirs alone.
const MODE: i32 = 0o440;

/// Keys that the Secret must have, with the field that names it.
pub(in crate::plan) fn required(wanted: &Wanted) -> Vec<(&'static str, SecretKeyRef)> {
    let Some(name) = wanted.tls_secret() else { return Vec::new() };
    let reference = |key: &str| SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
    [tls::CERTIFICATE, tls::KEY].map(|key| ("security.changeStream.tlsSecretName", reference(key))).into()
}

/// The files that a role's pods get.
fn files(wanted: &Wanted, role: Role) -> Vec<&'static str> {
    let authority = wanted.has_tls_authority().then_some(tls::AUTHORITY);
    let own: &[&str] = match role {
        Role::ReplicationManager => &[tls::CERTIFICATE, tls::KEY],
        Role::ViewSyncer | Role::SingleNode => &[],
    };
    own.iter().copied().chain(authority).collect()
}

pub(super) fn volume(wanted: &Wanted, role: Role) -> Option<Volume> {
    let name = wanted.tls_secret()?;
    let files = files(wanted, role);
    let item = |file: &&str| KeyToPath { key: (*file).to_owned(), path: (*file).to_owned(), mode: None };
    (!files.is_empty()).then(|| Volume {
        name: tls::VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            default_mode: Some(MODE),
            items: Some(files.iter().map(item).collect()),
            optional: None,
        }),
        ..Volume::default()
    })
}

pub(super) fn mount(wanted: &Wanted, role: Role) -> Option<VolumeMount> {
    volume(wanted, role).map(|volume| VolumeMount {
        name: volume.name,
        mount_path: tls::PATH.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    })
}

pub(super) fn variables(wanted: &Wanted, role: Role) -> Vec<(&'static str, String)> {
    if wanted.tls_secret().is_none() {
        return Vec::new();
    }
    let files = files(wanted, role).into_iter().map(|file| {
        let variable = match file {
            tls::CERTIFICATE => "ZERO_CHANGE_STREAMER_TLS_CERT_FILE",
            tls::KEY => "ZERO_CHANGE_STREAMER_TLS_KEY_FILE",
            _ => "ZERO_CHANGE_STREAMER_TLS_CA_FILE",
        };
        (variable, format!("{}/{file}", tls::PATH))
    });
    // A certificate is for names. The pod's own is known to the pod only.
    let address = (role == Role::ReplicationManager).then(|| {
        let domain = wanted.host_of(&wanted.headless_name());
        ("ZERO_CHANGE_STREAMER_ADDRESS", format!("$(ZERO_TASK_ID).{domain}:{}", port::CHANGE_STREAM))
    });
    files.chain(address).collect()
}

/// The name of the replication-manager's Service.
pub(in crate::plan) fn service_host(wanted: &Wanted) -> String {
    wanted.host_of(&child::replication_manager(wanted.name))
}

/// The port that answers for a role speaks TLS.
pub(super) fn is_probed_by_tls(wanted: &Wanted, role: Role) -> bool {
    role == Role::ReplicationManager && wanted.tls_secret().is_some()
}
