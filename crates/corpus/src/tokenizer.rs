//! Loads the tokenizer of a Hugging Face folder, and checks that two tokenizers are compatible.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{CorpusError, document::Document, mask::masked};

/// Texts that compatible tokenizers encode alike: letters, digits, white space, code, scripts, emoji.
const PROBES: [&str; 8] = [
    "The quick brown fox jumps over the lazy dog.",
    "x = 3.14159 * 2**10  # comment\n\tif (a != b) { return; }",
    "  leading and trailing  ",
    "1234567890 1,000.50 0xff",
    "naïve café — “quotes”",
    "数据蒸馏 данные données",
    "🙂🚀",
    "\r\n\r\n",
];

/// A document's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedDocument {
    pub(crate) tokens: Vec<u32>,
    /// Ranges of tokens that need not be predicted, in order. A prompt is one range at the start.
    pub(crate) masked: Vec<Range<u64>>,
}

/// How a document's tokens come about.
enum Form {
    Text,
    /// A prompt and a text.
    Prompted,
    Conversation,
    Encoded(EncodedDocument),
}

/// A tokenizer and its end token, loaded from a model's folder.
#[derive(Debug, Clone)]
pub struct TokenizerFolder {
    folder: PathBuf,
    tokenizer: Tokenizer,
    end_token: u32,
    vocabulary: usize,
    hash: String,
    file_hash: String,
}

impl TokenizerFolder {
    /// Opens a folder's `tokenizer.json`. The end token is `end_token` if given, otherwise the one that
    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` or `config.json` names.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing or invalid, if no file names an end token, or if the end token is not in the
    /// vocabulary.
    pub fn open(folder: &Path, end_token: Option<&str>) -> Result<Self, CorpusError> {
        let wrong = |reason: String| CorpusError::Tokenizer {
            path: folder.to_owned(),
            reason,
        };
        let bytes = read_file(folder)?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| wrong(format!("tokenizer.json cannot be used: {error}")))?;
        // A saved tokenizer may include truncation and padding settings, but documents are encoded whole.
        tokenizer
            .with_truncation(None)
            .map_err(|error| wrong(error.to_string()))?
            .with_padding(None);
        let end_token = match end_token {
            Some(token) => tokenizer.token_to_id(token).ok_or_else(|| {
                format!("corpus.eos_token is `{token}`, which is not in its vocabulary")
            }),
            None => find_end_token(folder, &tokenizer).ok_or_else(|| {
                "no end token is named in tokenizer_config.json, special_tokens_map.json, generation_config.json \
                 or config.json: set corpus.eos_token"
                    .to_owned()
            }),
        };
        let end_token = end_token.map_err(wrong)?;
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocabulary = largest.map_or(0, |id| id as usize + 1);
        if end_token as usize >= vocabulary {
            return Err(wrong(format!(
                "the end token is id {end_token} (eos_token_id of generation_config.json or config.json), but \
                 its largest id is {}: set corpus.eos_token",
                vocabulary.saturating_sub(1)
            )));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        hasher.update(&end_token.to_le_bytes());
        Ok(Self {
            folder: folder.to_owned(),
            tokenizer,
            end_token,
            vocabulary,
            hash: hasher.finalize().to_hex().to_string(),
            file_hash: blake3::hash(&bytes).to_hex().to_string(),
        })
    }

    /// Hash of a folder's `tokenizer.json`.
    pub(crate) fn hash_file(folder: &Path) -> Result<String, CorpusError> {
        Ok(blake3::hash(&read_file(folder)?).to_hex().to_string())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The largest id + 1 (ids may have gaps). Only this many columns of the logits are meaningful.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The token that ends a document.
    pub fn end_token(&self) -> u32 {
        self.end_token
    }

    /// Hash of everything that affects the tokens of a text.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Hash of its `tokenizer.json`.
    pub(crate) fn file_hash(&self) -> &str {
        &self.file_hash
    }

    /// Bytes per token in a file: 2 if every id fits, otherwise 4.
    pub(crate) fn token_bytes(&self) -> usize {
        if self.vocabulary <= 1 << 16 { 2 } else { 4 }
    }

    /// Encodes documents on all cores.
    ///
    /// Text: adds the special tokens of the tokenizer's post-processor (a beginning token, if the model has one) and
    /// ends each document with the end token. A prompt is encoded separately from the text after it.
    ///
    /// Conversations: adds no token, because their template writes all of them.
    ///
    /// Documents that others tokenized: changes only the end, which becomes the end token.
    pub(crate) fn encode_documents(
        &self,
        documents: Vec<Document>,
    ) -> Result<Vec<EncodedDocument>, CorpusError> {
        // The texts that documents start with, and the texts after a prompt.
        let (mut starts, mut rests) = (Vec::new(), Vec::new());
        let (mut chats, mut all_learned) = (Vec::new(), Vec::new());
        let mut forms = Vec::with_capacity(documents.len());
        for document in documents {
            forms.push(match document {
                Document::Text { prompt: None, text } => {
                    starts.push(text);
                    Form::Text
                }
                Document::Text {
                    prompt: Some(prompt),
                    text,
                } => {
                    starts.push(prompt);
                    rests.push(text);
                    Form::Prompted
                }
                Document::Conversation { text, learned, .. } => {
                    chats.push(text);
                    all_learned.push(learned);
                    Form::Conversation
                }
                Document::Tokens { ids, masked } => Form::Encoded(EncodedDocument {
                    tokens: ids,
                    masked,
                }),
            });
        }
        let mut starts = self.encode_batch(starts, true)?.into_iter();
        let mut rests = self.encode_batch(rests, false)?.into_iter();
        let mut chats = self.encode_chats(chats, all_learned)?.into_iter();
        let lost = || self.failed(&"it returned fewer encodings than texts");
        let join = |form: Form| {
            let (mut tokens, masked) = match form {
                Form::Conversation => return chats.next().ok_or_else(lost),
                Form::Encoded(document) => (document.tokens, document.masked),
                Form::Text => (starts.next().ok_or_else(lost)?, Vec::new()),
                Form::Prompted => {
                    let mut tokens = starts.next().ok_or_else(lost)?;
                    self.strip_end(&mut tokens);
                    let prompt = 0..tokens.len() as u64;
                    tokens.extend(rests.next().ok_or_else(lost)?);
                    (tokens, Vec::from_iter((prompt.end > 0).then_some(prompt)))
                }
            };
            self.strip_end(&mut tokens);
            tokens.push(self.end_token);
            Ok(EncodedDocument { tokens, masked })
        };
        forms.into_iter().map(join).collect()
    }

    fn encode_chats(
        &self,
        texts: Vec<String>,
        learned: Vec<Vec<Range<usize>>>,
    ) -> Result<Vec<EncodedDocument>, CorpusError> {
        let encodings = self
            .tokenizer
            .encode_batch_char_offsets(texts.iter().map(String::as_str).collect(), false)
            .map_err(|error| self.failed(&error))?;
        let documents = encodings.iter().zip(&texts).zip(&learned);
        let encoded = documents.map(|((encoding, text), learned)| EncodedDocument {
            tokens: encoding.get_ids().to_vec(),
            masked: masked(encoding, text, learned),
        });
        Ok(encoded.collect())
    }

    /// Removes the end token from the end of a text.
    fn strip_end(&self, tokens: &mut Vec<u32>) {
        tokens.pop_if(|token| *token == self.end_token);
    }

    fn encode_batch(
        &self,
        texts: Vec<String>,
        special: bool,
    ) -> Result<Vec<Vec<u32>>, CorpusError> {
        let encodings = self.tokenizer.encode_batch_fast(texts, special);
        let encodings = encodings.map_err(|error| self.failed(&error))?;
        let ids = encodings.iter().map(|encoding| encoding.get_ids().to_vec());
        Ok(ids.collect())
    }

    /// Encodes one document and appends its end token.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, CorpusError> {
        let mut tokens = self.encode(text)?;
        tokens.push(self.end_token);
        Ok(tokens)
    }

    /// Encodes a text to be continued, without an end token.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, CorpusError> {
        let mut tokens = self.ids(text)?;
        self.strip_end(&mut tokens);
        Ok(tokens)
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, CorpusError> {
        let encoding = self.tokenizer.encode(text, true);
        let encoding = encoding.map_err(|error| self.failed(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes a text that a chat template rendered. Adds no token.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, CorpusError> {
        let encoding = self.tokenizer.encode(text, false);
        let encoding = encoding.map_err(|error| self.failed(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the id of a token; `None` if the vocabulary lacks it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The tokens that end what a model generates: the end token, and those that `generation_config.json` and
    /// `config.json` name.
    pub fn stop_tokens(&self) -> BTreeSet<u32> {
        let mut tokens = BTreeSet::from([self.end_token]);
        for file in ["generation_config.json", "config.json"] {
            let config = json(&self.folder, file).unwrap_or_default();
            let ids = match &config["eos_token_id"] {
                Value::Array(ids) => ids.clone(),
                id => vec![id.clone()],
            };
            let ids = ids.iter().filter_map(Value::as_u64);
            tokens.extend(ids.filter_map(|id| u32::try_from(id).ok()));
        }
        tokens
    }

    /// The tokens that the tokenizer never splits, sorted.
    pub(crate) fn added_tokens(&self) -> Vec<String> {
        let added = self.tokenizer.get_added_tokens_decoder().into_values();
        let mut tokens: Vec<String> = added.map(|token| token.content).collect();
        tokens.sort();
        tokens
    }

    /// The tokens that the folder names, by their keys in `tokenizer_config.json`, such as `bos_token`.
    pub(crate) fn named_tokens(&self) -> BTreeMap<String, String> {
        let mut named = BTreeMap::new();
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            let Some(config) = json(&self.folder, file) else {
                continue;
            };
            let tokens = NAMED_TOKENS.iter();
            named.extend(tokens.filter_map(|&key| {
                let text = token_text(config.get(key)?)?;
                Some((key.to_owned(), text.to_owned()))
            }));
        }
        named
    }

    /// Decodes tokens, special ones included.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    pub fn decode_with_special(&self, tokens: &[u32]) -> Result<String, CorpusError> {
        let text = self.tokenizer.decode(tokens, false);
        text.map_err(|error| self.failed(&error))
    }

    /// Decodes tokens and leaves out special tokens. Bytes that do not form a whole character yet become U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, CorpusError> {
        let text = self.tokenizer.decode(tokens, true);
        text.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> CorpusError {
        CorpusError::Tokenizer {
            path: self.folder.clone(),
            reason: error.to_string(),
        }
    }
}

/// The named tokens of transformers.
const NAMED_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Reads a JSON file of a folder; `None` if it is missing or invalid.
fn json(folder: &Path, name: &str) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(folder.join(name)).ok()?).ok()
}

/// The text of a token in `tokenizer_config.json`: a string, or an object with its content.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn read_file(folder: &Path) -> Result<Vec<u8>, CorpusError> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        return Err(CorpusError::Tokenizer {
            path: folder.to_owned(),
            reason: "there is no tokenizer.json in this folder".to_owned(),
        });
    }
    fs::read(&path).map_err(CorpusError::io("read", &path))
}

fn find_end_token(folder: &Path, tokenizer: &Tokenizer) -> Option<u32> {
    let json = |name: &str| json(folder, name);
    let by_name = |file| {
        let value = json(file)?;
        tokenizer.token_to_id(token_text(value.get("eos_token")?)?)
    };
    let by_id = |file| {
        let value = json(file)?;
        let id = value.get("eos_token_id")?;
        let id = id.as_u64().or_else(|| id.get(0)?.as_u64())?;
        u32::try_from(id).ok()
    };
    by_name("tokenizer_config.json")
        .or_else(|| by_name("special_tokens_map.json"))
        .or_else(|| by_id("generation_config.json"))
        .or_else(|| by_id("config.json"))
}

/// Checks that every id shared by two tokenizers means the same to both. Compares the vocabularies, then encodes a few
/// texts with both. Either may have tokens that the other lacks.
///
/// # Errors
/// If the tokenizers differ in an id, in the encoding of a text, or in the end token; also if a text cannot be encoded.
pub fn compatible(one: &TokenizerFolder, other: &TokenizerFolder) -> Result<(), CorpusError> {
    let [here, there] = [one, other].map(|tokenizer| tokenizer.folder.display());
    let differ = |difference: String| CorpusError::TokenizersDiffer {
        one: one.folder.clone(),
        other: other.folder.clone(),
        difference,
    };
    for id in 0..one.vocabulary.min(other.vocabulary) as u32 {
        let token = |of: &TokenizerFolder| of.tokenizer.id_to_token(id);
        if let (Some(first), Some(second)) = (token(one), token(other))
            && first != second
        {
            return Err(differ(format!(
                "id {id} is {first:?} in {here} and {second:?} in {there}"
            )));
        }
    }
    for probe in PROBES {
        let (first, second) = (one.ids(probe)?, other.ids(probe)?);
        if first != second {
            return Err(differ(format!(
                "{probe:?} is {first:?} in {here} and {second:?} in {there}"
            )));
        }
    }
    if one.end_token != other.end_token {
        return Err(differ(format!(
            "the end token is id {} in {here} and {} in {there}",
            one.end_token, other.end_token
        )));
    }
    Ok(())
}
