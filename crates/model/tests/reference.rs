//! Compares models with Hugging Face transformers: logits and gradients of tiny models that transformers created
//! (make_fixtures.py).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use ddk_model::{
    Architecture, Export, Model, ModelConfig, Placement, Weights, safetensors::read_tensors,
};
use tch::{Device, Kind, Tensor};

const CASES: [&str; 20] = [
    "llama-multi-head-tied",
    "llama-grouped-odd-vocabulary",
    "llama-multi-query-wide-heads",
    "llama-rope-llama3-biases",
    "llama-rope-linear",
    "mistral-grouped",
    "mistral-multi-query-wide-heads",
    "mistral-tied-within-its-window",
    "qwen2-multi-head-odd-vocabulary",
    "qwen2-grouped-tied",
    "qwen2-multi-query",
    "qwen3-grouped-wide-heads",
    "qwen3-multi-head-tied",
    "qwen3-multi-query-biases",
    "gemma-multi-head-wide-heads",
    "gemma-multi-query",
    "gemma-grouped-untied",
    "gpt-bigcode-multi-query-tied",
    "gpt-bigcode-multi-head",
    "gpt-bigcode-multi-query-narrow-mlp",
];

/// The CPU, or the device that `make gpu-check` sets.
fn device() -> Device {
    ddk_torch::test_device().unwrap()
}

fn folder(case: &str) -> PathBuf {
    // On a machine without cargo, the fixtures are elsewhere.
    let fixtures = std::env::var_os("DDK_TEST_FIXTURES").map(PathBuf::from);
    let fixtures =
        fixtures.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"));
    fixtures.join(case)
}

fn tensor(case: &str, name: &str) -> Tensor {
    let file = read_tensors(&folder(case).join("reference.safetensors")).unwrap();
    let shape = file.shape(name).unwrap();
    file.tensor(name, &shape).unwrap().to_device(device())
}

fn load(case: &str) -> Model {
    Model::load(&folder(case), &Placement::on(device(), Kind::Float)).unwrap()
}

fn logits(model: &Model, tokens: &Tensor) -> Tensor {
    model
        .hidden(tokens, None)
        .unwrap()
        .linear(model.head(), None::<&Tensor>)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn every_fixture_is_compared() {
    let mut found: Vec<String> = fs::read_dir(folder(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected = CASES.to_vec();
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected);
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

/// The most likely next token: the largest logit at the last position.
fn most_likely(model: &Model, hidden: &Tensor) -> i64 {
    let last = hidden.narrow(1, hidden.size()[1] - 1, 1);
    let logits = last.linear(model.head(), None::<&Tensor>);
    logits.argmax(-1, false).int64_value(&[0, 0])
}

#[test]
fn greedy_generation_with_a_cache_is_that_of_transformers_token_for_token() {
    for case in CASES {
        let (model, mut written) = (load(case), Vec::new());
        let expected = Vec::<i64>::try_from(tensor(case, "greedy").reshape([-1])).unwrap();
        let mut cache = model.cache();
        let mut next = tensor(case, "tokens").narrow(0, 0, 1).narrow(1, 0, 5);
        while written.len() < expected.len() {
            let hidden = model.hidden_after(&mut cache, &next).unwrap();
            let token = most_likely(&model, &hidden);
            written.push(token);
            next = Tensor::from_slice(&[token])
                .reshape([1, 1])
                .to_device(device());
        }
        assert_eq!(written, expected, "{case}");
    }
}

#[test]
fn a_cache_may_be_fed_in_pieces_of_any_length() {
    for case in CASES {
        let (model, tokens) = (load(case), tensor(case, "tokens"));
        let mut cache = model.cache();
        let pieces: Vec<Tensor> = [(0, 1), (1, 6), (7, 10)]
            .into_iter()
            .map(|(start, length)| {
                let piece = tokens.narrow(1, start, length);
                model.hidden_after(&mut cache, &piece).unwrap()
            })
            .collect();
        let hidden = Tensor::cat(&pieces, 1);
        assert_eq!(cache.positions(), 17);
        let logits = hidden.linear(model.head(), None::<&Tensor>);
        let difference = largest_difference(&logits, &tensor(case, "logits"));
        assert!(difference < 1e-4, "{case}: {difference}");
    }
}

/// Takes the gradients that autograd left in the parameters, by name, and clears them.
fn take_gradients(model: &Model) -> Vec<(String, Tensor)> {
    let mut gradients = Vec::new();
    for (name, parameter) in model.parameters() {
        let mut gradient = parameter.grad();
        if gradient.defined() {
            gradients.push((name.clone(), gradient.copy()));
            let _ = gradient.zero_();
        }
    }
    gradients
}

/// Takes the gradients of a trace whose backward pass wrote to `embedding`. An untied LM head has none, because the
/// objective computes its gradient.
fn take_traced(model: &Model, embedding: Tensor) -> Vec<(String, Tensor)> {
    let mut gradients = take_gradients(model);
    let at = model.embedding().data_ptr();
    let mut parameters = model.parameters().iter();
    let (name, _) = parameters.find(|(_, of)| of.data_ptr() == at).unwrap();
    // Autograd skips the embedding. Its gradient is missing, or zero if an earlier backward pass created it.
    gradients.retain(|(of, gradient)| {
        assert!(of != name || gradient.abs().max().double_value(&[]) == 0.0);
        of != name
    });
    gradients.push((name.clone(), embedding));
    gradients.sort_by(|one, other| one.0.cmp(&other.0));
    gradients
}

#[test]
fn recomputed_activations_give_the_same_gradients_bit_for_bit() {
    for case in CASES {
        let mut model = load(case);
        model.set_trainable(true);
        let gradients = |recompute| {
            let mut embedding = model.embedding().detach().zeros_like();
            for _ in 0..2 {
                let trace = model
                    .trace(&tensor(case, "tokens"), None, recompute, &[])
                    .unwrap();
                let gradient = trace.hidden().detach().tanh();
                trace.backward(&gradient, &[], &mut embedding).unwrap();
            }
            take_traced(&model, embedding)
        };
        for ((name, kept), (_, recomputed)) in gradients(false).iter().zip(&gradients(true)) {
            assert!(kept.equal(recomputed), "{case}: {name}");
        }
    }
}

/// Tests the gradient of a loss on the hidden states and on layer outputs, including the last layer's, with and
/// without activation checkpointing.
#[test]
fn layers_that_are_asked_for_learn_too() {
    for case in CASES {
        let mut model = load(case);
        model.set_trainable(true);
        let tokens = tensor(case, "tokens");
        let count = model.config().layers() as usize;
        let chosen = [count, 1];
        let (hidden, layers) = model.hidden_and_layers(&tokens, None, &chosen).unwrap();
        let mut loss = hidden.tanh().sum(Kind::Float);
        for layer in &layers {
            loss += layer.sin().sum(Kind::Float);
        }
        loss.backward();
        let expected = take_gradients(&model);
        for recompute in [false, true] {
            let trace = model.trace(&tokens, None, recompute, &chosen).unwrap();
            let hidden = trace.hidden().detach();
            let gradient: Tensor = 1.0 - hidden.tanh().square();
            let of_layers: Vec<Tensor> = trace
                .layers()
                .iter()
                .map(|layer| layer.detach().cos())
                .collect();
            let mut embedding = model.embedding().detach().zeros_like();
            trace
                .backward(&gradient, &of_layers, &mut embedding)
                .unwrap();
            let traced = take_traced(&model, embedding);
            assert_eq!(traced.len(), expected.len());
            for ((name, got), (_, expected)) in traced.iter().zip(&expected) {
                let scale = expected.abs().max().double_value(&[]).max(1.0);
                let difference = largest_difference(got, expected) / scale;
                assert!(
                    difference < 1e-5,
                    "{case}, {name}, {recompute}: {difference}"
                );
            }
        }
        let error = model.hidden_and_layers(&tokens, None, &[count + 1]);
        assert!(
            error.unwrap_err().to_string().contains("no layer"),
            "{case}"
        );
    }
}

#[test]
fn parts_of_a_row_are_as_rows_of_their_own() {
    for case in CASES {
        let mut model = load(case);
        let tokens = tensor(case, "tokens");
        let parts = [vec![5, 1, 11], vec![17]];
        let packed = model.hidden(&tokens, Some(&parts)).unwrap();
        let mut start = 0;
        for length in &parts[0] {
            let alone = tokens.narrow(0, 0, 1).narrow(1, start, *length);
            let expected = model.hidden(&alone, None).unwrap();
            let found = packed.narrow(0, 0, 1).narrow(1, start, *length);
            let difference = largest_difference(&found, &expected);
            // Matmuls of other shapes round differently, depending on the processor. Observed: 1.0e-5.
            assert!(difference < 2e-5, "{case}: {difference}");
            start += length;
        }
        let alone = model.hidden(&tokens.narrow(0, 1, 1), None).unwrap();
        assert!(largest_difference(&packed.narrow(0, 1, 1), &alone) < 1e-5);

        // Recomputation in the backward pass respects parts too.
        model.set_trainable(true);
        let mut gradients = Vec::new();
        for recompute in [false, true] {
            let trace = model.trace(&tokens, Some(&parts), recompute, &[]).unwrap();
            let gradient = trace.hidden().detach().tanh();
            let mut embedding = model.embedding().detach().zeros_like();
            trace.backward(&gradient, &[], &mut embedding).unwrap();
            gradients.push(embedding);
        }
        assert!(gradients[0].equal(&gradients[1]), "{case}");
    }
}

/// In bf16, GPUs attend to all parts in one call. Compares the hidden states and the gradient of the embedding.
#[test]
fn parts_in_bf16_are_as_rows_of_their_own() {
    for case in CASES {
        let mut placement = Placement::on(device(), Kind::Float);
        placement.compute = Kind::BFloat16;
        let mut model = Model::load(&folder(case), &placement).unwrap();
        model.set_trainable(true);
        let row = tensor(case, "tokens").narrow(0, 0, 1);
        let lengths = [5, 1, 11];
        let mut of_parts = model.embedding().detach().zeros_like();
        let packed = model
            .trace(&row, Some(&[lengths.to_vec()]), false, &[])
            .unwrap();
        let packed_hidden = packed.hidden().detach();
        packed
            .backward(&packed_hidden.tanh(), &[], &mut of_parts)
            .unwrap();
        let mut of_rows = of_parts.zeros_like();
        let mut start = 0;
        let near = |found: &Tensor, expected: &Tensor, what: &str| {
            let [found, expected] = [found, expected].map(|of| of.to_kind(Kind::Float));
            let error = ((found - &expected).norm() / expected.norm()).double_value(&[]);
            assert!(error < 0.03, "{case}, {what}: {error}");
        };
        for length in lengths {
            let alone = row.narrow(1, start, length);
            let trace = model.trace(&alone, None, false, &[]).unwrap();
            let hidden = trace.hidden().detach();
            near(
                &packed_hidden.narrow(1, start, length),
                &hidden,
                "hidden states",
            );
            trace.backward(&hidden.tanh(), &[], &mut of_rows).unwrap();
            start += length;
        }
        near(&of_parts, &of_rows, "gradient");
    }
}

#[test]
fn layers_spread_over_devices_are_the_same_model() {
    for case in CASES {
        let mut placement = Placement::on(device(), Kind::Float);
        placement.devices = vec![device(), device()];
        let model = Model::load(&folder(case), &placement).unwrap();
        let difference = largest_difference(
            &logits(&model, &tensor(case, "tokens")),
            &tensor(case, "logits"),
        );
        assert!(difference < 1e-4, "{case}: {difference}");
    }
}

#[test]
fn bf16_products_on_fp32_weights_stay_near() {
    for case in CASES {
        let mut placement = Placement::on(device(), Kind::Float);
        placement.compute = Kind::BFloat16;
        let model = Model::load(&folder(case), &placement).unwrap();
        let hidden = model.hidden(&tensor(case, "tokens"), None).unwrap();
        assert_eq!(hidden.kind(), Kind::BFloat16, "{case}");
        let expected = load(case).hidden(&tensor(case, "tokens"), None).unwrap();
        let error = (hidden.to_kind(Kind::Float) - &expected).norm() / expected.norm();
        let error = error.double_value(&[]);
        assert!(error > 1e-6 && error < 0.05, "{case}: {error}");
    }
}

/// Compares all gradients together. bf16 has eight bits, and a backward pass multiplies twice as often as a forward
/// pass.
#[test]
fn gradients_through_bf16_products_stay_near() {
    for case in CASES {
        let mut placement = Placement::on(device(), Kind::Float);
        placement.compute = Kind::BFloat16;
        let mut model = Model::load(&folder(case), &placement).unwrap();
        model.set_trainable(true);
        let tokens = tensor(case, "tokens");
        let logits = model.hidden(&tokens, None).unwrap().to_kind(Kind::Float);
        let logits = logits.linear(model.head(), None::<&Tensor>);
        let vocabulary = logits.size()[2];
        let predicted = logits.narrow(1, 0, 16).reshape([-1, vocabulary]);
        predicted
            .cross_entropy_for_logits(&tokens.narrow(1, 1, 16).reshape([-1]))
            .backward();
        let (mut off, mut all) = (0.0, 0.0);
        for (name, parameter) in model.parameters() {
            let expected = tensor(case, &format!("gradient.{name}"));
            let square = |of: Tensor| of.square().sum(Kind::Double).double_value(&[]);
            off += square(parameter.grad() - &expected);
            all += square(expected);
        }
        let error = (off / all).sqrt();
        assert!(error > 1e-6 && error < 0.1, "{case}: {error}");
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
        model.save(&target, &Export::new(&folder(case))).unwrap();
        // Saving over an older model works too.
        model.save(&target, &Export::new(&folder(case))).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        let back = Model::load(&target, &Placement::on(device(), Kind::Float)).unwrap();
        let tokens = tensor(case, "tokens");
        assert!(logits(&back, &tokens).equal(&logits(&model, &tokens)));
        assert_eq!(
            Weights::open(&target).unwrap().hash(|_, _| {}),
            Weights::open(&folder(case)).unwrap().hash(|_, _| {})
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
    let model = Model::load(scratch.path(), &Placement::on(device(), Kind::Float)).unwrap();
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
    assert_eq!(sharded.hash(|_, _| {}), single.hash(|_, _| {}));
}

#[test]
fn a_model_is_exported_in_shards_that_any_reader_puts_together() {
    let (case, scratch) = (CASES[1], tempfile::tempdir().unwrap());
    let carry_from = folder(case);
    let mut export = Export::new(&carry_from);
    export.shard_bytes = 10_000;
    let target = scratch.path().join("sharded");
    load(case).save(&target, &export).unwrap();
    let index = fs::read_to_string(target.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let files: std::collections::BTreeSet<&str> = index["weight_map"]
        .as_object()
        .unwrap()
        .values()
        .map(|file| file.as_str().unwrap())
        .collect();
    assert!(files.len() > 2 && files.first().unwrap().starts_with("model-00001-of-0000"));
    for file in &files {
        assert!(
            fs::metadata(target.join(file)).unwrap().len() < 12_000,
            "{file}"
        );
    }
    let back = Weights::open(&target).unwrap();
    assert_eq!(
        back.hash(|_, _| {}),
        Weights::open(&folder(case)).unwrap().hash(|_, _| {})
    );

    export.dtype = Some(Kind::BFloat16);
    load(case).save(&target, &export).unwrap();
    let config = ModelConfig::read(&target).unwrap();
    assert_eq!(config.dtype(), Some("bfloat16"));
    let half = Model::load(&target, &Placement::on(device(), Kind::Float)).unwrap();
    for ((_, half), (name, whole)) in half.parameters().iter().zip(load(case).parameters()) {
        assert!(
            half.equal(&whole.to_kind(Kind::BFloat16).to_kind(Kind::Float)),
            "{name}"
        );
    }
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
    let error = Model::load(scratch.path(), &Placement::on(Device::Cpu, Kind::Float))
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
    let error = Model::load(scratch.path(), &Placement::on(Device::Cpu, Kind::Float))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("there is no model.safetensors in "),
        "{error}"
    );
    fs::write(scratch.path().join("pytorch_model.bin"), b"").unwrap();
    let error = Model::load(scratch.path(), &Placement::on(Device::Cpu, Kind::Float))
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
