//! Teachers and student side by side.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam::channel::bounded;
use ddk_engine::Learner;
use ddk_torch::Turns;

use super::{Bench, WARM_UP};

impl Bench<'_> {
    /// Seconds of a step while teachers and student work side by side, and the share of them in which the
    /// student waits.
    pub(super) fn overlapped(&self, needs_output: bool) -> Result<(f64, f64)> {
        let settings = self.settings;
        let lanes = settings.teacher.all_lanes();
        let depth = settings.queues.depth;
        let turns = Turns::new(settings.run.take_turns);
        let queues: Vec<_> = (0..lanes).map(|_| bounded(depth)).collect();
        std::thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
            let mut teachers = Vec::new();
            for (lane, sender) in senders.into_iter().enumerate().filter(|_| needs_output) {
                let thread = std::thread::Builder::new().name(format!("teacher-{lane}"));
                let turns = turns.clone();
                teachers.push(thread.spawn_scoped(scope, move || -> Result<()> {
                    let on = self.teacher_lane(lane, &turns)?;
                    let teacher = self.build_teacher(lane)?;
                    // Micro-batch i is lane i mod lanes', step after step.
                    let all: Vec<_> = self.rows.micro_batches().collect();
                    let mut number = lane;
                    // The student hangs up when it has seen enough.
                    let label = |number: usize| teacher.label(&all[number % all.len()]);
                    while sender.send(on.work_in_turn(|| label(number))??).is_ok() {
                        number += lanes;
                    }
                    Ok(())
                })?);
            }
            let thread = std::thread::Builder::new().name("student".to_owned());
            let work = move || -> Result<(f64, f64)> {
                let on = self.student_lane(&turns)?;
                let mut student = self.build_student()?;
                let (mut times, mut waits, mut number) = (Vec::new(), Vec::new(), 0);
                // The queues were filled while nobody took from them: that many batches come for nothing.
                let free = WARM_UP + (depth * lanes).div_ceil(self.rows.micro_batches().count());
                while times.len() < free + 3 || times[free..].iter().sum::<Duration>() < self.time {
                    let began = Instant::now();
                    let (mut waited, turns_before) = (0.0, on.waited_seconds());
                    for micro in self.rows.micro_batches() {
                        let asked = Instant::now();
                        let receiver = &receivers[number % lanes];
                        let output = needs_output.then(|| receiver.recv()).transpose()?;
                        waited += asked.elapsed().as_secs_f64();
                        number += 1;
                        let predictions = self.rows.predictions();
                        on.work_in_turn(|| {
                            student.accumulate(&micro, output.as_ref(), predictions)
                        })??;
                    }
                    on.work_in_turn(|| student.update(times.len() as u64 + 1))??;
                    times.push(began.elapsed());
                    waits.push(waited + on.waited_seconds() - turns_before);
                }
                let all: f64 = times[free..].iter().map(Duration::as_secs_f64).sum();
                let step = all / (times.len() - free) as f64;
                Ok((step, waits[free..].iter().sum::<f64>() / all))
            };
            let done = thread.spawn_scoped(scope, work)?.join();
            // A teacher that failed is why a student waits in vain.
            for (lane, teacher) in teachers.into_iter().enumerate() {
                let ended = teacher.join();
                ended
                    .map_err(|_| anyhow!("teacher's lane {lane} panicked"))?
                    .with_context(|| format!("teacher's lane {lane}"))?;
            }
            done.map_err(|_| anyhow!("the student's lane panicked"))?
        })
    }
}
