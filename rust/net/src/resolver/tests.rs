use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

use super::*;

/// A guard against waiting for ever where a test fails; no test waits for it to pass.
const GUARD: Duration = Duration::from_secs(30);

type Answer = io::Result<Vec<SocketAddr>>;

/// Looks nothing up before it is let through, and tells when it begins and when a thread ends.
struct Stub {
    begun: Sender<String>,
    ended: Sender<()>,
    /// How many lookups may still pass.
    passes: Mutex<usize>,
    passed: Condvar,
    running: AtomicUsize,
    most: AtomicUsize,
    answer: fn(&str, u16) -> Answer,
}

struct TellsEnd(Sender<()>);

impl Drop for TellsEnd {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

thread_local! {
    static END: RefCell<Option<TellsEnd>> = const { RefCell::new(None) };
}

impl Resolve for Stub {
    fn resolve(&self, host: &str, port: u16) -> Answer {
        END.with_borrow_mut(|end| {
            end.get_or_insert_with(|| TellsEnd(self.ended.clone()));
        });
        self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        self.begun.send(host.to_owned()).ok();
        let passes = self.passes.lock().unwrap();
        let mut passes = self.passed.wait_while(passes, |passes| *passes == 0).unwrap();
        *passes -= 1;
        drop(passes);
        self.running.fetch_sub(1, Ordering::SeqCst);
        (self.answer)(host, port)
    }
}

struct Bench {
    resolver: Resolver,
    stub: Arc<Stub>,
    begun: Receiver<String>,
    ended: Receiver<()>,
    done: Receiver<(u64, Answer)>,
}

fn bench(passes: usize, answer: fn(&str, u16) -> Answer) -> Bench {
    bench_with_idle(passes, answer, GUARD)
}

fn bench_with_idle(passes: usize, answer: fn(&str, u16) -> Answer, idle: Duration) -> Bench {
    let (begun_sender, begun) = channel();
    let (ended_sender, ended) = channel();
    let (done_sender, done) = channel();
    let stub = Arc::new(Stub {
        begun: begun_sender,
        ended: ended_sender,
        passes: Mutex::new(passes),
        passed: Condvar::new(),
        running: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        answer,
    });
    let done_sender = Mutex::new(done_sender);
    let resolver = Resolver::with_idle(
        Arc::clone(&stub) as Arc<dyn Resolve>,
        move |ticket, answer| {
            done_sender.lock().unwrap().send((ticket, answer)).ok();
        },
        idle,
    );
    Bench { resolver, stub, begun, ended, done }
}

impl Bench {
    fn let_pass(&self, more: usize) {
        *self.stub.passes.lock().unwrap() += more;
        self.stub.passed.notify_all();
    }

    fn begun(&self) -> String {
        self.begun.recv_timeout(GUARD).unwrap()
    }

    fn answer(&self) -> (u64, Answer) {
        self.done.recv_timeout(GUARD).unwrap()
    }

    fn answered(&self, count: usize) -> Vec<u64> {
        let mut tickets: Vec<_> = (0..count).map(|_| self.answer().0).collect();
        tickets.sort_unstable();
        tickets
    }

    /// Drops the resolver and checks that no answer comes, not even from what still ran.
    fn nothing_more(self) {
        let Self { resolver, stub, done, .. } = self;
        drop(resolver);
        *stub.passes.lock().unwrap() = usize::MAX;
        stub.passed.notify_all();
        // The callback, and so the sender, goes with the last thread.
        assert!(matches!(done.recv_timeout(GUARD), Err(RecvTimeoutError::Disconnected)));
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of a stub's answers")]
fn loopback(_: &str, port: u16) -> Answer {
    Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
}

#[test]
fn a_literal_needs_no_lookup() {
    for (host, address) in [
        ("127.0.0.1", "127.0.0.1:80"),
        ("::1", "[::1]:80"),
        ("[::1]", "[::1]:80"),
        ("2001:db8::1", "[2001:db8::1]:80"),
    ] {
        assert_eq!(literal(host, 80), Some(address.parse().unwrap()), "{host}");
    }
    for host in ["", "localhost", "1.2.3", "127.0.0.1:80", "[127.0.0.1]", "[::1", "::1]", "[]"] {
        assert_eq!(literal(host, 80), None, "{host}");
    }
}

#[test]
fn the_system_is_asked() {
    let addresses = SystemResolver.resolve("localhost", 8080).unwrap();
    assert!(!addresses.is_empty());
    assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 8080));
    assert!(SystemResolver.resolve("no\0name", 80).is_err());
}

#[test]
fn a_name_becomes_addresses() {
    let bench = bench(1, loopback);
    bench.resolver.resolve(7, "engine", 8080).unwrap();
    let (ticket, answer) = bench.answer();
    assert_eq!(ticket, 7);
    assert_eq!(answer.unwrap(), ["127.0.0.1:8080".parse().unwrap()]);
    bench.nothing_more();
}

#[test]
fn an_empty_answer_is_an_error() {
    let bench = bench(1, |_, _| Ok(Vec::new()));
    bench.resolver.resolve(1, "engine", 80).unwrap();
    assert_eq!(bench.answer().1.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn all_who_share_a_lookup_get_its_error() {
    let unknown = bench(0, |_, _| Err(io::Error::other("Name or service not known")));
    let full = bench(0, |_, _| Err(io::Error::from_raw_os_error(24)));
    for bench in [&unknown, &full] {
        for ticket in 1..=3 {
            bench.resolver.resolve(ticket, "nowhere.invalid", 80).unwrap();
        }
        bench.let_pass(1);
    }
    for _ in 1..=3 {
        assert_eq!(unknown.answer().1.unwrap_err().to_string(), "Name or service not known");
        assert_eq!(full.answer().1.unwrap_err().raw_os_error(), Some(24));
    }
    unknown.nothing_more();
    full.nothing_more();
}

#[test]
fn hanging_lookups_hold_four_threads() {
    let bench = bench(0, loopback);
    for ticket in 0..100 {
        bench.resolver.resolve(ticket, &format!("engine-{ticket}"), 80).unwrap();
    }
    for _ in 0..MAX_THREADS {
        bench.begun();
    }
    let state = bench.resolver.shared.lock();
    assert_eq!((state.threads, state.queue.len()), (MAX_THREADS, 100 - MAX_THREADS));
    drop(state);
    bench.let_pass(100);
    assert_eq!(bench.answered(100), (0..100).collect::<Vec<_>>());
    assert_eq!(bench.stub.most.load(Ordering::SeqCst), MAX_THREADS);
    bench.nothing_more();
}

#[test]
fn the_same_name_is_looked_up_once() {
    let bench = bench(0, loopback);
    for ticket in 0..10 {
        bench.resolver.resolve(ticket, "engine", 80).unwrap();
    }
    assert_eq!(bench.begun(), "engine");
    for ticket in 10..20 {
        bench.resolver.resolve(ticket, "engine", 80).unwrap();
    }
    bench.resolver.resolve(20, "engine", 81).unwrap();
    assert_eq!(bench.begun(), "engine");
    bench.let_pass(2);
    assert_eq!(bench.answered(21), (0..21).collect::<Vec<_>>());
    assert!(bench.begun.try_recv().is_err());
    bench.nothing_more();
}

#[test]
fn a_later_call_looks_up_anew() {
    let bench = bench(2, loopback);
    for ticket in [1, 2] {
        bench.resolver.resolve(ticket, "engine", 80).unwrap();
        assert_eq!(bench.answer().0, ticket);
        assert_eq!(bench.begun(), "engine");
    }
}

#[test]
fn a_forgotten_ticket_leaves_the_queue() {
    let bench = bench(0, loopback);
    for ticket in 1..=4 {
        bench.resolver.resolve(ticket, &format!("engine-{ticket}"), 80).unwrap();
        bench.begun();
    }
    for ticket in 5..=7 {
        bench.resolver.resolve(ticket, if ticket == 7 { "last" } else { "queued" }, 80).unwrap();
    }
    bench.resolver.forget(5);
    assert_eq!(bench.resolver.shared.lock().queue.len(), 2);
    bench.resolver.forget(6);
    bench.resolver.forget(6);
    bench.resolver.forget(99);
    assert_eq!(bench.resolver.shared.lock().queue.len(), 1);
    bench.let_pass(5);
    assert_eq!(bench.answered(5), [1, 2, 3, 4, 7]);
    assert_eq!(bench.begun(), "last");
    bench.nothing_more();
}

#[test]
fn a_forgotten_ticket_gets_no_answer_from_what_runs() {
    let bench = bench(0, loopback);
    bench.resolver.resolve(1, "engine", 80).unwrap();
    bench.begun();
    bench.resolver.forget(1);
    bench.resolver.resolve(2, "engine", 80).unwrap();
    bench.let_pass(1);
    assert_eq!(bench.answer().0, 2);
    assert!(bench.begun.try_recv().is_err());
    bench.nothing_more();
}

#[test]
fn a_ticket_waits_for_one_name() {
    let bench = bench(0, loopback);
    bench.resolver.resolve(1, "old", 80).unwrap();
    bench.begun();
    bench.resolver.resolve(1, "new", 81).unwrap();
    bench.let_pass(2);
    let (ticket, answer) = bench.answer();
    assert_eq!((ticket, answer.unwrap()[0].port()), (1, 81));
    bench.nothing_more();
}

#[test]
fn a_full_queue_refuses_other_names() {
    let bench = bench(0, loopback);
    for ticket in 0..4 {
        bench.resolver.resolve(ticket, &format!("engine-{ticket}"), 80).unwrap();
        bench.begun();
    }
    for ticket in 4..4 + MAX_QUEUED as u64 {
        bench.resolver.resolve(ticket, &format!("engine-{ticket}"), 80).unwrap();
    }
    assert_eq!(bench.resolver.resolve(1000, "one-too-many", 80), Err(Saturated));
    bench.resolver.resolve(1001, "engine-0", 80).unwrap();
    bench.resolver.resolve(1002, "engine-100", 80).unwrap();
    bench.resolver.forget(200);
    bench.resolver.resolve(1003, "takes-its-place", 80).unwrap();
    bench.let_pass(4 + MAX_QUEUED);
    let tickets = bench.answered(4 + MAX_QUEUED + 2);
    assert!(tickets.ends_with(&[1001, 1002, 1003]) && !tickets.contains(&200));
    bench.nothing_more();
}

#[test]
fn tickets_are_bounded() {
    let bench = bench(0, loopback);
    for ticket in 0..MAX_TICKETS as u64 {
        bench.resolver.resolve(ticket, "engine", 80).unwrap();
    }
    assert_eq!(bench.resolver.resolve(u64::MAX, "engine", 80), Err(Saturated));
    bench.resolver.forget(0);
    bench.resolver.resolve(u64::MAX, "engine", 80).unwrap();
    bench.nothing_more();
}

#[test]
fn dropping_waits_for_no_lookup_and_silences_it() {
    let bench = bench(0, loopback);
    for ticket in 0..10 {
        bench.resolver.resolve(ticket, &format!("engine-{ticket}"), 80).unwrap();
    }
    for _ in 0..MAX_THREADS {
        bench.begun();
    }
    bench.nothing_more();
}

#[test]
fn a_panic_is_an_error_of_its_own_lookup() {
    let bench = bench(2, |host, port| {
        assert_ne!(host, "bad");
        loopback(host, port)
    });
    bench.resolver.resolve(1, "bad", 80).unwrap();
    let (ticket, answer) = bench.answer();
    assert_eq!((ticket, answer.unwrap_err().kind()), (1, io::ErrorKind::Other));
    bench.resolver.resolve(2, "good", 80).unwrap();
    assert!(bench.answer().1.is_ok());
    bench.nothing_more();
}

#[test]
fn a_panic_over_an_answer_spares_the_others() {
    let (sender, done) = channel();
    let sender = Mutex::new(sender);
    let resolver = Resolver::new(Arc::new(SystemResolver), move |ticket, _| {
        assert_ne!(ticket, 1, "on purpose");
        sender.lock().unwrap().send(ticket).ok();
    });
    for ticket in 1..=9 {
        resolver.resolve(ticket, "localhost", 80).unwrap();
    }
    let tickets: HashSet<u64> = (2..=9).map(|_| done.recv_timeout(GUARD).unwrap()).collect();
    assert_eq!(tickets, (2..=9).collect());
    drop(resolver);
    assert!(matches!(done.recv_timeout(GUARD), Err(RecvTimeoutError::Disconnected)));
}

#[test]
fn a_thread_without_work_leaves() {
    let bench = bench_with_idle(2, loopback, Duration::ZERO);
    for ticket in [1, 2] {
        bench.resolver.resolve(ticket, "engine", 80).unwrap();
        assert_eq!(bench.answer().0, ticket);
        bench.ended.recv_timeout(GUARD).unwrap();
        assert_eq!(bench.resolver.shared.lock().threads, 0);
    }
}

#[test]
fn every_ticket_is_answered_once_whoever_forgets() {
    let bench = bench_with_idle(usize::MAX, loopback, Duration::ZERO);
    let (crowd, each) = (4, 500);
    let forgotten = |ticket: u64| ticket.is_multiple_of(3);
    thread::scope(|scope| {
        for first in 0..crowd {
            let resolver = &bench.resolver;
            scope.spawn(move || {
                for ticket in (first..crowd * each).step_by(4) {
                    let host = format!("engine-{}", ticket % 10);
                    resolver.resolve(ticket, &host, 80).unwrap();
                    if forgotten(ticket) {
                        resolver.forget(ticket);
                    }
                }
            });
        }
    });
    let mut answered = HashSet::new();
    let mut missing = (0..crowd * each).filter(|ticket| !forgotten(*ticket)).count();
    while missing > 0 {
        let (ticket, _) = bench.answer();
        assert!(answered.insert(ticket), "{ticket} was answered twice");
        missing -= usize::from(!forgotten(ticket));
    }
    let state = bench.resolver.shared.lock();
    assert_eq!(state.tickets.len(), 0);
}

#[test]
fn debug_names_no_host() {
    let bench = bench(0, loopback);
    bench.resolver.resolve(1, "secret-host", 80).unwrap();
    let text = format!("{:?}", bench.resolver);
    assert!(text.contains("tickets: 1") && !text.contains("secret"), "{text}");
    bench.nothing_more();
}
