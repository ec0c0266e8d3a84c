//! `METRICS.md`: what a scrape offers, as a page for people.

use std::fmt::Write as _;

use prometheus::Registry;
use prometheus::proto::MetricType;

const HEAD: &str = "\
# Metrics

Generated from the registry; `UPDATE_REFERENCE=1 cargo test -p zero-cache --lib` writes it anew. Do not edit it by hand.

`GET /metrics` on the client port answers in Prometheus's text format. Histograms have the series `_bucket`, `_sum` and
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

    #[test]
    fn the_reference_page_is_current() {
        let metrics = Metrics::new("0.0.0", "single-node").unwrap();
        crate::reference_page::check("METRICS.md", &reference(&metrics.registry));
    }
}
