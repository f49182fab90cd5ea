//! The egress policy as a Python object.

use std::net::IpAddr;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyType;
use worker_adapters_core::egress::{Denied, Destination, EgressPolicy, Ranges};

/// What an adapter may connect to.
#[pyclass(frozen, eq, hash, name = "EgressPolicy", module = "worker_adapters._core")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PyEgressPolicy(pub(crate) Arc<EgressPolicy>);

#[pymethods]
impl PyEgressPolicy {
    #[new]
    #[pyo3(signature = (*, allow, allow_loopback=false, allow_private=false, allow_nat64=false))]
    fn new(
        allow: Vec<PyBackedStr>,
        allow_loopback: bool,
        allow_private: bool,
        allow_nat64: bool,
    ) -> PyResult<Self> {
        let ranges =
            Ranges { loopback: allow_loopback, private: allow_private, nat64: allow_nat64 };
        let policy = EgressPolicy::new(allow, ranges);
        match policy {
            Ok(policy) => Ok(Self(Arc::new(policy))),
            Err(error) => Err(PyValueError::new_err(error.to_string())),
        }
    }

    #[classmethod]
    fn for_base_url(_class: &Bound<'_, PyType>, base_url: &str) -> PyResult<Self> {
        match EgressPolicy::for_base_url(base_url) {
            Ok(policy) => Ok(Self(Arc::new(policy))),
            Err(denied) => {
                Err(PyValueError::new_err(format!("base_url cannot be connected to: {denied}")))
            }
        }
    }

    #[getter]
    fn allow(&self) -> Vec<String> {
        self.0.patterns().collect()
    }

    #[getter]
    fn allow_loopback(&self) -> bool {
        self.0.ranges().loopback
    }

    #[getter]
    fn allow_private(&self) -> bool {
        self.0.ranges().private
    }

    #[getter]
    fn allow_nat64(&self) -> bool {
        self.0.ranges().nat64
    }

    #[pyo3(signature = (url, addresses=Vec::new()), text_signature = "($self, url, addresses=())")]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned sequences")]
    fn check(&self, url: &str, addresses: Vec<IpAddr>) -> PyEgressVerdict {
        PyEgressVerdict::of(self.0.check(url, &addresses))
    }

    fn check_url(&self, url: &str) -> PyEgressVerdict {
        PyEgressVerdict::of(self.0.check_url(url))
    }

    fn __repr__(&self) -> String {
        let Ranges { loopback, private, nat64 } = self.0.ranges();
        let [loopback, private, nat64] =
            [loopback, private, nat64].map(|allowed| if allowed { "True" } else { "False" });
        let allow: Vec<String> = self.0.patterns().map(|pattern| format!("'{pattern}'")).collect();
        format!(
            "EgressPolicy(allow=[{}], allow_loopback={loopback}, allow_private={private}, \
             allow_nat64={nat64})",
            allow.join(", ")
        )
    }
}

/// What a policy says of one URL.
#[pyclass(frozen, get_all, eq, hash, name = "EgressVerdict", module = "worker_adapters._core")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PyEgressVerdict {
    allowed: bool,
    reason: &'static str,
    message: String,
    host: Option<String>,
    port: Option<u16>,
}

impl PyEgressVerdict {
    fn of(verdict: Result<Destination, Denied>) -> Self {
        match verdict {
            Ok(destination) => Self {
                allowed: true,
                reason: "ok",
                message: String::new(),
                host: Some(destination.host().to_string()),
                port: Some(destination.port()),
            },
            Err(denied) => Self {
                allowed: false,
                reason: denied.reason.as_str(),
                message: denied.to_string(),
                host: None,
                port: None,
            },
        }
    }
}

#[pymethods]
impl PyEgressVerdict {
    fn __bool__(&self) -> bool {
        self.allowed
    }

    fn __repr__(&self) -> String {
        let allowed = if self.allowed { "True" } else { "False" };
        format!("EgressVerdict(allowed={allowed}, reason='{}')", self.reason)
    }
}
