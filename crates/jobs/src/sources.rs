//! Looks at the sources of all domains, so that every problem is known before the first domain is tokenized.

use anyhow::{Error, Result, anyhow};
use ddk_corpus::{
    CorpusError, DomainSource, PrepareOptions, Stale, TokenizerFolder, sample, stale,
};

use crate::hint::{exit, exit_code, render_line, usage, with_hint};

/// Hint for a domain that cannot be prepared.
const ADVICE: &str = "see [domains.*] and [corpus] in the configuration; `ddk config show --origin \
                                 CONFIG` says where each value comes from";

/// Adds a hint to a corpus error.
pub fn advise(error: CorpusError) -> anyhow::Error {
    match &error {
        CorpusError::UnknownFormat { domain, .. } => {
            let hint = format!(
                "convert the files, leave them out with files = [\"DIR\", \"!DIR/FILE\"], or set \
                 domains.{domain}.format, such as \"jsonl\" or \"text\" (each file is one document); see \
                 docs/corpora.md"
            );
            usage(with_hint(error, hint))
        }
        CorpusError::NoFiles {
            folder: Some(_), ..
        } => with_hint(
            error,
            "relative paths start in the current folder, not in that of the configuration",
        ),
        CorpusError::TooManyBad { domain, fields, .. } if !fields.is_empty() => {
            let hint = fields_hint(domain, false, fields);
            with_hint(error, hint)
        }
        CorpusError::OtherTokenizer { domain, .. } => {
            let hint = format!(
                "use models with the tokenizer that made these ids, or take the texts and let DDK make the ids; if \
                 domains.{domain}.tokenizer names the wrong folder, correct it"
            );
            usage(with_hint(error, hint))
        }
        _ => with_hint(error, ADVICE),
    }
}

/// Adds a hint to an error of preparing these domains.
pub(crate) fn advise_for(options: &PrepareOptions, error: CorpusError) -> anyhow::Error {
    let CorpusError::TooManyBad {
        domain,
        bad,
        records,
        worst,
        fields,
        ..
    } = &error
    else {
        return advise(error);
    };
    let mut sources = options.domains.iter();
    let source = sources.find(|source| source.name == *domain);
    let file = worst.file.display();
    // The field may be the wrong one if most records lack it.
    if !fields.is_empty() {
        let hint = fields_hint(
            domain,
            source.is_some_and(|source| source.chat.is_some()),
            fields,
        );
        return with_hint(error, hint);
    }
    let hint = format!(
        "fix or delete these records of {file} (`ddk check` names the first), or allow more with \
         corpus.max_bad_fraction = {}",
        allowed(*bad, *records)
    );
    with_hint(error, hint)
}

/// Returns a round value of `corpus.max_bad_fraction` that allows this many unusable records.
fn allowed(bad: u64, records: u64) -> f64 {
    let share = bad as f64 / records.max(1) as f64;
    ((share * 20.0).floor() + 1.0).min(20.0) / 20.0
}

/// Usual names of fields with conversations.
const CONVERSATIONS: [&str; 4] = ["messages", "conversations", "conversation", "turns"];

/// Returns a hint for records that lack the configured field. `is_chat`: whether that field is to contain messages.
pub fn fields_hint(domain: &str, is_chat: bool, fields: &[String]) -> String {
    let mut usual = fields.iter();
    let usual = usual.find(|field| CONVERSATIONS.contains(&field.as_str()));
    if let (true, Some(field)) = (is_chat, usual.or(fields.last())) {
        return format!(
            "name the field that contains the messages: domains.{domain}.messages_field = \"{field}\""
        );
    }
    let field = fields.last().map_or("text", String::as_str);
    let template: Vec<String> = fields.iter().map(|field| format!("{{{field}}}")).collect();
    format!(
        "name the field that contains the text, such as domains.{domain}.text_field = \"{field}\", or combine \
         several, such as domains.{domain}.text_template = \"{}\"; for messages, set domains.{domain}.messages_field",
        template.join("\\n")
    )
}

/// What a look at the sources has found.
#[derive(Default)]
pub(crate) struct Looked {
    /// The domains that are not prepared as the options ask, with their sources.
    pub(crate) stale: Vec<(Stale, DomainSource)>,
    /// Why domains cannot be prepared.
    pub(crate) problems: Vec<Error>,
    /// Domains that have more unusable records at their start than the whole may have.
    pub(crate) doubts: Vec<Error>,
    /// Domains with some unusable records.
    pub(crate) warnings: Vec<String>,
}

/// The domains whose first records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Nothing,
    Stale,
    Every,
}

/// Looks at each domain alone, so that the problems of one do not hide those of another.
pub(crate) fn look(options: &PrepareOptions, tokenizer: &TokenizerFolder, read: Read) -> Looked {
    let (mut looked, mut too_many) = (Looked::default(), Vec::new());
    let mut alone = options.clone();
    for source in &options.domains {
        alone.domains = vec![source.clone()];
        let outdated = match stale(&alone, tokenizer) {
            Ok(outdated) => outdated,
            Err(error) => {
                looked.problems.push(advise(error));
                continue;
            }
        };
        if read == Read::Every || (read == Read::Stale && !outdated.is_empty()) {
            looked.read(source, options.max_bad_fraction, &mut too_many);
        }
        let outdated = outdated.into_iter();
        looked
            .stale
            .extend(outdated.map(|stale| (stale, source.clone())));
    }
    // One value for all domains, because the setting is one for all.
    let needed = too_many
        .iter()
        .fold(0.0, |most, (_, fraction)| f64::max(most, *fraction));
    looked.doubts.extend(too_many.into_iter().map(|(what, _)| {
        let hint = format!(
            "fix or delete such records, or allow more in every domain with corpus.max_bad_fraction = {needed}"
        );
        with_hint(anyhow!(what), hint)
    }));
    looked
}

impl Looked {
    /// Reads the first records of a domain. If more than the fraction `most` are unusable, adds a description to
    /// `too_many`, with the fraction that would allow them.
    fn read(&mut self, source: &DomainSource, most: f64, too_many: &mut Vec<(String, f64)>) {
        let sample = match sample(source) {
            Ok(sample) => sample,
            Err(error) => return self.problems.push(advise(error)),
        };
        let (bad, records) = (sample.bad, sample.records);
        if let Some(problem) = sample.problem(&source.name) {
            let hint = match &*sample.fields {
                [] => ADVICE.to_owned(),
                fields => fields_hint(&source.name, source.chat.is_some(), fields),
            };
            self.problems.push(with_hint(anyhow!(problem), hint));
        } else if let Some(first) = &sample.first_bad {
            let what = format!(
                "domain `{}`: {bad} of the first {records} records cannot be used; the first is in {} at {}: {}",
                source.name,
                first.file.display(),
                first.place(),
                first.reason
            );
            if bad as f64 > most * records as f64 {
                let what = format!(
                    "{what}; more than corpus.max_bad_fraction = {most} of all records would stop `ddk prepare`"
                );
                too_many.push((what, allowed(bad, records)));
            } else {
                self.warnings.push(format!("warning: {what}"));
            }
        }
        if let Some(error) = sample.too_few(source) {
            self.doubts.push(advise(error));
        }
    }

    /// Fails with all problems.
    pub(crate) fn usable(self) -> Result<Vec<(Stale, DomainSource)>> {
        all(self.problems, "domains cannot be prepared").map(|()| self.stale)
    }
}

/// Fails with all problems at once, under a title that follows their number. A single one stays as it is.
pub(crate) fn all(mut problems: Vec<Error>, title: &str) -> Result<()> {
    match problems.len() {
        0 => Ok(()),
        1 => Err(problems.remove(0)),
        count => {
            let of_user = problems
                .iter()
                .all(|problem| exit_code(problem) == exit::USAGE);
            let lines = problems.iter().map(|problem| {
                let line = render_line(problem);
                format!("\n- {}", line.replace('\n', "\n  "))
            });
            let text: String = lines.collect();
            let error = anyhow!("{count} {title}:{text}");
            if of_user {
                Err(usage(error))
            } else {
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggested_fraction_allows_the_unusable_records() {
        assert_eq!(allowed(1, 100), 0.05);
        assert_eq!(allowed(5, 100), 0.1);
        assert_eq!(allowed(100, 100), 1.0);
    }
}
