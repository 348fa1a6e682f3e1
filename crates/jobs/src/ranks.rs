//! The processes of a run that `torchrun` started. All train, but only rank 0 writes the run's folder.

use std::{
    env, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, anyhow};
use ddk_actors::{PortError, error::with_causes, ports::Peers};
use ddk_distributed::{Group, Store, World};
use ddk_settings::Settings;
use ddk_torch::parse_device;

use crate::{display, hint::Hint};

/// Grace period under `torchrun`, which kills its processes 30 seconds after it has passed on a signal.
const LONGEST_GRACE: f64 = 25.0;

/// How long rank 0 waits for the others to read its last word.
const READERS: Duration = Duration::from_secs(5);

/// This process among the others of its run.
#[derive(Debug)]
pub(crate) struct Ranks {
    world: World,
    store: Store,
    timeout: Duration,
    /// How often the others have waited for rank 0.
    turns: AtomicU64,
}

/// Rank 0's words to the others once it is done with work that they wait for.
const DONE: &[u8] = b"done";
const NOTHING_LEFT: &[u8] = b"nothing left to do";
/// The key of what a rank says when it fails before all are connected.
const FAILED: &str = "failed";

impl Ranks {
    /// Joins the other processes. Returns none if there are no others.
    ///
    /// # Errors
    /// If the environment is incomplete, if the number of processes does not divide `parallel.slots`, or if the store
    /// cannot be reached.
    pub(crate) fn join(settings: &Settings) -> Result<Option<Arc<Self>>> {
        let Some(world) = World::from_env().usage()?.filter(|world| world.size > 1) else {
            return Ok(None);
        };
        let slots = settings.parallel.slots;
        if !world.size.is_power_of_two() || !slots.is_multiple_of(world.size as u64) {
            let error = anyhow!(
                "{} processes cannot share {slots} slots (`parallel.slots`): expected a power of two, at most {slots}",
                world.size
            );
            return Err(error)
                .hint("start fewer processes, or choose more slots for a new run")
                .usage();
        }
        if world.rank > 0 {
            display::be_silent();
        }
        let timeout = Duration::from_secs_f64(settings.parallel.timeout_seconds);
        Ok(Some(Arc::new(Self {
            store: Store::connect(&world, timeout)?,
            world,
            timeout,
            turns: AtomicU64::new(0),
        })))
    }

    /// The number of this process, from 0.
    pub(crate) fn rank(&self) -> usize {
        self.world.rank
    }

    /// The number of this process on its machine, from 0. `torchrun` numbers the ranks of a machine consecutively, but
    /// with `--virtual-local-rank`, all have local rank 0.
    pub(crate) fn place(&self) -> usize {
        self.world.rank % self.world.local_size
    }

    /// The processes on this machine.
    pub(crate) fn local_size(&self) -> usize {
        self.world.local_size
    }

    /// Does rank 0's part of some work, while the others wait without a limit, and then the others' part. Rank 0
    /// returns none if the run is already finished. Then the others do too.
    pub(crate) fn in_turn<T>(
        ranks: Option<&Self>,
        first: impl FnOnce() -> Result<Option<T>>,
        others: impl FnOnce() -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(ranks) = ranks else {
            return first();
        };
        let turn = ranks.turns.fetch_add(1, Ordering::Relaxed);
        let key = format!("turn/{turn}");
        if ranks.world.rank == 0 {
            let done = first();
            let word = match &done {
                Ok(Some(_)) => DONE.to_vec(),
                Ok(None) => NOTHING_LEFT.to_vec(),
                Err(error) => format!("{error:#}").into_bytes(),
            };
            let told = ranks.store.set(&key, &word);
            let read = if word == DONE {
                Ok(())
            } else {
                ranks.wait_for_readers(&key)
            };
            if let Err(error) = told.map_err(Error::from).and(read) {
                tracing::warn!(%error, "cannot tell the other ranks");
            }
            return done;
        }
        let word = ranks.store.wait(&key, &|| false)?;
        let own = format!("{key}/read/{}", ranks.world.rank);
        ranks.store.set(&own, b"")?;
        match word.as_deref() {
            Some(DONE) => {
                let done = others();
                if let Err(error) = &done {
                    let text = format!("rank {} failed: {error:#}", ranks.world.rank);
                    let _ = ranks.store.set(FAILED, text.as_bytes());
                }
                done.map(Some)
            }
            Some(NOTHING_LEFT) => Ok(None),
            failed => {
                let reason = String::from_utf8_lossy(failed.unwrap_or_default());
                Err(anyhow!("rank 0 failed: {reason}"))
            }
        }
    }

    /// Waits until the other ranks have read a key, because the store ends with this process unless `torchrun` serves
    /// it. They may be gone, so it does not wait for long.
    fn wait_for_readers(&self, key: &str) -> Result<()> {
        if self.world.agent_serves_store {
            return Ok(());
        }
        let until = Instant::now() + READERS;
        for rank in 1..self.world.size {
            let read = format!("{key}/read/{rank}");
            self.store.wait(&read, &|| Instant::now() > until)?;
        }
        Ok(())
    }

    /// Waits without a limit until all ranks are here, or one has failed.
    fn meet(&self, place: &str) -> Result<()> {
        let key = |rank: usize| format!("{place}/{rank}");
        self.store.set(&key(self.world.rank), b"")?;
        let has_failed = || matches!(self.store.get(FAILED), Ok(Some(_)));
        for rank in 0..self.world.size {
            self.store.wait(&key(rank), &has_failed)?;
        }
        match self.store.get(FAILED)? {
            Some(text) => Err(anyhow!("{}", String::from_utf8_lossy(&text))),
            None => Ok(()),
        }
    }

    /// Connects the students of all ranks, after checking that all processes run the same program on the same run.
    ///
    /// # Errors
    /// If another process has another configuration, other inputs or another program, or does not come in time.
    pub(crate) fn connect(
        &self,
        settings: &Settings,
        inputs: &impl serde::Serialize,
    ) -> Result<Arc<Group>> {
        let device = parse_device(&own_device(&settings.student.device, settings, self)?)?;
        // Different for each run of a process, and the same on all ranks.
        let name = format!("student-{}", self.turns.load(Ordering::Relaxed));
        // The other ranks may still be reading models and a checkpoint.
        self.meet(&name)?;
        let group = Group::connect(&self.store, &self.world, &name, device, self.timeout)
            .hint("see the logs of the other ranks, or raise parallel.timeout_seconds")?;
        same_everywhere(&group, &identity(settings, inputs)?)?;
        Ok(Arc::new(group))
    }
}

/// Whether this process writes the run's folder: it is alone, or rank 0.
pub(crate) fn leads(ranks: Option<&Arc<Ranks>>) -> bool {
    ranks.is_none_or(|ranks| ranks.world.rank == 0)
}

/// Whether `torchrun` started this process.
pub(crate) fn under_torchrun() -> bool {
    env::var_os("TORCHELASTIC_RUN_ID").is_some()
}

/// Whether `torchrun` starts a failed run again.
pub(crate) fn restarts_by_torchrun() -> bool {
    under_torchrun() && env::var("TORCHELASTIC_MAX_RESTARTS").is_ok_and(|most| most != "0")
}

/// The grace period of a stop, in seconds. `torchrun` allows less than the settings may.
pub(crate) fn grace_seconds(settings: &Settings) -> f64 {
    let grace = settings.recovery.shutdown_grace_seconds;
    if under_torchrun() {
        grace.min(LONGEST_GRACE)
    } else {
        grace
    }
}

/// The device of this process for a device of the settings. Each process on a machine takes as many GPUs as the
/// settings name: with `cuda:0` and `cuda:1`, the second process takes `cuda:2` and `cuda:3`. A process that sees only
/// its own GPUs (`torchrun --virtual-local-rank`) has local rank 0.
///
/// # Errors
/// If the machine has too few GPUs.
fn own_device(device: &str, settings: &Settings, ranks: &Ranks) -> Result<String> {
    let index = |device: &str| device.strip_prefix("cuda:")?.parse::<usize>().ok();
    let devices = settings.teacher.every_device();
    let devices = devices.chain([&*settings.student.device]);
    let each = devices.filter_map(index).max().map_or(0, |last| last + 1);
    let Some(own) = index(device) else {
        return Ok(device.to_owned());
    };
    let (first, seen) = (ranks.world.local_rank * each, tch::Cuda::device_count());
    // Without a GPU, the device itself is the better error.
    if seen > 0 && first + each > seen as usize {
        let error = anyhow!(
            "rank {} needs the GPUs cuda:{first} to cuda:{}, but this machine has {seen}",
            ranks.world.rank,
            first + each - 1
        );
        return Err(error).hint("start fewer processes per machine").usage();
    }
    Ok(format!("cuda:{}", first + own))
}

/// The settings with this process's devices.
///
/// # Errors
/// If the machine has too few GPUs.
pub(crate) fn own_devices(settings: &Settings, ranks: &Ranks) -> Result<Settings> {
    let own = |device: &str| own_device(device, settings, ranks);
    let replica = |devices: &String| -> Result<String> {
        let devices = devices.split('+').map(own);
        Ok(devices.collect::<Result<Vec<_>>>()?.join("+"))
    };
    let mut changed = settings.clone();
    changed.student.device = own(&settings.student.device)?;
    let replicas = settings.teacher.devices.iter().map(replica);
    changed.teacher.devices = replicas.collect::<Result<_>>()?;
    Ok(changed)
}

/// What must be the same on all ranks, with the hash of each.
fn identity(settings: &Settings, inputs: &impl serde::Serialize) -> Result<Vec<(String, String)>> {
    let program = env::current_exe().context("cannot find this program's file")?;
    let program =
        fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_owned();
    let named = [
        ("the configuration", hash(settings.to_toml()?.as_bytes())),
        (
            "the models or the corpus",
            hash(&serde_json::to_vec(inputs)?),
        ),
        ("the ddk program", hash(&program)),
    ];
    Ok(named.map(|(what, hash)| (what.to_owned(), hash)).to_vec())
}

/// Fails if another rank has something else.
fn same_everywhere(group: &Group, own: &[(String, String)]) -> Result<()> {
    let all = group.exchange(&serde_json::to_vec(own)?)?;
    let mut others = Vec::new();
    for bytes in &all {
        others.push(serde_json::from_slice::<Vec<(String, String)>>(bytes)?);
    }
    for (rank, other) in others.iter().enumerate() {
        let pairs = others[0].iter().zip(other);
        if let Some(((what, expected), (_, found))) =
            pairs.clone().find(|(one, other)| one != other)
        {
            let error = anyhow!(
                "rank {rank} and rank 0 differ in {what} (hash {found} on rank {rank}, {expected} on rank 0)"
            );
            return Err(error)
                .hint("give all ranks the same program, configuration, models and corpus")
                .usage();
        }
    }
    Ok(())
}

/// The other ranks, for the actors.
pub(crate) struct GroupPeers(pub(crate) Arc<Group>);

impl Peers for GroupPeers {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn exchange(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, PortError> {
        let exchanged = self.0.exchange(message);
        exchanged.map_err(|error| PortError::Other(with_causes(&error)))
    }
}
