//! Asks the servers of a served teacher what they serve, and measures the teacher on a few documents.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{Sequence, first_document};
use ddk_engine::{Evaluation, LabelFormat};
use ddk_model::Weights;
use ddk_objective::default_chunk;
use ddk_serving::{TeacherServer, Watch, command_line};
use ddk_settings::Settings;
use ddk_torch::{ComputeContext, parse_device};
use tch::Tensor;

use super::Models;
use crate::{
    findings::Findings,
    hint::Hint,
    prepare,
    wiring::{kind, server},
};

/// Perplexity, relative to guessing, that only another model's hidden states give. An untrained model may be a little
/// worse than guessing.
const TOO_LARGE: f64 = 10.0;

/// Checks every server: that it answers, its context, the width of its hidden states, and the teacher's perplexity.
pub(super) fn check(settings: &Settings, models: &Models, found: &mut Findings<'_>) -> Result<()> {
    found.title("teacher servers");
    let documents = documents(settings)?;
    let length = settings.corpus.sequence_length;
    // One attempt is enough here.
    let mut teacher = settings.teacher.clone();
    teacher.patience_seconds = 0.0;
    // vLLM cannot load a folder with the LM head alone.
    let folder = &models.folders.teacher;
    let is_whole = Weights::open(folder).is_ok_and(|weights| weights.names().count() > 2);
    let model = match &teacher.served_model {
        _ if is_whole => folder.display().to_string(),
        Some(name) => name.clone(),
        None => "MODEL".to_owned(),
    };
    let command = command_line(&model, length);
    let start = format!("start the server with:\n{command}");
    for replica in 0..teacher.servers.len() {
        let server = server(&teacher, replica, models.teacher.hidden_size()).usage();
        let Some(mut server) = found.take(server) else {
            continue;
        };
        let Some(served) = found.take(server.describe().hint(&start)) else {
            continue;
        };
        found.line(&format!(
            "{}: vLLM {} serves {}, up to {} tokens",
            server.address(),
            served.version.as_deref().unwrap_or("of unknown version"),
            served.model,
            served.context
        ));
        if served.context <= length {
            let problem = anyhow!(
                "{} takes sequences of up to {} tokens, but `corpus.sequence_length` = {length} needs --max-model-len \
                 {}",
                server.address(),
                served.context,
                length + 1
            );
            found.take(Err::<(), _>(problem).hint(&start));
            continue;
        }
        let measured = perplexity(settings, models, &documents, &mut server).hint(&start);
        let Some(perplexity) = found.take(measured) else {
            continue;
        };
        let vocabulary = models.vocabulary;
        found.line(&format!(
            "the teacher's perplexity is {perplexity:.2} on the first text of each domain (vocabulary: {vocabulary})"
        ));
        if !perplexity.is_finite() || perplexity > TOO_LARGE * vocabulary as f64 {
            found.problem(anyhow!(
                "{}: a perplexity of {perplexity:.2} is far worse than guessing among {vocabulary} tokens; does \
                 the server serve the model in {}?",
                server.address(),
                models.folders.teacher.display()
            ));
        }
    }
    Ok(())
}

/// The first text of each domain.
fn documents(settings: &Settings) -> Result<Vec<Sequence>> {
    let (options, tokenizer) = prepare::options(settings)?;
    let mut documents = Vec::new();
    for source in &options.domains {
        let Some(text) = first_document(source)? else {
            continue;
        };
        let mut tokens = tokenizer.encode_document(&text)?;
        tokens.truncate(settings.corpus.sequence_length);
        documents.push(tokens.into());
    }
    Ok(documents)
}

/// The perplexity of the teacher behind a server, over all documents.
fn perplexity(
    settings: &Settings,
    models: &Models,
    documents: &[Sequence],
    server: &mut TeacherServer,
) -> Result<f64> {
    let _context = ComputeContext::enter(settings.teacher.threads);
    let (device, vocabulary) = (
        parse_device(&settings.student.device)?,
        models.vocabulary as i64,
    );
    let format = LabelFormat {
        hidden_size: models.teacher.hidden_size(),
        kind: kind(settings.teacher.dtype),
    };
    let head = models.folders.head(device, format.kind)?;
    let evaluation = Evaluation {
        validation: Arc::new(vec![documents.to_vec()]),
        batch_rows: settings.evaluation.batch_size,
        vocabulary,
        chunk: default_chunk(vocabulary, device),
        group: None,
    };
    let hidden = |rows: &[&Sequence], _: &Tensor| -> Result<Option<Tensor>> {
        let tokens: Vec<&[u32]> = rows.iter().map(|row| &row.tokens[..]).collect();
        let Some(labels) = server.hidden_states(&tokens, &Once)? else {
            return Ok(None);
        };
        Ok(Some(format.hidden(rows, &labels, device)?))
    };
    let measured = evaluation.perplexities_by(&head, &|_, _| false, hidden)?;
    let perplexity = measured.and_then(|all| all.first().copied());
    perplexity.context("the text has no token to predict")
}

/// Nobody waits, so nothing is reported.
struct Once;

impl Watch for Once {}
