"""Computes the perplexity of a model folder with Hugging Face transformers, to compare with `ddk eval`.

usage: ddk eval CONFIG --model FOLDER --json --dump-token-ids documents.json > ddk.json
       PYTHON tests/reference/perplexity.py FOLDER documents.json ddk.json      PYTHON: from tools/python-env

Evaluates each document on its own, with logits cut to the tokenizer's ids before the softmax. The mean is over all
predicted tokens of a domain. Exits 1 if a domain differs by more than 1e-3.
"""

import json
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, documents, ours = sys.argv[1], json.load(open(sys.argv[2])), json.load(open(sys.argv[3]))
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
print(
    type(model).__name__,
    sum(p.numel() for p in model.parameters()),
    "parameters;",
    type(tokenizer).__name__,
    len(tokenizer),
    "tokens",
)
worst = 0.0
for domain, texts in documents["domains"].items():
    total, count = 0.0, 0
    for ids in texts:
        if len(ids) < 2:
            continue
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, :-1, : documents["vocabulary"]].double()
        total += torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
        count += len(ids) - 1
    theirs, own = math.exp(total / count), ours["domains"][domain]["perplexity"]
    worst = max(worst, abs(theirs - own))
    print(f"{domain}: transformers {theirs:.6f}, ddk {own:.6f}, difference {abs(theirs - own):.1e}")
print("decoded:", repr(tokenizer.decode(next(iter(documents["domains"].values()))[0][:24])))
sys.exit(worst > 1e-3)
