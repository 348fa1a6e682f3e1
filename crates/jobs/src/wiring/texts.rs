//! Writes texts after the prompts of `samples.prompts`.

use anyhow::Result;
use ddk_corpus::TokenizerFolder;
use ddk_engine::{Generator, Sampling};
use ddk_model::Model;
use ddk_run::texts::Text;
use ddk_settings::Settings;

/// The most likely token, without any randomness.
const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_p: 1.0,
    seed: 0,
};

/// The prompts, and what turns them into tokens.
pub struct Prompts {
    tokenizer: TokenizerFolder,
    prompts: Vec<String>,
    max_tokens: u64,
}

impl Prompts {
    /// The prompts of the settings; `None` if there are none.
    ///
    /// # Errors
    /// If the tokenizer cannot be used.
    pub fn of(settings: &Settings) -> Result<Option<Self>> {
        let samples = &settings.samples;
        let Some(folder) = settings
            .tokenizer_folder()
            .filter(|_| !samples.prompts.is_empty())
        else {
            return Ok(None);
        };
        let end = settings.corpus.eos_token.as_deref();
        Ok(Some(Self {
            tokenizer: TokenizerFolder::open(folder, end)?,
            prompts: samples.prompts.clone(),
            max_tokens: samples.max_tokens,
        }))
    }

    /// Continues each prompt with the most likely tokens. Returns nothing if `is_over` says so before a token.
    pub(super) fn write(
        &self,
        model: &Model,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Text>>> {
        let vocabulary = self.tokenizer.vocabulary() as i64;
        let vocabulary = vocabulary.min(model.config().vocab_size());
        let mut texts = Vec::with_capacity(self.prompts.len());
        for prompt in &self.prompts {
            let mut tokens = self.tokenizer.encode(prompt)?;
            if tokens.is_empty() {
                // A document begins after the end of another.
                tokens.push(self.tokenizer.end_token());
            }
            let before = self.tokenizer.decode(&tokens)?;
            let mut generator = Generator::new(model, &tokens, vocabulary, GREEDY)?;
            for _ in 0..self.max_tokens {
                if is_over() {
                    return Ok(None);
                }
                match generator.next_token()? {
                    Some(token) if token != self.tokenizer.end_token() => tokens.push(token),
                    _ => break,
                }
            }
            // Decoded together, because some decoders drop the space before a text's first word.
            let whole = self.tokenizer.decode(&tokens)?;
            texts.push(Text {
                prompt: prompt.clone(),
                text: whole.strip_prefix(&before).unwrap_or(&whole).to_owned(),
            });
        }
        Ok(Some(texts))
    }
}
