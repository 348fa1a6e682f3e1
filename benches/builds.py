"""Compares two builds of ddk at case A of `pytorch.py`, alternating in one run.

usage: python3 benches/builds.py OLD NEW [--pairs 15] [--steps 6] [--renamed] [--at-once]

Each pair runs `ddk train` of both programs on equal small worlds and takes all steps but the first eight. The program
that runs first alternates. Prints the medians of the seconds per step, and the ratio new to old: the median, the
minimum and the maximum over the pairs. With --renamed, OLD gets the earlier names of the keys. With --at-once, both
programs of a pair run at the same time, each on one core, and swap cores from pair to pair: on a machine whose speed
varies, both then meet the same conditions.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import tomllib

import pytorch
from worlds import write_text, write_tokenizer


def write_world(folder, shape, program):
    """As in `pytorch.py`, but with models that ddk creates, so no Python package is needed."""
    length, vocabulary = shape["length"], shape["vocabulary"]
    write_tokenizer(folder / "tokenizer", vocabulary)
    write_text([folder / "one.jsonl", folder / "two.jsonl"], vocabulary, 24, 16 * length)
    models = ""
    for name in ["teacher", "student"]:
        hidden, layers, heads, inner = shape[name]
        models += f"""
[pretrain.{name}]
output_dir = "{name}"
steps = 1
global_batch_size = 1
micro_batch_size = 1
warmup_steps = 0
seed = {len(name) + hidden}
[pretrain.{name}.architecture]
hidden_size = {hidden}
intermediate_size = {inner}
num_hidden_layers = {layers}
num_attention_heads = {heads}
num_key_value_heads = {heads}
"""
    pytorch.write_config(folder, shape, models)
    for name in ["teacher", "student"]:
        command = [program, "pretrain", "config.toml", "--model", name]
        subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)


def equivalence():
    """The module of `tools/equivalence`, which knows the earlier names."""
    loader = importlib.machinery.SourceFileLoader("equivalence", str(pytorch.ROOT / "tools/equivalence"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def copy_with_earlier_names(folder, target):
    """Copies the world with the keys of its configuration renamed."""
    shutil.copytree(folder, target)
    names = equivalence()
    earlier = [(new, old) for old, new in names.renamed_keys()]
    config = names.flat(tomllib.loads((target / "config.toml").read_text()))
    lines = (f"{names.translated(key, earlier)} = {json.dumps(value)}\n" for key, value in config.items())
    (target / "config.toml").write_text("".join(lines))


def in_turn(programs, worlds, count, number):
    """Runs both programs, one after the other. Returns the mean seconds per step of each."""
    pair = {}
    for name in sorted(programs, reverse=number % 2 == 0):
        pytorch.DDK = programs[name]
        run = f"{name}-{number}"
        pair[name] = pytorch.ddk_steps(worlds[name], pytorch.A, count, run, [])["seconds"]
    return pair


def at_once(programs, worlds, count, number):
    """Runs both programs at the same time, each on one core. Returns the median seconds per step of each."""
    running = {}
    for core, name in enumerate(sorted(programs, reverse=number % 2 == 0)):
        steps = f"run.max_steps={pytorch.WARM_UP + count}"
        arguments = ["train", "config.toml", "--set", f"run.name=round-{number}", "--set", steps]
        command = ["taskset", "--cpu-list", str(core), programs[name], *arguments]
        silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        running[name] = subprocess.Popen(command, cwd=worlds[name], **silent)
    pair = {}
    for name, process in running.items():
        assert process.wait() == 0, f"{name} failed"
        lines = (worlds[name] / "runs" / f"round-{number}" / "run.jsonl").read_text().splitlines()
        seconds = [sum(json.loads(line)["seconds"].values()) for line in lines[pytorch.WARM_UP :]]
        pair[name] = statistics.median(seconds)
    return pair


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--renamed", action="store_true")
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    programs = {"old": options.old.resolve(), "new": options.new.resolve()}
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        worlds = dict.fromkeys(programs, pathlib.Path(folder) / "world")
        worlds["new"].mkdir()
        write_world(worlds["new"], pytorch.A, programs["new"])
        if options.renamed or options.at_once:
            worlds["old"] = pathlib.Path(folder) / "earlier"
            copy = copy_with_earlier_names if options.renamed else shutil.copytree
            copy(worlds["new"], worlds["old"])
        for number in range(options.pairs):
            run_pair = at_once if options.at_once else in_turn
            pair = run_pair(programs, worlds, options.steps, number)
            pairs.append(pair)
            print(f"pair {number + 1}: old {pair['old']:.4f} s, new {pair['new']:.4f} s", flush=True)
    ratios = sorted(pair["new"] / pair["old"] for pair in pairs)
    medians = {name: statistics.median(pair[name] for pair in pairs) for name in programs}
    print(
        f"case A, {options.pairs} pairs: old {medians['old']:.4f} s per step, new {medians['new']:.4f} s; "
        f"new / old: {medians['new'] / medians['old']:.3f} of the medians, "
        f"{statistics.median(ratios):.3f} in the median pair ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
