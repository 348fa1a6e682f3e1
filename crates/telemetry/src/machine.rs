//! Samples what the process uses of its machine: memory, CPU, files, disk, GPUs. Leaves out what cannot be read.

use std::path::PathBuf;

use nvml_wrapper::{Device, Nvml, error::NvmlError};
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
            nvml: (!gpus.is_empty()).then(|| Nvml::init().ok()).flatten(),
            gpus,
        }
    }

    pub(crate) fn sample(&self, samples: &mut Samples<'_>) {
        if let Ok(process) = Process::myself() {
            if let Ok(status) = process.status() {
                let kibibytes = |count: Option<u64>| Some(1024.0 * count? as f64);
                samples.add_one(&metrics::RESIDENT, kibibytes(status.vmrss));
                samples.add_one(&metrics::PEAK_RESIDENT, kibibytes(status.vmhwm));
            }
            if let Ok(stat) = process.stat() {
                let ticks = (stat.utime + stat.stime) as f64;
                let seconds = ticks / procfs::ticks_per_second() as f64;
                samples.add_one(&metrics::CPU_SECONDS, Some(seconds));
            }
            let open = process.fd_count().ok();
            samples.add_one(&metrics::OPEN_FILES, open.map(|count| count as f64));
            if let Ok(limits) = process.limits()
                && let LimitValue::Value(limit) = limits.max_open_files.soft_limit
            {
                samples.add_one(&metrics::OPEN_FILES_LIMIT, Some(limit as f64));
            }
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
        let mut add = |metric, value: fn(&Device<'_>) -> Result<f64, NvmlError>| {
            let values = self.gpus.iter().filter_map(|Gpu { name, uuid }| {
                let device = nvml.device_by_uuid(uuid.as_str()).ok()?;
                Some((vec![name.as_str()], value(&device).ok()?))
            });
            samples.add(metric, values);
        };
        add(&metrics::DEVICE_MEMORY, |device| {
            Ok(device.memory_info()?.used as f64)
        });
        add(&metrics::DEVICE_MEMORY_SIZE, |device| {
            Ok(device.memory_info()?.total as f64)
        });
        add(&metrics::DEVICE_UTILIZATION, |device| {
            Ok(f64::from(device.utilization_rates()?.gpu) / 100.0)
        });
    }
}

/// The largest resident memory of this process so far.
pub fn peak_resident_bytes() -> Option<u64> {
    Some(1024 * Process::myself().ok()?.status().ok()?.vmhwm?)
}
