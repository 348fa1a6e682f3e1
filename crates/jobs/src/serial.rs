//! The same work without overlap: teacher, then student, on all threads; what the overlapped run is compared with.

use std::time::Instant;

use anyhow::{Result, anyhow};
use ddk_corpus::Sequence;
use ddk_engine::{Learner, StudentOptions};
use ddk_run::records::Serial;
use ddk_settings::Settings;
use ddk_torch::{Lane, parse_device};

use crate::{
    prepare::{self, Corpus},
    rows::{MixedRows, predictions},
    wiring::{self, ModelFolders},
};

/// Steps before the clock starts.
const WARM_UP: u64 = 2;

/// Times `steps` steps on throwaway copies of both models, with as many threads as both lanes have together.
pub fn measure(
    settings: &Settings,
    folders: &ModelFolders,
    options: &StudentOptions,
    corpus: &Corpus,
    steps: u64,
) -> Result<Serial> {
    let threads =
        settings.teacher.threads * settings.teacher.all_lanes() + settings.student.threads;
    let work = || -> Result<f64> {
        let _lane = Lane::enter(threads);
        let student_device = parse_device(&settings.student.device)?;
        let placement = wiring::teacher_placement(&settings.teacher, 0)?;
        let teacher = if wiring::needs_teacher_output(settings) {
            Some(wiring::build_teacher(
                folders.frozen.model(&placement)?,
                student_device,
                options.filters.as_ref(),
            )?)
        } else {
            None
        };
        let mut student = wiring::build_student(settings, folders, options.clone(), None)?;
        let shares = prepare::natural_shares(corpus);
        let mut rows = MixedRows::new(
            &corpus.domains,
            &shares,
            settings.run.seed,
            settings.batch.rows,
            WARM_UP + steps,
        );
        let (mut began, mut tokens) = (Instant::now(), 0);
        for step in 1..=WARM_UP + steps {
            if step == WARM_UP + 1 {
                (began, tokens) = (Instant::now(), 0);
            }
            let batch = rows.step()?;
            let denominator = predictions(&batch);
            let views: Vec<&Sequence> = batch.iter().collect();
            for micro in views.chunks(settings.batch.micro_rows as usize) {
                let signal = teacher.as_ref().map(|teacher| teacher.label(micro));
                student.accumulate(micro, signal.transpose()?.as_ref(), denominator)?;
            }
            student.update(step)?;
            tokens += batch.iter().map(|row| row.tokens.len()).sum::<usize>();
        }
        Ok(tokens as f64 / began.elapsed().as_secs_f64())
    };
    let tokens_per_second = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("serial".to_owned());
        thread
            .spawn_scoped(scope, work)?
            .join()
            .map_err(|_| anyhow!("the serial measurement panicked"))?
    })?;
    Ok(Serial {
        threads: threads as u64,
        steps,
        tokens_per_second,
    })
}
