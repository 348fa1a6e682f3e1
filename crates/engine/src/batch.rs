//! Rows of token ids as the tensors that the models take.

use ddk_torch::TorchError;
use tch::{Device, Tensor};

/// A label that is not scored: the last position of a row, and padding.
pub const NOT_SCORED: i64 = -100;

/// Rows padded on the right to the longest of them.
///
/// Attention is causal, so padding on the right changes no position before it and needs no mask; its labels are
/// [`NOT_SCORED`].
#[derive(Debug)]
pub struct BatchTensors {
    /// `[rows, time]`, i64.
    pub tokens: Tensor,
    /// `[rows * time]`, i64: the next token of each position, or [`NOT_SCORED`].
    pub labels: Tensor,
    /// Labels that are scored.
    pub predictions: i64,
}

/// Builds the tensors of `rows` on `device`. Rows may differ in length; at least one must not be empty.
pub fn batch_tensors(rows: &[&[u32]], device: Device) -> Result<BatchTensors, TorchError> {
    let time = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(1);
    let mut tokens = vec![0_i64; rows.len() * time];
    let mut labels = vec![NOT_SCORED; rows.len() * time];
    let mut predictions = 0;
    for (index, row) in rows.iter().enumerate() {
        let start = index * time;
        for (position, &token) in row.iter().enumerate() {
            tokens[start + position] = i64::from(token);
            if position > 0 {
                labels[start + position - 1] = i64::from(token);
                predictions += 1;
            }
        }
    }
    let shape = [rows.len() as i64, time as i64];
    Ok(BatchTensors {
        tokens: Tensor::f_from_slice(&tokens)?
            .f_reshape(shape)?
            .f_to_device(device)?,
        labels: Tensor::f_from_slice(&labels)?.f_to_device(device)?,
        predictions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_next_tokens_and_padding_is_not_scored() {
        let batch = batch_tensors(&[&[5, 6, 7], &[8, 9]], Device::Cpu).unwrap();
        assert_eq!(batch.tokens.size(), [2, 3]);
        assert_eq!(
            Vec::<i64>::try_from(&batch.tokens.reshape([-1])).unwrap(),
            [5, 6, 7, 8, 9, 0]
        );
        assert_eq!(
            Vec::<i64>::try_from(&batch.labels).unwrap(),
            [6, 7, -100, 9, -100, -100]
        );
        assert_eq!(batch.predictions, 3);
    }
}
