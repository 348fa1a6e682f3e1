"""Creates the tiny models for the tests of crates/model, with Hugging Face transformers.

usage: PYTHON crates/model/tests/make_fixtures.py        PYTHON: from tools/python-env

Each folder of fixtures/ holds a random model as transformers saves it, and `reference.safetensors`: token ids, the
logits that transformers computes, the gradient of the mean next-token loss with respect to every parameter, and the
tokens that greedy generation appends to the first five tokens of the first sequence.
"""

import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent / "fixtures"
small = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    initializer_range=0.3,
)
multi_head = dict(num_attention_heads=4, num_key_value_heads=4)
grouped = dict(num_attention_heads=4, num_key_value_heads=2)
multi_query = dict(num_attention_heads=3, num_key_value_heads=1)
llama3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
starcoder = dict(
    n_embd=24,
    n_layer=2,
    n_head=4,
    n_positions=64,
    initializer_range=0.3,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)
cases = {
    "llama-multi-head-tied": ("Llama", small | multi_head | dict(tie_word_embeddings=True, vocab_size=96)),
    "llama-grouped-odd-vocabulary": ("Llama", small | grouped | dict(vocab_size=101)),
    "llama-multi-query-wide-heads": (
        "Llama",
        small
        | multi_query
        | dict(head_dim=16, vocab_size=64, rope_parameters=dict(rope_type="default", rope_theta=500000.0)),
    ),
    "llama-rope-llama3-biases": (
        "Llama",
        small
        | grouped
        | dict(head_dim=12, vocab_size=80, rope_parameters=llama3, attention_bias=True, mlp_bias=True),
    ),
    "llama-rope-linear": (
        "Llama",
        small
        | grouped
        | dict(vocab_size=80, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
    ),
    "mistral-grouped": ("Mistral", small | grouped | dict(vocab_size=96, sliding_window=None)),
    "mistral-multi-query-wide-heads": (
        "Mistral",
        small | multi_query | dict(vocab_size=77, head_dim=12, sliding_window=None),
    ),
    "mistral-tied-within-its-window": (
        "Mistral",
        small | multi_head | dict(vocab_size=64, tie_word_embeddings=True, sliding_window=32),
    ),
    "qwen2-multi-head-odd-vocabulary": ("Qwen2", small | multi_head | dict(vocab_size=103)),
    "qwen2-grouped-tied": (
        "Qwen2",
        small
        | grouped
        | dict(
            vocab_size=96, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000000.0)
        ),
    ),
    "qwen2-multi-query": ("Qwen2", small | multi_query | dict(vocab_size=64)),
    "qwen3-grouped-wide-heads": ("Qwen3", small | grouped | dict(vocab_size=96, head_dim=16)),
    "qwen3-multi-head-tied": (
        "Qwen3",
        small | multi_head | dict(vocab_size=99, head_dim=6, tie_word_embeddings=True),
    ),
    "qwen3-multi-query-biases": (
        "Qwen3",
        small | multi_query | dict(vocab_size=64, head_dim=8, attention_bias=True),
    ),
    "gemma-multi-head-wide-heads": ("Gemma", small | multi_head | dict(vocab_size=96, head_dim=16)),
    "gemma-multi-query": ("Gemma", small | multi_query | dict(vocab_size=101, head_dim=8)),
    "gemma-grouped-untied": ("Gemma", small | grouped | dict(vocab_size=64, head_dim=6, tie_word_embeddings=False)),
    "gpt-bigcode-multi-query-tied": ("GPTBigCode", starcoder | dict(vocab_size=96, multi_query=True)),
    "gpt-bigcode-multi-head": (
        "GPTBigCode",
        starcoder | dict(vocab_size=101, multi_query=False, tie_word_embeddings=False),
    ),
    "gpt-bigcode-multi-query-narrow-mlp": (
        "GPTBigCode",
        starcoder | dict(vocab_size=64, multi_query=True, n_inner=40, scale_attn_weights=False),
    ),
}
for seed, (name, (family, shape)) in enumerate(cases.items()):
    torch.manual_seed(seed)
    config = getattr(transformers, family + "Config")(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = getattr(transformers, family + "ForCausalLM")(config)
    for path, parameter in model.named_parameters():  # norms and biases that are not all ones or zeros
        if parameter.dim() == 1:
            low, high = (-0.5, 0.5) if path.endswith("bias") or family == "Gemma" else (0.5, 1.5)
            torch.nn.init.uniform_(parameter, low, high)
    model.eval()
    folder = here / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokens = torch.randint(0, shape["vocab_size"], (2, 17))
    logits = model(input_ids=tokens).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, shape["vocab_size"]), tokens[:, 1:].reshape(-1)
    ).backward()
    written = model.generate(tokens[:1, :5], max_new_tokens=20, do_sample=False)
    reference = {"tokens": tokens, "logits": logits.detach(), "greedy": written[:, 5:]}
    reference |= {"gradient." + path: parameter.grad for path, parameter in model.named_parameters()}
    save_file({path: tensor.contiguous() for path, tensor in reference.items()}, folder / "reference.safetensors")
    print(name, sum(path.stat().st_size for path in folder.iterdir()), "bytes")
