//! Compares the memory that each device needs with what is free.

use std::{collections::BTreeMap, fs};

use anyhow::{Result, anyhow};
use ddk_engine::{
    Part, StepShape, evaluated_copy_memory, gpu_memory, program_memory, queue_memory,
    snapshot_memory, student_memory, teacher_memory,
};
use ddk_objective::default_chunk;
use ddk_settings::{Dtype, Settings};
use ddk_torch::padded;
use procfs::Current;

use super::Models;
use crate::{findings::Findings, gpus::gpu, train::filters::layer_pairs, wiring};

/// Parts of a device's memory, each with a name that starts with its role.
type Parts = Vec<(String, Part)>;

/// Returns what each device needs, by the device's name.
fn needed<'a>(
    settings: &'a Settings,
    models: &Models,
    ranks: u64,
    found: &mut Findings<'_>,
) -> Result<BTreeMap<&'a str, Parts>> {
    let (teacher, student) = (&settings.teacher, &settings.student);
    let bytes = |dtype| wiring::kind(dtype).elt_size_in_bytes() as u64;
    let device = match student.device.as_str() {
        "cpu" => tch::Device::Cpu,
        _ => tch::Device::Cuda(0),
    };
    let vocabulary = models.vocabulary as u64;
    let chunk = default_chunk(vocabulary as i64, device);
    let chunk = settings.objective.chunk_size.unwrap_or(chunk);
    let pairs = layer_pairs(&settings.objective, &models.student, &models.teacher);
    let pairs = found.take(pairs);
    let shape = StepShape {
        micro_rows: settings.training.micro_batch_size,
        sequence_length: padded(settings.corpus.sequence_length as i64, device).unsigned_abs(),
        chunk: chunk.unsigned_abs(),
        vocabulary,
        recompute: student.activation_checkpointing,
        student_bytes: bytes(student.dtype),
        teacher_bytes: bytes(teacher.dtype),
        pairs: pairs.map_or(0, |pairs| pairs.len() as u64),
        on_cpu: student.device == "cpu",
        kernel: (student.device.as_str(), student.dtype) == ("cpu", Dtype::Fp32),
        needs_teacher_output: wiring::needs_teacher_output(settings),
        // The student's side shares the teacher's LM head with a replica whose last device is the student's.
        shared_head: !models.folders.head_only
            && (0..teacher.devices.len()).any(|replica| {
                teacher.devices_of(replica).last() == Some(&student.device.as_str())
            }),
        slots: settings.parallel.slots.max(ranks),
        ranks,
    };
    let mut devices: BTreeMap<&str, Parts> = BTreeMap::new();
    let mut add = |device, role: &str, parts: Vec<Part>, share: u64| {
        let parts = parts.into_iter().map(|mut part| {
            part.bytes /= share;
            (format!("{role}: {}", part.name), part)
        });
        devices.entry(device).or_default().extend(parts);
    };
    let of_student = student_memory(&models.student, &models.teacher, &shape)?;
    // Replicas on the same devices share their weights.
    let mut replicas: BTreeMap<Vec<&str>, u64> = BTreeMap::new();
    // A teacher that does not label is only evaluated, by the first worker.
    let labels = shape.needs_teacher_output;
    let count = if labels { teacher.devices.len() } else { 1 };
    let here = if models.folders.head_only { 0 } else { count };
    for replica in 0..here {
        *replicas.entry(teacher.devices_of(replica)).or_default() += 1;
    }
    for (spread, count) in &replicas {
        for &device in spread {
            let of_student = Some(&of_student[..]).filter(|_| device == student.device);
            let beside = of_student.unwrap_or_default();
            let of_teacher = teacher_memory(&models.teacher, &shape, *count, beside)?;
            add(device, "teacher", of_teacher, spread.len() as u64);
        }
    }
    add(&student.device, "student", of_student, 1);
    if settings.mixture.lag == 1 {
        let copy = evaluated_copy_memory(&models.student, shape.student_bytes)?;
        add(&student.device, "student", vec![copy], 1);
    }
    let depth = settings.pipeline.queue_depth as u64;
    let queue = queue_memory(&models.teacher, &shape, depth, teacher.replicas() as u64);
    add(&student.device, "run", vec![queue], 1);
    let mut of_run = vec![program_memory()];
    if ranks == 1 {
        of_run.push(snapshot_memory(&models.student)?);
    }
    add("cpu", "run", of_run, 1);
    for (_, parts) in devices.iter_mut().filter(|(device, _)| **device != "cpu") {
        let tensors = parts.iter().map(|(_, part)| part.bytes).sum();
        let of_process = gpu_memory(tensors).into_iter();
        parts.extend(of_process.map(|part| (format!("run: {}", part.name), part)));
    }
    Ok(devices)
}

/// Checks that each device has the memory that the run needs there.
pub(super) fn check(
    settings: &Settings,
    models: &Models,
    ranks: u64,
    found: &mut Findings<'_>,
) -> Result<()> {
    for (device, parts) in needed(settings, models, ranks, found)? {
        let needed: u64 = parts.iter().map(|(_, part)| part.bytes).sum();
        let free = free_bytes(device);
        let of = free.map_or_else(|| "unknown".to_owned(), size);
        let needs = size(needed);
        let of_each = if ranks > 1 { ", each rank" } else { "" };
        found.title(&format!(
            "memory of {device}{of_each}: needs {needs}, free {of}"
        ));
        for (name, part) in parts.iter().filter(|(_, part)| part.bytes > 0) {
            found.line(&format!("{:>10}  {name}", size(part.bytes)));
        }
        if ranks > 1 && device == "cpu" {
            let snapshot = snapshot_memory(&models.student)?.bytes;
            found.line(&format!(
                "{ranks} ranks on this machine need {}, and rank 0 needs {} more for a snapshot that is being saved",
                size(ranks * needed),
                size(snapshot)
            ));
        }
        let settings = parts
            .iter()
            .filter_map(|(name, part)| Some((name, part.bytes, part.setting?)));
        let largest = settings.max_by_key(|(_, bytes, _)| *bytes);
        if let Some(free) = free.filter(|free| needed > *free) {
            let lacks = size(needed - free);
            let advice = largest.map(|(name, _, setting)| {
                format!("; the largest part is {name}: change {setting}")
            });
            let advice = advice.unwrap_or_default();
            found.problem(anyhow!("{device} is short of {lacks}{advice}"));
        }
    }
    Ok(())
}

/// Returns the memory that a device can provide, or `None` if it is unknown.
fn free_bytes(device: &str) -> Option<u64> {
    if device != "cpu" {
        return gpu(device)?.free_bytes();
    }
    let available = procfs::Meminfo::current().ok()?.mem_available?;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // A container may have a lower limit than the machine.
    let limit = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    let limit = limit.map_or(u64::MAX, |(most, used)| most.saturating_sub(used));
    Some(available.min(limit))
}

pub(super) fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        _ if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.0} kB", bytes / 1e3),
    }
}
