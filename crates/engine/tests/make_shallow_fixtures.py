"""Creates the models for crates/engine/tests/shallow.rs, with Hugging Face transformers.

usage: PYTHON crates/engine/tests/make_shallow_fixtures.py        PYTHON: from tools/python-env

Each folder of shallow/ holds a random model of five layers, and `reference.json`: documents, and the influence of each
layer (1 minus the mean cosine similarity of its input and its output, over all positions), measured with hooks on the
layers. `shallow.safetensors` has the weights that transformers saves after three of the layers are left in.
"""

import json
import pathlib
import shutil
import tempfile

import torch
import transformers

here = pathlib.Path(__file__).parent / "shallow"
small = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
    vocab_size=50,
)
starcoder = dict(n_embd=16, n_layer=5, n_head=4, n_positions=64, initializer_range=0.2, vocab_size=50)
cases = {
    "llama": ("Llama", small | dict(tie_word_embeddings=True)),
    "qwen2": ("Qwen2", small),
    "qwen3": ("Qwen3", small | dict(head_dim=8)),
    "gpt-bigcode": ("GPTBigCode", starcoder),
}
KEPT = [0, 2, 4]

for seed, (name, (family, shape)) in enumerate(cases.items()):
    torch.manual_seed(seed)
    config = getattr(transformers, family + "Config")(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    folder = here / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    documents = [torch.randint(0, 50, (length,)).tolist() for length in (7, 3, 12, 5)]

    body = model.transformer if family == "GPTBigCode" else model.model
    layers = body.h if family == "GPTBigCode" else body.layers
    similarities = [[] for _ in layers]

    def note(index):
        def hook(_, inputs, output):
            before, after = inputs[0], output[0] if isinstance(output, tuple) else output
            similarities[index].extend(torch.nn.functional.cosine_similarity(before, after, dim=-1).flatten().tolist())

        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_hook(note(index))
    with torch.no_grad():
        for document in documents:
            model(input_ids=torch.tensor([document]))
    assert all(len(values) == 27 for values in similarities)
    influence = [1 - sum(values) / len(values) for values in similarities]
    (folder / "reference.json").write_text(
        json.dumps({"documents": documents, "kept": KEPT, "influence": influence}, indent=1) + "\n"
    )

    kept = torch.nn.ModuleList(layers[index] for index in KEPT)
    if family == "GPTBigCode":
        body.h = kept
    else:
        body.layers = kept
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        shutil.copy(pathlib.Path(scratch) / "model.safetensors", folder / "shallow.safetensors")
    print(name, sum(path.stat().st_size for path in folder.iterdir()), "bytes")
