//! Every series there is, within its bounds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use super::labels::{LabelBudgets, LabelSet, Values};
use super::names::{Family, Label, Origin};
use super::replica::Replica;
use super::series::Series;

/// What names a replica, past no budget.
pub(super) type ReplicaKey = (Arc<str>, Arc<str>, Arc<str>);

type Group = (Arc<str>, Arc<str>, Option<Arc<str>>);

#[derive(Debug)]
pub(super) struct Registry {
    pub(super) values: Values,
    pub(super) replicas: HashMap<ReplicaKey, Weak<Replica>>,
    shelves: BTreeMap<Family, Shelf>,
    /// Series with an engine's version, by whose they are; a whole pool's have no replica.
    groups: HashMap<Group, Vec<Arc<Series>>>,
    /// Lines of an exposition that the series take.
    size: usize,
    max_size: usize,
    /// Whether any series may be retired.
    has_retired: bool,
}

/// The series of one family.
#[derive(Debug, Default)]
struct Shelf {
    by_labels: HashMap<Arc<LabelSet>, Arc<Series>>,
    /// As they came. A scrape takes the whole list by one pointer.
    in_order: Arc<Vec<Arc<Series>>>,
}

impl Registry {
    pub(super) fn new(budgets: LabelBudgets, max_size: usize) -> Self {
        let is_always_there = |family: &Family| {
            family.origin() != Origin::Orchestrator
                && !family.is_twin()
                && *family != Family::LabelOverflow
        };
        let families = Family::ALL.iter().copied().filter(is_always_there);
        Self {
            values: Values::new(budgets),
            replicas: HashMap::new(),
            shelves: families.map(|family| (family, Shelf::default())).collect(),
            groups: HashMap::new(),
            size: 0,
            max_size,
            has_retired: false,
        }
    }

    /// The series with these labels, made where there is none. Past the bound on all series it is
    /// the one that stands for all others.
    pub(super) fn series(&mut self, family: Family, labels: &Arc<LabelSet>) -> Arc<Series> {
        if let Some(series) = self.found(family, labels) {
            return series;
        }
        if self.size + family.samples() > self.max_size {
            self.sweep();
        }
        if self.size + family.samples() <= self.max_size {
            return self.insert(family, Arc::clone(labels));
        }
        self.values.overflowed("series");
        let labels = Arc::new(labels.overflowed());
        self.found(family, &labels).unwrap_or_else(|| self.insert(family, labels))
    }

    fn found(&self, family: Family, labels: &LabelSet) -> Option<Arc<Series>> {
        let series = self.shelves.get(&family)?.by_labels.get(labels)?;
        series.revive();
        Some(Arc::clone(series))
    }

    fn insert(&mut self, family: Family, labels: Arc<LabelSet>) -> Arc<Series> {
        let series = Arc::new(Series::new(family, Arc::clone(&labels)));
        if let Some(owner) = group_of(&labels) {
            self.groups.entry(owner).or_default().push(Arc::clone(&series));
        }
        let place = self.shelves.entry(family).or_default();
        place.by_labels.insert(labels, Arc::clone(&series));
        Arc::make_mut(&mut place.in_order).push(Arc::clone(&series));
        self.size += family.samples();
        series
    }

    /// Lets the series of a replica go that are of another version, or of any.
    pub(super) fn retire(&mut self, (engine, pool, replica): &ReplicaKey, keep: Option<&str>) {
        for replica in [None, Some(Arc::clone(replica))] {
            let owner = (Arc::clone(engine), Arc::clone(pool), replica);
            let Some(mut members) = self.groups.remove(&owner) else { continue };
            for series in &members {
                if series.labels.get(Label::EngineVersion) != keep {
                    series.retire();
                }
            }
            self.thin_out(&mut members, true);
            if !members.is_empty() {
                self.groups.insert(owner, members);
            }
        }
    }

    /// Forgets retired series that nobody writes to.
    pub(super) fn sweep(&mut self) {
        if !std::mem::take(&mut self.has_retired) {
            return;
        }
        let mut groups = std::mem::take(&mut self.groups);
        groups.retain(|_, members| {
            self.thin_out(members, false);
            !members.is_empty()
        });
        self.groups = groups;
    }

    /// Takes those out that are retired and written to by nobody; all, or those that tell nothing.
    fn thin_out(&mut self, members: &mut Vec<Arc<Series>>, only_empty: bool) {
        let mut over = Vec::new();
        members.retain(|series| {
            // In both lists of its shelf and in this group, and nowhere else.
            let is_over = series.is_retired()
                && Arc::strong_count(series) <= 3
                && (!only_empty || series.is_empty());
            self.has_retired |= series.is_retired() && !is_over;
            if is_over {
                over.push(Arc::clone(series));
            }
            !is_over
        });
        for series in over {
            let Some(place) = self.shelves.get_mut(&series.family) else { continue };
            place.by_labels.remove(&series.labels);
            let in_order = Arc::make_mut(&mut place.in_order);
            if let Some(at) = in_order.iter().rposition(|other| Arc::ptr_eq(other, &series)) {
                in_order.remove(at);
            }
            self.size = self.size.saturating_sub(series.family.samples());
        }
    }

    /// Has a series go once nobody writes to it.
    pub(super) fn let_go(&mut self, series: &Series) {
        series.retire();
        self.has_retired = true;
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Pointers to everything there is.
    pub(super) fn shelves(&self) -> Vec<(Family, Arc<Vec<Arc<Series>>>)> {
        self.shelves.iter().map(|(family, shelf)| (*family, Arc::clone(&shelf.in_order))).collect()
    }
}

fn group_of(labels: &LabelSet) -> Option<Group> {
    labels.value(Label::EngineVersion)?;
    let replica = labels.value(Label::ReplicaId).map(Arc::clone);
    let (engine, pool) = (labels.value(Label::Engine)?, labels.value(Label::PoolId)?);
    Some((Arc::clone(engine), Arc::clone(pool), replica))
}
