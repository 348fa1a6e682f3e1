//! What the process takes of its machine: memory, CPU, files, disk, GPUs. Read when somebody looks; what
//! cannot be read is left out.

use std::{fs, path::PathBuf};

use nvml_wrapper::Nvml;

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

/// The machine as far as a run sees it.
pub(crate) struct Machine {
    /// The run's folder.
    folder: PathBuf,
    /// Absent where there is no NVIDIA driver, or no GPU to watch.
    nvml: Option<Nvml>,
    gpus: Vec<Gpu>,
}

impl Machine {
    /// `folder`: on the disk that is watched.
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
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        samples.add_one(&metrics::RESIDENT, kibibytes(&status, "VmRSS:"));
        samples.add_one(&metrics::PEAK_RESIDENT, kibibytes(&status, "VmHWM:"));
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        samples.add_one(&metrics::CPU_SECONDS, cpu_seconds(&stat));
        let open = fs::read_dir("/proc/self/fd").ok();
        samples.add_one(&metrics::OPEN_FILES, open.map(|files| files.count() as f64));
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        samples.add_one(&metrics::OPEN_FILES_LIMIT, open_files_limit(&limits));
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
            (&metrics::DEVICE_UTILISATION, &busy),
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
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmHWM:").map(|bytes| bytes as u64)
}

/// A line of /proc/self/status, in bytes.
fn kibibytes(status: &str, key: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: f64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(1024.0 * kibibytes)
}

/// User and system time of /proc/self/stat: its fields 14 and 15. The second, the program's name, may hold
/// spaces and brackets.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / rustix::param::clock_ticks_per_second() as f64)
}

/// The soft limit of /proc/self/limits; absent where there is none.
fn open_files_limit(limits: &str) -> Option<f64> {
    let rest = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_s_files_are_read() {
        assert_eq!(
            kibibytes("VmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n", "VmRSS:"),
            Some(1_048_576.0)
        );
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1 1 1";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_seconds(stat), Some(200.0 / ticks));
        assert_eq!(
            open_files_limit("Max open files            1024                 4096  files\n"),
            Some(1024.0)
        );
        assert_eq!(
            open_files_limit("Max open files  unlimited unlimited files\n"),
            None
        );
    }
}
