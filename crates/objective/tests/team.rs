//! The kernel beside libtorch, whose OpenMP team it takes.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use ddk_kernel::{Chunk, Divergence, Loss, Values, losses};
use tch::Tensor;

const ROWS: usize = 37;
const COLUMNS: usize = 501;

/// Of random logits, on so many threads.
fn computed(labels: &[i64; ROWS], threads: usize) -> (Vec<f32>, Vec<Values>) {
    let mut rng = ddk_order::stream(3, "logits", &[]);
    let mut logits = || -> Vec<f32> {
        let numbers = (0..ROWS * COLUMNS).map(|_| ddk_order::standard_normal(&mut rng) as f32);
        numbers.collect()
    };
    let (mut student, teacher) = (logits(), logits());
    let mut values = vec![Values::default(); ROWS];
    let chunk = Chunk {
        student: &mut student,
        teacher: Some(&teacher),
        labels,
        scales: &[0.5; ROWS],
        teacher_ce: true,
    };
    let loss = Loss {
        divergence: Some(Divergence::ForwardKl),
        weight: 0.2,
        temperature: 1.0,
        factor: 1.0,
    };
    losses(chunk, &loss, threads, &mut values);
    (student, values)
}

#[test]
fn a_team_of_any_size_gives_the_same_bits() {
    // A product first: the team is there, and its threads wait for more.
    let square = Tensor::rand([300, 300], tch::kind::FLOAT_CPU);
    let _ = square.matmul(&square);
    let one = computed(&[7; ROWS], 1);
    for threads in [2, 3, 8, 64] {
        for _ in 0..20 {
            assert!(computed(&[7; ROWS], threads) == one, "{threads} threads");
        }
    }
}

#[test]
fn a_panic_on_the_team_comes_back_to_its_caller() {
    let mut labels = [7; ROWS];
    labels[30] = COLUMNS as i64;
    let panicked = catch_unwind(AssertUnwindSafe(|| computed(&labels, 3)));
    let said = panicked.unwrap_err();
    assert!(format!("{:?}", said.downcast_ref::<&str>()).contains("past the vocabulary"));
    // The team goes on.
    assert!(computed(&[7; ROWS], 3) == computed(&[7; ROWS], 1));
}
