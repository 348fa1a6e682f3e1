//! The models: teacher, student, what is minimised, models that are pretrained.

use super::{Checker, LARGE, MANY};
use crate::{
    options::{
        BatchOptions, ObjectiveOptions, PretrainOptions, ShapeOptions, StudentOptions,
        TeacherOptions,
    },
    settings::{Objective, Pretrain, Shape, Student, Teacher},
};

impl Checker<'_> {
    pub(super) fn teacher(&mut self, teacher: TeacherOptions) -> Option<Teacher> {
        let devices = self.need("teacher.devices", teacher.devices);
        let each = devices
            .iter()
            .flatten()
            .flat_map(|replica| replica.split('+'));
        for device in each {
            self.device("teacher.devices", Some(device.to_owned()));
        }
        if devices.as_ref().is_some_and(Vec::is_empty) {
            self.problem(
                "teacher.devices",
                "`teacher.devices` is empty, expected at least one device".to_owned(),
            );
        }
        let threads = self.within("teacher.threads", teacher.threads, 1..=256, "1 to 256");
        let lanes = self.within("teacher.lanes", teacher.lanes, 1..=64, "1 to 64");
        Some(Teacher {
            model: teacher.model,
            devices: devices?,
            dtype: self.need("teacher.dtype", teacher.dtype)?,
            threads: threads?,
            lanes: lanes?,
        })
    }

    pub(super) fn student(&mut self, student: StudentOptions) -> Option<Student> {
        let device = self.device("student.device", student.device);
        let threads = self.within("student.threads", student.threads, 1..=256, "1 to 256");
        let lr = self.positive("student.lr", student.lr);
        let lr_end = self.not_negative("student.lr_end", student.lr_end);
        let weight_decay = self.not_negative("student.weight_decay", student.weight_decay);
        let beta1 = self.within(
            "student.beta1",
            student.beta1,
            0.0..1.0,
            "0 or more and under 1",
        );
        let beta2 = self.within(
            "student.beta2",
            student.beta2,
            0.0..1.0,
            "0 or more and under 1",
        );
        let epsilon = self.positive("student.epsilon", student.epsilon);
        let clip_norm = self.positive("student.clip_norm", student.clip_norm);
        let schedule_steps =
            self.optional_count("student.schedule_steps", student.schedule_steps, MANY);
        Some(Student {
            model: student.model,
            device: device?,
            dtype: self.need("student.dtype", student.dtype)?,
            recompute: self.need("student.recompute", student.recompute)?,
            threads: threads?,
            lr: lr?,
            lr_end: lr_end?,
            warmup_steps: self.need("student.warmup_steps", student.warmup_steps)?,
            schedule_steps,
            weight_decay: weight_decay?,
            beta1: beta1?,
            beta2: beta2?,
            epsilon: epsilon?,
            clip_norm: clip_norm?,
        })
    }

    pub(super) fn objective(&mut self, objective: ObjectiveOptions) -> Option<Objective> {
        let gamma = self.not_negative("objective.gamma", objective.gamma);
        let temperature = self.positive("objective.temperature", objective.temperature);
        let (beta, skew) = (objective.beta, objective.skew);
        if beta.is_some_and(|beta| !(beta > 0.0 && beta < 1.0)) {
            let text = format!(
                "`objective.beta` is {}, expected over 0 and under 1 (at both ends the divergence is 0 everywhere)",
                beta.unwrap_or_default()
            );
            self.problem("objective.beta", text);
        }
        let skew = self.within("objective.skew", skew, 0.0..1.0, "0 or more and under 1");
        let ted_weight = self.positive("objective.ted_weight", objective.ted_weight);
        let ted_steps = self.count("objective.ted_steps", objective.ted_steps, LARGE);
        let ted_lr = self.positive("objective.ted_lr", objective.ted_lr);
        if let Some(pairs) = &objective.ted_layers {
            let twice = |index: usize| pairs[..index].contains(&pairs[index]);
            if pairs.is_empty() || pairs.iter().flatten().any(|layer| *layer == 0) {
                self.problem(
                    "objective.ted_layers",
                    format!("`objective.ted_layers` is {pairs:?}, expected at least one pair of layers counted from 1, such as [[2, 4]]"),
                );
            } else if let Some(index) = (0..pairs.len()).find(|index| twice(*index)) {
                self.problem(
                    "objective.ted_layers",
                    format!("`objective.ted_layers` holds {:?} twice", pairs[index]),
                );
            }
        }
        Some(Objective {
            name: self.need("objective.name", objective.name)?,
            chunk: self.optional("objective.chunk", objective.chunk, 1.., "1 or more"),
            gamma: gamma?,
            temperature: temperature?,
            beta: self.need("objective.beta", beta)?,
            skew: skew?,
            mask_prompt: self.need("objective.mask_prompt", objective.mask_prompt)?,
            temperature_squared: self.need(
                "objective.temperature_squared",
                objective.temperature_squared,
            )?,
            ted_weight: ted_weight?,
            ted_steps: ted_steps?,
            ted_lr: ted_lr?,
            ted_layers: objective.ted_layers,
        })
    }

    pub(super) fn pretrain(
        &mut self,
        name: &str,
        model: PretrainOptions,
        run_seed: u64,
        domains: &[String],
    ) -> Option<Pretrain> {
        let table = format!("pretrain.{name}");
        let key = |field: &str| format!("{table}.{field}");
        let steps = self.count(&key("steps"), model.steps, MANY);
        let batch = self.batch(
            &table,
            BatchOptions {
                rows: model.rows.or(Some(16)),
                micro_rows: model.micro_rows.or(Some(8)),
            },
        );
        let lr = self.positive(&key("lr"), model.lr.or(Some(1e-3)))?;
        let lr_end = self.not_negative(&key("lr_end"), model.lr_end.or(Some(lr / 10.0)));
        let weight_decay =
            self.not_negative(&key("weight_decay"), model.weight_decay.or(Some(0.1)));
        let device = self.device(
            &key("device"),
            model.device.or_else(|| Some("cpu".to_owned())),
        );
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.within(
            &key("threads"),
            model.threads.or(Some(cores)),
            1..=256,
            "1 to 256",
        );
        if let Some(shares) = &model.shares {
            self.shares(&key("shares"), shares, domains);
        }
        let architecture = match model.architecture {
            Some(shape) => Some(self.shape(&key("architecture"), shape)?),
            None => None,
        };
        if architecture.is_some() == model.init.is_some() {
            self.problem(&table, format!("`{table}` needs either `init` (a model's folder) or `architecture` (a new model)"));
        }
        let steps = steps?;
        Some(Pretrain {
            out: self.need(&key("out"), model.out)?,
            init: model.init,
            architecture,
            steps,
            rows: batch.as_ref()?.rows,
            micro_rows: batch?.micro_rows,
            lr,
            lr_end: lr_end?,
            warmup_steps: model.warmup_steps.unwrap_or(steps / 20),
            weight_decay: weight_decay?,
            device: device?,
            threads: threads?,
            shares: model.shares,
            seed: model.seed.unwrap_or(run_seed),
        })
    }

    fn shape(&mut self, table: &str, shape: ShapeOptions) -> Option<Shape> {
        let mut size =
            |field: &str, value| self.within(&format!("{table}.{field}"), value, 1.., "1 or more");
        let hidden_size = size("hidden_size", shape.hidden_size);
        let intermediate_size = size("intermediate_size", shape.intermediate_size);
        let layers = size("layers", shape.layers);
        let heads = size("heads", shape.heads)?;
        let kv_heads = size("kv_heads", shape.kv_heads.or(Some(heads)))?;
        let rope_theta = self.positive(
            &format!("{table}.rope_theta"),
            shape.rope_theta.or(Some(10_000.0)),
        );
        let hidden_size = hidden_size?;
        if heads < 1 || kv_heads < 1 || hidden_size % heads != 0 || (hidden_size / heads) % 2 != 0 {
            self.problem(&format!("{table}.heads"), format!("`{table}.heads` is {heads}: hidden_size {hidden_size} must be an even multiple of it"));
        } else if heads % kv_heads != 0 {
            self.problem(
                &format!("{table}.kv_heads"),
                format!("`{table}.kv_heads` is {kv_heads}, expected a divisor of heads = {heads}"),
            );
        }
        Some(Shape {
            hidden_size,
            intermediate_size: intermediate_size?,
            layers: layers?,
            heads,
            kv_heads,
            tie: shape.tie.unwrap_or(false),
            rope_theta: rope_theta?,
        })
    }
}
