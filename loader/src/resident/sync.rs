//! What [`generations`](super::generations) and [`table`](super::table) are built of; a test of all schedules
//! puts loom's in its place.

pub(crate) use core::hint::spin_loop;
pub(crate) use core::sync::atomic::{AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
