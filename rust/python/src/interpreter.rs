//! One interpreter of the process has this module.

use std::sync::atomic::{AtomicI64, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

const NONE: i64 = -1;

/// The interpreter that imported the module first.
static OWNER: AtomicI64 = AtomicI64::new(NONE);

/// Refuses every interpreter but the first that imports the module: its classes and the exceptions
/// it raises are that one's.
pub(crate) fn claim(py: Python<'_>) -> PyResult<()> {
    let current = id(py);
    match OWNER.compare_exchange(NONE, current, Ordering::AcqRel, Ordering::Acquire) {
        Err(owner) if owner != current => Err(PyImportError::new_err(
            "worker_adapters cannot be used in more than one interpreter of a process",
        )),
        _ => Ok(()),
    }
}

#[expect(unsafe_code, reason = "PyO3 has no safe call for it")]
fn id(_py: Python<'_>) -> i64 {
    // SAFETY: `_py` proves that this thread is attached to an interpreter. Then PyInterpreterState_Get
    // returns it and cannot fail, and its id may be read as long as it lives, which is at least until
    // this thread detaches.
    unsafe { pyo3::ffi::PyInterpreterState_GetID(pyo3::ffi::PyInterpreterState_Get()) }
}
