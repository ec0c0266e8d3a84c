//! The autoscaler of the view-syncers. It goes down slowly: each pod that leaves makes its clients hydrate elsewhere.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget,
    PodsMetricSource, ResourceMetricSource,
};

use super::super::wanted::Wanted;
use super::meta::Meta;
use crate::observe::Role;

/// The bounds after flows and budget had their say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) struct Bounds {
    pub min: i32,
    pub max: i32,
}

pub(super) fn autoscaler(wanted: &Wanted, meta: &Meta, bounds: Bounds) -> HorizontalPodAutoscaler {
    let role = Role::ViewSyncer;
    let given = wanted.spec.view_syncer.autoscaling.clone().unwrap_or_default();
    let mut metrics = vec![MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(given.target_cpu_percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }];
    metrics.extend(given.pods_metric.map(|metric| MetricSpec {
        type_: "Pods".to_owned(),
        pods: Some(PodsMetricSource {
            metric: MetricIdentifier { name: metric.name, selector: None },
            target: MetricTarget {
                type_: "AverageValue".to_owned(),
                average_value: Some(metric.target_average),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }));
    HorizontalPodAutoscaler {
        metadata: meta.of(role, wanted.workload_name(role)),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name: wanted.workload_name(role),
            },
            min_replicas: Some(bounds.min),
            max_replicas: bounds.max,
            metrics: Some(metrics),
            behavior: Some(HorizontalPodAutoscalerBehavior {
                scale_up: Some(rules("Percent", 100, 60, None)),
                scale_down: Some(rules("Pods", 1, 300, Some(600))),
            }),
        }),
        ..HorizontalPodAutoscaler::default()
    }
}

fn rules(kind: &str, value: i32, period: i32, window: Option<i32>) -> HPAScalingRules {
    HPAScalingRules {
        policies: Some(vec![HPAScalingPolicy { type_: kind.to_owned(), value, period_seconds: period }]),
        stabilization_window_seconds: window,
        ..HPAScalingRules::default()
    }
}
