#!/usr/bin/env python3
"""Collects what lm-evaluation-harness measured (worlds/evaluate) into one file, and prints its tables.

    table.py FOLDER FILE SEED...    FOLDER: with the harness's records of each model; FILE: the JSON file to write

A standard error is that of the choice of passages. A method's value of a passage is the mean over the seeds."""

import json
import math
import pathlib
import statistics
import sys

METHODS = ["kd", "ddk-equal", "ddk", "excess"]
REFERENCES = ["kd", "ddk-equal"]


def samples(folder, task):
    """The harness's records of a task, in the order of its documents."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(records, key=lambda record: record["doc_id"])


def of_model(folder, domain):
    """The raw numbers of a model in a domain: per passage its loss and size, per question whether it was right."""
    pairs = [record["bits_per_byte"] for record in samples(folder, f"world_bits_{domain}")]
    questions = samples(folder, f"world_cloze_{domain}")
    return {
        "nats": [-pair[0] for pair in pairs],
        "bytes": [pair[1] for pair in pairs],
        "right": [int(record["acc_norm"]) for record in questions],
    }


def collect(folder, seeds):
    """What the harness measured: by model, one entry per seed, by domain."""
    domains = sorted(path.stem.removeprefix("world_bits_") for path in (folder / "tasks").glob("world_bits_*.yaml"))
    models = {name: [name] for name in ["teacher", "start"]}
    models |= {method: [f"{method}-{seed}" for seed in seeds] for method in METHODS}
    of = {
        model: [{domain: of_model(folder / name, domain) for domain in domains} for name in names]
        for model, names in models.items()
    }
    return {"seeds": [int(seed) for seed in seeds], "domains": domains, "models": of}


def bits(numbers):
    """Each passage's part in the bits per byte of a domain: their mean is the value."""
    nats, size = numbers["nats"], numbers["bytes"]
    loss = [value / math.log(2) for value in nats]
    value, mean = sum(loss) / sum(size), statistics.mean(size)
    # The linear form of a ratio, whose spread over passages is the ratio's.
    return [value + (bit - value * length) / mean for bit, length in zip(loss, size, strict=True)]


def accuracy(numbers):
    """Whether the model chose the right line, in percent, by question."""
    return [100 * right for right in numbers["right"]]


def over_seeds(parts):
    """Means over seeds, passage by passage."""
    return [statistics.mean(values) for values in zip(*parts, strict=True)]


def estimate(parts):
    """The mean over the domains' means, and its standard error."""
    value = statistics.mean(statistics.mean(values) for values in parts)
    variance = sum(statistics.variance(values) / len(values) for values in parts)
    return value, math.sqrt(variance) / len(parts)


def table(measure, evaluation, digits):
    """One row per model: each domain's value, the mean over domains, and the differences from kd and ddk-equal."""
    domains = evaluation["domains"]
    columns = ["model", *domains, "mean", *(f"difference from {name}" for name in REFERENCES)]
    lines = [f"| {' | '.join(columns)} |"]
    lines.append("|---" + "|---:" * (len(domains) + 1 + len(REFERENCES)) + "|")
    parts = {
        name: [over_seeds([measure(run[domain]) for run in runs]) for domain in domains]
        for name, runs in evaluation["models"].items()
    }

    def cell(of_domains, sign=""):
        return "{:{s}.{d}f} ± {:.{d}f}".format(*estimate(of_domains), s=sign, d=digits)

    def difference(name, reference):
        if name not in METHODS or name == reference:
            return ""
        pairs = zip(parts[name], parts[reference], strict=True)
        return cell([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs], "+")

    for name, of_domains in parts.items():
        cells = [cell([values]) for values in of_domains] + [cell(of_domains)]
        cells += [difference(name, reference) for reference in REFERENCES]
        lines.append(f"| {'student before' if name == 'start' else name} | {' | '.join(cells)} |")
    return lines


def tables(evaluation):
    """Both tables as lines of Markdown."""
    numbers = evaluation["models"]["teacher"][0][evaluation["domains"][0]]
    seeds = ", ".join(map(str, evaluation["seeds"]))
    return [
        f"{len(numbers['nats'])} held-out passages per domain, seeds: {seeds}. Values are means ± their standard "
        "error. This error is that of the choice of passages, not of seeds.",
        "",
        "Bits per byte (lower is better):",
        "",
        *table(bits, evaluation, 3),
        "",
        "Cloze accuracy in percent (higher is better; chance: 25):",
        "",
        *table(accuracy, evaluation, 1),
    ]


def main(folder, file, *seeds):
    evaluation = collect(pathlib.Path(folder), seeds)
    # One line per model, so that differences between versions of the file are readable.
    models = ",\n".join(f"{json.dumps(name)}: {json.dumps(runs)}" for name, runs in evaluation["models"].items())
    head = ", ".join(f"{json.dumps(key)}: {json.dumps(evaluation[key])}" for key in ["seeds", "domains"])
    pathlib.Path(file).write_text(f'{{{head}, "models": {{\n{models}\n}}}}\n', encoding="utf-8")
    print("\n".join(tables(evaluation)))


if __name__ == "__main__":
    main(*sys.argv[1:])
