//! Every model, in every order with so many preemptions: switches from a thread that could go on.

use loom::model::Builder;
use worker_adapters_loom::{announced_models, mailbox_models, resolver_models, tasks_models};

/// What three or four threads do to each other takes hours in every order at all. A fault that takes
/// more than three ill-timed switches is one that nobody has seen yet; `LOOM_MAX_PREEMPTIONS=5 make
/// loom` looks further.
const PREEMPTIONS: usize = 3;

fn model(run: fn()) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(run);
}

#[test]
fn what_is_due_is_done() {
    model(announced_models::what_is_due_is_done);
}

#[test]
fn what_is_earlier_is_heard_by_whoever_waits_for_later() {
    model(announced_models::what_is_earlier_is_heard_by_whoever_waits_for_later);
}

#[test]
fn everything_put_is_taken() {
    model(mailbox_models::everything_put_is_taken);
}

#[test]
fn everything_put_during_a_turn_is_taken() {
    model(mailbox_models::everything_put_during_a_turn_is_taken);
}

#[test]
fn two_names_are_answered_by_threads_that_stay() {
    model(resolver_models::two_names_are_answered_by_threads_that_stay);
}

#[test]
fn two_names_are_answered_by_threads_that_go() {
    model(resolver_models::two_names_are_answered_by_threads_that_go);
}

#[test]
fn one_name_is_answered_to_both() {
    model(resolver_models::one_name_is_answered_to_both);
}

#[test]
fn a_name_is_answered_by_a_thread_that_is_about_to_wait() {
    model(resolver_models::a_name_is_answered_by_a_thread_that_is_about_to_wait);
}

#[test]
fn a_forgotten_ticket_takes_no_other_with_it() {
    model(resolver_models::a_forgotten_ticket_takes_no_other_with_it);
}

#[test]
fn nobody_is_left_behind_by_a_dropped_resolver() {
    model(resolver_models::nobody_is_left_behind_by_a_dropped_resolver);
}

#[test]
fn a_cancel_at_any_moment_ends_the_task_once() {
    model(tasks_models::a_cancel_at_any_moment_ends_the_task_once);
}

#[test]
fn one_of_two_cancels_ends_the_task() {
    model(tasks_models::one_of_two_cancels_ends_the_task);
}

#[test]
fn no_token_comes_after_a_cancel_has_returned() {
    model(tasks_models::no_token_comes_after_a_cancel_has_returned);
}

#[test]
fn one_of_two_tasks_of_an_id_is_refused() {
    model(tasks_models::one_of_two_tasks_of_an_id_is_refused);
}

#[test]
fn nothing_runs_after_a_close() {
    model(tasks_models::nothing_runs_after_a_close);
}
