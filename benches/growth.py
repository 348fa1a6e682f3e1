"""Shows whether throughput stays the same as jobs grow: more domains, a larger corpus, more steps. Also measures
start-up and evaluation.

usage: make build; python3 benches/growth.py [domains] [corpus] [steps] [evaluation]          (default: all)

Trains small models on random words, so that the cost of everything around them shows. The large corpus is a prepared
one with repeated files. Nothing in it is verified, as at every start of a run.
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

from worlds import write_text, write_tokenizer

DDK = pathlib.Path(os.environ.get("DDK", pathlib.Path(__file__).parent.parent / "target/release/ddk"))
WORDS = 512


def run(folder, *arguments):
    began = time.perf_counter()
    done = subprocess.run([DDK, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began


def world(folder, domains, length, rows, validation=1):
    """Creates text, tokenizer, corpus and two small models."""
    write_tokenizer(folder / "tokenizer", WORDS)
    names = [f"d{number:03}" for number in range(domains)]
    write_text([folder / f"{name}.jsonl" for name in names], WORDS, 200, 400)
    shape = lambda hidden, layers: (
        f"hidden_size = {hidden}\nintermediate_size = {3 * hidden}\nnum_hidden_layers = {layers}\n"
        "num_attention_heads = 2\nnum_key_value_heads = 2\n"
    )
    models = "".join(f"""
[pretrain.{name}]
output_dir = "{name}"
steps = 1
global_batch_size = 2
micro_batch_size = 2
lr = 1e-3
[pretrain.{name}.architecture]
{shape(hidden, layers)}""" for name, hidden, layers in [("teacher", 64, 2), ("student", 32, 1)])
    sources = "".join(f'[domains.{name}]\nfiles = ["{name}.jsonl"]\n' for name in names)
    (folder / "config.toml").write_text(f"""
method = "kd"
[run]
name = "run"
[corpus]
dir = "prepared"
tokenizer = "tokenizer"
sequence_length = {length}
validation_fraction = 0.2
validation_documents = {validation}
{sources}
[teacher]
model = "teacher"
[student]
model = "student"
[training]
global_batch_size = {rows}
micro_batch_size = {rows}
[mixture]
interval = 500
[checkpoint]
interval = 1000000
[telemetry]
enabled = false
{models}""")
    run(folder, "prepare", "config.toml")
    for name in ["teacher", "student"]:
        run(folder, "pretrain", "config.toml", "--model", name)
    return names


def train(folder, name, steps, *sets):
    """Trains. Returns the tokens per second of each step, and the seconds of the whole program."""
    sets = [f"run.name={name}", f"run.max_steps={steps}", *sets]
    seconds = run(folder, "train", "config.toml", *[word for set_ in sets for word in ["--set", set_]])
    lines = [json.loads(line) for line in (folder / "runs" / name / "run.jsonl").read_text().splitlines()]
    return [line["tokens"] / sum(line["seconds"].values()) for line in lines], seconds


def middle(rates):
    return sorted(rates)[len(rates) // 2]


def by_turns(what, worlds, steps):
    """Runs nine rounds, in each of which the worlds take turns. Each round starts with another world, so that a change
    of the machine's speed affects all. Prints medians, and the changes relative to the first world over the rounds:
    median, minimum and maximum."""
    names, rates = list(worlds), {name: [] for name in worlds}
    for round_ in range(9):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            rates[name].append(middle(train(worlds[name], f"round-{round_}", steps)[0][steps // 5 :]))
    base = rates[names[0]]
    shown = [f"{names[0]}: {middle(base):.0f} tokens/s"]
    for name in names[1:]:
        changes = sorted(100 * (rate / of_base - 1) for rate, of_base in zip(rates[name], base))
        shown.append(
            f"{name}: {middle(rates[name]):.0f} ({middle(changes):+.1f}%, {changes[0]:+.1f} to {changes[-1]:+.1f})"
        )
    print(f"{what}: " + "; ".join(shown), flush=True)


def domains(folder):
    worlds = {}
    for count in [3, 30, 100]:
        path = folder / f"domains-{count}"
        path.mkdir()
        world(path, count, 128, 8)
        worlds[f"{count} domains"] = path
    by_turns("domains", worlds, 600)


def repeat(path, times):
    """Repeats a prepared domain's documents this many times."""
    tokens = (path / "tokens.bin").read_bytes()
    starts = (path / "documents.bin").read_bytes()
    starts = struct.unpack(f"<{len(starts) // 8}Q", starts)
    manifest = json.loads((path / "manifest.json").read_text())
    total = manifest["tokens"]
    assert starts[0] == 0 and starts[-1] == total, "documents.bin holds where documents start, and the end"
    with open(path / "tokens.bin", "wb") as file:
        for _ in range(times):
            file.write(tokens)
    with open(path / "documents.bin", "wb") as file:
        for turn in range(times):
            file.write(struct.pack(f"<{len(starts) - 1}Q", *(start + turn * total for start in starts[:-1])))
        file.write(struct.pack("<Q", times * total))
    for key in ["tokens", "documents", "text_bytes"]:
        manifest[key] *= times
    (path / "manifest.json").write_text(json.dumps(manifest))
    for index in path.glob("rows-*.bin"):
        index.unlink()


def corpus(folder):
    worlds, starts = {}, {}
    for name, times in [("1 MB", 3), ("10 GB", 31_000)]:
        path = folder / name.replace(" ", "-")
        path.mkdir()
        names = world(path, 2, 1024, 1)
        for domain in names:
            repeat(path / "prepared" / domain, times)
        size = sum(file.stat().st_size for domain in names for file in (path / "prepared" / domain).iterdir())
        indexed = train(path, "index", 1)[1]
        starts[name] = min(train(path, f"start-{turn}", 1)[1] for turn in range(3))
        print(
            f"corpus of {size / 1e6:.0f} MB: the first start, which writes the index of rows, {indexed:.1f} s;"
            f" later ones {starts[name]:.2f} s with their one step, evaluation and export",
            flush=True,
        )
        worlds[name] = path
    by_turns("corpus", worlds, 300)


def steps(folder):
    world(folder, 3, 16, 4)
    rates, seconds = train(folder, "long", 100_000)
    base, *later = [(step, middle(rates[step - 100 : step + 900])) for step in [100, 1000, 10_000, 50_000, 99_000]]
    shown = [
        f"around step {base[0]}: {base[1]:.0f} tokens/s",
        *(f"around step {step}: {rate:.0f} ({100 * (rate / base[1] - 1):+.1f}%)" for step, rate in later),
    ]
    print(f"steps (100,000 in {seconds:.0f} s): " + "; ".join(shown), flush=True)


def evaluation(folder):
    world(folder, 3, 256, 4, validation=64)
    for documents in [8, 16, 32, 64]:
        name = f"documents-{documents}"
        more = [
            f"corpus.validation_documents={documents}",
            f'corpus.dir="prepared-{documents}"',
            "method=ddk",
            "mixture.interval=2",
        ]
        train(folder, name, 40, *more)
        summary = json.loads((folder / "runs" / name / "summary.json").read_text())
        prepared = (folder / f"prepared-{documents}").glob("*/manifest.json")
        tokens = sum(json.loads(file.read_text())["validation_tokens"] for file in prepared)
        print(
            f"evaluation: {tokens} validation tokens: {1000 * summary['evaluation_seconds'] / 20:.2f} ms each,"
            f" {1e9 * summary['evaluation_seconds'] / 20 / tokens:.0f} ns a token",
            flush=True,
        )


def main():
    parts = dict(domains=domains, corpus=corpus, steps=steps, evaluation=evaluation)
    for name in sys.argv[1:] or parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](pathlib.Path(folder))


main()
