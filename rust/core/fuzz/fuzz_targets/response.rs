//! All that can happen to one response, at any byte of it: head, bytes, pauses, ticks, failures,
//! cancellation, its end. The law of a stream holds throughout, and the cut of the bytes between
//! two happenings changes nothing.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use worker_adapters_core::error::{Detail, Phase};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;
use worker_adapters_fuzz::{Law, Rng, dialect};

#[derive(Clone, Copy)]
enum Happening {
    Wait(u64),
    Reader(bool),
    /// Time goes on to the next clock that runs out, a nanosecond less, and then to it.
    Clock,
    Cancel,
    Fail,
}

/// What happens, and before which byte; in order.
fn happenings(rng: &mut Rng, length: usize) -> Vec<(usize, Happening)> {
    let count = rng.below(6);
    let mut all: Vec<_> = (0..count)
        .map(|_| {
            let happening = match rng.below(12) {
                0..=4 => Happening::Wait(rng.below(40_000) as u64),
                5..=8 => Happening::Reader(rng.below(2) == 0),
                9 => Happening::Clock,
                10 => Happening::Cancel,
                _ => Happening::Fail,
            };
            (rng.below(length + 1), happening)
        })
        .collect();
    all.sort_by_key(|(at, _)| *at);
    all
}

struct Run<F> {
    decoder: StreamDecoder,
    events: Vec<TokenEvent>,
    /// Is handed every event, in order.
    on: F,
    was_terminal: bool,
    now: Instant,
}

impl<F: FnMut(TokenEvent)> Run<F> {
    fn new(which: u8, has_clocks: bool, on: F) -> Self {
        let (name, parser) = dialect(which);
        let mut config = StreamConfig::new(name);
        if has_clocks {
            config.clocks.first_token = Some(Duration::from_mins(2));
            config.clocks.token_gap = Some(Duration::from_secs(30));
            config.clocks.idle = Some(Duration::from_secs(75));
            config.clocks.deadline = Some(Instant::from_nanos(200_000_000_000));
        }
        let decoder = StreamDecoder::new(parser, config);
        let now = Instant::from_nanos(1_000_000_000);
        Self { decoder, events: Vec::new(), on, was_terminal: false, now }
    }

    fn feed(&mut self, read: &[u8]) {
        self.decoder.feed(read, self.now, &mut self.events);
    }

    fn take(&mut self, happening: Happening) {
        let Self { decoder, events, now, .. } = self;
        match happening {
            Happening::Wait(millis) => *now = now.saturating_add(Duration::from_millis(millis)),
            Happening::Reader(paused) => decoder.reader(paused, *now),
            Happening::Clock => {
                let Some(due) = decoder.next_wakeup() else { return };
                let just_before = due.saturating_sub(Duration::from_nanos(1));
                if just_before >= *now {
                    *now = just_before;
                    decoder.tick(*now, events);
                    assert!(!decoder.is_terminal(), "a clock ran out too early");
                }
                *now = due.max(*now);
                decoder.tick(*now, events);
                assert!(decoder.is_terminal(), "a clock did not run out");
            }
            Happening::Cancel => {
                decoder.cancel(*now, events);
                assert!(decoder.is_terminal());
            }
            Happening::Fail => {
                decoder.fail(Detail::Reset, Phase::Stream, None, "reset", *now, events);
                assert!(decoder.is_terminal());
            }
        }
    }

    /// Hands the events on, as a caller does.
    fn take_events(&mut self) {
        let is_terminal = self.decoder.is_terminal();
        let ends = self.events.last().is_some_and(TokenEvent::is_terminal);
        assert_eq!(ends, is_terminal && !self.was_terminal);
        self.was_terminal = is_terminal;
        self.events.drain(..).for_each(&mut self.on);
    }
}

const STATUSES: [u16; 8] = [200, 200, 200, 200, 400, 429, 503, 302];
const TYPES: [&[u8]; 5] = [
    b"text/event-stream",
    b"text/event-stream; charset=utf-8",
    b"TEXT/EVENT-STREAM",
    b"application/json",
    b"",
];

fn run(
    (which, seed, setup): (u8, u8, u8),
    body: &[u8],
    schedule: &[(usize, Happening)],
    mut rng: Rng,
    on: impl FnMut(TokenEvent),
) {
    let mut run = Run::new(which, setup & 1 == 0, on);
    if setup & 2 == 0 {
        run.decoder.dispatched(run.now);
    }
    if setup & 4 == 0 {
        let status = STATUSES[usize::from(setup >> 3) % STATUSES.len()];
        let of_type = TYPES[usize::from(seed) % TYPES.len()];
        // A few bytes of the body serve as a header, too.
        let retry = &body[..body.len().min(8)];
        let headers: [(&[u8], &[u8]); 2] = [(b"Content-Type", of_type), (b"Retry-After", retry)];
        run.decoder.head(&ResponseHead { status, headers: &headers }, run.now, &mut run.events);
    }
    let mut from = 0;
    for (at, happening) in schedule {
        for read in rng.cut(&body[from..*at]) {
            run.feed(read);
        }
        run.take(*happening);
        run.take_events();
        from = *at;
    }
    for read in rng.cut(&body[from..]) {
        run.feed(read);
    }
    run.decoder.finish(setup & 64 == 0, run.now, &mut run.events);
    run.take_events();
    assert!(run.decoder.is_terminal() && run.decoder.next_wakeup().is_none());
    // Nothing follows the terminal event.
    run.feed(b"data: {\"content\":\"late\",\"stop\":false}\n\n");
    run.decoder.cancel(run.now, &mut run.events);
    run.decoder.tick(Instant::from_nanos(u64::MAX), &mut run.events);
    run.decoder.finish(true, run.now, &mut run.events);
    assert!(run.events.is_empty());
}

fuzz_target!(|data: &[u8]| {
    let Some((&[which, seed, setup], body)) = data.split_first_chunk() else { return };
    let schedule = happenings(&mut Rng::new(seed), body.len());
    let mut law = Law::default();
    let mut events = Vec::new();
    run((which, seed, setup), body, &schedule, Rng::new(seed), |event| {
        law.take(&event);
        events.push(event);
    });
    assert!(law.is_over());
    let mut wanted = events.iter();
    run((which, seed, setup), body, &schedule, Rng::new(!seed), |event| {
        assert_eq!(Some(&event), wanted.next());
    });
    assert!(wanted.next().is_none());
});
