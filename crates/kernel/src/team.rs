//! Shares work among threads. If the program has OpenMP (libtorch brings it), the caller's own OpenMP team does the
//! work. Other threads would compete for the same cores with the team's threads, which wait there for the next
//! matmul.

use std::{
    ffi::{c_uint, c_void},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
};

/// Numbers per part: fewer are not worth waking a thread of a team.
pub(crate) const PART: usize = 1 << 16;

/// Returns the size of a part of `count` numbers: whole rows of `row` numbers, and no more parts than threads.
pub(crate) fn part_of(count: usize, row: usize, threads: usize) -> usize {
    let numbers = count.div_ceil(threads.max(1)).max(PART);
    numbers.div_ceil(row).max(1) * row
}

/// Calls `work` for each of `parts`. There must be no more parts than the caller has threads. A single part runs on
/// this thread.
pub(crate) fn in_parts<T: Send>(
    parts: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(T) + Sync,
) {
    let threads = parts.len();
    if threads <= 1 {
        return parts.for_each(work);
    }
    let parts = Mutex::new(parts);
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    // It does not matter how many threads arrive: each takes parts until none are left.
    on_threads(threads, &|| {
        while let Some(part) = next() {
            work(part);
        }
    });
}

/// Calls `work` on several threads, including this one, and waits for all of them. Uses the caller's OpenMP team,
/// whose size the caller has set for OpenMP. Without OpenMP, uses `threads` threads.
fn on_threads(threads: usize, work: &(dyn Fn() + Sync)) {
    // A panic must not unwind out of Rust, so it resumes in the caller.
    let panicked = Mutex::new(None);
    let caught = || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let mut panicked = panicked.lock().unwrap_or_else(PoisonError::into_inner);
            panicked.get_or_insert(panic);
        }
    };
    match openmp() {
        Some(parallel) => {
            let caught: Work<'_> = &caught;
            // Use the whole team even for fewer parts: libgomp would end the threads that are not requested, and
            // libtorch's next operation would have to start them again.
            const WHOLE_TEAM: c_uint = 0;
            // SAFETY: `caught` outlives the call, which returns only after the last thread has done its work.
            unsafe { parallel(enter, (&raw const caught).cast_mut().cast(), WHOLE_TEAM, 0) }
        }
        None => thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(caught);
            }
            caught();
        }),
    }
    let panicked = panicked.into_inner();
    if let Some(panic) = panicked.unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

type Work<'a> = &'a (dyn Fn() + Sync);

/// Entry point of each thread of a team.
extern "C" fn enter(work: *mut c_void) {
    // SAFETY: `on_threads` passes a reference to a value that lives until all threads have left. Nothing unwinds
    // out of it.
    let work = unsafe { *work.cast::<Work<'_>>() };
    work();
}

/// The function that compilers call for `#pragma omp parallel` (libgomp's interface, which LLVM's runtime also
/// has). Arguments: a function, its argument, the number of threads (0: as the caller has set), flags.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

fn openmp() -> Option<Parallel> {
    static FOUND: OnceLock<Option<Parallel>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name ends with its NUL, and the type is that of the runtime's function.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr());
            (!found.is_null()).then(|| std::mem::transmute::<*mut c_void, Parallel>(found))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn each_part_is_done_once() {
        for threads in [1, 2, 3, 8] {
            let mut done = vec![0; 1000];
            in_parts(done.chunks_mut(1000_usize.div_ceil(threads)), |part| {
                part.iter_mut().for_each(|done| *done += 1);
            });
            assert_eq!(done, [1; 1000], "{threads} threads");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_other_parts_are_done() {
        let done = AtomicUsize::new(0);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            in_parts([1, 2, 3].into_iter(), |part| {
                assert!(part != 2, "the second");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(panicked.is_err());
        assert_eq!(done.into_inner(), 2);
    }
}
