"""Makes the tiny models that crates/model is tested against, with Hugging Face transformers.

usage: PYTHON crates/model/tests/make_fixtures.py        PYTHON: from tools/python-env

Each folder of fixtures/ holds a random model as transformers saves it, and `reference.safetensors`: token ids, the logits
that transformers computes, and the gradient of the mean next-token loss with respect to every parameter.
"""

import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

here = pathlib.Path(__file__).parent / "fixtures"
cases = {
    "llama-multi-head-tied": dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, vocab_size=96),
    "llama-grouped-odd-vocabulary": dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, vocab_size=101),
    "llama-multi-query-wide-heads": dict(num_attention_heads=3, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False, vocab_size=64, rope_theta=500000.0),
}
for seed, (name, shape) in enumerate(cases.items()):
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, max_position_embeddings=64, rms_norm_eps=1e-5, initializer_range=0.3, **shape)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # norms that are not all ones
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    folder = here / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokens = torch.randint(0, shape["vocab_size"], (2, 17))
    logits = model(input_ids=tokens).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, shape["vocab_size"]), tokens[:, 1:].reshape(-1)).backward()
    reference = {"tokens": tokens, "logits": logits.detach()}
    reference |= {"gradient." + name: parameter.grad for name, parameter in model.named_parameters()}
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors")
    print(name, sum(path.stat().st_size for path in folder.iterdir()), "bytes")
