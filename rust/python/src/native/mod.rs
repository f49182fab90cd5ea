//! The native data plane as Python objects: reactors turned by event loops, and their streams.

mod events;
mod forks;
mod mailbox;
mod reactor;
mod stream;
mod target;
mod wait;
mod wakes;

pub(crate) use events::PyNativeEvents;
pub(crate) use forks::listen as listen_for_forks;
pub(crate) use reactor::PyReactor;
pub(crate) use stream::PyNativeStream;
pub(crate) use target::PyNativeTarget;
