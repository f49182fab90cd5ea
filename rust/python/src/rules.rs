//! Error rule tables as adapters declare them: mappings of closed sets of keys and words.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyMapping, PyMappingMethods};
use worker_adapters_core::error::{Detail, ErrorKind, Processed, WorkerErrorKind};
use worker_adapters_core::rules::{Rule, RuleTable};

use crate::errors::word;

/// An engine's error rule table, compiled once.
#[pyclass(frozen, name = "ErrorRules", module = "worker_adapters._core")]
pub(crate) struct PyErrorRules(pub(crate) Arc<RuleTable>);

#[pymethods]
impl PyErrorRules {
    #[new]
    #[pyo3(signature = (rules=Vec::new()), text_signature = "(rules=())")]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned sequences")]
    fn new(rules: Vec<Bound<'_, PyMapping>>) -> PyResult<Self> {
        let rules: PyResult<Vec<Rule>> = rules
            .iter()
            .enumerate()
            .map(|(at, rule)| {
                compile(rule).map_err(|error| {
                    PyValueError::new_err(format!("rule {at}: {}", error.value(rule.py())))
                })
            })
            .collect();
        Ok(Self(Arc::new(RuleTable::new(rules?))))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}

fn compile(mapping: &Bound<'_, PyMapping>) -> PyResult<Rule> {
    let Ok(detail) = mapping.get_item("detail") else {
        return Err(PyValueError::new_err("the key 'detail' is missing"));
    };
    let mut rule = Rule::new(word("detail", detail.extract()?, Detail::from_word)?);
    for item in mapping.items()? {
        let (key, value): (String, Bound<'_, PyAny>) = item.extract()?;
        match key.as_str() {
            "detail" => {}
            "status" => rule.status = Some(value.extract()?),
            "type" => rule.r#type = Some(value.extract()?),
            "code" => rule.code = Some(value.extract()?),
            "message" => rule.message = Some(value.extract()?),
            "retriable" => rule.retriable = value.extract()?,
            "kind" => rule.kind = word("kind", value.extract()?, WorkerErrorKind::from_word)?,
            "error_code" => {
                rule.error_code = word("error_code", value.extract()?, ErrorKind::from_word)?;
            }
            "processed" => {
                let processed = word("processed", value.extract()?, Processed::from_word)?;
                rule.processed = Some(processed);
            }
            _ => return Err(PyValueError::new_err(format!("{key:?} is not a key of a rule"))),
        }
    }
    Ok(rule)
}
