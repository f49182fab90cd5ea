//! The accounting as Python objects. Nothing of it is called per token.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use worker_adapters_core::error::{Phase, WorkerErrorKind};
use worker_adapters_core::metrics::{
    BreakerState, EngineGauge, Family, Format, HistogramValue, Label, Metrics, MetricsConfig,
    OwnSeries, ReplicaMetrics, Sample, TaskMetrics, TraceId, Value, bound_labels, in_unit,
};
use worker_adapters_core::time::Instant;

use crate::errors::word;
use crate::stream::instant;

/// Every series of a process, or of a part of it.
#[pyclass(frozen, weakref, name = "Metrics", module = "worker_adapters._core")]
pub(crate) struct PyMetrics {
    metrics: Metrics,
    clock: Py<PyAny>,
}

/// One replica's series.
#[pyclass(frozen, name = "ReplicaMetrics", module = "worker_adapters._core")]
pub(crate) struct PyReplicaMetrics {
    replica: ReplicaMetrics,
    clock: Py<PyAny>,
}

/// What one task tells.
#[pyclass(frozen, name = "TaskMetrics", module = "worker_adapters._core")]
pub(crate) struct PyTaskMetrics(pub(crate) TaskMetrics);

/// A series of the orchestrator's own.
#[pyclass(frozen, name = "OwnSeries", module = "worker_adapters._core")]
pub(crate) struct PyOwnSeries(OwnSeries);

fn read(py: Python<'_>, clock: &Py<PyAny>) -> PyResult<Instant> {
    instant("clock", clock.call0(py)?.extract(py)?)
}

#[pymethods]
impl PyMetrics {
    #[new]
    #[pyo3(signature = (*, clock=None, milliseconds=true, seconds=false, max_series=20_000,
        budgets=None), text_signature = "(*, clock=None, milliseconds=True, seconds=False, \
        max_series=20000, budgets=None)")]
    fn new(
        py: Python<'_>,
        clock: Option<Py<PyAny>>,
        milliseconds: bool,
        seconds: bool,
        max_series: usize,
        budgets: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut config = MetricsConfig::default();
        config.milliseconds = milliseconds;
        config.seconds = seconds;
        config.max_series = max_series;
        for (label, values) in budgets.into_iter().flatten() {
            let label = word("label", label.extract()?, Label::from_word)?;
            config.budgets.set(label, values.extract()?);
        }
        let clock = match clock {
            Some(clock) => clock,
            None => py.import("time")?.getattr("monotonic")?.unbind(),
        };
        Ok(Self { metrics: Metrics::new(config), clock })
    }

    fn replica(
        &self,
        py: Python<'_>,
        engine: &str,
        pool_id: &str,
        replica_id: &str,
    ) -> PyReplicaMetrics {
        let replica = self.metrics.replica(engine, pool_id, replica_id);
        PyReplicaMetrics { replica, clock: self.clock.clone_ref(py) }
    }

    fn rejected(&self, engine: &str, reason: &str) {
        self.metrics.rejected(engine, reason);
    }

    #[pyo3(signature = (name, **labels))]
    fn orchestrator(
        &self,
        name: &str,
        labels: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyOwnSeries> {
        let family = word("name", name, Family::from_word)?;
        let mut pairs: Vec<(Label, String)> = Vec::new();
        for (label, value) in labels.into_iter().flatten() {
            pairs.push((word("label", label.extract()?, Label::from_word)?, value.extract()?));
        }
        let pairs: Vec<_> = pairs.iter().map(|(label, value)| (*label, value.as_str())).collect();
        self.metrics
            .orchestrator(family, &pairs)
            .map(PyOwnSeries)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    #[pyo3(signature = (*, openmetrics=true))]
    fn render(&self, py: Python<'_>, openmetrics: bool) -> PyResult<String> {
        let format = if openmetrics { Format::OpenMetrics } else { Format::Prometheus };
        let now = read(py, &self.clock)?;
        let metrics = self.metrics.clone();
        Ok(py.detach(move || metrics.snapshot(now).render(format)))
    }

    #[staticmethod]
    #[pyo3(signature = (*, openmetrics=true))]
    fn content_type(openmetrics: bool) -> &'static str {
        let format = if openmetrics { Format::OpenMetrics } else { Format::Prometheus };
        format.content_type()
    }

    /// One tuple per family: name, kind, help, and its samples as (suffix, labels, value, trace id
    /// and its value or None).
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let now = read(py, &self.clock)?;
        let snapshot = py.detach(|| self.metrics.snapshot(now));
        let families = PyList::empty(py);
        for family in snapshot.families() {
            let samples = PyList::empty(py);
            let bounds = bound_labels(family.family);
            for sample in &*family.samples {
                put_sample(py, &samples, family.family, sample, &bounds)?;
            }
            let name = family.family.as_str();
            let kind = family.family.kind().as_str();
            families.append((name, kind, family.family.help(), samples))?;
        }
        Ok(families)
    }

    fn collector<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let module = slf.py().import("worker_adapters.observe.collector")?;
        module.getattr("MetricsCollector")?.call1((slf,))
    }

    #[getter]
    fn series(&self) -> usize {
        self.metrics.series()
    }

    fn __repr__(&self) -> String {
        format!("<Metrics of {} series>", self.metrics.series())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.clock)
    }
}

fn put_sample(
    py: Python<'_>,
    samples: &Bound<'_, PyList>,
    family: Family,
    sample: &Sample,
    bounds: &[String],
) -> PyResult<()> {
    let labels = PyDict::new(py);
    for (label, value) in sample.labels.iter() {
        labels.set_item(label.as_str(), value)?;
    }
    match &sample.value {
        Value::Counter(count) => samples.append(("_total", labels, *count, py.None())),
        Value::Gauge(value) => samples.append(("", labels, *value, py.None())),
        Value::Histogram(value) => put_histogram(py, samples, family, &labels, value, bounds),
    }
}

fn put_histogram<'py>(
    py: Python<'py>,
    samples: &Bound<'py, PyList>,
    family: Family,
    labels: &Bound<'py, PyDict>,
    value: &HistogramValue,
    bounds: &[String],
) -> PyResult<()> {
    let mut count = 0;
    for (at, (own, bound)) in value.counts.iter().zip(bounds).enumerate() {
        count += own;
        let labels = labels.copy()?;
        labels.set_item("le", bound)?;
        let exemplar = match value.exemplars.get(at) {
            Some(Some(exemplar)) => {
                let value = in_unit(family, exemplar.micros);
                (exemplar.trace_id.as_str(), value).into_pyobject(py)?.into_any()
            }
            _ => py.None().into_bound(py),
        };
        samples.append(PyTuple::new(
            py,
            [
                "_bucket".into_pyobject(py)?.into_any(),
                labels.into_any(),
                count.into_pyobject(py)?.into_any(),
                exemplar,
            ],
        )?)?;
    }
    samples.append(("_sum", labels, in_unit(family, value.sum_micros), py.None()))?;
    samples.append(("_count", labels, count, py.None()))
}

#[pymethods]
impl PyReplicaMetrics {
    #[getter]
    fn engine(&self) -> &str {
        self.replica.engine()
    }

    #[getter]
    fn pool_id(&self) -> &str {
        self.replica.pool_id()
    }

    #[getter]
    fn replica_id(&self) -> &str {
        self.replica.replica_id()
    }

    #[getter]
    fn engine_version(&self) -> String {
        self.replica.engine_version().to_string()
    }

    #[pyo3(signature = (version, *, trtllm_version=None))]
    fn set_engine_version(&self, version: &str, trtllm_version: Option<&str>) {
        self.replica.set_engine_version(version, trtllm_version);
    }

    #[pyo3(signature = (priority, *, traceparent=None))]
    fn task(&self, priority: &str, traceparent: Option<&str>) -> PyTaskMetrics {
        let trace_id = traceparent.and_then(TraceId::from_traceparent);
        PyTaskMetrics(self.replica.task(priority, trace_id))
    }

    fn rejected(&self, reason: &str) {
        self.replica.rejected(reason);
    }

    fn retried(&self, reason: &str) {
        self.replica.retried(reason);
    }

    fn set_breaker(&self, state: &str) -> PyResult<()> {
        self.replica.set_breaker(word("state", state, BreakerState::from_word)?);
        Ok(())
    }

    fn breaker_tripped(&self) {
        self.replica.breaker_tripped();
    }

    #[pyo3(signature = (name, value, *, source, priority=None))]
    fn set_gauge(
        &self,
        py: Python<'_>,
        name: &str,
        value: Option<f64>,
        source: &str,
        priority: Option<&str>,
    ) -> PyResult<()> {
        let gauge = word("name", name, EngineGauge::from_word)?;
        let now = read(py, &self.clock)?;
        self.replica.set_gauge(gauge, priority, value, source, now);
        Ok(())
    }

    /// By name, or `name:priority` where it is of one: value, source and age in seconds.
    fn gauges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let now = read(py, &self.clock)?;
        let gauges = PyDict::new(py);
        for reading in self.replica.gauges() {
            let mut name = reading.gauge.as_str().to_owned();
            if &*reading.priority != worker_adapters_core::metrics::ALL_PRIORITIES {
                name.push(':');
                name.push_str(&reading.priority);
            }
            let age = now.saturating_since(reading.at).as_secs_f64();
            gauges.set_item(name, (reading.value, &*reading.source, age))?;
        }
        Ok(gauges)
    }

    fn retire(&self) {
        self.replica.retire();
    }

    fn __repr__(&self) -> String {
        let Self { replica, .. } = self;
        format!(
            "<ReplicaMetrics {} {} {}>",
            replica.engine(),
            replica.pool_id(),
            replica.replica_id()
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.clock)
    }
}

#[pymethods]
impl PyTaskMetrics {
    fn started(&self) {
        self.0.started();
    }

    fn give_reason(&self, reason: &str) {
        self.0.give_reason(reason);
    }

    fn refused(&self, kind: &str, phase: &str, code: &str) -> PyResult<()> {
        let kind = word("kind", kind, WorkerErrorKind::from_word)?;
        let phase = word("phase", phase, Phase::from_word)?;
        self.0.refused_by(kind, phase, code);
        Ok(())
    }

    fn cancelled(&self, reason: &str) {
        self.0.cancelled(reason);
    }

    fn stopped(&self, confirmed: Option<bool>, seconds: f64) -> PyResult<()> {
        let took = Duration::try_from_secs_f64(seconds)
            .map_err(|error| PyValueError::new_err(format!("seconds: {error}")))?;
        self.0.stopped(confirmed, took);
        Ok(())
    }
}

#[pymethods]
impl PyOwnSeries {
    #[pyo3(signature = (more=1))]
    fn inc(&self, more: u64) {
        self.0.add(more);
    }

    fn set(&self, value: Option<f64>) {
        self.0.set(value);
    }
}
