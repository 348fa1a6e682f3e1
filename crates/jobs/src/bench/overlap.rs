//! Teachers and student side by side.

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
    /// Seconds of a step while teachers and student work side by side, and the share of them in which the
    /// student waits.
    pub(super) fn overlapped(&self) -> Result<(f64, f64)> {
        let (models, settings) = (&self.models, self.models.settings);
        let asks_teacher = models.asks_teacher();
        let lanes = settings.teacher.devices.len();
        let depth = settings.pipeline.queue_depth;
        let turns = TimeSlice::new(settings.pipeline.time_slicing);
        let queues: Vec<_> = (0..lanes).map(|_| bounded(depth)).collect();
        std::thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
            let mut teachers = Vec::new();
            for (lane, sender) in senders.into_iter().enumerate().filter(|_| asks_teacher) {
                let thread = std::thread::Builder::new().name(format!("teacher-{lane}"));
                let turns = turns.clone();
                teachers.push(thread.spawn_scoped(scope, move || -> Result<()> {
                    let on = models.teacher_lane(lane, &turns)?;
                    let teacher = models.teacher(lane)?;
                    // Micro-batch i is lane i mod lanes', step after step.
                    let all: Vec<_> = self.batch.micro_batches().collect();
                    let mut number = lane;
                    // The student hangs up when it has seen enough.
                    let label = |number: usize| teacher.label(&all[number % all.len()]);
                    while sender.send(on.work_in_turn(|| label(number))??).is_ok() {
                        number += lanes;
                    }
                    Ok(())
                })?);
            }
            let work = move || -> Result<(f64, f64)> {
                let lane = models.student_lane(&turns)?;
                let mut student = models.student()?;
                let (mut times, mut waits, mut number) = (Vec::new(), Vec::new(), 0);
                // The queues were filled while nobody took from them: that many batches come for nothing.
                let free = WARM_UP + (depth * lanes).div_ceil(self.batch.micro_batches().count());
                let counted = |times: &[f64]| times[free..].iter().sum::<f64>();
                while times.len() < free + 3 || counted(&times) < self.time.as_secs_f64() {
                    let began = Instant::now();
                    let (mut waited, turns_before) = (0.0, lane.waited_seconds());
                    let receive = |_, _: &[&Sequence]| {
                        let asked = Instant::now();
                        let receiver = &receivers[number % lanes];
                        let output = asks_teacher.then(|| receiver.recv()).transpose()?;
                        waited += asked.elapsed().as_secs_f64();
                        number += 1;
                        Ok(output)
                    };
                    let step = times.len() as u64 + 1;
                    student_step((&lane, &mut student), step, &self.batch, receive)?;
                    times.push(began.elapsed().as_secs_f64());
                    waits.push(waited + lane.waited_seconds() - turns_before);
                }
                let all = counted(&times);
                Ok((all / (times.len() - free) as f64, counted(&waits) / all))
            };
            let done = alone("student", work);
            // A teacher that failed is why a student waits in vain.
            for (lane, teacher) in teachers.into_iter().enumerate() {
                let ended = teacher.join();
                ended
                    .map_err(|_| anyhow!("teacher replica {lane} panicked"))?
                    .with_context(|| format!("teacher replica {lane}"))?;
            }
            done
        })
    }
}
