//! The kinds of objects that are watched and made.

use kube::core::{ApiResource, GroupVersionKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Secret,
    ServiceAccount,
    Service,
    NetworkPolicy,
    PodDisruptionBudget,
    StatefulSet,
    Deployment,
    HorizontalPodAutoscaler,
    Ingress,
    HttpRoute,
    PodMonitor,
    Job,
    Pod,
    PersistentVolumeClaim,
}

impl Kind {
    pub const ALL: [Kind; 14] = [
        Kind::Secret,
        Kind::ServiceAccount,
        Kind::Service,
        Kind::NetworkPolicy,
        Kind::PodDisruptionBudget,
        Kind::StatefulSet,
        Kind::Deployment,
        Kind::HorizontalPodAutoscaler,
        Kind::Ingress,
        Kind::HttpRoute,
        Kind::PodMonitor,
        Kind::Job,
        Kind::Pod,
        Kind::PersistentVolumeClaim,
    ];

    /// Group, version, kind and plural.
    fn words(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Kind::Secret => ("", "v1", "Secret", "secrets"),
            Kind::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Kind::Service => ("", "v1", "Service", "services"),
            Kind::NetworkPolicy => ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
            Kind::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Kind::StatefulSet => ("apps", "v1", "StatefulSet", "statefulsets"),
            Kind::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Kind::HorizontalPodAutoscaler => {
                ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            }
            Kind::Ingress => ("networking.k8s.io", "v1", "Ingress", "ingresses"),
            Kind::HttpRoute => ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
            Kind::PodMonitor => ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
            Kind::Job => ("batch", "v1", "Job", "jobs"),
            Kind::Pod => ("", "v1", "Pod", "pods"),
            Kind::PersistentVolumeClaim => ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        self.words().2
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    #[must_use]
    pub fn resource(self) -> ApiResource {
        let (group, version, kind, plural) = self.words();
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    /// Not every cluster serves it.
    #[must_use]
    pub fn is_optional(self) -> bool {
        matches!(self, Kind::HttpRoute | Kind::PodMonitor)
    }

    /// Pods are not made or changed while it cannot be seen. The others are left as they are where they cannot be seen.
    #[must_use]
    pub fn is_needed(self) -> bool {
        match self {
            Kind::Secret
            | Kind::ServiceAccount
            | Kind::Service
            | Kind::NetworkPolicy
            | Kind::StatefulSet
            | Kind::Deployment
            | Kind::Job
            | Kind::Pod
            | Kind::PersistentVolumeClaim => true,
            Kind::PodDisruptionBudget
            | Kind::HorizontalPodAutoscaler
            | Kind::Ingress
            | Kind::HttpRoute
            | Kind::PodMonitor => false,
        }
    }

    /// Planning makes it, so that one that is not wanted any longer is removed.
    #[must_use]
    pub fn is_planned(self) -> bool {
        !matches!(self, Kind::Pod | Kind::PersistentVolumeClaim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
        assert_eq!(Kind::named("ConfigMap"), None);
    }
}
