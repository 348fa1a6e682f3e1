//! Finds GPUs by their names in the settings.

use std::collections::BTreeSet;

use ddk_settings::Settings;
use ddk_telemetry::Gpu;
use ddk_torch::gpu_uuid;

/// Returns the GPU with a name such as `cuda:0`, if there is one.
pub fn gpu(device: &str) -> Option<Gpu> {
    let index = device.strip_prefix("cuda:")?.parse().ok()?;
    Some(Gpu {
        name: device.to_owned(),
        uuid: gpu_uuid(index)?,
    })
}

/// Returns the devices of both models.
pub fn devices(settings: &Settings) -> impl Iterator<Item = &str> {
    let teacher = settings.teacher.every_device();
    teacher.chain([settings.student.device.as_str()])
}

/// Returns the GPUs that a run uses, each once.
pub fn of_run(settings: &Settings) -> Vec<Gpu> {
    let devices: BTreeSet<&str> = devices(settings).collect();
    devices.into_iter().filter_map(gpu).collect()
}
