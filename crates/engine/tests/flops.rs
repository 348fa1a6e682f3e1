//! Compares the counts with counts by hand, and DDK's cost over plain distillation with the paper's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

use std::fs;

use ddk_corpus::Sequence;
use ddk_engine::{Filters, FlopCounter, LayerPair};
use ddk_model::{Architecture, ModelConfig};

fn llama(hidden_size: i64) -> ModelConfig {
    let architecture = Architecture {
        vocab_size: 100,
        hidden_size,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 32,
        rope_theta: 1e4,
        tie_word_embeddings: true,
    };
    ModelConfig::llama(architecture, None).unwrap()
}

#[test]
fn teacher_student_and_evaluation_are_counted_by_hand() {
    let counter = FlopCounter::new(&llama(16), &llama(8), 10, false);
    let packed = &Sequence {
        document_lengths: vec![3, 2],
        ..vec![1, 2, 3, 4, 5].into()
    };
    let whole = &vec![1, 2, 3, 4].into();
    // Student: 2 layers of 480 weights, 64 operations per attention pair; 6 + 3 pairs in the parts, 10 in the whole
    // sequence; 9 positions of 10 columns.
    let (layers, head) = (9.0 * 1920.0 + 19.0 * 64.0, 9.0 * 10.0 * 16.0);
    assert_eq!(counter.student(&[packed, whole]), 3.0 * (layers + head));
    let again = FlopCounter::new(&llama(16), &llama(8), 10, true);
    assert_eq!(
        again.student(&[packed, whole]),
        4.0 * layers + 3.0 * head,
        "the LM head is not applied again"
    );
    // Teacher: a layer has 16 x 16 + 2 x 16 x 8 + 16 x 16 + 3 x 16 x 12 = 1344 weights, an attention pair costs
    // 128.
    let teacher = 9.0 * 5376.0 + 19.0 * 128.0 + 9.0 * 10.0 * 32.0;
    assert_eq!(counter.teacher(&[packed, whole]), teacher);

    // TED with one pair, so filters of 16 x 8 and 16 x 16. They are already trained in the second stage. In the
    // first stage they train behind the teacher's LM head.
    let of = |learned| {
        let (student, teacher) = (2, 2);
        let filters = Filters {
            pairs: vec![LayerPair { student, teacher }],
            learned,
        };
        let counter = counter.with_filters(Some(&filters));
        let rows = [packed, whole];
        (counter.teacher(&rows), counter.student(&rows))
    };
    let second_stage = 3.0 * (layers + head) + 9.0 * 6.0 * 128.0;
    let filtered = teacher + 9.0 * 2.0 * 256.0;
    assert_eq!(of(Some("filters".into())), (filtered, second_stage));
    let first_stage = layers + 9.0 * 4.0 * (128.0 + 256.0) + 4.0 * 9.0 * 10.0 * 32.0;
    assert_eq!(of(None), (9.0 * 5376.0 + 19.0 * 128.0, first_stage));

    // A document of one token has nothing to predict and is not computed.
    let documents = [vec![vec![1, 2, 3].into(), Sequence::from(vec![7])], vec![]];
    let once = 3.0 * 1920.0 + 6.0 * 64.0 + 3.0 * 10.0 * 16.0;
    assert_eq!(counter.student_evaluation(&documents), once);
    let by_teacher = 3.0 * 5376.0 + 6.0 * 128.0 + 3.0 * 10.0 * 32.0;
    assert_eq!(counter.teacher_evaluation(&documents), by_teacher);
}

/// Qwen1.5 with the values of its configurations on the Hub. Token ids go up to 151,645.
fn qwen(
    hidden_size: i64,
    intermediate_size: i64,
    layers: i64,
    heads: i64,
    columns: i64,
) -> ModelConfig {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": {hidden_size},
            "intermediate_size": {intermediate_size}, "num_hidden_layers": {layers}, "num_attention_heads": {heads},
            "num_key_value_heads": {heads}, "vocab_size": {columns}, "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": false}}"#
    );
    fs::write(folder.path().join("config.json"), config).unwrap();
    ModelConfig::read(folder.path()).unwrap()
}

#[test]
fn at_the_papers_proportions_ddk_costs_less_than_the_papers_0_69_percent() {
    let (teacher, student) = (
        qwen(5120, 13696, 40, 40, 152_064),
        qwen(2048, 5504, 24, 16, 151_936),
    );
    let counter = FlopCounter::new(&teacher, &student, 151_646, false);
    // 30,000 steps of 256 sequences of 2,048 tokens; K = 1,000; 10 domains of 500 documents, none shorter than a
    // sequence.
    let (steps, interval, rows) = (30_000_u64, 1_000, 256);
    let all_rows = Sequence {
        document_lengths: vec![2048; (steps * rows) as usize],
        ..Vec::new().into()
    };
    let training = counter.teacher(&[&all_rows]) + counter.student(&[&all_rows]);
    let documents = [vec![Sequence::from(vec![0; 2048]); 10 * 500]];
    let evaluations = steps / interval;
    let extra = evaluations as f64 * counter.student_evaluation(&documents)
        + counter.teacher_evaluation(&documents);
    let share = extra / training;
    eprintln!(
        "training {training:.4e} FLOPs; {evaluations} evaluations of the student and one of the teacher \
         {extra:.4e}: {:.3}% (the paper: 0.69%)",
        100.0 * share
    );
    assert!(share < 0.0069, "{share}");
    // The paper reports 5.364e20 in total for KD of this pair. A count of matmuls must come close to it.
    assert!((4.5e20..7.5e20).contains(&training), "{training:e}");
}
