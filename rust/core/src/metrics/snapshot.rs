//! What every series held at one moment.

use std::sync::Arc;

use super::labels::LabelSet;
use super::names::Family;
use super::series::Value;

/// Everything there was to tell at one moment, by family.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) families: Vec<FamilySnapshot>,
}

/// One family's series.
#[derive(Clone, Debug)]
pub struct FamilySnapshot {
    /// Which family.
    pub family: Family,
    /// Its series, in the order in which they came to be. Durations are in microseconds, whatever
    /// the family's unit; see [`Family::micros_per_unit`].
    pub samples: Arc<[Sample]>,
}

/// One series.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its labels.
    pub labels: Arc<LabelSet>,
    /// What it held.
    pub value: Value,
}

impl Snapshot {
    /// The families, those that have no series yet included.
    #[must_use]
    pub fn families(&self) -> &[FamilySnapshot] {
        &self.families
    }

    /// The value of one series, by all of its labels.
    #[must_use]
    pub fn get(&self, family: Family, labels: &[(&str, &str)]) -> Option<&Value> {
        let family = self.families.iter().find(|own| own.family == family)?;
        let sample = family.samples.iter().find(|sample| {
            sample.labels.iter().count() == labels.len()
                && sample
                    .labels
                    .iter()
                    .all(|(label, value)| labels.contains(&(label.as_str(), value)))
        })?;
        Some(&sample.value)
    }
}
