//! A task, the engine's answer to it, and all who want it to end.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;

use loom::future::block_on;
use worker_adapters_core::adapter::{CancelMethod, TokenStream};
use worker_adapters_core::error::{Detail, WorkerError};
use worker_adapters_core::event::{FinishReason, TokenEvent};
use worker_adapters_core::task::Uuid;

use crate::sink::Nobody;
use crate::sync::thread;
use crate::target::{Bounds, Request, Target};
use crate::tasks::Tasks;

const ID: Uuid = Uuid::from_u128(1);

fn submit(tasks: &Tasks, target: &Target) -> Result<TokenStream, WorkerError> {
    let request = Request(PhantomData);
    block_on(tasks.submit(ID, target, &request, Box::new(Nobody), Bounds))
}

/// Everything that a stream gives until its end.
fn read(stream: &mut TokenStream) -> Vec<TokenEvent> {
    let mut events = Vec::new();
    while !events.last().is_some_and(TokenEvent::is_terminal) {
        let came =
            block_on(poll_fn(|context| Pin::as_mut(stream).poll_batch(context, &mut events)));
        assert!(came > 0, "over without a terminal event");
    }
    let after = block_on(poll_fn(|context| Pin::as_mut(stream).poll_batch(context, &mut events)));
    assert_eq!(after, 0, "something after the terminal event");
    events
}

/// `started`, any token, one end; of which whoever cancels takes back what nobody has taken. Whether
/// it is the cancel that ended it.
fn check(events: &[TokenEvent]) -> bool {
    let kinds: Vec<_> = events.iter().map(TokenEvent::kind).collect();
    let whole = ["started", "token", "end"];
    assert!(kinds.iter().eq(whole.iter().filter(|kind| kinds.contains(kind))), "{kinds:?}");
    let Some(TokenEvent::End(end)) = events.last() else { panic!("{kinds:?}") };
    end.finish_reason == Some(FinishReason::Cancelled)
}

fn spawn<T: 'static>(
    tasks: &Tasks,
    run: impl FnOnce(&Tasks) -> T + 'static,
) -> thread::JoinHandle<T> {
    let tasks = tasks.clone();
    thread::spawn(move || run(&tasks))
}

fn answering(target: &Target) -> thread::JoinHandle<()> {
    let target = target.clone();
    thread::spawn(move || target.answer())
}

/// A cancel by id, at any moment of a task that an engine answers.
pub fn a_cancel_at_any_moment_ends_the_task_once() {
    let (tasks, target) = (Tasks::new("x"), Target::new());
    let engine = answering(&target);
    let canceller = spawn(&tasks, |tasks| tasks.cancel(ID).method);
    let mut stream = submit(&tasks, &target).unwrap();
    let is_cancelled = check(&read(&mut stream));
    drop(stream);
    let found = canceller.join().unwrap() == CancelMethod::Close;
    engine.join().unwrap();
    // An engine may be done before the cancel gets to it.
    assert!(found || !is_cancelled, "cancelled by nobody");
    assert!(tasks.is_empty());
}

/// Two cancels, of which one has something to end.
pub fn one_of_two_cancels_ends_the_task() {
    let (tasks, target) = (Tasks::new("x"), Target::new());
    let cancellers = [(); 2].map(|()| spawn(&tasks, |tasks| tasks.cancel(ID).method));
    target.answer_head();
    let mut stream = submit(&tasks, &target).unwrap();
    let own = tasks.cancel(ID).method;
    assert!(check(&read(&mut stream)));
    let others = cancellers.map(|canceller| canceller.join().unwrap());
    let found = [own, others[0], others[1]].into_iter().filter(|m| *m == CancelMethod::Close);
    assert_eq!(found.count(), 1);
    drop(stream);
    assert!(tasks.is_empty());
}

/// What is in the reader's hands may be a token; what it takes after a cancel is none.
pub fn no_token_comes_after_a_cancel_has_returned() {
    let (tasks, target) = (Tasks::new("x"), Target::new());
    target.answer_head();
    let mut stream = submit(&tasks, &target).unwrap();
    let engine = answering(&target);
    let canceller = spawn(&tasks, |tasks| tasks.cancel(ID).method);
    let receipt = canceller.join().unwrap();
    let events = read(&mut stream);
    if receipt == CancelMethod::Close {
        assert!(!events.iter().any(|event| event.kind() == "token"), "after the cancel");
    }
    engine.join().unwrap();
}

/// A task of the same id is refused for as long as the first one runs.
pub fn one_of_two_tasks_of_an_id_is_refused() {
    let (tasks, target) = (Tasks::new("x"), Target::new());
    target.answer_head();
    let other = spawn(&tasks, |tasks| {
        let target = Target::new();
        target.answer_head();
        submit(tasks, &target).map_err(|error| error.detail)
    });
    let one = submit(&tasks, &target).map_err(|error| error.detail);
    let other = other.join().unwrap();
    match (&one, &other) {
        (Ok(_), Err(Detail::DuplicateId)) | (Err(Detail::DuplicateId), Ok(_)) => {}
        _ => panic!("both or none"),
    }
    assert_eq!(tasks.len(), 1);
    drop((one, other));
    assert!(tasks.is_empty());
}

/// A closed adapter runs nothing: a task comes too late, or is cancelled.
pub fn nothing_runs_after_a_close() {
    let (tasks, target) = (Tasks::new("x"), Target::new());
    target.answer_head();
    let closer = spawn(&tasks, Tasks::close);
    let submitted = submit(&tasks, &target);
    closer.join().unwrap();
    match submitted {
        Ok(mut stream) => assert!(check(&read(&mut stream))),
        Err(error) => assert_eq!(error.detail, Detail::Closed),
    }
    assert!(tasks.is_empty());
}
