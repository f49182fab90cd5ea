//! The compiled core of the `worker_adapters` wheel: translation only.
//!
//! Bytes cross into Rust and a list of frozen events crosses back, once per network read. What the
//! bytes mean is decided in `worker-adapters-core`; what is raised is built in one place, `errors`.

mod egress;
mod errors;
mod event;
mod interpreter;
mod metrics;
mod native;
mod redact;
mod rules;
mod sse;
mod stream;
mod sync;

use pyo3::prelude::*;

// Every class is frozen, its state behind a mutex that is not held while Python runs.
#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;
    use worker_adapters_core::dialects::Dialect;
    use worker_adapters_core::error::{Detail, ErrorKind, Phase, WorkerErrorKind};

    #[pymodule_export]
    use crate::egress::{PyEgressPolicy, PyEgressVerdict};
    #[pymodule_export]
    use crate::errors::{classify_response, make_error};
    #[pymodule_export]
    use crate::event::{PySseEvent, PyTokenEvent};
    #[pymodule_export]
    use crate::metrics::{PyMetrics, PyOwnSeries, PyReplicaMetrics, PyTaskMetrics};
    #[pymodule_export]
    use crate::native::{PyNativeEvents, PyNativeStream, PyNativeTarget, PyReactor};
    #[pymodule_export]
    use crate::redact::PyRedactor;
    #[pymodule_export]
    use crate::rules::PyErrorRules;
    #[pymodule_export]
    use crate::sse::PySseDecoder;
    #[pymodule_export]
    use crate::stream::PyStreamDecoder;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python looks for")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::interpreter::claim(module.py())?;
        crate::native::listen_for_forks(module.py())
    }

    /// The wire dialects `StreamDecoder` knows, sorted.
    #[pyfunction]
    fn dialects() -> Vec<&'static str> {
        Dialect::NAMES.to_vec()
    }

    /// Every `WorkerError` kind.
    #[pyfunction]
    fn error_kinds() -> Vec<&'static str> {
        WorkerErrorKind::ALL.iter().map(|kind| kind.as_str()).collect()
    }

    /// Every `ErrorKind` code.
    #[pyfunction]
    fn error_codes() -> Vec<&'static str> {
        ErrorKind::ALL.iter().map(|code| code.as_str()).collect()
    }

    /// Every stable word that `WorkerError.detail` may hold.
    #[pyfunction]
    fn error_details() -> Vec<&'static str> {
        Detail::ALL.iter().map(|detail| detail.as_str()).collect()
    }

    /// Every phase in which an error can arise.
    #[pyfunction]
    fn error_phases() -> Vec<&'static str> {
        Phase::ALL.iter().map(|phase| phase.as_str()).collect()
    }
}
