//! Work that is shared by threads. Where the program has OpenMP (libtorch brings it), it is done by the caller's own team there: threads
//! beside it would meet those of the team, which wait for the next matrix product on the same cores.

use std::{
    any::Any,
    ffi::{c_uint, c_void},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
};

/// Numbers of a part: fewer are not worth a thread.
pub(crate) const PART: usize = 1 << 16;

/// The size of a part of `count` numbers: whole rows of `row` numbers, no more parts than threads.
pub(crate) fn part_of(count: usize, row: usize, threads: usize) -> usize {
    let numbers = count.div_ceil(threads.max(1)).max(PART);
    numbers.div_ceil(row).max(1) * row
}

/// Does `work` for each of `parts`, which are as many as the threads that are wanted; a single one on this thread.
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
    // How many threads come does not matter: each takes parts for as long as there are any.
    on_threads(threads, &|| {
        while let Some(part) = next() {
            work(part);
        }
    });
}

/// Calls `work` on up to so many threads at once, this one among them, and waits for all.
fn on_threads(threads: usize, work: &(dyn Fn() + Sync)) {
    let Some(parallel) = openmp() else {
        return thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    };
    let region = Region {
        work,
        panicked: Mutex::default(),
    };
    // SAFETY: the region outlives the call, which returns when the last thread has done its work.
    unsafe {
        let threads = c_uint::try_from(threads).unwrap_or(c_uint::MAX);
        parallel(enter, (&raw const region).cast_mut().cast(), threads, 0);
    }
    let panicked = region.panicked.into_inner();
    if let Some(panic) = panicked.unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// What the threads of a team share.
struct Region<'a> {
    work: &'a (dyn Fn() + Sync),
    /// What a panic said: it must not leave Rust, and goes on in the caller.
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Each thread of a team comes in here.
extern "C" fn enter(region: *mut c_void) {
    // SAFETY: `on_threads` passes a region that lives until all have left.
    let region = unsafe { &*region.cast::<Region<'_>>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(region.work)) {
        let mut panicked = region
            .panicked
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *panicked = Some(panic);
    }
}

/// What a compiler calls for `#pragma omp parallel` (libgomp's interface, which LLVM's runtime has as well): a function, its argument, the
/// number of threads, flags.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

fn openmp() -> Option<Parallel> {
    static FOUND: OnceLock<Option<Parallel>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name ends with its NUL; the type is the runtime's.
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
    fn a_panic_reaches_the_caller_after_the_other_parts() {
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
