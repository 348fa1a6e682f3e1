//! A group: all processes of a run, connected with each other.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ddk_torch::are_apart;
use tch::{Device, Tensor};

use crate::{
    DistributedError, Store, World,
    error::useful,
    meeting::{Meeting, Missing},
    nccl::{self, Communicator},
    shim::{ConnectError, GlooHandle, Sent},
    store::LONGEST_TIMEOUT,
};

/// All processes of a run, connected with each other. Several groups may exist over one store, with different names.
///
/// All ranks must call the same operations in the same order. One thread at a time uses a group; a second one waits.
///
/// An operation that fails closes the group's connections, so that the other ranks fail soon too. From then on, each
/// operation of the group returns the same error. Start again with a new group, or a new process.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    size: usize,
    name: String,
    device: Device,
    timeout: Duration,
    state: Mutex<State>,
    /// Rank 0 may serve the store, which others still need while they connect.
    _store: Store,
}

#[derive(Debug)]
enum State {
    Connected(Connections),
    Failed(DistributedError),
}

#[derive(Debug)]
struct Connections {
    gloo: GlooHandle,
    /// For tensors on a GPU.
    gpus: Option<Communicator>,
    /// Number of the next transfer.
    next: u16,
}

/// The kinds of transfers. Ranks that call different operations must not receive each other's bytes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Start,
    AllToAll,
    AllGather,
    Lengths,
    Messages,
}

impl Kind {
    fn operation(self) -> &'static str {
        match self {
            Self::Start => "the first exchange",
            Self::AllToAll => "all_to_all",
            Self::AllGather => "all_gather",
            Self::Lengths | Self::Messages => "exchange",
        }
    }
}

impl Group {
    /// Connects all ranks with each other. Returns when all have come.
    ///
    /// Messages, and tensors on the CPU, travel through Gloo. It listens on the interfaces that `GLOO_SOCKET_IFNAME`
    /// names (separated by commas, as for PyTorch). Without this variable, it listens at the address by which the
    /// machine reaches the store's host: on the loopback interface if all ranks run on that host and its name stands
    /// for it. Tensors on a GPU travel through NCCL (untested: no GPU was available).
    ///
    /// `timeout` limits the wait for the other ranks, and then each operation.
    ///
    /// A name may be used again, if each rank has used it equally often before.
    ///
    /// # Errors
    /// [`DistributedError::TimedOut`] names the ranks that did not come. Also if the store no longer answers, if an
    /// interface cannot be used, or if NCCL is missing or fails.
    pub fn connect(
        store: &Store,
        world: &World,
        name: &str,
        device: Device,
        timeout: Duration,
    ) -> Result<Self, DistributedError> {
        let operation = format!("connecting the group \"{name}\"");
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(DistributedError::Invalid(format!(
                "a group cannot be named \"{}\": expected a name without `/` and NUL bytes",
                name.escape_debug()
            )));
        }
        if world.rank >= world.size {
            return Err(DistributedError::Invalid(format!(
                "rank {} of {} ranks cannot join a group: expected a rank from 0 to {}",
                world.rank,
                world.size,
                world.size.saturating_sub(1)
            )));
        }
        // Find out first, before other ranks wait for this one.
        let gpus = match device {
            Device::Cpu => None,
            Device::Cuda(index) => Some((index, nccl::Functions::load()?)),
            other => {
                return Err(DistributedError::Invalid(format!(
                    "a group cannot use the device {other:?}: expected the CPU or a CUDA device"
                )));
            }
        };
        let timeout = timeout.min(LONGEST_TIMEOUT);
        let deadline = Instant::now() + timeout;
        let meeting = Meeting::enter(store, world, name, timeout)?;
        let binding = meeting.binding(deadline).map_err(|missing| match missing {
            Missing::Ranks(reason) => DistributedError::TimedOut {
                operation: operation.clone(),
                seconds: timeout.as_secs_f64(),
                reason,
            },
            Missing::Store(text) => store.failed("read from", &text),
        })?;
        let (rank, size) = (world.rank, world.size);
        let gloo = GlooHandle::connect(meeting.store(), rank, size, timeout, &binding);
        let gloo = gloo.map_err(|error| match error {
            ConnectError::Listen(text) => DistributedError::Invalid(format!(
                "{operation}: Gloo cannot listen on {}: {}: set GLOO_SOCKET_IFNAME to the interface that reaches the \
                 other machines",
                binding.to_text(),
                useful(&text)
            )),
            ConnectError::Ranks(text) => {
                let text = format!("{} (this rank listens on {})", useful(&text), binding.to_text());
                DistributedError::of_transfer(operation, timeout, &text)
            }
        })?;
        let connections = Connections {
            gloo,
            gpus: None,
            next: 0,
        };
        let group = Self {
            rank,
            size,
            name: name.to_owned(),
            device,
            timeout,
            state: Mutex::new(State::Connected(connections)),
            _store: store.clone(),
        };
        // Before this, a rank that is done could leave while others still connect with it, which would fail.
        group.with_connections(|connections| {
            let sizes = vec![1; group.size];
            group.gather_bytes(connections, Kind::Start, &[0], &sizes)
        })?;
        if let Some((index, functions)) = gpus {
            group.connect_gpus(index, functions)?;
        }
        Ok(group)
    }

    /// Rank 0 makes the id of the communicator, which all need to join it.
    fn connect_gpus(
        &self,
        index: usize,
        functions: nccl::Functions,
    ) -> Result<(), DistributedError> {
        let id = match self.rank {
            0 => functions.unique_id(),
            _ => Ok(Vec::new()),
        };
        // The others wait for rank 0's message, even if it has no id to send.
        let ids = self.exchange(id.as_deref().unwrap_or_default())?;
        id?;
        let joined = Communicator::join(
            functions,
            index,
            self.rank,
            self.size,
            ids.first().map_or(&[], Vec::as_slice),
            self.timeout,
        );
        self.with_connections(|connections| {
            connections.gpus = Some(joined?);
            Ok(())
        })
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The device whose tensors the group transfers.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Sends part `r` of `input` to rank `r`, for each rank. Afterwards, part `r` of `out` is what rank `r` sent to
    /// this one. Parts are equal.
    ///
    /// Both tensors have one dimension, are contiguous and on the group's device, and have the same dtype and number
    /// of elements, which `size` divides. All ranks pass the same number. Any dtype is possible, because only bytes
    /// are copied.
    ///
    /// # Errors
    /// [`DistributedError::Invalid`] if the tensors are not like this. Otherwise, if a rank is gone or too slow.
    pub fn all_to_all(&self, out: &mut Tensor, input: &Tensor) -> Result<(), DistributedError> {
        let operation = self.operation(Kind::AllToAll);
        self.check(&operation, out, input)?;
        if out.numel() != input.numel() || !input.numel().is_multiple_of(self.size) {
            return Err(DistributedError::Invalid(format!(
                "{operation}: `out` has {} elements and `input` {}, expected the same multiple of {} ranks",
                out.numel(),
                input.numel(),
                self.size
            )));
        }
        let share = bytes(input) / self.size;
        self.transfer(Kind::AllToAll, out, input, share, Sent::Parts)
    }

    /// Sends `input` to all ranks. Afterwards, part `r` of `out` is what rank `r` sent.
    ///
    /// Both tensors have one dimension, are contiguous and on the group's device, and have the same dtype. `out` has
    /// `size` times as many elements as `input`. All ranks pass the same number.
    ///
    /// # Errors
    /// [`DistributedError::Invalid`] if the tensors are not like this. Otherwise, if a rank is gone or too slow.
    pub fn all_gather(&self, out: &mut Tensor, input: &Tensor) -> Result<(), DistributedError> {
        let operation = self.operation(Kind::AllGather);
        self.check(&operation, out, input)?;
        if input.numel().checked_mul(self.size) != Some(out.numel()) {
            return Err(DistributedError::Invalid(format!(
                "{operation}: `out` has {} elements, expected {} ranks times the {} of `input`",
                out.numel(),
                self.size,
                input.numel()
            )));
        }
        self.transfer(Kind::AllGather, out, input, bytes(input), Sent::Same)
    }

    /// Sends a message of any length to all ranks. Returns all ranks' messages, by rank. Always travels through
    /// Gloo.
    ///
    /// # Errors
    /// If a rank is gone or too slow.
    pub fn exchange(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, DistributedError> {
        // Both transfers under one lock, so that another thread's cannot come between.
        self.with_connections(|connections| {
            let length = (message.len() as u64).to_le_bytes();
            let sizes = vec![length.len(); self.size];
            let lengths = self.gather_bytes(connections, Kind::Lengths, &length, &sizes)?;
            let lengths = lengths.iter().map(|length| {
                let length = length.as_slice().try_into().map_or(0, u64::from_le_bytes);
                usize::try_from(length).unwrap_or(usize::MAX)
            });
            let lengths: Vec<usize> = lengths.collect();
            self.gather_bytes(connections, Kind::Messages, message, &lengths)
        })
    }

    /// All ranks' bytes, by rank. Rank `r` sends `sizes[r]` bytes.
    fn gather_bytes(
        &self,
        connections: &mut Connections,
        kind: Kind,
        input: &[u8],
        sizes: &[usize],
    ) -> Result<Vec<Vec<u8>>, DistributedError> {
        let total = sizes
            .iter()
            .try_fold(0_usize, |sum, size| sum.checked_add(*size));
        let mut all = Vec::new();
        let total = total.filter(|total| all.try_reserve_exact(*total).is_ok());
        let Some(total) = total else {
            return Err(DistributedError::Torch(format!(
                "out of memory: no room for the messages of all ranks, of {sizes:?} bytes"
            )));
        };
        all.resize(total, 0);
        let tag = connections.tag(kind, sizes);
        // SAFETY: `all` has room for all sizes, `input` has the size that this rank announced, and both belong to this
        // thread. The ranks have exchanged their sizes, or the sizes are constant.
        unsafe {
            connections.gloo.transfer(
                tag,
                all.as_mut_ptr(),
                sizes,
                input.as_ptr(),
                input.len(),
                Sent::Same,
            )
        }
        .map_err(|text| self.failed(kind, &text))?;
        let mut messages = Vec::with_capacity(self.size);
        for size in sizes.iter().rev() {
            messages.push(all.split_off(all.len() - size));
        }
        messages.reverse();
        Ok(messages)
    }

    /// Transfers checked tensors. `share` is the number of bytes that each rank sends to each.
    fn transfer(
        &self,
        kind: Kind,
        out: &mut Tensor,
        input: &Tensor,
        share: usize,
        sent: Sent,
    ) -> Result<(), DistributedError> {
        let (to, from) = (out.data_ptr().cast::<u8>(), input.data_ptr().cast::<u8>());
        self.with_connections(|connections| {
            if share == 0 {
                return Ok(());
            }
            let sizes = vec![share; self.size];
            let tag = connections.tag(kind, &sizes);
            if let Some(gpus) = &mut connections.gpus {
                let operation = self.operation(kind);
                // SAFETY: the checks of the callers hold: both tensors are on the communicator's GPU, contiguous,
                // apart, and of `size` shares, or one share for the input of a gather.
                return unsafe { gpus.transfer(&operation, to, from, share, sent) };
            }
            // SAFETY: as above, for the CPU. The exclusive borrow keeps others away from `out`, and `are_apart` its
            // aliases.
            unsafe {
                connections
                    .gloo
                    .transfer(tag, to, &sizes, from, share, sent)
            }
            .map_err(|text| self.failed(kind, &text))
        })
    }

    /// What both operations on tensors require.
    fn check(&self, operation: &str, out: &Tensor, input: &Tensor) -> Result<(), DistributedError> {
        for (name, tensor) in [("out", out), ("input", input)] {
            if tensor.device() != self.device || tensor.dim() != 1 || !tensor.is_contiguous() {
                let layout = if tensor.is_contiguous() {
                    "contiguous"
                } else {
                    "not contiguous"
                };
                return Err(DistributedError::Invalid(format!(
                    "{operation}: `{name}` has shape {:?}, is {layout} and on {:?}, expected one dimension, \
                     contiguous, on {:?}",
                    tensor.size(),
                    tensor.device(),
                    self.device
                )));
            }
        }
        if out.kind() != input.kind() {
            return Err(DistributedError::Invalid(format!(
                "{operation}: `out` has dtype {:?} and `input` {:?}, expected the same",
                out.kind(),
                input.kind()
            )));
        }
        if !are_apart(&[out, input]) {
            return Err(DistributedError::Invalid(format!(
                "{operation}: `out` and `input` share memory, expected separate tensors"
            )));
        }
        Ok(())
    }

    /// Runs an operation, unless an earlier one failed. If it fails, closes the connections.
    fn with_connections<T>(
        &self,
        operation: impl FnOnce(&mut Connections) -> Result<T, DistributedError>,
    ) -> Result<T, DistributedError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Connected(connections) => operation(connections).inspect_err(|error| {
                *state = State::Failed(error.clone());
            }),
            State::Failed(error) => Err(error.clone()),
        }
    }

    fn operation(&self, kind: Kind) -> String {
        format!("{} of the group \"{}\"", kind.operation(), self.name)
    }

    fn failed(&self, kind: Kind, text: &str) -> DistributedError {
        DistributedError::of_transfer(self.operation(kind), self.timeout, text)
    }
}

impl Connections {
    /// The tag of the next transfer, in which the ranks send these numbers of bytes. Gloo pairs a send with the
    /// receive of the same tag, a positive 32-bit number. Here, 15 bits number the transfers, 3 are the kind, and 12
    /// are a hash of the sizes. Ranks that disagree therefore time out, instead of receiving wrong bytes.
    fn tag(&mut self, kind: Kind, sizes: &[usize]) -> i32 {
        let number = self.next & 0x7fff;
        self.next = self.next.wrapping_add(1);
        let mix = |hash: u64, size: &usize| {
            (hash.rotate_left(5) ^ *size as u64).wrapping_mul(0x517c_c1b7_2722_0a95)
        };
        let hash = sizes.iter().fold(0, mix) >> 52;
        (i32::from(number) << 15) | ((kind as i32) << 12) | hash as i32
    }
}

/// The size of a contiguous tensor.
fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
