//! Domains whose records are conversations.

use std::sync::Arc;

use anyhow::Result;
use ddk_corpus::{Chat, ChatTemplate, DomainSource, FirstRecords, TokenizerFolder, sample};

use crate::{findings::Findings, hint::Hint};

/// What to do about conversations without a chat template.
pub const TEMPLATE_ADVICE: &str = "copy chat_template.jinja (or tokenizer_config.json) from a chat model with the same \
                                   special tokens, or set corpus.tokenizer to the folder of such a model";

/// Returns how the records of a domain are conversations; `None` if they are not. `template`: the tokenizer's, once a
/// domain has opened it.
pub(crate) fn of_domain(
    domain: &ddk_settings::Domain,
    tokenizer: &TokenizerFolder,
    template: &mut Option<Arc<ChatTemplate>>,
) -> Result<Option<Chat>> {
    let Some(messages) = &domain.messages_field else {
        return Ok(None);
    };
    let opened = match template {
        Some(opened) => Arc::clone(opened),
        None => {
            let hint =
                format!("messages_field needs the tokenizer's chat template: {TEMPLATE_ADVICE}");
            Arc::new(ChatTemplate::open(tokenizer).hint(hint)?)
        }
    };
    let tools = domain.tools_field.clone();
    Ok(Some(Chat {
        messages: messages.clone(),
        completion: domain.completion_field.clone(),
        tools: tools.unwrap_or_else(|| "tools".to_owned()),
        template: Arc::clone(template.insert(opened)),
    }))
}

/// Describes what a chat template that changes earlier turns means for a domain; `None` if it changes none.
pub(crate) fn rewritten(domain: &str, sample: &FirstRecords) -> Option<String> {
    let (all, rewritten) = (sample.records - sample.bad, sample.rewritten);
    (rewritten > 0).then(|| {
        format!(
            "{domain}: the chat template changes earlier turns of the assistant in {rewritten} of the first {all} \
             conversations; objective.completion_only_loss then learns only the turns that it leaves as they were, \
             usually the last one"
        )
    })
}

/// Warns about unusual conversations, and about turns that the chat template changes.
pub(crate) fn check(domains: &[DomainSource], found: &mut Findings<'_>) {
    for domain in domains.iter().filter(|domain| domain.chat.is_some()) {
        // The check of the sources reports errors.
        let Ok(sample) = sample(domain) else { continue };
        let name = &domain.name;
        let all = format!("the first {} conversations", sample.records - sample.bad);
        let unusual = sample.doubts.describe(&all).into_iter();
        let unusual = unusual.map(|doubt| format!("{name}: {doubt}"));
        for warning in unusual.chain(rewritten(name, &sample)) {
            found.line(&format!("warning: {warning}"));
        }
    }
}
