#!/usr/bin/env python3
"""Prints tables of what worlds/evaluate measured: bits per byte and accuracy by domain, with standard errors.

    table.py FOLDER SEED...

A standard error is that of the choice of passages. A method's value of a passage is the mean over the seeds."""

import json
import math
import pathlib
import statistics
import sys

METHODS = ["kd", "ddk-equal", "ddk", "excess"]


def samples(folder, task):
    """The harness's records of a task, in the order of its documents."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(records, key=lambda record: record["doc_id"])


def bits(folder, domain):
    """Bits per byte of a domain, and each passage's part in it: their mean is the value."""
    pairs = [record["bits_per_byte"] for record in samples(folder, f"world_bits_{domain}")]
    nats, size = [-pair[0] / math.log(2) for pair in pairs], [pair[1] for pair in pairs]
    value = sum(nats) / sum(size)
    mean = statistics.mean(size)
    # The linear form of a ratio, whose spread over passages is the ratio's.
    return [value + (bit - value * length) / mean for bit, length in zip(nats, size)]


def accuracy(folder, domain):
    """Whether the harness chose the right line, in percent, by question."""
    return [100 * record["acc_norm"] for record in samples(folder, f"world_cloze_{domain}")]


def over_seeds(parts):
    """Means over seeds, passage by passage."""
    return [statistics.mean(values) for values in zip(*parts, strict=True)]


def estimate(parts):
    """Mean over the domains' means, and its standard error."""
    value = statistics.mean(statistics.mean(values) for values in parts)
    variance = sum(statistics.variance(values) / len(values) for values in parts)
    return value, math.sqrt(variance) / len(parts)


def table(title, measure, domains, models, digits):
    """One row per model: each domain's value, the mean over domains, and the difference from kd."""
    print(f"\n## {title}\n")
    print("| model | " + " | ".join(domains) + " | mean | difference from kd |")
    print("|---" * (len(domains) + 3) + "|")
    parts = {
        name: [over_seeds([measure(folder, domain) for folder in folders]) for domain in domains]
        for name, folders in models.items()
    }
    for name, of_domains in parts.items():
        cells = [f"{statistics.mean(values):.{digits}f}" for values in of_domains]
        cells.append("{:.{d}f} ± {:.{d}f}".format(*estimate(of_domains), d=digits))
        if name in METHODS[1:]:
            pairs = zip(of_domains, parts["kd"], strict=True)
            differences = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
            cells.append("{:+.{d}f} ± {:.{d}f}".format(*estimate(differences), d=digits))
        else:
            cells.append("")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(folder, *seeds):
    folder = pathlib.Path(folder)
    domains = sorted(path.stem.removeprefix("world_bits_") for path in (folder / "tasks").glob("world_bits_*.yaml"))
    models = {name: [folder / name] for name in ["teacher", "start"]}
    models |= {method: [folder / f"{method}-{seed}" for seed in seeds] for method in METHODS}
    passages = len(samples(folder / "teacher", f"world_bits_{domains[0]}"))
    print(f"{passages} held-out passages per domain; seeds {', '.join(seeds)}; mean ± standard error over passages.")
    table("Bits per byte (lower is better)", bits, domains, models, 3)
    table("Cloze accuracy in percent (higher is better; chance: 25)", accuracy, domains, models, 1)


main(*sys.argv[1:])
