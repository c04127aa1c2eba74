//! Errors of a device as values: wgpu hands them to a scope, or else panics.

use crate::error::{Error, Result};
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

/// Polls of a future that the native backends have ready.
const POLLS: usize = 1 << 16;

/// The value of a future of wgpu, which outside of a browser is there already.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> Result<T> {
    let mut future = pin!(future);
    for _ in 0..POLLS {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Ok(value);
        }
        std::thread::yield_now();
    }
    Err(Error::device("the device does not answer"))
}

/// What `make` gives, unless the device finds it invalid or has no memory for it.
pub(crate) fn scoped<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T> {
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let made = make();
    let errors = [internal.pop(), validation.pop(), memory.pop()].map(ready);
    for error in errors {
        if let Some(error) = error? {
            return Err(Error::device(error));
        }
    }
    Ok(made)
}
