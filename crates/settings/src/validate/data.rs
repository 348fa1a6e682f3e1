//! The data: corpus, domains, batches, the mixture.

use std::collections::BTreeMap;

use super::{Checker, LARGE, MANY};
use crate::{
    options::{BatchOptions, CorpusOptions, DomainOptions, MixtureOptions, MixturePolicy},
    settings::{Batch, Corpus, Domain, Mixture},
};

impl Checker<'_> {
    pub(super) fn corpus(&mut self, corpus: CorpusOptions) -> Option<Corpus> {
        let length = self.within(
            "corpus.sequence_length",
            corpus.sequence_length,
            2..=LARGE as usize,
            &format!("2 to {LARGE}"),
        );
        let share = self.within(
            "corpus.validation_share",
            corpus.validation_share,
            0.0..1.0,
            "0 or more and under 1",
        );
        let documents = self.within(
            "corpus.validation_documents",
            corpus.validation_documents,
            1..,
            "1 or more",
        );
        let bad = self.within(
            "corpus.max_bad_share",
            corpus.max_bad_share,
            0.0..=1.0,
            "0 to 1",
        );
        Some(Corpus {
            folder: self.need("corpus.folder", corpus.folder)?,
            tokenizer: corpus.tokenizer,
            end_token: corpus.end_token,
            seed: corpus.seed,
            sequence_length: length?,
            packing: self.need("corpus.packing", corpus.packing)?,
            when_stale: self.need("corpus.when_stale", corpus.when_stale)?,
            validation_by: self.need("corpus.validation_by", corpus.validation_by)?,
            validation_share: share?,
            validation_documents: documents?,
            max_bad_share: bad?,
        })
    }

    pub(super) fn domain(&mut self, name: &str, domain: DomainOptions) -> Option<Domain> {
        let key = format!("domains.{name}");
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            self.problem(&key, format!("\"{name}\" is no name for a domain: it becomes a folder, so no `/` and no `.` at its start"));
        }
        let files = self.need(&format!("{key}.files"), domain.files)?;
        if files.is_empty() {
            self.problem(
                &format!("{key}.files"),
                format!("`{key}.files` is empty, expected at least one file, folder or glob"),
            );
        }
        let text = match (domain.text, domain.text_field) {
            (Some(_), Some(_)) => {
                self.problem(
                    &format!("{key}.text"),
                    format!("`{key}.text` and `{key}.text_field` are both set: one is enough"),
                );
                None
            }
            (Some(template), None) => Some(template),
            (None, field) => Some(format!("{{{}}}", field.as_deref().unwrap_or("text"))),
        };
        if domain.domain_value.is_some() && domain.domain_field.is_none() {
            self.problem(
                &format!("{key}.domain_value"),
                format!("`{key}.domain_value` is set without `{key}.domain_field`"),
            );
        }
        let mut at_least_one =
            |field: &str, value| self.optional(&format!("{key}.{field}"), value, 1.., "1 or more");
        Some(Domain {
            domain_value: domain
                .domain_value
                .or_else(|| domain.domain_field.as_ref().map(|_| name.to_owned())),
            domain_field: domain.domain_field,
            files,
            validation_files: domain.validation_files.unwrap_or_default(),
            format: domain.format,
            text: text?,
            prompt: domain.prompt,
            max_bytes: at_least_one("max_bytes", domain.max_bytes),
            max_documents: at_least_one("max_documents", domain.max_documents),
            max_tokens: at_least_one("max_tokens", domain.max_tokens),
            min_document_bytes: at_least_one("min_document_bytes", domain.min_document_bytes)
                .unwrap_or(1),
            max_document_bytes: at_least_one("max_document_bytes", domain.max_document_bytes)
                .unwrap_or(64 << 20),
        })
    }

    /// `rows` and `micro_rows` of a table.
    pub(super) fn batch(&mut self, table: &str, batch: BatchOptions) -> Option<Batch> {
        let rows = self.count(&format!("{table}.rows"), batch.rows, LARGE)?;
        let key = format!("{table}.micro_rows");
        let micro_rows = self.count(&key, batch.micro_rows, LARGE)?;
        if micro_rows > 0 && rows % micro_rows != 0 {
            self.problem(
                &key,
                format!("`{key}` is {micro_rows}, expected a divisor of `{table}.rows` = {rows}"),
            );
        }
        Some(Batch { rows, micro_rows })
    }

    pub(super) fn mixture(
        &mut self,
        mixture: MixtureOptions,
        domains: &[String],
    ) -> Option<Mixture> {
        let policy = self.need("mixture.policy", mixture.policy);
        let alpha = self.within("mixture.alpha", mixture.alpha, 0.0..=1.0, "0 to 1");
        let interval = self.count("mixture.interval", mixture.interval, LARGE);
        let lag = self.within("mixture.lag", mixture.lag, 0..=1, "0 or 1");
        if let (Some(1), Some(policy)) = (lag, policy.filter(|policy| policy.moves_every_step())) {
            let policy = policy.name();
            self.problem(
                "mixture.lag",
                format!("`mixture.lag` is 1, and `mixture.policy` = \"{policy}\" updates every step: it cannot run ahead of what it follows; set `mixture.lag` = 0"),
            );
        }
        let odm_smoothing = self.within(
            "mixture.odm_smoothing",
            mixture.odm_smoothing,
            0.0..1.0,
            "0 or more and under 1",
        );
        let doremi_eta = self.positive("mixture.doremi_eta", mixture.doremi_eta);
        let doremi_smoothing = self.within(
            "mixture.doremi_smoothing",
            mixture.doremi_smoothing,
            0.0..=1.0,
            "0 to 1",
        );
        if let Some(shares) = &mixture.shares {
            self.shares("mixture.shares", shares, domains);
        } else if policy == Some(MixturePolicy::Static) {
            self.problem(
                "mixture.policy",
                "`mixture.policy` is \"static\", and `mixture.shares` is missing: it says what to draw by".to_owned(),
            );
        }
        let reference_loss = mixture.reference_loss.unwrap_or_default();
        for (name, loss) in &reference_loss {
            let key = format!("mixture.reference_loss.{name}");
            self.not_negative(&key, Some(*loss));
            self.known_domain("mixture.reference_loss", name, domains);
        }
        Some(Mixture {
            policy: policy?,
            max_passes: self.optional(
                "mixture.max_passes",
                mixture.max_passes,
                1.0..=LARGE as f64,
                &format!("1 to {LARGE}"),
            ),
            alpha: alpha?,
            interval: interval?,
            lag: lag?,
            first: self.need("mixture.first", mixture.first)?,
            odm_smoothing: odm_smoothing?,
            doremi_model: mixture.doremi_model,
            doremi_steps: self.optional_count("mixture.doremi_steps", mixture.doremi_steps, MANY),
            doremi_eta: doremi_eta?,
            doremi_smoothing: doremi_smoothing?,
            shares: mixture.shares,
            reference_loss,
        })
    }

    pub(super) fn shares(&mut self, key: &str, shares: &BTreeMap<String, f64>, domains: &[String]) {
        let sum: f64 = shares.values().sum();
        if shares
            .values()
            .any(|share| !(share.is_finite() && *share >= 0.0))
            || sum <= 0.0
        {
            self.problem(
                key,
                format!("`{key}` holds {shares:?}, expected numbers of 0 or more, not all 0"),
            );
        }
        for name in shares.keys() {
            self.known_domain(key, name, domains);
        }
    }

    /// A domain that a table names has to be there.
    fn known_domain(&mut self, table: &str, name: &String, domains: &[String]) {
        if !domains.contains(name) {
            let known = domains.join(", ");
            self.problem(
                &format!("{table}.{name}"),
                format!(
                    "`{table}` names the domain \"{name}\", which there is not (there are: {known})"
                ),
            );
        }
    }
}
