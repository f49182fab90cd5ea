//! The exposition formats: Prometheus' text, and OpenMetrics with exemplars.

use std::fmt::Write;

use super::histogram::HistogramValue;
use super::labels::LabelSet;
use super::names::{Family, FamilyKind};
use super::series::Value;
use super::snapshot::Snapshot;

/// How a [`Snapshot`] is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`
    #[default]
    OpenMetrics,
    /// `text/plain; version=0.0.4; charset=utf-8`
    Prometheus,
}

impl Format {
    /// The media type to serve it as.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// About what one line takes.
const LINE_BYTES: usize = 160;

impl Snapshot {
    /// Writes everything out.
    ///
    /// See [the text format](https://prometheus.io/docs/instrumenting/exposition_formats/) and
    /// [OpenMetrics](https://prometheus.io/docs/specs/om/open_metrics_spec/).
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        let lines: usize = self
            .families
            .iter()
            .map(|family| 2 + family.samples.len() * family.family.samples())
            .sum();
        let mut out = String::with_capacity(lines * LINE_BYTES);
        for family in &self.families {
            let name = family.family.as_str();
            let described = match format {
                Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
                Format::Prometheus => name,
            };
            put(&mut out, &["# HELP ", described, " ", family.family.help(), "\n# TYPE "]);
            put(&mut out, &[described, " ", family.family.kind().as_str(), "\n"]);
            let bounds = bound_labels(family.family);
            for sample in &*family.samples {
                match &sample.value {
                    Value::Counter(count) => {
                        start(&mut out, name, &sample.labels);
                        put_integer(&mut out, *count);
                        out.push('\n');
                    }
                    Value::Gauge(value) => {
                        start(&mut out, name, &sample.labels);
                        put_float(&mut out, *value);
                        out.push('\n');
                    }
                    Value::Histogram(value) => {
                        put_histogram(
                            &mut out,
                            family.family,
                            &sample.labels,
                            value,
                            &bounds,
                            format == Format::OpenMetrics,
                        );
                    }
                }
            }
        }
        if format == Format::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }
}

/// Upper bounds as the label `le` has them, the infinite one last.
#[must_use]
pub fn bound_labels(family: Family) -> Vec<String> {
    let FamilyKind::Histogram(bounds) = family.kind() else { return Vec::new() };
    let finite = bounds.iter().map(|bound| format!("{:?}", in_unit(family, *bound)));
    finite.chain(["+Inf".to_owned()]).collect()
}

/// Microseconds in a family's own unit.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "exact for 285 years of microseconds")]
pub fn in_unit(family: Family, micros: u64) -> f64 {
    micros as f64 / f64::from(family.micros_per_unit())
}

fn put_histogram(
    out: &mut String,
    family: Family,
    labels: &LabelSet,
    value: &HistogramValue,
    bounds: &[String],
    with_exemplars: bool,
) {
    let name = family.as_str();
    let mut count = 0;
    for (at, (own, bound)) in value.counts.iter().zip(bounds).enumerate() {
        count += own;
        put(out, &[name, "_bucket{", labels.as_str(), ",le=\"", bound, "\"} "]);
        put_integer(out, count);
        if with_exemplars && let Some(Some(exemplar)) = value.exemplars.get(at) {
            put(out, &[" # {trace_id=\"", exemplar.trace_id.as_str(), "\"} "]);
            put_float(out, in_unit(family, exemplar.micros));
        }
        out.push('\n');
    }
    put(out, &[name, "_sum{", labels.as_str(), "} "]);
    put_float(out, in_unit(family, value.sum_micros));
    put(out, &["\n", name, "_count{", labels.as_str(), "} "]);
    put_integer(out, count);
    out.push('\n');
}

fn start(out: &mut String, name: &str, labels: &LabelSet) {
    put(out, &[name, "{", labels.as_str(), "} "]);
}

fn put(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

fn put_float(out: &mut String, value: f64) {
    // The shortest text that reads back as the same number; writing to a String does not fail.
    let _ = write!(out, "{value:?}");
}

/// Most lines end with a small count: the general way of writing one costs more than the line.
fn put_integer(out: &mut String, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or_default();
        used += 1;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    let text = digits.get(digits.len() - used..).unwrap_or_default();
    out.push_str(std::str::from_utf8(text).unwrap_or_default());
}
