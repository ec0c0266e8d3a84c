//! What is done once, and does no harm when it is done again.

use crds::names::{FIELD_MANAGER, FINALIZER};
use crds::{ZeroCache, names::child};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use super::Applier;
use crate::error::{Category, Error, request};
use crate::observe::Role;
use crate::observe::kinds::Kind;
use crate::observe::outside::Outside;
use crate::plan::Action;

/// Owner of the number of replicas while something else than the template decides it.
const SCALE_FIELD_MANAGER: &str = "zerocache-operator-scale";

impl Applier<'_> {
    /// `cache` is the resource as it was last written.
    pub async fn act(&self, action: &Action, cache: &ZeroCache, outside: &Outside) -> Result<(), Error> {
        match action {
            Action::AddFinalizer => self.finalizers(cache, |names| names.push(FINALIZER.to_owned())).await,
            Action::RemoveFinalizer => self.finalizers(cache, |names| names.retain(|name| name != FINALIZER)).await,
            Action::Scale { role, replicas } => self.scale(*role, *replicas).await,
            Action::DeletePod { name } => {
                let Some(seen) = self.existing.get(&(Kind::Pod, name.clone())) else { return Ok(()) };
                self.delete(Kind::Pod, name, seen.uid.clone(), DeleteParams::default()).await
            }
            Action::OrphanStatefulSet { name, uid } => {
                self.delete(Kind::StatefulSet, name, uid.clone(), DeleteParams::orphan()).await
            }
            Action::GrowClaim { name, size } => {
                let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
                let parameters =
                    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                let doing = || format!("let PersistentVolumeClaim {name} grow to {size}");
                let api = self.api(Kind::PersistentVolumeClaim);
                request(doing, api.patch_metadata(name, &parameters, &Patch::Merge(patch))).await.map(drop)
            }
            Action::KeepAccess => match self.access {
                Some(access) => self.keeper.keep(self.client, self.cache, self.uid, access).await,
                None => Ok(()),
            },
            Action::DiscardAccess => self.keeper.discard(self.client, self.uid).await,
            Action::ReleaseUpstream => {
                outside.release(cache);
                Ok(())
            }
        }
    }

    async fn finalizers(&self, cache: &ZeroCache, change: impl FnOnce(&mut Vec<String>)) -> Result<(), Error> {
        let mut names = cache.metadata.finalizers.clone().unwrap_or_default();
        let before = names.clone();
        change(&mut names);
        if names == before {
            return Ok(());
        }
        let metadata = json!({
            "finalizers": names,
            // Others have finalizers too: the list is only written as it was read.
            "resourceVersion": cache.metadata.resource_version,
            "uid": cache.metadata.uid,
        });
        let api: Api<ZeroCache> = Api::namespaced(self.client.clone(), &self.cache.namespace);
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let doing = || format!("change the finalizers of ZeroCache {}", self.cache);
        match request(doing, api.patch_metadata(&self.cache.name, &parameters, &patch)).await {
            Err(error) if error.category() == Category::Missing => Ok(()),
            other => other.map(drop),
        }
    }

    /// With another field manager, so that the workload's own can give the field up without its falling back to 1.
    async fn scale(&self, role: Role, replicas: i32) -> Result<(), Error> {
        let (kind, name) = match role {
            Role::ReplicationManager => (Kind::StatefulSet, child::replication_manager(&self.cache.name)),
            Role::SingleNode => (Kind::StatefulSet, self.cache.name.clone()),
            Role::ViewSyncer => (Kind::Deployment, child::view_syncer(&self.cache.name)),
        };
        // Server-side apply would make what is not there.
        let Some(seen) = self.own(kind, &name) else { return Ok(()) };
        let resource = kind.resource();
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": name, "uid": seen.uid },
            "spec": { "replicas": replicas },
        });
        let parameters = PatchParams::apply(SCALE_FIELD_MANAGER).force();
        let doing = || format!("scale {} {name} to {replicas}", kind.name());
        let api = self.api(kind);
        match request(doing, api.patch_metadata(&name, &parameters, &Patch::Apply(patch))).await {
            // It is gone, or another one of the same name has come.
            Err(error) if matches!(error.category(), Category::Missing | Category::Conflict) => Ok(()),
            other => other.map(drop),
        }
    }
}
