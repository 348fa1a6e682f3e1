//! Converts sequences of token ids into the tensors that the models take.

use ddk_corpus::Sequence;
use ddk_torch::to_device;
use tch::{Device, Tensor};

use crate::EngineError;

/// The label of padding, and of a position without a target ([`Sequence::targets`]).
pub const NOT_SCORED: i64 = -100;

/// Sequences padded on the right to the longest of them.
///
/// Attention is causal, so padding on the right affects no position before it and needs no mask. The labels of
/// padding are [`NOT_SCORED`].
#[derive(Debug)]
pub struct BatchTensors {
    /// `[rows, time]`, i64.
    pub tokens: Tensor,
    /// `[rows * time]`, i64: the next token of each position, or [`NOT_SCORED`].
    pub labels: Tensor,
    /// Number of labels that are scored.
    pub predictions: i64,
    /// Lengths of the parts of each sequence, with padding as a separate part. `None` if no sequence has parts.
    pub parts: Option<Vec<Vec<i64>>>,
}

/// Builds the tensors of `rows` on `device`. The sequences may differ in length, but at least one must not be
/// empty.
///
/// # Errors
/// If a token id is not below `vocabulary` (on a GPU, such an id would make the device unusable for the process),
/// or if libtorch fails.
pub fn batch_tensors(
    rows: &[&Sequence],
    vocabulary: i64,
    device: Device,
) -> Result<BatchTensors, EngineError> {
    let time = rows.iter().map(|row| row.tokens.len()).max();
    let time = time.unwrap_or(0).max(1);
    let mut tokens = vec![0_i64; rows.len() * time];
    let mut labels = vec![NOT_SCORED; rows.len() * time];
    let mut predictions = 0;
    for (index, row) in rows.iter().enumerate() {
        let start = index * time;
        for (position, &token) in row.tokens.iter().enumerate() {
            if i64::from(token) >= vocabulary {
                return Err(EngineError::TokenPastVocabulary { token, vocabulary });
            }
            tokens[start + position] = i64::from(token);
        }
        for position in row.targets() {
            labels[start + position - 1] = i64::from(row.tokens[position]);
            predictions += 1;
        }
    }
    let has_parts = rows.iter().any(|row| !row.document_lengths.is_empty());
    let shape = [rows.len() as i64, time as i64];
    let on_device = |values: &[i64], shape: &[i64]| {
        to_device(Tensor::f_from_slice(values)?.f_reshape(shape)?, device)
    };
    Ok(BatchTensors {
        tokens: on_device(&tokens, &shape)?,
        labels: on_device(&labels, &[-1])?,
        predictions,
        parts: has_parts.then(|| rows.iter().map(|row| parts(row, time)).collect()),
    })
}

/// Lengths of the parts of `row`, with padding. They add up to `time`.
fn parts(row: &Sequence, time: usize) -> Vec<i64> {
    let mut parts: Vec<i64> = match &row.document_lengths[..] {
        [] if row.tokens.is_empty() => Vec::new(),
        [] => vec![row.tokens.len() as i64],
        lengths => lengths.iter().map(|&length| i64::from(length)).collect(),
    };
    let padding = time as i64 - parts.iter().sum::<i64>();
    if padding > 0 {
        parts.push(padding);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(&tensor.reshape([-1])).unwrap()
    }

    #[test]
    fn labels_are_the_next_tokens_and_padding_is_not_scored() {
        let rows = [vec![5, 6, 7], vec![8, 9]].map(Sequence::from);
        let batch = batch_tensors(&rows.each_ref(), 10, Device::Cpu).unwrap();
        assert_eq!(batch.tokens.size(), [2, 3]);
        assert_eq!(values(&batch.tokens), [5, 6, 7, 8, 9, 0]);
        assert_eq!(values(&batch.labels), [6, 7, -100, 9, -100, -100]);
        assert_eq!(batch.predictions, 3);
        assert_eq!(batch.parts, None);
    }

    #[test]
    fn a_token_past_the_vocabulary_is_named_before_a_device_sees_it() {
        let row = vec![5, 9, 7].into();
        let built = batch_tensors(&[&row], 9, Device::Cpu);
        let error = built.unwrap_err().to_string();
        assert!(
            error.contains("token id 9 is past the vocabulary of 9"),
            "{error}"
        );
    }

    #[test]
    fn the_first_token_of_a_document_and_masked_ones_are_not_predicted() {
        let packed = Sequence {
            document_lengths: vec![1, 3],
            masked: vec![0..1, 2..3],
            ..vec![5, 6, 7, 8].into()
        };
        let longer = vec![1, 2, 3, 4, 5].into();
        let batch = batch_tensors(&[&packed, &longer], 10, Device::Cpu).unwrap();
        assert_eq!(
            values(&batch.labels),
            [-100, -100, 8, -100, -100, 2, 3, 4, 5, -100]
        );
        assert_eq!(batch.predictions, 5);
        assert_eq!(batch.parts, Some(vec![vec![1, 3, 1], vec![5]]));
    }
}
