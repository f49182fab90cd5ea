//! The redactor as a Python object.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyString;
use worker_adapters_core::redact::{Redactor, RedactorError};

/// Replaces secrets in text.
#[pyclass(frozen, name = "Redactor", module = "worker_adapters._core")]
pub(crate) struct PyRedactor(pub(crate) Redactor);

fn refused(error: RedactorError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pymethods]
impl PyRedactor {
    #[new]
    #[pyo3(signature = (known_secrets=Vec::new()), text_signature = "(known_secrets=())")]
    fn new(known_secrets: Vec<PyBackedStr>) -> PyResult<Self> {
        Redactor::new(known_secrets).map(Self).map_err(refused)
    }

    fn redact(&self, text: &Bound<'_, PyString>) -> String {
        // What is logged may be anything: a lone surrogate must not make a logger fail.
        self.0.redact(&text.to_string_lossy()).into_owned()
    }

    fn with_secrets(&self, known_secrets: Vec<PyBackedStr>) -> PyResult<Self> {
        self.0.with_secrets(known_secrets).map(Self).map_err(refused)
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned sequences")]
    fn with_private_texts(&self, texts: Vec<PyBackedStr>) -> Self {
        Self(self.0.with_private_texts(texts.iter().map(|text| &**text)))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}
