//! Texts of a task in the words of an engine.

use super::scan::Span;

/// From how many bytes on a stretch of a private text is hidden.
pub const PRIVATE_STRETCH_BYTES: usize = 12;

/// Every stretch of a private text in `text`. A stretch counts from [`PRIVATE_STRETCH_BYTES`] on, or
/// when it is the whole of a shorter text.
///
/// `text`, which is short, is taken apart, and each private text, which may be long, is passed over
/// once.
pub(super) fn find(text: &[u8], private: &[Box<str>], spans: &mut Vec<Span>) {
    let mut hidden = vec![false; text.len()];
    let mut hide = |at: usize, length: usize| {
        hidden.iter_mut().skip(at).take(length).for_each(|byte| *byte = true);
    };
    let mut windows = Windows::of(text);
    for quoted in private.iter().map(|quoted| quoted.as_bytes()) {
        if quoted.len() >= PRIVATE_STRETCH_BYTES {
            windows.look_for(quoted);
        } else if memchr::memmem::find(text, quoted).is_some() {
            for (at, _) in
                text.windows(quoted.len()).enumerate().filter(|(_, part)| *part == quoted)
            {
                hide(at, quoted.len());
            }
        }
    }
    windows.found().for_each(|at| hide(at, PRIVATE_STRETCH_BYTES));
    let mut at = 0;
    for run in hidden.chunk_by(|one, next| one == next) {
        if run.first() == Some(&true) {
            spans.push(Span::new(at..at + run.len()));
        }
        at += run.len();
    }
}

/// So many bytes in a row: the last eight, and those before them.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    before: u64,
    last: u64,
}

const _: () = assert!(PRIVATE_STRETCH_BYTES == 12, "as many as a window holds");

impl Window {
    /// The window one byte further.
    fn then(self, byte: u8) -> Self {
        Self {
            before: (self.before << 8 | self.last >> 56) & 0xFFFF_FFFF,
            last: self.last << 8 | u64::from(byte),
        }
    }

    /// Where the filter has its bit: a word, and a bit of it.
    fn bit(self) -> (usize, u64) {
        let mixed = (self.last ^ self.before.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (usize::from((mixed >> 48) as u16 / 64), 1 << (mixed >> 48 & 63))
    }
}

/// The windows of `text` and where each ends.
fn windows(text: &[u8]) -> impl Iterator<Item = Window> {
    let mut window = Window::default();
    text.iter().enumerate().filter_map(move |(at, byte)| {
        window = window.then(*byte);
        (at + 1 >= PRIVATE_STRETCH_BYTES).then_some(window)
    })
}

/// All windows of a text, and which of them have been found elsewhere.
struct Windows {
    /// Sorted; with each where it begins.
    all: Vec<(Window, usize)>,
    is_found: Vec<bool>,
    /// How many different ones have not been found.
    left: usize,
    /// Tells most of what is not among them apart at once.
    filter: Vec<u64>,
}

impl Windows {
    fn of(text: &[u8]) -> Self {
        let mut all: Vec<_> = windows(text).enumerate().map(|(at, window)| (window, at)).collect();
        all.sort_unstable();
        let mut filter = vec![0; 1024];
        for (window, _) in &all {
            let (word, bit) = window.bit();
            if let Some(word) = filter.get_mut(word) {
                *word |= bit;
            }
        }
        let left = all.chunk_by(|(one, _), (next, _)| one == next).count();
        Self { is_found: vec![false; all.len()], all, left, filter }
    }

    fn look_for(&mut self, text: &[u8]) {
        if self.left == 0 {
            return;
        }
        for window in windows(text) {
            let (word, bit) = window.bit();
            if self.filter.get(word).is_some_and(|word| word & bit != 0) && self.note(window) {
                return;
            }
        }
    }

    /// Takes note that `window` was found; whether all have been.
    fn note(&mut self, window: Window) -> bool {
        let first = self.all.partition_point(|(other, _)| *other < window);
        let is_one = self.all.get(first).is_some_and(|(other, _)| *other == window);
        if let Some(is_found @ false) = self.is_found.get_mut(first)
            && is_one
        {
            *is_found = true;
            self.left -= 1;
        }
        self.left == 0
    }

    /// Where those begin that have been found.
    fn found(&self) -> impl Iterator<Item = usize> {
        let mut last = None;
        self.all.iter().zip(&self.is_found).filter_map(move |((window, at), is_found)| {
            // Of equal ones the first is marked.
            if *is_found {
                last = Some(*window);
            }
            (last == Some(*window)).then_some(*at)
        })
    }
}
