//! One engine's address, as Python sends tasks to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::{PyTraverseError, PyVisit};
use worker_adapters_core::egress::EgressPolicy;
use worker_adapters_net::origin::{Origin, Scheme};
use worker_adapters_net::tls::{self, TlsOptions};
use worker_adapters_net::{Bounds, Request, Target, TargetConfig, Vet};

use super::reactor::{PyReactor, forked};
use super::stream::PyNativeStream;
use super::wakes::StreamWaker;
use crate::egress::PyEgressPolicy;
use crate::stream::PyStreamDecoder;

/// Where tasks go, for one event loop.
#[pyclass(frozen, name = "NativeTarget", module = "worker_adapters._core")]
pub(crate) struct PyNativeTarget {
    reactor: Py<PyReactor>,
    target: Target,
    prefix: String,
}

#[pymethods]
impl PyNativeTarget {
    #[new]
    #[pyo3(signature = (reactor, base_url, *, egress=None, roots_pem=None, client_cert_pem=None,
        client_key_pem=None, max_streams=1024, max_waiting=1024, queue_timeout=5.0, max_idle=64,
        idle_timeout=4.0))]
    #[expect(clippy::too_many_arguments, reason = "a configuration, by keyword")]
    fn new(
        reactor: Py<PyReactor>,
        base_url: &str,
        egress: Option<&PyEgressPolicy>,
        roots_pem: Option<&[u8]>,
        client_cert_pem: Option<&[u8]>,
        client_key_pem: Option<&[u8]>,
        max_streams: usize,
        max_waiting: usize,
        queue_timeout: f64,
        max_idle: usize,
        idle_timeout: f64,
    ) -> PyResult<Self> {
        let (origin, prefix) =
            Origin::parse(base_url).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let is_secure = origin.scheme() == Scheme::Https;
        let mut config = TargetConfig::new(origin);
        if is_secure {
            let mut options = TlsOptions::default().http2(true);
            if let Some(roots) = roots_pem {
                options = options.replace_roots(roots);
            }
            if let (Some(certificate), Some(key)) = (client_cert_pem, client_key_pem) {
                options = options.client_certificate(certificate, key);
            }
            let client = tls::client_config(&options)
                .map_err(|error| PyValueError::new_err(error.to_string()))?;
            config.tls = Some(client);
        }
        config.vet = Some(match egress {
            Some(policy) => vet(Arc::clone(&policy.0), base_url),
            None => match EgressPolicy::for_base_url(base_url) {
                Ok(policy) => vet(Arc::new(policy), base_url),
                Err(denied) => denial(denied.to_string()),
            },
        });
        config.max_exchanges = max_streams;
        config.max_waiting = max_waiting;
        config.queue_timeout = seconds("queue_timeout", queue_timeout)?;
        config.max_idle = max_idle;
        config.idle_timeout = seconds("idle_timeout", idle_timeout)?;
        let target = reactor.get().reactor.target(config);
        Ok(Self { reactor, target, prefix })
    }

    /// Sends a task's request; its answer goes to `decoder`, which belongs to the stream from now
    /// on, unless ValueError says that the request cannot be sent. `unattended` is called when
    /// something has come and nobody waits for it.
    #[pyo3(signature = (method, path, headers, body, decoder, unattended, *, connect_timeout=None,
        tls_timeout=None))]
    #[expect(clippy::too_many_arguments, reason = "one request, in full")]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned sequences")]
    fn submit(
        &self,
        py: Python<'_>,
        method: &str,
        path: PyBackedStr,
        headers: Vec<(PyBackedBytes, PyBackedBytes)>,
        body: Option<&[u8]>,
        decoder: &PyStreamDecoder,
        unattended: Py<PyAny>,
        connect_timeout: Option<f64>,
        tls_timeout: Option<f64>,
    ) -> PyResult<PyNativeStream> {
        let reactor = self.reactor.get();
        if reactor.reactor.is_forked() {
            return Err(forked());
        }
        let bounds = Bounds {
            connect: connect_timeout.map(|secs| seconds("connect_timeout", secs)).transpose()?,
            tls: tls_timeout.map(|secs| seconds("tls_timeout", secs)).transpose()?,
        };
        reactor.read_clock(py)?;
        let headers: Vec<(&[u8], &[u8])> =
            headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let path = format!("{}{}", self.prefix, &*path);
        let request = Request { method, path: &path, headers: &headers, body };
        let prepared = self
            .target
            .prepare(&request)
            .map_err(|invalid| PyValueError::new_err(invalid.to_string()))?;
        let Some(decoder) = decoder.detach(py) else {
            return Err(PyRuntimeError::new_err("the decoder belongs to another stream"));
        };
        let waker = StreamWaker::new(&reactor.wakes, unattended);
        let stream = prepared.submit(decoder, bounds).map_err(|_| forked())?;
        Ok(PyNativeStream::new(stream, waker, self.reactor.clone_ref(py)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.reactor)
    }
}

/// Asks `policy` about each address that the URL leads to, and about the one that answers.
fn vet(policy: Arc<EgressPolicy>, url: &str) -> Vet {
    match policy.check_url(url) {
        Ok(destination) => Arc::new(move |address: SocketAddr| {
            policy.check_address(&destination, address.ip()).map_err(|denied| denied.to_string())
        }),
        Err(denied) => denial(denied.to_string()),
    }
}

fn denial(why: String) -> Vet {
    Arc::new(move |_| Err(why.clone()))
}

fn seconds(name: &str, secs: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(secs)
        .map_err(|error| PyValueError::new_err(format!("{name}: {error} ({secs})")))
}
