//! `METRICS.md`: what a scrape offers, as a page for people.

use std::fmt::Write as _;

use prometheus::Registry;
use prometheus::proto::MetricType;

const HEAD: &str = "\
# Metrics

Generated from the registry; `UPDATE_REFERENCE=1 cargo test -p zero-cache --lib` writes it anew. Do not edit it by hand.

`GET /metrics` on the client port (with `ZERO_ADMIN_PORT`: on that port) and on the port of the change stream answers in Prometheus's
text format; a node shows what its role has. Histograms have the series `_bucket`, `_sum` and
`_count`. Metrics beginning with `process_` are the usual ones of a process.

| name | kind | labels | meaning |
|---|---|---|---|
";

/// One metric of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    pub name: String,
    pub kind: &'static str,
    pub labels: Vec<String>,
    pub help: String,
}

/// Everything the registry gathers now, by name. A family with labels is there once a label value has been used.
#[must_use]
pub fn families(registry: &Registry) -> Vec<Family> {
    registry
        .gather()
        .iter()
        .map(|family| Family {
            name: family.name().to_owned(),
            kind: match family.get_field_type() {
                MetricType::COUNTER => "counter",
                MetricType::GAUGE => "gauge",
                MetricType::HISTOGRAM => "histogram",
                MetricType::SUMMARY => "summary",
                MetricType::UNTYPED => "untyped",
            },
            labels: family
                .get_metric()
                .first()
                .map(|metric| metric.get_label().iter().map(|label| label.name().to_owned()).collect())
                .unwrap_or_default(),
            help: family.help().to_owned(),
        })
        .collect()
}

/// The whole page.
#[must_use]
pub fn reference(registry: &Registry) -> String {
    let mut page = HEAD.to_owned();
    for Family { name, kind, labels, help } in families(registry) {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// Everything a node can show: labelled families appear once a label value has been used.
    fn everything() -> Registry {
        let own = Metrics::new("0.0.0", "single-node").unwrap();
        own.restores.with_label_values(&["any", "any"]).inc_by(0);
        own.stands(fault::Class::Passes);
        let registry = own.registry;
        let views = views::metrics::Metrics::register(&registry).unwrap();
        backup::metrics::Metrics::register(&registry).unwrap();
        let stream = streamer::Metrics::register(&registry).unwrap();
        stream.subscribers.with_label_values(&["any"]).set(0);
        let gateway = gateway::metrics::Metrics::register(&registry).unwrap();
        gateway.open_connections.with_label_values(&["51"]).set(0);
        for labelled in [
            &views.rehomes,
            &views.inherited,
            &views.shed,
            &stream.refusals,
            &stream.endings,
            &gateway.connection_failures,
            &gateway.disconnects,
            &gateway.messages_received,
            &gateway.api_attempts,
            &gateway.query_transformations,
        ] {
            labelled.with_label_values(&["any"]).inc_by(0);
        }
        for labelled in [&gateway.api_requests, &gateway.http_requests] {
            labelled.with_label_values(&["any", "any"]).inc_by(0);
        }
        let crud = crud::Metrics::register(&registry).unwrap();
        crud.mutations.with_label_values(&["any"]).inc_by(0);
        crud.duration.with_label_values(&["any"]);
        gateway.api_request_duration.with_label_values(&["any"]);
        gateway.api_in_flight.with_label_values(&["any"]).set(0);
        gateway.api_waiting.with_label_values(&["any"]).set(0);
        registry
    }

    #[test]
    fn the_reference_page_is_current() {
        crate::reference_page::check("METRICS.md", &reference(&everything()));
    }

    /// A labelled metric that nobody touches would be missing above.
    #[test]
    fn every_name_in_the_sources_is_on_the_page() {
        let page = reference(&everything());
        for source in [
            include_str!("../../views/src/metrics.rs"),
            include_str!("../../gateway/src/metrics.rs"),
            include_str!("../../crud/src/metrics.rs"),
            include_str!("../../streamer/src/metrics.rs"),
            include_str!("../../backup/src/metrics.rs"),
            include_str!("names.rs"),
        ] {
            let names: Vec<_> =
                source.split('"').filter(|text| text.starts_with("zero_") && !text.contains(' ')).collect();
            assert!(!names.is_empty());
            for name in names {
                assert!(page.contains(&format!("| `{name}` |")), "{name} is not on the page");
            }
        }
    }

    #[test]
    fn names_follow_the_rules() {
        for family in families(&everything()) {
            let name = &family.name;
            assert!(!family.help.is_empty(), "{name}");
            assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
            assert!(family.kind != "histogram" || name.ends_with("_seconds"), "{name}");
            assert!(name.starts_with("zero_") || name.starts_with("process_"), "{name}");
        }
    }
}
