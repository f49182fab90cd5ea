//! The egress policy as a Python object.

use std::net::IpAddr;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use worker_adapters_core::egress::{Denied, Destination, EgressPolicy, Ranges, Reason};

/// What an adapter may connect to.
#[pyclass(frozen, eq, hash, name = "EgressPolicy", module = "worker_adapters._core")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PyEgressPolicy(pub(crate) Arc<EgressPolicy>);

#[pymethods]
impl PyEgressPolicy {
    #[new]
    #[pyo3(signature = (*, allow, allow_loopback=false, allow_private=false, allow_nat64=false))]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned sequences")]
    fn new(
        allow: Vec<Bound<'_, PyString>>,
        allow_loopback: bool,
        allow_private: bool,
        allow_nat64: bool,
    ) -> PyResult<Self> {
        let ranges =
            Ranges { loopback: allow_loopback, private: allow_private, nat64: allow_nat64 };
        // What a lone surrogate becomes is no part of a host, so the entry is refused as any other.
        let policy = EgressPolicy::new(allow.iter().map(|entry| entry.to_string_lossy()), ranges);
        match policy {
            Ok(policy) => Ok(Self(Arc::new(policy))),
            Err(error) => Err(PyValueError::new_err(error.to_string())),
        }
    }

    #[classmethod]
    fn for_base_url(_class: &Bound<'_, PyType>, base_url: &Bound<'_, PyString>) -> PyResult<Self> {
        match well_formed(base_url).and_then(EgressPolicy::for_base_url) {
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
    fn check(
        &self,
        url: &Bound<'_, PyString>,
        addresses: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<PyEgressVerdict> {
        let addresses =
            addresses.iter().enumerate().map(address).collect::<PyResult<Vec<IpAddr>>>()?;
        Ok(PyEgressVerdict::of(well_formed(url).and_then(|url| self.0.check(url, &addresses))))
    }

    fn check_url(&self, url: &Bound<'_, PyString>) -> PyEgressVerdict {
        PyEgressVerdict::of(well_formed(url).and_then(|url| self.0.check_url(url)))
    }

    /// The call that makes it once more. That of a base URL may list what the constructor refuses.
    fn __reduce__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let class = PyType::new::<Self>(py);
        let allow = self.allow();
        if let [only] = &*allow
            && EgressPolicy::for_base_url(only).as_ref() == Ok(&*self.0)
        {
            let made = class.getattr(intern!(py, "for_base_url"))?;
            return Ok((made, (only,).into_pyobject(py)?));
        }
        let made = py.import(intern!(py, "copyreg"))?.getattr(intern!(py, "__newobj_ex__"))?;
        let arguments = PyDict::new(py);
        arguments.set_item(intern!(py, "allow"), allow)?;
        let Ranges { loopback, private, nat64 } = self.0.ranges();
        arguments.set_item(intern!(py, "allow_loopback"), loopback)?;
        arguments.set_item(intern!(py, "allow_private"), private)?;
        arguments.set_item(intern!(py, "allow_nat64"), nat64)?;
        Ok((made, (class, PyTuple::empty(py), arguments).into_pyobject(py)?))
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

/// The URL as UTF-8. One with a lone surrogate is none; the codec's error would quote it.
fn well_formed<'a>(url: &'a Bound<'_, PyString>) -> Result<&'a str, Denied> {
    url.to_str().map_err(|_| Reason::Parse.into())
}

fn address((position, address): (usize, &Bound<'_, PyAny>)) -> PyResult<IpAddr> {
    address.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyValueError>(address.py()) {
            PyValueError::new_err(format!("addresses[{position}] is no IP address"))
        } else {
            error
        }
    })
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
