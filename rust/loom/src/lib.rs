//! The files of the crates that threads meet in, on loom's primitives, and models of their use.

pub mod sync;

#[path = "../../net/src/announced.rs"]
mod announced;
#[path = "../../python/src/native/mailbox.rs"]
mod mailbox;
#[path = "../../net/src/resolver.rs"]
#[rustfmt::skip]
mod resolver;
#[path = "../../net/src/tasks.rs"]
mod tasks;

// What `tasks.rs` stands on.
#[path = "fakes/sink.rs"]
mod sink;
#[path = "fakes/state.rs"]
mod state;
#[path = "fakes/stream.rs"]
mod stream;
#[path = "fakes/target.rs"]
mod target;

#[path = "models/announced.rs"]
pub mod announced_models;
#[path = "models/mailbox.rs"]
pub mod mailbox_models;
#[path = "models/resolver.rs"]
pub mod resolver_models;
#[path = "models/tasks.rs"]
pub mod tasks_models;
