//! Documents whose tokens others made: lists of ids in records, or Megatron's indexed datasets.

use std::ops::Range;

use serde_json::Value;

use crate::{document::Document, source::TokenSource, template::value};

/// The label of a token that no loss predicts, in the data sets of Hugging Face.
const MASKED: i64 = -100;

impl TokenSource {
    /// The document of a record: its `input_ids`. Leaves out the padding that an `attention_mask` beside them marks,
    /// and masks the tokens that `labels` beside them mark.
    pub(crate) fn of_record(&self, record: &Value) -> Result<Document, String> {
        let path = self.field.as_deref().unwrap_or("input_ids");
        let ids = value(record, path).ok_or_else(|| format!("no field `{path}`"))?;
        let mut ids = integers(ids).ok_or_else(|| not_integers(path))?;
        let beside = |name: &str| {
            let path = match path.rsplit_once('.') {
                Some((parent, _)) => format!("{parent}.{name}"),
                None => name.to_owned(),
            };
            let list = match value(record, &path) {
                None | Some(Value::Null) => return Ok(None),
                Some(list) => integers(list).ok_or_else(|| not_integers(&path))?,
            };
            if list.len() != ids.len() {
                return Err(format!(
                    "`{path}` has {} entries, but there are {} ids",
                    list.len(),
                    ids.len()
                ));
            }
            Ok(Some(list))
        };
        let (attended, mut labels) = (beside("attention_mask")?, beside("labels")?);
        if let Some(attended) = attended {
            let kept = kept(&attended)?;
            ids = ids[kept.clone()].to_vec();
            labels = labels.map(|labels| labels[kept].to_vec());
        }
        let masked = labels.map_or(Ok(Vec::new()), |labels| masked(&ids, &labels))?;
        self.of_ids(&ids, masked)
    }

    /// The document of a list of ids.
    pub(crate) fn of_ids(&self, ids: &[i64], masked: Vec<Range<u64>>) -> Result<Document, String> {
        let is_known = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < self.vocabulary);
        if let Some(place) = ids.iter().position(|id| !is_known(id)) {
            return Err(format!(
                "the id {} at position {place} is not in the vocabulary of {} tokens",
                ids[place], self.vocabulary
            ));
        }
        Ok(Document::Tokens {
            ids: ids.iter().map(|id| *id as u32).collect(),
            masked,
        })
    }
}

/// Whether a value is a list of token ids.
pub(crate) fn is_ids(value: &Value) -> bool {
    let ids = integers(value).unwrap_or_default();
    !ids.is_empty() && (value.is_array() || ids.len() > 1)
}

fn not_integers(path: &str) -> String {
    format!("the field `{path}` is not a list of integers")
}

/// A list of integers, or a text that holds one as JSON (as in CSV).
fn integers(list: &Value) -> Option<Vec<i64>> {
    if let Some(text) = list.as_str() {
        return serde_json::from_str(text).ok();
    }
    list.as_array()?.iter().map(Value::as_i64).collect()
}

/// The positions that are no padding. Padding is before or after all others.
fn kept(attended: &[i64]) -> Result<Range<usize>, String> {
    let is_token = |entry: &i64| *entry != 0;
    let start = attended.iter().position(is_token).unwrap_or(0);
    let end = attended
        .iter()
        .rposition(is_token)
        .map_or(0, |last| last + 1);
    match attended
        .get(start..end)
        .and_then(|kept| kept.iter().position(|entry| *entry == 0))
    {
        Some(place) => Err(format!(
            "`attention_mask` is 0 at position {} between tokens, expected padding at the start or the end",
            start + place
        )),
        None => Ok(start.min(end)..end),
    }
}

/// The ranges of tokens that the labels mask.
fn masked(ids: &[i64], labels: &[i64]) -> Result<Vec<Range<u64>>, String> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (place, (id, label)) in (0..).zip(ids.iter().zip(labels)) {
        if *label != MASKED {
            if label != id {
                return Err(format!(
                    "`labels` is {label} at position {place}, expected the id {id} or {MASKED}"
                ));
            }
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == place => last.end += 1,
            _ => ranges.push(place..place + 1),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn document(record: &Value) -> Result<(Vec<u32>, Vec<Range<u64>>), String> {
        let source = TokenSource {
            field: Some("input_ids".to_owned()),
            tokenizer: PathBuf::new(),
            vocabulary: 10,
        };
        source.of_record(record).map(|document| match document {
            Document::Tokens { ids, masked } => (ids, masked),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn labels_mask_and_padding_is_left_out() {
        assert_eq!(
            document(&json!({ "input_ids": [1, 2] })),
            Ok((vec![1, 2], vec![]))
        );
        assert_eq!(
            document(&json!({ "input_ids": "[1, 2]" })),
            Ok((vec![1, 2], vec![]))
        );
        let record = json!({
            "input_ids": [0, 0, 5, 6, 7, 8, 0],
            "attention_mask": [0, 0, 1, 1, 1, 1, 0],
            "labels": [-100, -100, -100, 6, -100, -100, -100],
        });
        assert_eq!(document(&record), Ok((vec![5, 6, 7, 8], vec![0..1, 2..4])));
        let record = json!({ "input_ids": [1], "attention_mask": [0], "labels": null });
        assert_eq!(document(&record), Ok((vec![], vec![])));
    }

    #[test]
    fn records_that_make_no_sense_say_why() {
        for (record, said) in [
            (json!({ "ids": [1] }), "no field `input_ids`"),
            (json!({ "input_ids": [1, 2.5] }), "not a list of integers"),
            (json!({ "input_ids": "many" }), "not a list of integers"),
            (json!({ "input_ids": [1, 10] }), "the id 10 at position 1"),
            (json!({ "input_ids": [-1] }), "the id -1"),
            (
                json!({ "input_ids": [1, 2], "labels": [1] }),
                "`labels` has 1 entries, but there are 2 ids",
            ),
            (
                json!({ "input_ids": [1, 2], "labels": [2, -100] }),
                "`labels` is 2 at position 0, expected the id 1",
            ),
            (
                json!({ "input_ids": [1, 2, 3], "attention_mask": [1, 0, 1] }),
                "`attention_mask` is 0 at position 1",
            ),
        ] {
            let reason = document(&record).unwrap_err();
            assert!(reason.contains(said), "{record}: {reason}");
        }
    }
}
