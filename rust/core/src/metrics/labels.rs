//! Label values: cut to size, counted against their budget, and written out once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::names::{Family, Label, OTHER, UNKNOWN};

/// What a label value may take, in bytes.
pub const MAX_VALUE_BYTES: usize = 64;

/// Labels with their values, as they stand in an exposition.
#[derive(Debug)]
pub struct LabelSet {
    pairs: Box<[(Label, Arc<str>)]>,
    /// `name="value",…`, escaped.
    rendered: Box<str>,
}

impl LabelSet {
    pub(crate) fn new(pairs: Vec<(Label, Arc<str>)>) -> Self {
        let mut rendered = String::new();
        for (label, value) in &pairs {
            if !rendered.is_empty() {
                rendered.push(',');
            }
            // Writing to a String does not fail.
            let _ = write!(rendered, "{label}=\"");
            escape_into(value, &mut rendered);
            rendered.push('"');
        }
        Self { pairs: pairs.into(), rendered: rendered.into() }
    }

    /// The same where whatever is not of a small set is `other`.
    pub(crate) fn overflowed(&self) -> Self {
        let other: Arc<str> = OTHER.into();
        let pairs = self.pairs.iter().map(|(label, value)| {
            let value = if is_open(*label) { &other } else { value };
            (*label, Arc::clone(value))
        });
        Self::new(pairs.collect())
    }

    /// The labels and their values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Label, &str)> {
        self.pairs.iter().map(|(label, value)| (*label, &**value))
    }

    /// The value of a label.
    #[must_use]
    pub fn get(&self, label: Label) -> Option<&str> {
        self.iter().find_map(|(own, value)| (own == label).then_some(value))
    }

    pub(crate) fn value(&self, label: Label) -> Option<&Arc<str>> {
        self.pairs.iter().find_map(|(own, value)| (*own == label).then_some(value))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.rendered
    }
}

impl PartialEq for LabelSet {
    fn eq(&self, other: &Self) -> bool {
        self.rendered == other.rendered
    }
}

impl Eq for LabelSet {}

impl Hash for LabelSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rendered.hash(state);
    }
}

/// Whether anybody may bring a new value of this label.
const fn is_open(label: Label) -> bool {
    matches!(
        label,
        Label::EngineVersion
            | Label::TrtllmVersion
            | Label::PoolId
            | Label::ReplicaId
            | Label::ModelId
            | Label::Source
            | Label::Reason
            | Label::Policy
            | Label::State
    )
}

/// Within double quotes, both exposition formats escape these three.
fn escape_into(value: &str, out: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// The longest part of `value` that fits, never half a character.
fn cut(value: &str) -> &str {
    let most = value.len().min(MAX_VALUE_BYTES);
    (0..=most).rev().find_map(|end| value.get(..end)).unwrap_or_default()
}

/// How many values each label may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelBudgets(BTreeMap<Label, usize>);

impl Default for LabelBudgets {
    /// The contract's budgets. An engine is one of the contract's four or of twelve more.
    fn default() -> Self {
        Self(BTreeMap::from([
            (Label::Engine, 16),
            (Label::EngineVersion, 64),
            (Label::TrtllmVersion, 64),
            (Label::PoolId, 256),
            (Label::ReplicaId, 1024),
            (Label::Priority, 8),
            (Label::Reason, 16),
            (Label::ModelId, 1024),
        ]))
    }
}

impl LabelBudgets {
    /// What a label may have that the contract does not name.
    pub const DEFAULT: usize = 16;

    /// Sets the budget of one label.
    pub fn set(&mut self, label: Label, values: usize) {
        self.0.insert(label, values);
    }

    /// The budget of a label.
    #[must_use]
    pub fn get(&self, label: Label) -> usize {
        self.0.get(&label).copied().unwrap_or(Self::DEFAULT)
    }
}

/// The values that there are. One that no series has any more gives its place to the next.
#[derive(Debug)]
pub(crate) struct Values {
    budgets: LabelBudgets,
    known: HashMap<(Label, Option<Family>), HashSet<Arc<str>>>,
    other: Arc<str>,
    overflows: BTreeMap<&'static str, u64>,
}

impl Values {
    pub(crate) fn new(budgets: LabelBudgets) -> Self {
        Self { budgets, known: HashMap::new(), other: OTHER.into(), overflows: BTreeMap::new() }
    }

    /// The value under which this one is counted; reasons have a budget in each family.
    pub(crate) fn admit(&mut self, label: Label, family: Option<Family>, value: &str) -> Arc<str> {
        let value = match cut(value) {
            "" => UNKNOWN,
            value => value,
        };
        let scope = if label == Label::Reason { family } else { None };
        let known = self.known.entry((label, scope)).or_default();
        if let Some(known) = known.get(value) {
            return Arc::clone(known);
        }
        let budget = self.budgets.get(label);
        if known.len() >= budget {
            known.retain(|value| Arc::strong_count(value) > 1);
        }
        if value == OTHER || known.len() >= budget {
            if value != OTHER {
                self.overflowed(label.as_str());
            }
            return Arc::clone(&self.other);
        }
        let value: Arc<str> = value.into();
        known.insert(Arc::clone(&value));
        value
    }

    pub(crate) fn overflowed(&mut self, what: &'static str) {
        *self.overflows.entry(what).or_default() += 1;
    }

    pub(crate) fn overflows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.overflows.iter().map(|(what, count)| (*what, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(40)).len(), 64);
        assert_eq!(cut(&format!("x{}", "é".repeat(40))).len(), 63);
    }

    #[test]
    fn a_value_that_nobody_has_gives_up_its_place() {
        let mut budgets = LabelBudgets::default();
        budgets.set(Label::PoolId, 2);
        let mut values = Values::new(budgets);
        let kept = values.admit(Label::PoolId, None, "a");
        drop(values.admit(Label::PoolId, None, "b"));
        let next = values.admit(Label::PoolId, None, "c");
        assert_eq!((&*kept, &*next), ("a", "c"));
        assert_eq!(&*values.admit(Label::PoolId, None, "d"), OTHER);
        assert_eq!(values.overflows().collect::<Vec<_>>(), [("pool_id", 1)]);
    }

    #[test]
    fn reasons_have_a_budget_in_each_family() {
        let mut budgets = LabelBudgets::default();
        budgets.set(Label::Reason, 1);
        let mut values = Values::new(budgets);
        let one = values.admit(Label::Reason, Some(Family::TasksCanceled), "left");
        let two = values.admit(Label::Reason, Some(Family::TaskRetries), "INTERNAL");
        assert_eq!((&*one, &*two), ("left", "INTERNAL"));
    }

    #[test]
    fn a_label_is_escaped() {
        let set = LabelSet::new(vec![(Label::PoolId, "a\\b\"c\nd".into())]);
        assert_eq!(set.as_str(), r#"pool_id="a\\b\"c\nd""#);
    }
}
