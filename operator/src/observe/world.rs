//! What the watches have shown so far, reduced to what planning needs as it arrives: objects themselves are not kept.
//!
//! One lock, never held across an await. Facts are keyed by the resource they belong to, so that a reconcile reads its own
//! and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard};

use crds::names::label;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::kinds::Kind;
pub use super::outside::{Door, Key};
use super::{Child, Claim, Deployment, Job, Pod, Route, StatefulSet};

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What one object says.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    StatefulSet(StatefulSet),
    Deployment(Deployment),
    Pod(Pod, Option<Door>),
    /// What a Job's pod said at its end.
    LastLine {
        job: String,
        line: String,
    },
    Claim(Claim),
    Job(Job),
    Route(Route),
    /// Only that it is there.
    Nothing,
}

/// An object of a watched kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub uid: String,
    /// UID of the resource that controls it.
    pub owner: Option<String>,
    /// Changes whenever something that is applied may have been changed by another.
    pub print: u64,
    pub fact: Fact,
}

/// Whether planning can rely on what is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    Whole,
    /// The first listings are under way.
    Listing,
    /// Why a watch shows nothing.
    Blind(String),
}

/// What planning for one namespace can rely on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub sight: Sight,
    /// Kinds that pods do not depend on and that cannot be seen, with the reason.
    pub unseen: BTreeMap<Kind, String>,
}

/// A part of the cluster that one watch covers: a namespace, or all of them.
pub type Scope = Option<String>;

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    seen: Seen,
    /// The listing that showed it last.
    listing: u64,
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<Key, BTreeMap<(Kind, String), Entry>>,
    /// How many objects of each resource have gone, ever.
    losses: BTreeMap<Key, u64>,
    watches: BTreeMap<(Kind, Scope), Watch>,
    served: BTreeSet<Kind>,
}

#[derive(Debug, Default)]
struct Watch {
    listing: u64,
    is_listed: bool,
    fault: Option<String>,
}

#[derive(Debug, Default)]
pub struct World(Mutex<Inner>);

impl World {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    /// Announces a watch: nothing is planned before it has listed what there is.
    pub fn expect(&self, kind: Kind, scope: &Scope) {
        self.lock().watches.entry((kind, scope.clone())).or_default();
    }

    /// A watch that is not needed any longer; the resources whose objects it had shown.
    pub fn dismiss(&self, kind: Kind, scope: &Scope) -> Vec<Key> {
        let mut inner = self.lock();
        inner.watches.remove(&(kind, scope.clone()));
        inner.sweep(kind, scope, u64::MAX)
    }

    /// How much has been shown of what concerns a namespace, or all of them: what cannot be seen elsewhere is nothing to it.
    #[must_use]
    pub fn view(&self, namespace: Option<&str>) -> View {
        let inner = self.lock();
        let mut view = View { sight: Sight::Whole, unseen: BTreeMap::new() };
        for ((kind, scope), watch) in &inner.watches {
            let concerns = scope.as_deref().is_none_or(|watched| namespace == Some(watched));
            if watch.is_listed || !concerns {
                continue;
            }
            let Some(why) = &watch.fault else {
                if view.sight == Sight::Whole {
                    view.sight = Sight::Listing;
                }
                continue;
            };
            let place = scope.as_ref().map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
            let text = format!("{} cannot be watched{place}: {why}", kind.resource().plural);
            // One with a fault says more.
            if kind.is_needed() {
                view.sight = Sight::Blind(text);
            } else {
                view.unseen.insert(*kind, text);
            }
        }
        view
    }

    /// Some resource could be planned for, as far as watches go.
    #[must_use]
    pub fn is_of_use(&self) -> bool {
        let scopes: BTreeSet<Scope> = self.lock().watches.keys().map(|(_, scope)| scope.clone()).collect();
        let sights: Vec<Sight> = scopes.iter().map(|scope| self.view(scope.as_deref()).sight).collect();
        sights.contains(&Sight::Whole) && !sights.contains(&Sight::Listing)
    }

    pub fn failed(&self, kind: Kind, scope: &Scope, why: String) {
        if let Some(watch) = self.lock().watches.get_mut(&(kind, scope.clone())) {
            watch.fault = Some(why);
        }
    }

    pub fn begin_listing(&self, kind: Kind, scope: &Scope) {
        if let Some(watch) = self.lock().watches.get_mut(&(kind, scope.clone())) {
            watch.listing += 1;
        }
    }

    /// The resources whose objects were not in the listing.
    pub fn end_listing(&self, kind: Kind, scope: &Scope) -> Vec<Key> {
        let mut inner = self.lock();
        let Some(watch) = inner.watches.get_mut(&(kind, scope.clone())) else { return Vec::new() };
        watch.is_listed = true;
        watch.fault = None;
        let listing = watch.listing;
        inner.sweep(kind, scope, listing)
    }

    /// Takes an object in. The resource it belongs to, where it says something new.
    pub fn show(&self, kind: Kind, scope: &Scope, metadata: &ObjectMeta, fact: Fact) -> Option<Key> {
        let (key, name) = owner_of(metadata)?;
        let seen = Seen {
            uid: metadata.uid.clone().unwrap_or_default(),
            owner: controller(metadata),
            print: fingerprint(metadata),
            fact,
        };
        let mut inner = self.lock();
        let listing = inner.watches.get(&(kind, scope.clone())).map_or(0, |watch| watch.listing);
        let objects = inner.objects.entry(key.clone()).or_default();
        let before = objects.insert((kind, name), Entry { seen: seen.clone(), listing });
        (before.map(|entry| entry.seen) != Some(seen)).then_some(key)
    }

    pub fn forget(&self, kind: Kind, metadata: &ObjectMeta) -> Option<Key> {
        let (key, name) = owner_of(metadata)?;
        let mut inner = self.lock();
        let objects = inner.objects.get_mut(&key)?;
        objects.remove(&(kind, name))?;
        if objects.is_empty() {
            inner.objects.remove(&key);
        }
        *inner.losses.entry(key.clone()).or_default() += 1;
        Some(key)
    }

    /// The objects that belong to a resource.
    #[must_use]
    pub fn of(&self, key: &Key) -> BTreeMap<(Kind, String), Seen> {
        let inner = self.lock();
        let objects = inner.objects.get(key).into_iter().flatten();
        objects.map(|(place, entry)| (place.clone(), entry.seen.clone())).collect()
    }

    /// How many of a resource's objects have gone so far.
    #[must_use]
    pub fn losses(&self, key: &Key) -> u64 {
        self.lock().losses.get(key).copied().unwrap_or(0)
    }

    /// A resource is gone; its objects follow.
    pub fn release(&self, key: &Key) {
        self.lock().losses.remove(key);
    }

    #[must_use]
    pub fn serves(&self, kind: Kind) -> bool {
        self.lock().served.contains(&kind)
    }

    /// Whether that is news.
    pub fn set_served(&self, kind: Kind, is_served: bool) -> bool {
        let mut inner = self.lock();
        if is_served { inner.served.insert(kind) } else { inner.served.remove(&kind) }
    }
}

impl Inner {
    fn sweep(&mut self, kind: Kind, scope: &Scope, listing: u64) -> Vec<Key> {
        let mut touched = Vec::new();
        for (key, objects) in &mut self.objects {
            if scope.as_ref().is_some_and(|namespace| *namespace != key.namespace) {
                continue;
            }
            let before = objects.len();
            objects.retain(|(of, _), entry| *of != kind || entry.listing >= listing);
            if objects.len() != before {
                touched.push(key.clone());
            }
        }
        for key in &touched {
            *self.losses.entry(key.clone()).or_default() += 1;
        }
        self.objects.retain(|_, objects| !objects.is_empty());
        touched
    }
}

/// The resource that an object belongs to by its labels, and the object's name.
fn owner_of(metadata: &ObjectMeta) -> Option<(Key, String)> {
    let labels = metadata.labels.as_ref()?;
    if labels.get(label::NAME).map(String::as_str) != Some(label::ZERO_CACHE) {
        return None;
    }
    let key = Key { namespace: metadata.namespace.clone()?, name: labels.get(label::INSTANCE)?.clone() };
    Some((key, metadata.name.clone()?))
}

/// UID of what controls an object.
#[must_use]
pub fn controller(metadata: &ObjectMeta) -> Option<String> {
    let owners = metadata.owner_references.iter().flatten();
    owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).next()
}

/// Of everything in an object that may be applied: kinds without a generation are told by their version, which for them moves
/// seldom.
#[must_use]
pub fn fingerprint(metadata: &ObjectMeta) -> u64 {
    let mut hasher = DefaultHasher::new();
    metadata.uid.hash(&mut hasher);
    metadata.labels.hash(&mut hasher);
    metadata.annotations.hash(&mut hasher);
    metadata.deletion_timestamp.is_some().hash(&mut hasher);
    for owner in metadata.owner_references.iter().flatten() {
        owner.uid.hash(&mut hasher);
    }
    match metadata.generation {
        Some(generation) => generation.hash(&mut hasher),
        None => metadata.resource_version.hash(&mut hasher),
    }
    hasher.finish()
}

/// Children of the kinds that planning makes, controlled by the given resource.
#[must_use]
pub fn children(objects: &BTreeMap<(Kind, String), Seen>, owner: &str) -> Vec<Child> {
    let own = objects.iter().filter(|((kind, _), seen)| kind.is_planned() && seen.owner.as_deref() == Some(owner));
    own.map(|((kind, name), _)| Child { kind: kind.name().to_owned(), name: name.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str, version: &str) -> ObjectMeta {
        let labels = [(label::NAME, label::ZERO_CACHE), (label::INSTANCE, "shop")];
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("web".to_owned()),
            uid: Some(name.to_owned()),
            resource_version: Some(version.to_owned()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        }
    }

    fn shop() -> Key {
        Key { namespace: "web".to_owned(), name: "shop".to_owned() }
    }

    #[test]
    fn only_news_wakes_a_resource() {
        let world = World::default();
        let show = |version: &str| world.show(Kind::Service, &None, &metadata("shop-rm", version), Fact::Nothing);
        assert_eq!(show("1"), Some(shop()));
        assert_eq!(show("1"), None);
        assert_eq!(show("2"), Some(shop()));
        assert_eq!(world.forget(Kind::Service, &metadata("shop-rm", "2")), Some(shop()));
        assert!(world.of(&shop()).is_empty());
        let stranger = ObjectMeta { labels: None, ..metadata("other", "1") };
        assert_eq!(world.show(Kind::Service, &None, &stranger, Fact::Nothing), None);
    }

    #[test]
    fn what_a_new_listing_does_not_show_is_gone() {
        let world = World::default();
        world.expect(Kind::Service, &None);
        assert_eq!(world.view(Some("web")).sight, Sight::Listing);
        world.begin_listing(Kind::Service, &None);
        world.show(Kind::Service, &None, &metadata("a", "1"), Fact::Nothing);
        world.show(Kind::Service, &None, &metadata("b", "1"), Fact::Nothing);
        assert_eq!(world.end_listing(Kind::Service, &None), Vec::new());
        assert_eq!((world.view(Some("web")).sight, world.losses(&shop())), (Sight::Whole, 0));
        world.begin_listing(Kind::Service, &None);
        world.show(Kind::Service, &None, &metadata("b", "1"), Fact::Nothing);
        assert_eq!(world.end_listing(Kind::Service, &None), vec![shop()]);
        assert_eq!((world.of(&shop()).len(), world.losses(&shop())), (1, 1));
    }

    #[test]
    fn a_watch_that_is_refused_says_so() {
        let world = World::default();
        world.expect(Kind::Pod, &Some("web".to_owned()));
        world.failed(Kind::Pod, &Some("web".to_owned()), "forbidden".to_owned());
        let text = "pods cannot be watched in namespace web: forbidden";
        assert_eq!(world.view(Some("web")).sight, Sight::Blind(text.to_owned()));
    }

    #[test]
    fn what_cannot_be_seen_concerns_only_those_who_depend_on_it() {
        let world = World::default();
        let (web, shop) = (Some("web".to_owned()), Some("shop".to_owned()));
        for scope in [&web, &shop] {
            for kind in [Kind::Pod, Kind::Ingress] {
                world.expect(kind, scope);
            }
        }
        assert!(!world.is_of_use(), "nothing is listed");
        world.end_listing(Kind::Pod, &shop);
        world.end_listing(Kind::Ingress, &shop);
        assert!(!world.is_of_use(), "the other namespace is still being listed");
        world.failed(Kind::Pod, &web, "forbidden".to_owned());
        world.failed(Kind::Ingress, &web, "forbidden".to_owned());
        // One bad namespace.
        assert!(world.is_of_use());
        assert_eq!(world.view(Some("shop")), View { sight: Sight::Whole, unseen: BTreeMap::new() });
        assert!(matches!(world.view(Some("web")).sight, Sight::Blind(text) if text.contains("namespace web")));
        // One bad right: who has an Ingress is told, the others do not notice.
        world.end_listing(Kind::Pod, &web);
        let view = world.view(Some("web"));
        assert_eq!((view.sight, view.unseen.keys().collect::<Vec<_>>()), (Sight::Whole, vec![&Kind::Ingress]));
        world.failed(Kind::Pod, &shop, "gone".to_owned());
        assert_eq!(world.view(Some("shop")).sight, Sight::Whole, "a watch that was cut off goes on by itself");
    }
}
