//! Tests the kernel beside libtorch, whose OpenMP team it uses.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, DirEntry},
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use ddk_kernel::{Chunk, Divergence, Loss, Values, losses};
use tch::Tensor;

const ROWS: usize = 37;
const COLUMNS: usize = 501;

/// Computes the losses of random logits on this many threads.
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

/// Threads of the worker with this name: its own and those of its team, which inherit the name.
fn threads_of(name: &str) -> BTreeSet<OsString> {
    let of_name = |task: &DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.filter_map(Result::ok).filter(of_name);
    tasks.map(|task| task.file_name()).collect()
}

#[test]
fn a_team_of_any_size_gives_the_same_bits_and_stays() {
    let one = computed(&[7; ROWS], 1);
    for threads in [2, 3, 8, 64] {
        let name = format!("lane-of-{threads}");
        let lane = thread::Builder::new().name(name.clone()).spawn(move || {
            tch::set_num_threads(i32::try_from(threads).unwrap());
            let before = threads_of(&name);
            // Run the kernel first: it creates the team, which libtorch then uses.
            let first = computed(&[7; ROWS], threads);
            let team = &threads_of(&name) - &before;
            assert_eq!(team.len(), threads - 1);
            let square = Tensor::rand([300, 300], tch::kind::FLOAT_CPU);
            let mut all = vec![first];
            for fewer in [threads, 2, threads] {
                let _ = &square + 1.0;
                all.push(computed(&[7; ROWS], fewer));
            }
            assert!(team.is_subset(&threads_of(&name)), "{threads} threads");
            all
        });
        for computed in lane.unwrap().join().unwrap() {
            assert!(computed == one, "{threads} threads");
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
    // The team still works.
    assert!(computed(&[7; ROWS], 3) == computed(&[7; ROWS], 1));
}
