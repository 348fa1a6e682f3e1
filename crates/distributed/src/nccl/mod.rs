//! Transfers between GPUs through NCCL. **Untested: no GPU was available.** Tests run this code with functions that
//! stand in for NCCL's.

mod functions;

use std::{
    ffi::c_int,
    fmt,
    ptr::null_mut,
    time::{Duration, Instant},
};

pub(crate) use functions::Functions;
use functions::{Comm, Config, Stream, UINT8, UniqueId, code};

use crate::{DistributedError, shim::Sent, store::Pauses};

/// Longest pause while a GPU works.
const LONGEST_PAUSE: Duration = Duration::from_micros(200);

/// The connections of a GPU to those of all other ranks.
///
/// NCCL runs as kernels on the GPU. Two communicators on one GPU must not transfer at the same time unless all ranks
/// start the transfers in the same order; otherwise, each rank may run the kernel that waits for the other.
pub(crate) struct Communicator {
    functions: Functions,
    comm: Comm,
    /// Number of the GPU.
    index: usize,
    size: usize,
    timeout: Duration,
    /// After a failure, the communicator is aborted instead of closed.
    failed: bool,
}

// SAFETY: NCCL allows calls from any thread, one at a time. All methods that call it take the communicator exclusively.
unsafe impl Send for Communicator {}

impl fmt::Debug for Communicator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Communicator")
            .field("index", &self.index)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Functions {
    /// Makes the id that all ranks need to join a communicator.
    pub(crate) fn unique_id(&self) -> Result<Vec<u8>, DistributedError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: `id` is a place for the id.
        let result = unsafe { (self.get_unique_id)(&raw mut id) };
        if result == code::SUCCESS {
            return Ok(id.0.to_vec());
        }
        Err(DistributedError::Nccl {
            operation: "making the communicator's id".to_owned(),
            reason: self.message(result, null_mut()),
        })
    }
}

impl Communicator {
    /// Joins the communicator of an id, with GPU `cuda:index`. Waits until all ranks have joined.
    pub(crate) fn join(
        functions: Functions,
        index: usize,
        rank: usize,
        size: usize,
        id: &[u8],
        timeout: Duration,
    ) -> Result<Self, DistributedError> {
        let operation = "joining the communicator of all GPUs";
        let id = id.try_into().map_err(|_| DistributedError::Nccl {
            operation: operation.to_owned(),
            reason: "rank 0 could not make the communicator's id: its log says why".to_owned(),
        })?;
        let mut config = Config::non_blocking();
        let mut joined = Self {
            functions,
            comm: null_mut(),
            index,
            size,
            timeout,
            failed: false,
        };
        joined.guarded(operation, |joined| {
            // SAFETY: `comm` and `config` are places of NCCL's types.
            let result = unsafe {
                (joined.functions.init_rank)(
                    &raw mut joined.comm,
                    number(size),
                    UniqueId(id),
                    number(rank),
                    &raw mut config,
                )
            };
            joined.started(operation, result)?;
            joined.settle(operation, Instant::now() + timeout)
        })?;
        Ok(joined)
    }

    /// Sends to and receives from each rank `share` bytes, on the calling thread's current stream, and waits for it.
    /// The timeout also limits earlier work on this stream.
    ///
    /// # Safety
    /// Both pointers must be to memory of the communicator's GPU, apart from each other. `out` must have room for
    /// `size` shares; `input` must have as many for [`Sent::Parts`], and otherwise one.
    pub(crate) unsafe fn transfer(
        &mut self,
        operation: &str,
        out: *mut u8,
        input: *const u8,
        share: usize,
        sent: Sent,
    ) -> Result<(), DistributedError> {
        self.guarded(operation, |this| {
            let stream = (this.functions.current_stream)(this.index)?;
            // SAFETY: the caller promises it.
            let result = unsafe { this.start(out, input, share, sent, stream) };
            this.started(operation, result)?;
            let deadline = Instant::now() + this.timeout;
            this.settle(operation, deadline)?;
            this.finish(operation, stream, deadline)
        })
    }

    /// Puts a transfer on the stream. Returns NCCL's code.
    ///
    /// # Safety
    /// See [`Communicator::transfer`].
    unsafe fn start(
        &self,
        out: *mut u8,
        input: *const u8,
        share: usize,
        sent: Sent,
        stream: Stream,
    ) -> i32 {
        let functions = &self.functions;
        let (all_out, all_in) = (out.cast(), input.cast());
        // SAFETY: the caller promises that the shares are there. The functions only take pointers and numbers; the
        // GPU reads and writes later, and `finish` waits for it.
        unsafe {
            match (sent, functions.all_to_all) {
                (Sent::Same, _) => {
                    (functions.all_gather)(all_in, all_out, share, UINT8, self.comm, stream)
                }
                (Sent::Parts, Some(all_to_all)) => {
                    all_to_all(all_in, all_out, share, UINT8, self.comm, stream)
                }
                (Sent::Parts, None) => {
                    let mut result = (functions.group_start)();
                    for rank in 0..self.size {
                        let (from, to) = (input.add(rank * share), out.add(rank * share));
                        let peer = number(rank);
                        let calls = [
                            (functions.send)(from.cast(), share, UINT8, peer, self.comm, stream),
                            (functions.receive)(to.cast(), share, UINT8, peer, self.comm, stream),
                        ];
                        for call in calls {
                            result = first_error(result, call);
                        }
                    }
                    // Even after an error, because the group would stay open in this thread.
                    first_error(result, (functions.group_end)())
                }
            }
        }
    }

    /// Calls NCCL with its GPU as the current one. After a failure, the communicator is only good for an abort.
    fn guarded(
        &mut self,
        operation: &str,
        work: impl FnOnce(&mut Self) -> Result<(), DistributedError>,
    ) -> Result<(), DistributedError> {
        let mut before = 0;
        // SAFETY: `before` is a place for the number of a GPU.
        let result = unsafe {
            match (self.functions.get_device)(&raw mut before) {
                code::SUCCESS => (self.functions.set_device)(number(self.index)),
                error => error,
            }
        };
        if result != code::SUCCESS {
            self.failed = true;
            return Err(self.cuda_error(operation, result));
        }
        let done = work(self);
        self.failed |= done.is_err();
        // SAFETY: the number is that of the GPU that was current.
        unsafe { (self.functions.set_device)(before) };
        done
    }

    /// Checks the code of a call that starts something.
    fn started(&self, operation: &str, result: i32) -> Result<(), DistributedError> {
        match result {
            code::SUCCESS | code::IN_PROGRESS => Ok(()),
            error => Err(self.error(operation, error)),
        }
    }

    /// The state of the communicator: whether NCCL is done with what it does on the CPU.
    fn is_settled(&self, operation: &str) -> Result<bool, DistributedError> {
        let mut state = code::SUCCESS;
        // SAFETY: `state` is a place for the code.
        let result = unsafe { (self.functions.async_error)(self.comm, &raw mut state) };
        match first_error(result, state) {
            code::SUCCESS => Ok(state == code::SUCCESS),
            error => Err(self.error(operation, error)),
        }
    }

    /// Waits until NCCL has done on the CPU what the last call started.
    fn settle(&self, operation: &str, deadline: Instant) -> Result<(), DistributedError> {
        let mut pauses = Pauses::up_to(LONGEST_PAUSE);
        while !self.is_settled(operation)? {
            self.check_time(operation, deadline)?;
            pauses.pause();
        }
        Ok(())
    }

    /// Waits until the GPU has done the work of a stream, and watches the other ranks meanwhile.
    fn finish(
        &self,
        operation: &str,
        stream: Stream,
        deadline: Instant,
    ) -> Result<(), DistributedError> {
        let mut pauses = Pauses::up_to(LONGEST_PAUSE);
        loop {
            // SAFETY: the stream is one of libtorch's, which never destroys its streams.
            match unsafe { (self.functions.stream_query)(stream) } {
                code::SUCCESS => break,
                // CUDA also remembers this answer as this thread's last error. libtorch would find it there and
                // blame its next kernel.
                // SAFETY: the function takes no arguments.
                code::NOT_READY => drop(unsafe { (self.functions.clear_error)() }),
                error => return Err(self.cuda_error(operation, error)),
            }
            self.is_settled(operation)?;
            self.check_time(operation, deadline)?;
            pauses.pause();
        }
        // A transfer that NCCL gave up on also ends the stream's work.
        self.is_settled(operation).map(drop)
    }

    fn check_time(&self, operation: &str, deadline: Instant) -> Result<(), DistributedError> {
        if Instant::now() < deadline {
            return Ok(());
        }
        Err(DistributedError::TimedOut {
            operation: operation.to_owned(),
            seconds: self.timeout.as_secs_f64(),
            reason: "NCCL still waits for another rank".to_owned(),
        })
    }

    fn error(&self, operation: &str, result: i32) -> DistributedError {
        let operation = operation.to_owned();
        let reason = self.functions.message(result, self.comm);
        match result {
            code::REMOTE_ERROR => DistributedError::Lost { operation, reason },
            _ => DistributedError::Nccl { operation, reason },
        }
    }

    fn cuda_error(&self, operation: &str, result: i32) -> DistributedError {
        DistributedError::Nccl {
            operation: operation.to_owned(),
            reason: self.functions.cuda_message(result),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.comm.is_null() {
            return;
        }
        let operation = "closing the communicator";
        let closed = !self.failed
            && self
                .guarded(operation, |this| {
                    // The last bytes may still be on their way to another rank, so an abort could lose them.
                    // SAFETY: the communicator is valid, and its transfers are done.
                    let result = unsafe { (this.functions.finalize)(this.comm) };
                    this.started(operation, result)?;
                    this.settle(operation, Instant::now() + this.timeout)
                })
                .is_ok();
        // SAFETY: nothing uses the communicator after this.
        unsafe {
            if closed {
                (self.functions.destroy)(self.comm);
            } else {
                (self.functions.abort)(self.comm);
            }
        }
    }
}

/// Returns the first code that is an error. A call in progress is not an error.
fn first_error(first: i32, second: i32) -> i32 {
    let is_error = |result| result != code::SUCCESS && result != code::IN_PROGRESS;
    if is_error(first) {
        first
    } else if is_error(second) {
        second
    } else {
        code::SUCCESS
    }
}

/// Ranks and GPUs have small numbers.
fn number(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests;
