//! Measures teachers and student running concurrently.

use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use crossbeam::channel::bounded;
use ddk_corpus::Sequence;
use ddk_torch::TimeSlice;

use super::{
    Bench,
    steps::{WARM_UP, alone, student_step},
};

impl Bench<'_> {
    /// Returns the seconds per step while teachers and student run concurrently, and the share of that time in
    /// which the student waits.
    pub(super) fn overlapped(&self) -> Result<(f64, f64)> {
        let (models, settings) = (&self.models, self.models.settings);
        let asks_teacher = models.asks_teacher();
        let replicas = settings.teacher.devices.len();
        let depth = settings.pipeline.queue_depth;
        let turns = TimeSlice::new(settings.pipeline.time_slicing);
        let queues: Vec<_> = (0..replicas).map(|_| bounded(depth)).collect();
        std::thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
            let mut teachers = Vec::new();
            for (replica, sender) in senders.into_iter().enumerate().filter(|_| asks_teacher) {
                let thread = std::thread::Builder::new().name(format!("teacher-{replica}"));
                let turns = turns.clone();
                teachers.push(thread.spawn_scoped(scope, move || -> Result<()> {
                    let on = models.teacher_context(replica, &turns)?;
                    let teacher = models.teacher(replica)?;
                    // Worker `i mod workers` labels micro-batch i, step after step.
                    let all: Vec<_> = self.batch.micro_batches().collect();
                    let mut number = replica;
                    // The student closes its end when it has seen enough.
                    let label = |number: usize| teacher.label(&all[number % all.len()]);
                    while sender.send(on.work_in_turn(|| label(number))??).is_ok() {
                        number += replicas;
                    }
                    Ok(())
                })?);
            }
            let work = move || -> Result<(f64, f64)> {
                let replica = models.student_context(&turns)?;
                let mut student = models.student()?;
                let (mut times, mut waits, mut number) = (Vec::new(), Vec::new(), 0);
                // The queues filled up before the student took from them: that many batches come for free.
                let free =
                    WARM_UP + (depth * replicas).div_ceil(self.batch.micro_batches().count());
                let counted = |times: &[f64]| times[free..].iter().sum::<f64>();
                while times.len() < free + 3 || counted(&times) < self.time.as_secs_f64() {
                    let began = Instant::now();
                    let (mut waited, turns_before) = (0.0, replica.waited_seconds());
                    let receive = |_, _: &[&Sequence]| {
                        let asked = Instant::now();
                        let receiver = &receivers[number % replicas];
                        let output = asks_teacher.then(|| receiver.recv()).transpose()?;
                        waited += asked.elapsed().as_secs_f64();
                        number += 1;
                        Ok(output)
                    };
                    let step = times.len() as u64 + 1;
                    student_step((&replica, &mut student), step, &self.batch, receive)?;
                    times.push(began.elapsed().as_secs_f64());
                    waits.push(waited + replica.waited_seconds() - turns_before);
                }
                let all = counted(&times);
                Ok((all / (times.len() - free) as f64, counted(&waits) / all))
            };
            let done = alone("student", work);
            // A failed teacher makes the student fail too, so report the teacher's error first.
            for (replica, teacher) in teachers.into_iter().enumerate() {
                let ended = teacher.join();
                ended
                    .map_err(|_| anyhow!("teacher replica {replica} panicked"))?
                    .with_context(|| format!("teacher replica {replica}"))?;
            }
            done
        })
    }
}
