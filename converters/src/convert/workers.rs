//! Blocks on threads: a stated number of blocks in work at once, whatever runs in parallel within.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Runs `work` on all `items` and gives the results in their order.
///
/// `threads` threads, 0 for one a core, work on at most `at_once` items. Each item has a pool of its
/// own for the parallel loops within: a thread that waits for such a loop in a pool of all would
/// begin another item meanwhile, and so hold several in memory.
///
/// # Errors
/// The error of the first item that failed; no further items are begun then.
pub(super) fn each<I: Sync, T: Send>(
    items: &[I],
    threads: usize,
    at_once: usize,
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        threads => threads,
    };
    let workers = threads.min(at_once).min(items.len()).max(1);
    let pools = (0..workers).map(|worker| {
        // What does not divide goes to the first.
        let own = threads / workers + usize::from(worker < threads % workers);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(own.max(1)).build();
        pool.map_err(|e| Error::bad_argument(format!("threads: {e}")))
    });
    let pools = pools.collect::<Result<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let run = |pool: &rayon::ThreadPool| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            match pool.install(|| work(item)) {
                Ok(result) => lock(&results).push((index, result)),
                Err(error) => {
                    next.store(items.len(), Ordering::Relaxed);
                    let mut failure = lock(&failure);
                    if failure.as_ref().is_none_or(|(first, _)| index < *first) {
                        *failure = Some((index, error));
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for pool in &pools {
            scope.spawn(|| run(pool));
        }
    });
    if let Some((_, error)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn results_are_in_order_and_few_are_in_work_at_once() -> Result<()> {
        let (working, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let items: Vec<usize> = (0..40).collect();
        let squares = each(&items, 4, 2, |item| {
            most.fetch_max(working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // A loop to wait for.
            let sum: usize = (0..10_000usize).into_par_iter().map(|x| x % 7).sum();
            working.fetch_sub(1, Ordering::SeqCst);
            Ok(item * item + sum - sum)
        })?;
        assert_eq!(squares, items.iter().map(|i| i * i).collect::<Vec<_>>());
        assert!(most.load(Ordering::SeqCst) <= 2);
        Ok(())
    }

    #[test]
    fn an_error_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let items: Vec<usize> = (0..10_000).collect();
        let result = each(&items, 2, 2, |item| {
            begun.fetch_add(1, Ordering::SeqCst);
            if *item >= 5 { Err(Error::limit(format!("item {item}"))) } else { Ok(()) }
        });
        assert!(result.is_err());
        assert!(begun.load(Ordering::SeqCst) < 100);
    }

    #[test]
    fn no_items_are_no_work() -> Result<()> {
        assert!(each(&[] as &[u8], 0, 0, |_| Ok(()))?.is_empty());
        Ok(())
    }
}
