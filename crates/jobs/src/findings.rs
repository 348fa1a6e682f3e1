//! Checks a configuration before a run. `ddk train` stops at the first problem; `ddk check` reports all of them.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::{Error, Result, anyhow, ensure};
use ddk_corpus::{TokenizerFolder, compatible};
use ddk_model::ModelConfig;
use ddk_settings::Settings;

use crate::{
    hint::{Hint, render_line, usage},
    wiring::ModelFolders,
};

/// Collects problems, and prints them as they are found.
pub struct Findings<'a> {
    out: &'a mut dyn Write,
    /// The result of the writes to `out` so far.
    pub written: io::Result<()>,
    problems: Vec<Error>,
}

impl<'a> Findings<'a> {
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            written: Ok(()),
            problems: Vec::new(),
        }
    }

    /// Runs a check and returns the first problem that it finds as an error.
    ///
    /// # Errors
    /// The first problem.
    pub fn first<T>(check: impl FnOnce(&mut Findings<'_>) -> T) -> Result<()> {
        let mut nowhere = io::sink();
        let mut found = Findings::new(&mut nowhere);
        check(&mut found);
        found.problems.into_iter().next().map_or(Ok(()), Err)
    }

    /// Begins a section.
    pub fn title(&mut self, text: &str) {
        if self.written.is_ok() {
            self.written = writeln!(self.out, "{text}");
        }
    }

    /// Prints a line in a section.
    pub fn line(&mut self, text: &str) {
        self.title(&format!("  {}", text.replace('\n', "\n  ")));
    }

    pub fn problem(&mut self, problem: Error) {
        self.line(&format!("PROBLEM: {}", render_line(&problem)));
        self.problems.push(problem);
    }

    /// Returns the value, or records its error as a problem.
    pub fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.problem(error)).ok()
    }

    pub fn problems(&self) -> usize {
        self.problems.len()
    }

    /// Prints the first line of each problem.
    pub fn list(&mut self) {
        let lines: Vec<String> = self.problems.iter().map(render_line).collect();
        for line in lines {
            self.line(&format!("- {}", line.lines().next().unwrap_or_default()));
        }
    }
}

/// Checks that teacher, student and corpus agree on every token. Returns the number of ids, if the tokenizers can
/// be opened.
pub fn tokenizers(
    settings: &Settings,
    folders: &ModelFolders,
    found: &mut Findings<'_>,
) -> Option<usize> {
    const ADVICE: &str = "choose a teacher and a student with the same tokenizer; both model folders need their \
                          tokenizer.json";
    let end_token = settings.corpus.eos_token.as_deref();
    let open = |folder: &Path, advice| TokenizerFolder::open(folder, end_token).hint(advice);
    let teacher = found.take(open(&folders.teacher, ADVICE));
    let student = found.take(open(&folders.student, ADVICE));
    let (teacher, student) = (teacher?, student?);
    found.take(compatible(&teacher, &student).hint(ADVICE));
    let own = settings.corpus.tokenizer.as_ref();
    let Some(folder) = own.map(|folder| settings.local(folder)) else {
        return Some(student.vocabulary());
    };
    let advice = "leave out corpus.tokenizer to use the student's";
    let corpus = found.take(open(&folder, advice))?;
    let same = compatible(&corpus, &student);
    found.take(same.hint("set corpus.tokenizer to the models' own tokenizer, or leave it out"));
    Some(corpus.vocabulary())
}

/// Checks that a model is large enough for the tokenizer's ids and the sequence length.
///
/// # Errors
/// If the model has fewer columns than the tokenizer has ids, or fewer positions than a sequence has tokens.
pub fn fits(
    role: &str,
    folder: &Path,
    config: &ModelConfig,
    (vocabulary, sequence_length): (usize, usize),
) -> Result<()> {
    let model = format!("the {role} in {}", folder.display());
    let (columns, positions) = (config.vocab_size(), config.max_positions());
    let mut problems = Vec::new();
    if columns < vocabulary as i64 {
        let last = vocabulary - 1;
        problems.push(format!(
            "the tokenizer has ids up to {last}, but {model} has only {columns} columns"
        ));
    }
    if positions < sequence_length as i64 {
        problems.push(format!(
            "`corpus.sequence_length` is {sequence_length}, but {model} supports at most {positions} positions"
        ));
    }
    ensure!(problems.is_empty(), usage(anyhow!(problems.join("\n"))));
    Ok(())
}
