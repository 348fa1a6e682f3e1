//! A worker: a named thread with its own libtorch threads and busy time. Workers can take turns.

use std::{
    cell::Cell,
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tch::Device;

use crate::{TorchError, determinism::symbol, stream::take_stream, synchronize};

/// The calling thread as a worker. It has its own libtorch threads and its own streams on its GPUs, and it measures
/// its busy time.
///
/// libtorch's CPU threads are OpenMP threads: each thread that calls libtorch has its own team, and the threads of
/// the team inherit the caller's name. So the thread of each worker needs a unique name.
#[derive(Debug)]
pub struct ComputeContext {
    name: String,
    threads: usize,
    /// GPUs on which the worker has its own stream.
    gpus: Vec<Device>,
    turns: TimeSlice,
    /// Seconds in [`Self::work`], excluding waits for a turn.
    worked: Cell<f64>,
    waited: Cell<f64>,
    /// Processor seconds of threads of this worker that have ended.
    ended: Cell<f64>,
}

impl ComputeContext {
    /// Turns the calling thread into a worker with `threads` libtorch threads (at least one), for a worker on the
    /// CPU or one that works alone.
    pub fn enter(threads: usize) -> Self {
        let threads = threads.max(1);
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
        Self {
            name: name.trim().to_owned(),
            threads,
            gpus: Vec::new(),
            turns: TimeSlice::new(false),
            worked: Cell::default(),
            waited: Cell::default(),
            ended: Cell::default(),
        }
    }

    /// Works like [`Self::enter`], for a worker that works beside others on these devices (its own, and those that
    /// receive its results). The worker has its own stream on each GPU, so that the kernels of several workers run
    /// side by side. On the CPU, workers may take turns.
    ///
    /// # Errors
    /// If libtorch cannot provide or set a stream.
    pub fn beside_others(
        threads: usize,
        devices: &[Device],
        turns: &TimeSlice,
    ) -> Result<Self, TorchError> {
        let mut context = Self::enter(threads);
        context.turns = turns.clone();
        for device in devices {
            if !context.gpus.contains(device) && take_stream(*device)? {
                context.gpus.push(*device);
            }
        }
        Ok(context)
    }

    /// Number of libtorch threads of this worker.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` and waits until the GPUs of the worker have finished it. Other workers may then read its
    /// results, and its inputs may be dropped, without events between their streams.
    ///
    /// # Errors
    /// If waiting for a GPU fails. An error of `work` itself is part of `T`.
    pub fn work<T>(&self, work: impl FnOnce() -> T) -> Result<T, TorchError> {
        let began = Instant::now();
        let done = work();
        for gpu in &self.gpus {
            synchronize(*gpu)?;
        }
        add(&self.worked, began.elapsed().as_secs_f64());
        Ok(done)
    }

    /// Works like [`Self::work`], but first waits for the worker's turn. For work that is repeated for every batch.
    ///
    /// # Errors
    /// As for [`Self::work`].
    pub fn work_in_turn<T>(&self, work: impl FnOnce() -> T) -> Result<T, TorchError> {
        let asked = Instant::now();
        let turn = self.turns.wait();
        add(&self.waited, asked.elapsed().as_secs_f64());
        let done = self.work(work)?;
        if turn.is_some() && self.threads > 1 {
            let of_all = self.processor_seconds();
            let_go_of_threads();
            add(&self.ended, (of_all - own_processor_seconds()).max(0.0));
        }
        Ok(done)
    }

    /// Seconds for which the worker was busy so far. On the CPU this is the processor time of its threads divided
    /// by their number. On GPUs it is the time in [`Self::work`].
    pub fn busy_seconds(&self) -> f64 {
        if self.gpus.is_empty() {
            (self.ended.get() + self.processor_seconds()) / self.threads as f64
        } else {
            self.worked.get()
        }
    }

    /// Seconds for which the worker has waited for its turn so far.
    pub fn waited_seconds(&self) -> f64 {
        self.waited.get()
    }

    /// Processor time of the current threads of the worker, in seconds.
    fn processor_seconds(&self) -> f64 {
        let Ok(tasks) = fs::read_dir("/proc/self/task") else {
            return 0.0;
        };
        let nanoseconds: u64 = tasks
            .filter_map(Result::ok)
            .filter(|task| {
                fs::read_to_string(task.path().join("comm"))
                    .is_ok_and(|name| name.trim() == self.name)
            })
            .filter_map(|task| processor_nanoseconds(&task.path()))
            .sum();
        nanoseconds as f64 / 1e9
    }
}

/// Number of libtorch threads of the calling thread.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Processor time of the thread with this `/proc` folder.
fn processor_nanoseconds(task: &Path) -> Option<u64> {
    let times = fs::read_to_string(task.join("schedstat")).ok()?;
    times.split_whitespace().next()?.parse().ok()
}

/// Processor time of the calling thread alone.
fn own_processor_seconds() -> f64 {
    let nanoseconds = processor_nanoseconds(Path::new("/proc/thread-self"));
    nanoseconds.unwrap_or(0) as f64 / 1e9
}

fn add(sum: &Cell<f64>, seconds: f64) {
    sum.set(sum.get() + seconds);
}

/// Ends the OpenMP team of the calling thread. OpenMP creates it again when it is next needed. If the team stayed,
/// the runtime would see more threads than cores. It would then put every thread to sleep between two matmuls
/// instead of letting it wait for the next. That costs more than creating one team per turn.
fn let_go_of_threads() {
    type Pause = unsafe extern "C" fn(i32) -> i32;
    /// `omp_pause_soft` of OpenMP 5.
    const SOFT: i32 = 1;
    if let Ok(found) = symbol(c"omp_pause_resource_all") {
        // SAFETY: the type is that of the standard.
        unsafe { std::mem::transmute::<*mut libc::c_void, Pause>(found)(SOFT) };
    }
}

/// Makes workers compute one at a time, each on all its threads. If a worker has as many threads as there are
/// cores, a second worker would take a core away from one of these threads, and each matmul would wait for that
/// thread.
///
/// A worker's results do not depend on whose turn came before.
#[derive(Debug, Clone, Default)]
pub struct TimeSlice(Option<Arc<Mutex<()>>>);

impl TimeSlice {
    /// With `taken`, workers take turns. Otherwise they compute at any time.
    pub fn new(taken: bool) -> Self {
        Self(taken.then(Arc::default))
    }

    /// Waits until no other worker computes. The turn lasts until the guard is dropped.
    fn wait(&self) -> Option<MutexGuard<'_, ()>> {
        // A worker that panicked in its turn left nothing that other workers can see.
        let turn = self.0.as_ref()?.lock();
        Some(turn.unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};
    use tch::{Kind, Tensor};

    /// Matmuls per piece of work. One takes milliseconds on a core.
    const PRODUCTS: usize = 20;

    fn multiply() {
        let a = Tensor::rand([512, 512], (Kind::Float, Device::Cpu));
        for _ in 0..PRODUCTS {
            let _ = a.matmul(&a);
        }
    }

    /// Runs `work` on a thread of this name and returns its result.
    fn named<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::Builder::new().name(name.to_owned());
        thread.spawn(work).unwrap().join().unwrap()
    }

    /// Compares the busy time of a worker with the processor time that the system counts for its thread. Neither
    /// depends on what else the machine does.
    #[test]
    fn a_lane_is_busy_for_the_processor_time_of_its_threads() {
        named("lane-one", || {
            let context = ComputeContext::enter(1);
            multiply();
            let (outer, before, inner) = (
                own_processor_seconds(),
                context.busy_seconds(),
                own_processor_seconds(),
            );
            multiply();
            let inner = own_processor_seconds() - inner;
            let busy = context.busy_seconds() - before;
            let outer = own_processor_seconds() - outer;
            // The system rounds its numbers and takes them at different moments.
            let (least, most) = (0.9 * inner - 1e-3, 1.1 * outer + 1e-3);
            assert!(
                inner > 0.0 && (least..=most).contains(&busy),
                "{inner} {busy} {outer}"
            );
        });
        // With two threads, the busy time is half of their total: at least half of the time of this thread.
        named("lane-two", || {
            let context = ComputeContext::enter(2);
            let (before, own) = (context.busy_seconds(), own_processor_seconds());
            multiply();
            let own = own_processor_seconds() - own;
            let busy = context.busy_seconds() - before;
            assert!(own > 0.0 && busy > 0.45 * own - 1e-3, "{busy} of {own}");
        });
    }

    #[test]
    fn a_lane_that_lets_its_threads_go_keeps_their_time() {
        named("lane-turns", || {
            let context =
                ComputeContext::beside_others(2, &[Device::Cpu], &TimeSlice::new(true)).unwrap();
            let (own, mut last) = (own_processor_seconds(), context.busy_seconds());
            for turn in 0..6 {
                context.work_in_turn(multiply).unwrap();
                let busy = context.busy_seconds();
                assert!(busy > last, "turn {turn}: {busy} after {last}");
                last = busy;
            }
            let own = own_processor_seconds() - own;
            assert!(last > 0.45 * own - 1e-3, "{last} of {own}");
        });
    }

    #[test]
    fn a_lane_that_waits_is_not_busy_whatever_another_one_does() {
        named("lane-idle", || {
            let context = ComputeContext::enter(1);
            let (sender, receiver) = mpsc::channel();
            let before = context.busy_seconds();
            let other = thread::Builder::new().name("lane-busy".to_owned());
            let other = other.spawn(move || {
                let context = ComputeContext::enter(1);
                let before = context.busy_seconds();
                multiply();
                sender.send(context.busy_seconds() - before).unwrap();
            });
            let of_other = receiver.recv().unwrap();
            let own = context.busy_seconds() - before;
            other.unwrap().join().unwrap();
            assert!(own < 0.25 * of_other, "{own} beside {of_other}");
        });
    }
}
