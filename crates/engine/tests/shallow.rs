//! Compares the influence of layers, and models with fewer layers, with PyTorch and transformers
//! (make_shallow_fixtures.py).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ddk_corpus::Sequence;
use ddk_engine::Evaluation;
use ddk_model::{Export, Model, ModelConfig, Placement, safetensors::read_tensors};
use serde::Deserialize;
use tch::{Device, Kind};

const CASES: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt-bigcode"];

#[derive(Deserialize)]
struct Reference {
    documents: Vec<Vec<u32>>,
    kept: Vec<usize>,
    influence: Vec<f64>,
}

fn folder(case: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    tests.join("shallow").join(case)
}

fn reference(case: &str) -> Reference {
    let text = fs::read_to_string(folder(case).join("reference.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn load(case: &str) -> Model {
    Model::load(&folder(case), &Placement::on(Device::Cpu, Kind::Float)).unwrap()
}

#[test]
fn influence_is_that_of_pytorch_for_any_batch_and_any_split_into_domains() {
    for case in CASES {
        let reference = reference(case);
        let sequences: Vec<Sequence> = reference.documents.into_iter().map(From::from).collect();
        let model = load(case);
        for (batch_rows, domains) in [(1, 1), (4, 1), (3, 2)] {
            let size = sequences.len() / domains;
            let validation = sequences.chunks(size).map(<[_]>::to_vec).collect();
            let evaluation = Evaluation {
                validation: Arc::new(validation),
                batch_rows,
                vocabulary: 50,
                chunk: 64,
                group: None,
            };
            let found = evaluation.block_influence(&model, &|_, _| false).unwrap();
            let found = found.unwrap();
            assert_eq!(found.len(), reference.influence.len());
            for (found, expected) in found.iter().zip(&reference.influence) {
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{case}: {found}, expected {expected}"
                );
                assert!(*expected > 1e-3, "{case}: this layer does nothing");
            }
            let stopped = evaluation
                .block_influence(&model, &|done, _| done > 0)
                .unwrap();
            assert_eq!(stopped.is_none(), batch_rows < 4, "{case}");
        }
    }
}

#[test]
fn a_shallower_model_has_the_bits_of_transformers_and_loads() {
    for case in CASES {
        let kept = reference(case).kept;
        let shallow = load(case).with_layers(&kept).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("shallow");
        shallow.save(&out, &Export::new(&folder(case))).unwrap();
        let written = read_tensors(&out.join("model.safetensors")).unwrap();
        let expected = read_tensors(&folder(case).join("shallow.safetensors")).unwrap();
        let names = |file: &ddk_model::safetensors::TensorFile| {
            let mut names = file.names();
            names.sort();
            names
        };
        assert_eq!(names(&written), names(&expected), "{case}");
        for name in expected.names() {
            let shape = expected.shape(&name).unwrap();
            let tensor = |file: &ddk_model::safetensors::TensorFile| file.tensor(&name, &shape);
            let (found, expected) = (tensor(&written).unwrap(), tensor(&expected).unwrap());
            assert!(found.equal(&expected), "{case}: {name}");
        }
        assert_eq!(ModelConfig::read(&out).unwrap().layers(), 3, "{case}");
        assert!(
            Model::load(&out, &Placement::on(Device::Cpu, Kind::Float)).is_ok(),
            "{case}"
        );
    }
    let error = load("llama").with_layers(&[0, 5]).unwrap_err().to_string();
    assert!(error.contains("no layer 6"), "{error}");
}
