//! Predicts what a run finds in the teacher's cache, and what it adds.

use std::sync::Arc;

use anyhow::Result;
use ddk_corpus::{Cursor, SequenceReader};
use ddk_engine::LabelFormat;
use ddk_labels::LabelSet;
use ddk_run::view::counted;
use ddk_settings::Settings;

use super::{Models, memory::size};
use crate::{
    findings::Findings,
    prepare::Corpus,
    train::{
        inputs::Inputs,
        labels::{Wanted, look_at},
        options::most_steps,
    },
    wiring::{kind, needs_teacher_output},
};

/// Sequences per domain to look up.
const SAMPLE: u64 = 64;

/// Compares the cache with the sequences that the run draws.
pub(super) fn check(
    settings: &Settings,
    models: &Models,
    corpus: &Corpus,
    found: &mut Findings<'_>,
) -> Result<()> {
    let Some(dir) = &settings.teacher.cache.dir else {
        return Ok(());
    };
    found.title("teacher cache");
    if settings.objective.has_layers() {
        let name = settings.objective.name;
        found.line(&format!(
            "not used: {name} needs the outputs of intermediate layers"
        ));
        return Ok(());
    }
    if !needs_teacher_output(settings) {
        let name = settings.objective.name;
        found.line(&format!(
            "only for the teacher's perplexities: {name} needs no outputs of it"
        ));
        return Ok(());
    }
    let inputs = Inputs::without_weights(&models.folders, corpus, settings.corpus.sequence_length)?;
    let wanted = Wanted::without_teacher(settings, &models.folders, &inputs);
    let sets = wanted.fitting(dir)?;
    let format = LabelFormat {
        hidden_size: models.teacher.hidden_size(),
        kind: kind(settings.teacher.dtype),
    };
    let tokens: u64 = corpus.domains.iter().map(|domain| domain.tokens()).sum();
    let rows: u64 = corpus.domains.iter().map(|domain| domain.rows()).sum();
    let drawn =
        most_steps(settings).map_or(rows, |steps| steps * settings.training.global_batch_size);
    let (drawn, bytes) = (drawn.min(rows), tokens * format.token_bytes() as u64);
    let needed = (bytes as f64 * drawn as f64 / rows.max(1) as f64) as u64;
    found.line(&format!(
        "the run draws at most {}: {} of hidden states, {} bytes per token; the whole corpus has {}",
        counted(drawn, "sequence"),
        size(needed),
        format.token_bytes(),
        size(bytes)
    ));
    for set in &sets {
        let Some(labels) = look_at(dir, set)? else {
            continue;
        };
        let (hits, looked) = hits(settings, corpus, &labels)?;
        found.line(&format!(
            "label set {}: {}, {}; {hits} of {looked} sampled sequences have a label",
            set.name,
            counted(set.labels, "label"),
            size(set.bytes)
        ));
    }
    if sets.is_empty() {
        found.line(&format!(
            "no label set in {} yet: the run creates one",
            dir.display()
        ));
    }
    let full = settings
        .teacher
        .cache
        .max_bytes
        .filter(|most| *most < needed);
    if let Some(most) = full {
        found.line(&format!(
            "warning: `teacher.cache.max_bytes` is {}: every run computes the labels that do not fit",
            size(most)
        ));
    }
    Ok(())
}

/// How many of the first sequences of each domain have a label, and how many were looked up.
fn hits(settings: &Settings, corpus: &Corpus, labels: &LabelSet) -> Result<(u64, u64)> {
    let (mut hits, mut looked) = (0, 0);
    for (number, domain) in (0..).zip(&corpus.domains) {
        let (seed, start) = (settings.run.seed, Cursor::default());
        let mut reader = SequenceReader::new(Arc::clone(domain), number, seed, start);
        for _ in 0..SAMPLE.min(domain.rows()) {
            looked += 1;
            hits += u64::from(labels.contains(&reader.read()?.sequence.id()));
        }
    }
    Ok((hits, looked))
}
