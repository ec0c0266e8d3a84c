//! Whether the names that a resource's objects are to have are free: what stands there and is another's is told of and left alone.
//!
//! The watches show what carries the operator's labels. Whatever else may be there is asked for by name, for a short time once it
//! was not there, so that a resource whose objects are all shown costs no question.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};

use super::kinds::Kind;
use super::world::{Fact, Key, Seen, controller, fingerprint};
use super::{Child, Taken};
use crate::error::{Category, Error, request};

/// What was not there is not asked for again for so long; who applies it makes sure once more.
const FREE_FOR: Duration = Duration::from_secs(20);
const AT_ONCE: usize = 4;

type Place = (Kind, String);

/// Names that were free when they were asked for, by resource.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<Key, HashMap<Place, Instant>>>);

impl Names {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, HashMap<Place, Instant>>> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    /// Those of `wanted` that another has. What is the resource's own and not shown, for somebody took its labels off, is added to
    /// `existing`.
    pub async fn look(
        &self,
        client: &Client,
        key: &Key,
        uid: &str,
        wanted: &[Child],
        existing: &mut BTreeMap<Place, Seen>,
    ) -> Result<Vec<Taken>, Error> {
        let is_own = |place: &Place| existing.get(place).is_some_and(|seen| seen.owner.as_deref() == Some(uid));
        let places = wanted.iter().filter_map(|child| Some((Kind::named(&child.kind)?, child.name.clone())));
        let is_free = |place: &Place| !existing.contains_key(place) && self.was_free(key, place);
        let unsure: Vec<Place> = places.filter(|place| !is_own(place) && !is_free(place)).collect();
        let asked =
            stream::iter(unsure).map(|place| async move { find(client, key, &place).await.map(|it| (place, it)) });
        let found: Vec<(Place, Option<ObjectMeta>)> = asked.buffer_unordered(AT_ONCE).try_collect().await?;
        let mut taken = Vec::new();
        for (place, metadata) in found {
            let Some(metadata) = metadata else {
                existing.remove(&place);
                self.lock().entry(key.clone()).or_default().insert(place, Instant::now());
                continue;
            };
            if controller(&metadata).as_deref() == Some(uid) {
                let seen = Seen {
                    uid: metadata.uid.clone().unwrap_or_default(),
                    owner: Some(uid.to_owned()),
                    print: fingerprint(&metadata),
                    fact: Fact::Nothing,
                };
                existing.insert(place, seen);
            } else {
                let (kind, name) = place;
                taken.push(Taken { kind: kind.name().to_owned(), name, by: owner_text(&metadata) });
            }
        }
        taken.sort();
        Ok(taken)
    }

    fn was_free(&self, key: &Key, place: &Place) -> bool {
        let all = self.lock();
        all.get(key).and_then(|places| places.get(place)).is_some_and(|at| at.elapsed() < FREE_FOR)
    }

    /// Something was found where nothing was expected.
    pub fn ask_again(&self, key: &Key) {
        self.lock().remove(key);
    }
}

/// By a list of one, for which no other right is needed than for watching.
async fn find(client: &Client, key: &Key, (kind, name): &Place) -> Result<Option<ObjectMeta>, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &kind.resource());
    let parameters = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = request(|| format!("look for {} {name}", kind.name()), api.list_metadata(&parameters)).await;
    let found = match found {
        // Of a kind that the cluster does not serve there is nothing.
        Err(error) if error.category() == Category::Missing => return Ok(None),
        other => other?,
    };
    Ok(found.items.into_iter().next().map(|PartialObjectMeta { metadata, .. }| metadata))
}

/// Who controls it, in words.
fn owner_text(metadata: &ObjectMeta) -> Option<String> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    Some(format!("{} {}", owner.kind, owner.name))
}
