"""Checks that models exported by DDK give the same logits as the originals in Hugging Face transformers.

usage: cargo run --release -p ddk-model --example export_fixtures -- FOLDER
       PYTHON tests/reference/exported.py FOLDER        PYTHON: from tools/python-env

Exits 1 if a logit differs by more than 1e-5.
"""

import pathlib
import sys

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

fixtures = pathlib.Path(__file__).parents[2] / "crates/model/tests/fixtures"
worst = 0.0
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    reference = load_file(fixtures / folder.name / "reference.safetensors")
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    difference = (model.eval()(reference["tokens"]).logits - reference["logits"]).abs().max().item()
    shards = len(list(folder.glob("*.safetensors")))
    print(f"{folder.name:40} {shards} files  largest difference {difference:.1e}")
    worst = max(worst, difference)
sys.exit(worst > 1e-5)
