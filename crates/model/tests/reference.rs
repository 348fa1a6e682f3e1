//! Models against Hugging Face transformers: logits and gradients of tiny models that transformers made (make_fixtures.py).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use ddk_model::{Architecture, Model, ModelConfig, Weights, safetensors::read_tensors};
use tch::{Device, Kind, Tensor};

const CASES: [&str; 3] = [
    "llama-multi-head-tied",
    "llama-grouped-odd-vocabulary",
    "llama-multi-query-wide-heads",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(case)
}

fn tensor(case: &str, name: &str) -> Tensor {
    let file = read_tensors(&folder(case).join("reference.safetensors")).unwrap();
    let shape = file.shape(name).unwrap();
    file.tensor(name, &shape).unwrap()
}

fn load(case: &str) -> Model {
    Model::load(&folder(case), Device::Cpu, Kind::Float).unwrap()
}

fn logits(model: &Model, tokens: &Tensor) -> Tensor {
    model
        .hidden(tokens)
        .unwrap()
        .linear(model.head().weight, None::<&Tensor>)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn logits_are_those_of_transformers() {
    for case in CASES {
        let difference = largest_difference(
            &logits(&load(case), &tensor(case, "tokens")),
            &tensor(case, "logits"),
        );
        assert!(difference < 1e-4, "{case}: {difference}");
    }
}

#[test]
fn gradients_are_those_of_transformers() {
    for case in CASES {
        let mut model = load(case);
        model.set_trainable(true);
        let tokens = tensor(case, "tokens");
        let logits = logits(&model, &tokens);
        let vocabulary = logits.size()[2];
        let predicted = logits.narrow(1, 0, 16).reshape([-1, vocabulary]);
        predicted
            .cross_entropy_for_logits(&tokens.narrow(1, 1, 16).reshape([-1]))
            .backward();
        for (name, parameter) in model.parameters() {
            let expected = tensor(case, &format!("gradient.{name}"));
            let scale = expected.abs().max().double_value(&[]);
            let difference = largest_difference(&parameter.grad(), &expected);
            assert!(
                difference < 1e-4 * scale,
                "{case}, {name}: {difference} of {scale}"
            );
        }
    }
}

#[test]
fn padding_on_the_right_changes_nothing_before_it() {
    let (case, model) = (CASES[1], load(CASES[1]));
    let tokens = tensor(case, "tokens");
    let padded = tokens.constant_pad_nd([0, 5]);
    let difference = largest_difference(
        &logits(&model, &padded).narrow(1, 0, 17),
        &tensor(case, "logits"),
    );
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn a_saved_model_is_the_same_model() {
    for case in CASES {
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("model");
        let model = load(case);
        model.save(&target, &folder(case)).unwrap();
        // Saved over an older one as well.
        model.save(&target, &folder(case)).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        let back = Model::load(&target, Device::Cpu, Kind::Float).unwrap();
        let tokens = tensor(case, "tokens");
        assert!(logits(&back, &tokens).equal(&logits(&model, &tokens)));
        assert_eq!(
            Weights::open(&target).unwrap().hash(),
            Weights::open(&folder(case)).unwrap().hash()
        );
        assert!(target.join("generation_config.json").exists());
    }
}

#[test]
fn shards_are_one_model() {
    let (case, scratch) = (CASES[0], tempfile::tempdir().unwrap());
    let whole = read_tensors(&folder(case).join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (index, name) in whole.names().into_iter().enumerate() {
        let file = format!("model-{index}.safetensors");
        let tensors = [(
            name.clone(),
            whole.tensor(&name, &whole.shape(&name).unwrap()).unwrap(),
        )];
        let mut bytes = Vec::new();
        ddk_model::safetensors::write_tensors(&tensors, &[], &mut bytes).unwrap();
        fs::write(scratch.path().join(&file), bytes).unwrap();
        map.insert(name, file.into());
    }
    let index = serde_json::json!({ "weight_map": map });
    fs::write(
        scratch.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    fs::copy(
        folder(case).join("config.json"),
        scratch.path().join("config.json"),
    )
    .unwrap();
    let model = Model::load(scratch.path(), Device::Cpu, Kind::Float).unwrap();
    assert!(
        largest_difference(
            &logits(&model, &tensor(case, "tokens")),
            &tensor(case, "logits")
        ) < 1e-4
    );
    let (sharded, single) = (
        Weights::open(scratch.path()).unwrap(),
        Weights::open(&folder(case)).unwrap(),
    );
    assert_eq!(sharded.hash(), single.hash());
}

#[test]
fn every_tensor_that_does_not_fit_is_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(folder(CASES[0]).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["intermediate_size"] = 48.into();
    config["num_hidden_layers"] = 1.into();
    fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(
        folder(CASES[0]).join("model.safetensors"),
        scratch.path().join("model.safetensors"),
    )
    .unwrap();
    let error = Model::load(scratch.path(), Device::Cpu, Kind::Float)
        .unwrap_err()
        .to_string();
    for expected in [
        "wrong shape: model.layers.0.mlp.up_proj.weight is [40, 24]",
        "expected [48, 24]",
        "unexpected: model.layers.1.self_attn.q_proj.weight",
    ] {
        assert!(error.contains(expected), "{error}");
    }
    fs::remove_file(scratch.path().join("model.safetensors")).unwrap();
    let error = Model::load(scratch.path(), Device::Cpu, Kind::Float)
        .unwrap_err()
        .to_string();
    assert!(error.contains("holds no model.safetensors"), "{error}");
    fs::write(scratch.path().join("pytorch_model.bin"), b"").unwrap();
    let error = Model::load(scratch.path(), Device::Cpu, Kind::Float)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("pickled") && error.contains("save_pretrained"),
        "{error}"
    );
}

#[test]
fn new_models_come_from_their_seed_alone() {
    let architecture = Architecture {
        vocab_size: 50,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 32,
        rope_theta: 1e4,
        tie_word_embeddings: false,
    };
    let make = |seed| {
        let config = ModelConfig::llama(architecture.clone(), Some(0)).unwrap();
        Model::random(config, seed, Device::Cpu).unwrap()
    };
    let (one, again, other) = (make(1), make(1), make(2));
    let weight = |model: &Model| model.parameters()[0].1.shallow_clone();
    assert!(weight(&one).equal(&weight(&again)) && !weight(&one).equal(&weight(&other)));
    let deviation = weight(&one).std(false).double_value(&[]);
    assert!((deviation - 0.02).abs() < 0.002, "{deviation}");
}
