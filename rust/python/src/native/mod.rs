//! The native data plane as Python objects: reactors turned by event loops, and their streams.

mod events;
mod reactor;
mod stream;
mod target;
mod wakes;

pub(crate) use events::PyNativeEvents;
pub(crate) use reactor::PyReactor;
pub(crate) use stream::PyNativeStream;
pub(crate) use target::PyNativeTarget;
