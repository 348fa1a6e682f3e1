"""What the paper's pairs need: memory as `ddk check` computes it, and the time of a step from its operations and a
stated rate.

usage: make build; FOLDER/bin/python benches/pairs.py [--tflops 400] [--gigabytes 80] [--lines PAIR]
    FOLDER: from tools/python-env

Measures nothing. Each model is a folder with its real configuration and a weights file that has a header and a hole;
`ddk check` reads no more. `--tflops` is the rate of a GPU in these matmuls: 400 is 40% of an H100's dense bf16 peak.
A student uses activation checkpointing if the memory of a GPU (`--gigabytes`) requires it.
"""

import argparse
import json
import pathlib
import re
import struct
import subprocess
import tempfile

import torch
import transformers

from pytorch import DDK, ROOT
from worlds import write_tokenizer

QWEN = lambda hidden, layers, heads, inner, vocabulary=151936: transformers.Qwen2Config(
    vocab_size=vocabulary,
    hidden_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=heads,
    intermediate_size=inner,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
)
LLAMA = lambda hidden, layers, heads, keys, inner: transformers.LlamaConfig(
    vocab_size=32000,
    hidden_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=keys,
    intermediate_size=inner,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
STARCODER = lambda hidden, layers, heads: transformers.GPTBigCodeConfig(
    vocab_size=49152,
    n_embd=hidden,
    n_layer=layers,
    n_head=heads,
    n_inner=4 * hidden,
    n_positions=8192,
    multi_query=True,
)
PAIRS = {
    "qwen1.5-14b-1.8b": (QWEN(5120, 40, 40, 13696, 152064), QWEN(2048, 24, 16, 5504)),
    "qwen1.5-14b-4b": (QWEN(5120, 40, 40, 13696, 152064), QWEN(2560, 40, 20, 6912)),
    "qwen1.5-7b-1.8b": (QWEN(4096, 32, 32, 11008), QWEN(2048, 24, 16, 5504)),
    "llama2-13b-tinyllama-1.1b": (LLAMA(5120, 40, 40, 40, 13824), LLAMA(2048, 22, 32, 4, 5632)),
    "starcoder-15.5b-3b": (STARCODER(6144, 40, 48), STARCODER(2816, 36, 22)),
}
# Sequences per step and tokens per sequence in all of these configurations, and the ids that the tokenizers have.
ROWS, LENGTH = 256, 2048
WORDS = {"qwen": 151646, "llama": 32000, "starc": 49152}


def write_hollow(folder, config, words):
    """Writes the model's folder, with a hole of the right size for the weights."""
    write_tokenizer(folder, words)
    config.architectures = [type(config).__name__.removesuffix("Config") + "ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        header[name] = dict(dtype="BF16", shape=list(parameter.shape), data_offsets=[end, end + 2 * parameter.numel()])
        end += 2 * parameter.numel()
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return model


def operations(model, words):
    """Operations per token: in the layers' matrices and in attention over half of the length; in the LM head."""
    config = model.config
    matrices = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and ".layers." in name or ".h." in name and weight.dim() == 2
    )
    attention = config.num_hidden_layers * 2 * LENGTH * config.hidden_size
    return 2 * matrices + attention, 2 * words * config.hidden_size


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tflops", type=float, default=400)
    parser.add_argument("--gigabytes", type=float, default=80)
    parser.add_argument(
        "--lines",
        choices=PAIRS,
        help="print what `ddk check` says of this pair's memory, line by line, instead of the table",
    )
    options = parser.parse_args()
    rate = options.tflops * 1e12
    if not options.lines:
        print(
            "| pair | a step, s: teacher; student, recomputing | two GPUs, GB: teacher; student, recomputing |"
            " tokens/s | one GPU, GB; recomputing | tokens/s |"
        )
        print("|---|---:|---:|---:|---:|---:|")
    for pair, (of_teacher, of_student) in PAIRS.items():
        words = WORDS[next(name for name in WORDS if pair.startswith(name))]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            teacher = write_hollow(folder / "teacher", of_teacher, words)
            student = write_hollow(folder / "student", of_student, words)

            def said(*devices):
                sets = [f"teacher.model={folder}/teacher", f"student.model={folder}/student", *devices]
                command = [
                    DDK,
                    "check",
                    ROOT / f"config/{pair}.toml",
                    *[word for set_ in sets for word in ["--set", set_]],
                ]
                return subprocess.run(command, capture_output=True, text=True).stdout

            def check(*devices):
                found = dict(re.findall(r"memory of (cuda:\d): needs ([\d.]+ \w+)", said(*devices)))
                assert found, said(*devices)
                return found

            if options.lines == pair:
                print(*re.findall(r"^memory of cuda.*\n(?:  .*\n)*", said(), re.M), sep="", end="")
            if options.lines:
                continue

            two, two_again = check(), check("student.activation_checkpointing=true")
            on_one = ['teacher.devices=["cuda:0"]', "student.device=cuda:0"]
            one, one_again = check(*on_one), check(*on_one, "student.activation_checkpointing=true")
        tokens = ROWS * LENGTH
        layers_of_teacher, head_of_teacher = operations(teacher, words)
        layers_of_student, head_of_student = operations(student, words)
        of_teacher = tokens * layers_of_teacher / rate
        of_student = tokens * (3 * layers_of_student + 3 * head_of_student + head_of_teacher) / rate
        again = of_student + tokens * layers_of_student / rate
        number = lambda text: float(text.removesuffix(" GB"))

        def speed(plain, recomputing, seconds):
            """Tokens per second if it fits, without activation checkpointing if possible."""
            for memory, of_student in [(plain, seconds[0]), (recomputing, seconds[1])]:
                if number(memory) <= options.gigabytes:
                    return f"{tokens / of_student:.0f}"
            return "does not fit"

        on_two = speed(two["cuda:1"], two_again["cuda:1"], [max(of_teacher, of_student), max(of_teacher, again)])
        on_one = speed(one["cuda:0"], one_again["cuda:0"], [of_teacher + of_student, of_teacher + again])
        print(
            f"| {pair} | {of_teacher:.1f}; {of_student:.1f}, {again:.1f} | {number(two['cuda:0'])};"
            f" {number(two['cuda:1'])}, {number(two_again['cuda:1'])} | {on_two} | {number(one['cuda:0'])},"
            f" {number(one_again['cuda:0'])} | {on_one} |"
        )


if __name__ == "__main__":
    main()
