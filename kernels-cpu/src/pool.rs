//! Threads that stay awake.

use core::sync::atomic::{AtomicBool, Ordering};

/// Looks for parts after which a thread asks whether other programs want its core: some microseconds.
const PATIENCE: u32 = 100;

/// Runs `work` in the rayon pool that this is called in, while the other threads of the pool look for
/// parts of it without pause.
///
/// A product of one vector takes a few microseconds, and it takes longer than that to wake a thread:
/// inside of `work`, matrices are shared by the threads that otherwise would not be worth it, and what
/// else uses rayon starts at once. The threads keep their cores busy until `work` is done, so this is
/// for one pass through a model, not for waiting.
pub fn awake<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    /// Says that the work is done, even where it panics: else the scope would wait for ever.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let done = &done;
        let own = rayon::current_thread_index();
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(move |_| {
                // The thread that does the work may find this task while it waits for another.
                let mut idle = 0;
                while rayon::current_thread_index() != own && !done.load(Ordering::Acquire) {
                    match rayon::yield_now() {
                        Some(rayon::Yield::Executed) => idle = 0,
                        _ if idle < PATIENCE => {
                            idle += 1;
                            core::hint::spin_loop();
                        }
                        // Other programs come first where there is nothing to do for long.
                        _ => std::thread::yield_now(),
                    }
                }
            });
        }
        let _done = Done(done);
        work()
    })
}

/// Whether threads of the pool can be had at once: the caller is one of them, as inside of [`awake`].
pub(crate) fn is_near() -> bool {
    rayon::current_thread_index().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn work_is_done_at_any_number_of_threads() -> Result<(), rayon::ThreadPoolBuildError> {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            for _ in 0..50 {
                let sum = pool.install(|| awake(|| (0..1000u64).into_par_iter().sum::<u64>()));
                assert_eq!(sum, 499_500);
            }
            // Several at a time, in the pool and from outside.
            let sums = pool.install(|| rayon::join(|| awake(|| 1), || awake(|| awake(|| 2))));
            assert_eq!(sums, (1, 2));
        }
        assert_eq!(awake(|| 3), 3);
        Ok(())
    }

    #[test]
    fn a_panic_passes_through() {
        assert!(std::panic::catch_unwind(|| awake(|| std::panic::resume_unwind(Box::new(1)))).is_err());
    }
}
