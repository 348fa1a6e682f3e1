//! Samples what the process uses of its machine: memory, CPU, files, disk, GPUs. Leaves out what cannot be read.

use std::path::PathBuf;

use nvml_wrapper::Nvml;
use procfs::process::{LimitValue, Process};

use crate::{metrics, samples::Samples};

/// A GPU that a run uses. libtorch and NVML number GPUs differently; both know the UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// The name in the settings: `cuda:0`.
    pub name: String,
    /// As `nvidia-smi -L` prints it: `GPU-…`.
    pub uuid: String,
}

impl Gpu {
    /// Bytes of its memory that no process uses; `None` if the driver does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        let nvml = Nvml::init().ok()?;
        let device = nvml.device_by_uuid(self.uuid.as_str()).ok()?;
        Some(device.memory_info().ok()?.free)
    }
}

/// The resources of the machine that a run watches.
pub(crate) struct Machine {
    /// The run's folder.
    folder: PathBuf,
    /// `None` if there is no NVIDIA driver, or no GPU to watch.
    nvml: Option<Nvml>,
    gpus: Vec<Gpu>,
}

impl Machine {
    /// `folder` is on the disk to watch.
    pub(crate) fn new(folder: PathBuf, gpus: Vec<Gpu>) -> Self {
        Self {
            folder,
            nvml: if gpus.is_empty() {
                None
            } else {
                Nvml::init().ok()
            },
            gpus,
        }
    }

    pub(crate) fn sample(&self, samples: &mut Samples<'_>) {
        if let Ok(process) = Process::myself() {
            let kibibytes = |count: Option<u64>| Some(1024.0 * count? as f64);
            let status = process.status().ok();
            let resident = status.as_ref().and_then(|status| status.vmrss);
            samples.add_one(&metrics::RESIDENT, kibibytes(resident));
            samples.add_one(
                &metrics::PEAK_RESIDENT,
                kibibytes(status.and_then(|status| status.vmhwm)),
            );
            let ticks = process
                .stat()
                .ok()
                .map(|stat| (stat.utime + stat.stime) as f64);
            let seconds = ticks.map(|ticks| ticks / procfs::ticks_per_second() as f64);
            samples.add_one(&metrics::CPU_SECONDS, seconds);
            let open = process.fd_count().ok();
            samples.add_one(&metrics::OPEN_FILES, open.map(|count| count as f64));
            let limits = process.limits().ok();
            let limit = limits.and_then(|limits| match limits.max_open_files.soft_limit {
                LimitValue::Value(limit) => Some(limit as f64),
                LimitValue::Unlimited => None,
            });
            samples.add_one(&metrics::OPEN_FILES_LIMIT, limit);
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.folder) {
            let bytes = |blocks: u64| Some(blocks as f64 * disk.f_frsize as f64);
            samples.add_one(&metrics::DISK_FREE, bytes(disk.f_bavail));
            samples.add_one(&metrics::DISK_SIZE, bytes(disk.f_blocks));
        }
        self.sample_devices(samples);
    }

    fn sample_devices(&self, samples: &mut Samples<'_>) {
        let Some(nvml) = &self.nvml else {
            return;
        };
        let (mut used, mut sizes, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for Gpu { name, uuid } in &self.gpus {
            let Ok(device) = nvml.device_by_uuid(uuid.as_str()) else {
                continue;
            };
            if let Ok(memory) = device.memory_info() {
                used.push((name, memory.used as f64));
                sizes.push((name, memory.total as f64));
            }
            if let Ok(rates) = device.utilization_rates() {
                busy.push((name, f64::from(rates.gpu) / 100.0));
            }
        }
        for (metric, values) in [
            (&metrics::DEVICE_MEMORY, &used),
            (&metrics::DEVICE_MEMORY_SIZE, &sizes),
            (&metrics::DEVICE_UTILIZATION, &busy),
        ] {
            let of_devices = values.iter();
            samples.add(
                metric,
                of_devices.map(|(device, value)| (vec![device.as_str()], *value)),
            );
        }
    }
}

/// The largest resident memory of this process so far.
pub fn peak_resident_bytes() -> Option<u64> {
    Some(1024 * Process::myself().ok()?.status().ok()?.vmhwm?)
}
