//! Defines the sequence, the unit of training and evaluation.

use std::{iter, ops::Range};

use serde::{Deserialize, Serialize};

/// A contiguous part of a document in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The document's number in the prepared domain.
    pub document: u64,
    /// Offset of the first token in the document.
    pub offset: u64,
    /// Number of tokens.
    pub tokens: u64,
}

/// Token ids, and what a model needs to know to train on them. A training sequence has at most `sequence_length`
/// tokens of one or more documents; a validation sequence is the start of one document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Its number in the domain's row index, or among the validation documents.
    pub number: u64,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Lengths of the documents that do not attend to each other; empty if all tokens are one text.
    pub document_lengths: Vec<u32>,
    /// Positions of tokens that no loss predicts (prompts).
    pub masked: Vec<Range<u64>>,
    /// Where the tokens of a training sequence come from, in order.
    pub spans: Vec<Span>,
}

impl From<Vec<u32>> for Sequence {
    fn from(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }
}

impl Sequence {
    /// Identity of the content: a BLAKE3 hash of the document lengths and the tokens.
    ///
    /// The output of a causal model at each position depends on nothing else, so this hash is the key to store it
    /// under. The hash does not depend on epoch, order of arrival, packing or loss mask.
    pub fn id(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        hash.update(&(self.document_lengths.len() as u64).to_le_bytes());
        for number in self.document_lengths.iter().chain(&self.tokens) {
            hash.update(&number.to_le_bytes());
        }
        *hash.finalize().as_bytes()
    }

    /// Positions of the predicted tokens, in order: all but the first of the sequence, the first of each document,
    /// and the masked ones. The position before a target makes the prediction.
    pub fn targets(&self) -> impl Iterator<Item = usize> + use<> {
        let mut predicted = vec![true; self.tokens.len()];
        let starts = self.document_lengths.iter().scan(0, |next, length| {
            let start = *next;
            *next += u64::from(*length);
            Some(start..start + 1)
        });
        let masked = self.masked.iter().cloned();
        for range in iter::once(0..1).chain(starts).chain(masked) {
            let end = predicted.len().min(range.end as usize);
            if let Some(left_out) = predicted.get_mut(range.start as usize..end) {
                left_out.fill(false);
            }
        }
        let places = predicted.into_iter().enumerate();
        places.filter_map(|(place, predicted)| predicted.then_some(place))
    }

    /// Number of predicted tokens.
    pub fn num_targets(&self) -> u64 {
        self.targets().count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(length: u32, document_lengths: &[u32], masked: &[Range<u64>]) -> Vec<usize> {
        let sequence = Sequence {
            document_lengths: document_lengths.to_vec(),
            masked: masked.to_vec(),
            ..(0..length).collect::<Vec<u32>>().into()
        };
        assert_eq!(sequence.num_targets(), sequence.targets().count() as u64);
        sequence.targets().collect()
    }

    #[test]
    fn the_first_token_of_each_document_and_masked_ones_are_not_predicted() {
        assert_eq!(targets(0, &[], &[]), [0_usize; 0]);
        assert_eq!(targets(1, &[], &[]), [0_usize; 0]);
        assert_eq!(targets(4, &[], &[]), [1, 2, 3]);
        assert_eq!(targets(5, &[2, 3], &[]), [1, 3, 4]);
        // Two turns of a conversation; the second mask reaches past the end.
        assert_eq!(targets(9, &[], &[0..3, 6..20]), [3, 4, 5]);
        assert_eq!(targets(5, &[1, 4], &[0..1, 1..3]), [3, 4]);
    }

    #[test]
    fn an_id_follows_from_tokens_and_document_boundaries_alone() {
        let sequence = Sequence::from(vec![1, 2, 3]);
        let elsewhere = Sequence {
            number: 7,
            masked: vec![0..1, 2..3],
            ..sequence.clone()
        };
        assert_eq!(sequence.id(), elsewhere.id());
        let split = Sequence {
            document_lengths: vec![1, 2],
            ..sequence.clone()
        };
        let longer = Sequence::from(vec![1, 2, 1, 2, 3]);
        assert_ne!(sequence.id(), split.id());
        assert_ne!(split.id(), longer.id());
    }
}
