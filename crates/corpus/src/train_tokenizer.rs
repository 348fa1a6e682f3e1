//! Trains a new tokenizer on texts.

use std::path::Path;

use serde_json::json;
use tokenizers::{
    AddedToken, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::CorpusError;

/// The end token of tokenizers trained here; its id is 0.
pub const END_TOKEN: &str = "<|endoftext|>";

/// Trains a byte-level BPE of `vocabulary` tokens. Writes `tokenizer.json` and `tokenizer_config.json`, which the
/// `AutoTokenizer` of transformers can load too. The same texts give the same bytes.
///
/// # Errors
/// If training fails, or if the folder or a file cannot be written.
pub fn train_tokenizer(
    texts: impl Iterator<Item = String> + Send,
    vocabulary: usize,
    folder: &Path,
) -> Result<(), CorpusError> {
    let failed = |error: tokenizers::Error| CorpusError::Tokenizer {
        path: folder.to_owned(),
        reason: format!("cannot be trained: {error}"),
    };
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let mut trainer = TrainerWrapper::from(
        BpeTrainer::builder()
            .vocab_size(vocabulary)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_TOKEN, true)])
            .show_progress(false)
            .build(),
    );
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    let text = tokenizer.to_string(true).map_err(failed)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKEN,
        "clean_up_tokenization_spaces": false,
    });
    ddk_files::create_folder(folder)?;
    let config = config.to_string();
    ddk_files::write_atomically(&folder.join("tokenizer_config.json"), config.as_bytes())?;
    ddk_files::write_atomically(&folder.join("tokenizer.json"), text.as_bytes())?;
    Ok(())
}
