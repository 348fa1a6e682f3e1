//! A sequence's label does not depend on the sequences beside it. So runs with and without a cache have the same bits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_corpus::Sequence;
use ddk_engine::{LabelFormat, Teacher};
use ddk_model::{Architecture, Model, ModelConfig};
use tch::{Device, Kind};

fn teacher(hidden_size: i64, positions: i64) -> Teacher {
    let architecture = Architecture {
        vocab_size: 500,
        hidden_size,
        intermediate_size: 3 * hidden_size,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: positions,
        rope_theta: 1e4,
        tie_word_embeddings: false,
    };
    let config = ModelConfig::llama(architecture, None).unwrap();
    Teacher::new(Model::random(config, 3, Device::Cpu).unwrap(), Device::Cpu)
}

/// Sequences of these lengths. `documents`: whether each has documents that do not attend to each other.
fn sequences(lengths: &[usize], documents: bool) -> Vec<Sequence> {
    let of = |(number, &length): (usize, &usize)| {
        let token = |position: usize| ((number * 7919 + position * 104_729 + 13) % 500) as u32;
        let first = (length / 3) as u32;
        let lengths = [first, length as u32 - first];
        Sequence {
            document_lengths: if documents && first > 0 {
                lengths.to_vec()
            } else {
                Vec::new()
            },
            ..(0..length).map(token).collect::<Vec<u32>>().into()
        }
    };
    lengths.iter().enumerate().map(of).collect()
}

#[test]
fn a_label_does_not_depend_on_the_sequences_beside_it() {
    for threads in [1, 2] {
        tch::set_num_threads(threads);
        for (hidden_size, lengths) in [
            (32, &[12, 11, 10, 9, 1][..]),
            (64, &[200, 200, 200, 200, 200, 200, 200, 200]),
            (256, &[256, 256, 256, 256]),
            (256, &[256, 3, 131, 64, 255, 17, 1, 128]),
            (96, &[37, 37, 5, 37, 5]),
            (512, &[33, 33, 64, 33, 64, 127, 127, 127, 127, 127]),
            (48, &[32; 16]),
        ] {
            let teacher = teacher(hidden_size, 256);
            let format = LabelFormat {
                hidden_size,
                kind: Kind::Float,
            };
            for documents in [false, true] {
                let sequences = sequences(lengths, documents);
                let rows: Vec<&Sequence> = sequences.iter().collect();
                let together = teacher.label(&rows).unwrap().hidden;
                let time = *lengths.iter().max().unwrap() as i64;
                for (index, row) in rows.iter().enumerate() {
                    let own = together.narrow(0, index as i64 * time, row.tokens.len() as i64);
                    let alone = teacher.label(&[row]).unwrap().hidden;
                    assert!(
                        format.label(&own).unwrap() == format.label(&alone).unwrap(),
                        "{hidden_size} {threads} threads, {documents}: sequence {index} of {lengths:?}, {}",
                        (own - alone).abs().max().double_value(&[])
                    );
                }
            }
        }
    }
}
