"""Compares DDK with PyTorch at the same step: equal shapes, random weights, two cores, fp32; alternating in one run.

usage: make build; tools/python-env FOLDER
       FOLDER/bin/python benches/pytorch.py [--cases ABCDE] [--rounds 5] [--steps 6] [--set KEY=VALUE …] [--json FILE]

The peer is `benches/pytorch_peer.py`, in processes that stay alive and warm. There are four: eager, both models
compiled, the whole step compiled, and the latter with MKL's AVX-512 kernels on any vendor's CPU. DDK uses these
kernels; PyTorch as installed does not. Each round lets each peer make some steps. Then it runs `ddk train`, the whole
program with its queues, files and checkpoints, and takes all steps but the first eight.

Prints tokens per second as medians over the rounds, and the ratio to the best peer of each round with its spread. Also
prints the working memory (the peak above the idle process and above weights, gradients and moments; ddk's as medians),
and the highest peak of a step beside the prediction of `ddk check`. Then prints where the time of case A goes, by
`ddk bench`. Case D has no peer: `benches/lanes.py`.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from worlds import write_text, write_tokenizer

ROOT = pathlib.Path(__file__).parent.parent
DDK = pathlib.Path(os.environ.get("DDK", ROOT / "target/release/ddk"))
WARM_UP = 8
MODES = ["eager", "compile", "compile-step"]
# The best of them again, with MKL led to its AVX-512 kernels as DDK leads its own (crates/torch/src/mkl.rs).
LED = "compile-step, led"
A = dict(method="kd", vocabulary=8192, teacher=[512, 8, 8, 1408], student=[256, 4, 4, 704], rows=8, length=256)
CASES = {
    "A": A,
    "B": {**A, "vocabulary": 32768},
    "C": dict(method="kd", vocabulary=151936, teacher=[256, 4, 4, 704], student=[128, 2, 2, 352], rows=4, length=128),
    "E": {**A, "method": "cpt"},
}
# Minimum ratio to the peer's tokens per second, and maximum share of its working memory.
WANTED = {"A": (1.2, 0.45), "B": (1.35, 0.25), "C": (1.6, 0.20), "E": (1.1, 0.6)}


class Peer:
    def __init__(self, mode, shape, environment):
        command = [sys.executable, pathlib.Path(__file__).parent / "pytorch_peer.py", mode, json.dumps(shape)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert self.process.stdout.readline() == "warm\n", f"{mode} did not start"

    def steps(self, count):
        print(count, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def write_config(folder, shape, more=""):
    """Writes the configuration of a run with this shape. `more` holds further tables."""
    length = shape["length"]
    text = f"""
method = "{shape['method']}"
[run]
name = "run"
[corpus]
dir = "prepared"
tokenizer = "tokenizer"
sequence_length = {length}
validation_fraction = 0.3
validation_documents = 1
[domains.one]
files = ["one.jsonl"]
[domains.two]
files = ["two.jsonl"]
[teacher]
model = "teacher"
[student]
model = "student"
[optimizer]
lr = 1e-4
[training]
global_batch_size = {shape['rows']}
micro_batch_size = {shape['rows'] // 4}
[checkpoint]
interval = 1000
[telemetry]
enabled = false
"""
    (folder / "config.toml").write_text(text + more)


def write_world(folder, shape):
    """Writes models in the Hugging Face format, a tokenizer of as many words, and two domains of random words in long
    documents."""
    import transformers

    vocabulary, length = shape["vocabulary"], shape["length"]
    sizes = {"teacher": shape["teacher"], "student": shape["student"]}
    for name, (hidden, layers, heads, inner) in sizes.items():
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=inner,
            max_position_embeddings=length,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
    for name in [*sizes, "tokenizer"]:
        write_tokenizer(folder / name, vocabulary)
    write_text([folder / "one.jsonl", folder / "two.jsonl"], vocabulary, 24, 16 * length)
    write_config(folder, shape)


def write_world_apart(folder, shape):
    """Writes the world in a separate process, which ends with everything that it has imported."""
    subprocess.run(
        [sys.executable, __file__, "--write-world", folder, json.dumps(shape)],
        check=True,
        stderr=subprocess.DEVNULL,
    )


def peak(process):
    """The peak resident memory so far, in bytes; 0 if the process is gone."""
    try:
        lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(found[0]) if found else 0


def run_ddk(folder, arguments, is_over=lambda: False):
    """Runs `ddk` to its end. Returns its peak resident memory until `is_over`, and overall."""
    until, whole = 0, 0
    with open(folder / "said", "w") as said:
        process = subprocess.Popen([DDK, *arguments], cwd=folder, stdout=said, stderr=said)
        while process.poll() is None:
            whole = max(whole, peak(process))
            until = until if is_over() else whole
            time.sleep(0.005)
    assert process.returncode == 0, (folder / "said").read_text()
    return until, whole


def leading(folder):
    """Builds a library that leads MKL to its AVX-512 kernels on any vendor's CPU."""
    library = folder / "leading.so"
    source = "int mkl_serv_intel_cpu_true(void) { return 1; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source, text=True, check=True)
    return str(library)


def ddk_steps(folder, shape, count, number, sets):
    name = f"round-{number}"
    more = [
        word
        for set_ in [f"run.name={name}", f"run.max_steps={WARM_UP + count + 1}", *sets]
        for word in ["--set", set_]
    ]
    file = folder / "runs" / name / "run.jsonl"
    lines = lambda: file.read_text().splitlines() if file.exists() else []
    # The peer writes no checkpoint. DDK makes one more step and copies its state for the checkpoint at the end.
    # That copy is part of DDK's peak, but not of what a step needs.
    of_steps, whole = run_ddk(folder, ["train", "config.toml", *more], lambda: len(lines()) >= WARM_UP + count)
    steps = [json.loads(line)["seconds"] for line in lines()[WARM_UP : WARM_UP + count]]
    assert len(steps) == count
    # A sequence has `length` tokens; the peer predicts one fewer per sequence.
    seconds = sum(sum(step.values()) for step in steps) / count
    parts = {part: sum(step[part] for step in steps) / count for part in steps[0]}
    return dict(seconds=seconds, of_steps=of_steps, peak=whole, parts=parts)


def predicted_peak(folder, sets):
    """A step's memory by `ddk check`, in bytes, without the copy for a checkpoint, which comes later."""
    more = [word for set_ in ["run.max_steps=12", *sets] for word in ["--set", set_]]
    said = subprocess.run([DDK, "check", "config.toml", *more], cwd=folder, capture_output=True, text=True).stdout
    parts = re.findall(r"^ +([\d.]+) (kB|MB|GB)  (?!run: a snapshot)", said, re.M)
    return sum(float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] for number, unit in parts)


def weights(sizes, vocabulary):
    hidden, layers, _, inner = sizes
    return 2 * vocabulary * hidden + layers * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden) + hidden


def compare(case, shape, rounds, count, sets):
    tokens = shape["rows"] * shape["length"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_world_apart(folder, shape)
        run_ddk(folder, ["prepare", "config.toml"])
        idle, _ = run_ddk(folder, ["config", "show", "config.toml"])
        peers = {mode: Peer(mode, shape, {}) for mode in MODES}
        peers[LED] = Peer("compile-step", shape, {"LD_PRELOAD": leading(folder)})
        results = []
        for number in range(rounds):
            result = {mode: peer.steps(count) for mode, peer in peers.items()}
            result["ddk"] = ddk_steps(folder, shape, count, number, sets)
            results.append(result)
            shown = ", ".join(f"{name} {tokens / of['seconds']:.0f}" for name, of in result.items())
            print(f"  round {number + 1}: {shown} tokens/s", file=sys.stderr)
        for peer in peers.values():
            peer.end()
        predicted = predicted_peak(folder, sets)
        limit = ""
        if case == "A":
            limit = subprocess.run(
                [DDK, "bench", "config.toml"], cwd=folder, capture_output=True, text=True, check=True
            ).stdout
    ours = 4 * 4 * weights(shape["student"], shape["vocabulary"])
    if shape["method"] == "kd":
        ours += 4 * weights(shape["teacher"], shape["vocabulary"])
    rate = lambda name: statistics.median(tokens / result[name]["seconds"] for result in results)

    def ratio(names):
        ratios = sorted(min(result[name]["seconds"] for name in names) / result["ddk"]["seconds"] for result in results)
        return [statistics.median(ratios), ratios[0], ratios[-1]]

    best = max(MODES, key=rate)
    of_peer = max(result[best]["peak"] - result[best]["idle"] - result[best]["static"] for result in results)
    # The peer is one process for all rounds; ddk is one process per round.
    of_steps = sorted(result["ddk"]["of_steps"] for result in results)
    of_ddk = [peak - idle - ours for peak in [statistics.median(of_steps), of_steps[0], of_steps[-1]]]
    peaks = [max(result[name]["peak"] for result in results) for name in [best, "ddk"]]
    parts = {
        part: statistics.median(result["ddk"]["parts"][part] for result in results)
        for part in results[0]["ddk"]["parts"]
    }
    return dict(
        case=case,
        rates={name: rate(name) for name in [*MODES, LED, "ddk"]},
        ratio=ratio(MODES),
        led=ratio([*MODES, LED]),
        working=[of_peer, *of_ddk],
        peaks=peaks,
        predicted=[predicted, of_steps[-1]],
        parts=parts,
        limit=limit,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default="ABCDE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="a setting of ddk's")
    parser.add_argument("--json")
    parser.add_argument("--write-world", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_world:
        folder, shape = options.write_world
        return write_world(pathlib.Path(folder), json.loads(shape))
    results = []
    for case in options.cases.replace("D", ""):
        print(f"case {case}: the peers warm up", file=sys.stderr)
        results.append(compare(case, CASES[case], options.rounds, options.steps, options.sets))
    if results:
        print(
            f"| case | {' | '.join([*MODES, LED, 'ddk'])} | ratio (spread) | wanted | ratio to led too | working"
            " memory, best peer and ddk, MB | share (spread) | wanted | peaks, MB | a step's peak: ddk check,"
            " measured, MB |"
        )
        print("|---|" + "---:|" * 13)
    for result in results:
        rates = " | ".join(f"{result['rates'][name]:.0f}" for name in [*MODES, LED, "ddk"])
        ratio, led = ("{:.2f} ({:.2f} to {:.2f})".format(*result[name]) for name in ["ratio", "led"])
        peer, *ours = (number / 1e6 for number in result["working"])
        share = "{:.2f} ({:.2f} to {:.2f})".format(*(number / peer for number in ours))
        megabytes = lambda numbers: ", ".join(f"{number / 1e6:.0f}" for number in numbers)
        predicted, measured = result["predicted"]
        fast, small = WANTED[result["case"]]
        print(
            f"| {result['case']} | {rates} | {ratio} | {fast} | {led} | {peer:.0f}, {ours[0]:.0f} | {share} |"
            f" {small} | {megabytes(result['peaks'])} | {megabytes(result['predicted'])}:"
            f" {100 * (predicted / measured - 1):+.0f}% |"
        )
    for result in results:
        parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in result["parts"].items())
        print(f"\ncase {result['case']}, ddk, seconds of a step: {parts}")
        print(result["limit"], end="")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    if "D" in options.cases:
        import lanes  # which imports this file

        print()
        lanes.compare(options.rounds, 2 * options.steps)


if __name__ == "__main__":
    main()
