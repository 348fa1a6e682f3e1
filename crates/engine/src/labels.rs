//! Labels: the teacher's hidden states of one sequence as bytes, as a server sends them and as the cache keeps them.

use ddk_corpus::Sequence;
use ddk_torch::to_device;
use tch::{Device, Kind, Tensor};

use crate::EngineError;

/// The form of a teacher's labels: the hidden states after the final norm, little-endian numbers `[tokens,
/// hidden_size]`. A label does not depend on the sequences beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelFormat {
    /// Width of the hidden states, d_model.
    pub hidden_size: i64,
    /// Dtype of the numbers: the teacher's.
    pub kind: Kind,
}

impl LabelFormat {
    /// Bytes of one token's hidden state.
    pub fn token_bytes(&self) -> usize {
        self.hidden_size.unsigned_abs() as usize * self.kind.elt_size_in_bytes()
    }

    /// Converts hidden states `[tokens, hidden_size]` to a label.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn label(&self, hidden: &Tensor) -> Result<Vec<u8>, EngineError> {
        let hidden = hidden.f_to_device(Device::Cpu)?.f_to_kind(self.kind)?;
        let mut bytes = vec![0; hidden.numel() * self.kind.elt_size_in_bytes()];
        hidden
            .f_contiguous()?
            .f_copy_data_u8(&mut bytes, hidden.numel())?;
        Ok(bytes)
    }

    /// Joins the labels of a batch: `[rows * time, hidden_size]` on `device`, with zeros as padding on the right.
    ///
    /// # Errors
    /// If a label does not have the length of its sequence, or if libtorch fails.
    pub fn hidden(
        &self,
        rows: &[&Sequence],
        labels: &[Vec<u8>],
        device: Device,
    ) -> Result<Tensor, EngineError> {
        let time = rows.iter().map(|row| row.tokens.len()).max();
        let (time, token) = (time.unwrap_or(0).max(1), self.token_bytes());
        let mut bytes = vec![0; rows.len() * time * token];
        let places = bytes.chunks_exact_mut(time * token);
        for (place, (row, label)) in places.zip(rows.iter().zip(labels)) {
            let expected = row.tokens.len() * token;
            if label.len() != expected {
                let found = label.len();
                return Err(EngineError::WrongLabel { found, expected });
            }
            place[..expected].copy_from_slice(label);
        }
        let shape = [(rows.len() * time) as i64, self.hidden_size];
        let hidden = Tensor::f_from_data_size(&bytes, &shape, self.kind)?;
        Ok(to_device(hidden, device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_bit_for_bit_with_zeros_as_padding() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let format = LabelFormat {
                hidden_size: 3,
                kind,
            };
            let rows = [vec![5, 6, 7], vec![8, 9]].map(Sequence::from);
            let hidden =
                |tokens| Tensor::randn([tokens, 3], (Kind::Float, Device::Cpu)).to_kind(kind);
            let tensors = [hidden(3), hidden(2)];
            let labels = tensors
                .each_ref()
                .map(|hidden| format.label(hidden).unwrap());
            let joined = format
                .hidden(&rows.each_ref(), &labels, Device::Cpu)
                .unwrap();
            assert_eq!((joined.size(), joined.kind()), (vec![6, 3], kind));
            assert!(joined.narrow(0, 0, 3).equal(&tensors[0]));
            assert!(joined.narrow(0, 3, 2).equal(&tensors[1]));
            assert_eq!(joined.narrow(0, 5, 1).abs().max().double_value(&[]), 0.0);
        }
    }

    #[test]
    fn a_label_of_another_length_is_refused() {
        let format = LabelFormat {
            hidden_size: 4,
            kind: Kind::Float,
        };
        let row = Sequence::from(vec![1, 2]);
        let error = format
            .hidden(&[&row], &[vec![0; 31]], Device::Cpu)
            .unwrap_err();
        let error = error.to_string();
        assert!(error.contains("31 bytes, expected 32"), "{error}");
    }
}
