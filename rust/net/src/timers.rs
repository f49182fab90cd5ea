//! Who is to be looked at, and when.

use std::collections::BTreeMap;

use worker_adapters_core::time::Instant;

/// Entries in the order in which they are due.
///
/// A clock that is set back and back, as a token gap is, does not move its entry: the entry comes
/// up, finds that nothing is due, and is made anew. So a token costs a comparison.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    entries: BTreeMap<(Instant, u64), usize>,
    made: u64,
}

impl Timers {
    /// When the first entry is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|((due, _), _)| *due)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Sees to it that `key` comes up no later than `due`. `armed` is what it was told last time.
    pub(crate) fn arm(
        &mut self,
        armed: &mut Option<(Instant, u64)>,
        due: Option<Instant>,
        key: usize,
    ) {
        let Some(due) = due else { return };
        if armed.is_some_and(|(at, _)| at <= due) {
            return;
        }
        self.disarm(armed);
        self.made += 1;
        self.entries.insert((due, self.made), key);
        *armed = Some((due, self.made));
    }

    pub(crate) fn disarm(&mut self, armed: &mut Option<(Instant, u64)>) {
        if let Some(entry) = armed.take() {
            self.entries.remove(&entry);
        }
    }

    /// Takes out an entry that is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<usize> {
        let first = self.entries.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn an_entry_moves_only_forward() {
        let mut timers = Timers::default();
        let mut armed = None;
        timers.arm(&mut armed, Some(at(5)), 7);
        timers.arm(&mut armed, Some(at(9)), 7);
        assert_eq!(timers.next(), Some(at(5)));
        timers.arm(&mut armed, Some(at(3)), 7);
        assert_eq!(timers.next(), Some(at(3)));
        assert_eq!(timers.pop(at(2)), None);
        assert_eq!(timers.pop(at(3)), Some(7));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn what_is_disarmed_never_comes_up() {
        let mut timers = Timers::default();
        let (mut one, mut other) = (None, None);
        timers.arm(&mut one, Some(at(1)), 1);
        timers.arm(&mut other, Some(at(1)), 2);
        timers.disarm(&mut one);
        timers.disarm(&mut one);
        assert_eq!(timers.pop(at(1)), Some(2));
        assert_eq!(timers.pop(at(1)), None);
    }
}
