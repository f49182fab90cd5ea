//! What threads meet at. The models in `rust/loom` put loom's in its place.

pub(crate) use std::sync::atomic::AtomicBool;
pub(crate) use std::sync::{Mutex, MutexGuard};
