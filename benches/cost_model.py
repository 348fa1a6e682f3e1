"""Compares the cost model of docs/performance.md with measurements: takes its constants from some configurations, and
predicts others.

usage: make build; FOLDER/bin/python benches/cost_model.py [--seconds 3] [--json FILE | --from FILE]
    FOLDER: from tools/python-env

For each configuration, `ddk bench --json` measures the parts of a step on one thread each. `ddk train` gives the peak
memory of its steps, beside the prediction of `ddk check`. `--json` saves the measurements, `--from` reads them back.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

import numpy

from pytorch import DDK, ddk_steps, predicted_peak, run_ddk, weights, write_world_apart

SMALL, MIDDLE, LARGE = [128, 4, 4, 352], [256, 4, 4, 704], [512, 8, 8, 1408]
shape = lambda vocabulary, teacher, student, rows, length: dict(
    method="kd", vocabulary=vocabulary, teacher=teacher, student=student, rows=rows, length=length
)
WIDE = [384, 6, 6, 1056]
CALIBRATED = [
    shape(8192, LARGE, MIDDLE, 8, 256),
    shape(32768, MIDDLE, SMALL, 8, 128),
    shape(4096, MIDDLE, MIDDLE, 8, 512),
    shape(8192, LARGE, LARGE, 4, 256),
    shape(151936, MIDDLE, SMALL, 4, 128),
    shape(65536, LARGE, SMALL, 4, 256),
]
PREDICTED = [
    shape(32768, LARGE, MIDDLE, 8, 256),
    shape(16384, WIDE, MIDDLE, 8, 256),
    shape(4096, LARGE, SMALL, 16, 128),
    shape(8192, [512, 12, 8, 1408], MIDDLE, 4, 1024),
    shape(100000, WIDE, SMALL, 4, 256),
    shape(8192, WIDE, WIDE, 8, 256),
    shape(49152, LARGE, MIDDLE, 4, 512),
]


def terms(of):
    """What the seconds of each part of a step are proportional to: FLOPs of matmuls, and numbers that are read and
    written."""
    positions, vocabulary = of["rows"] * of["length"], of["vocabulary"]
    flops, moved, matrices = {}, {}, {}
    for name in ["teacher", "student"]:
        hidden, layers, _, inner = of[name]
        matrices[name] = layers * (4 * hidden * hidden + 3 * hidden * inner)
        # Attention is causal: half of the squared length.
        flops[name] = positions * (2 * matrices[name] + layers * 2 * of["length"] * hidden)
        moved[name] = positions * layers * (14 * hidden + 4 * inner)
    micro_batches = 4
    head = lambda name: 2 * positions * vocabulary * of[name][0]
    # As the program chooses it. Each chunk reads the matrices of both LM heads, and the student's gradient.
    chunk = min(max((1 << 22) // vocabulary, 64), 128, positions // micro_batches)
    streams = positions / chunk * vocabulary * (3 * of["student"][0] + of["teacher"][0])
    return dict(
        teacher=[flops["teacher"], moved["teacher"]],
        # Each micro-batch computes the gradient of a matrix, then adds it.
        layers=[3 * flops["student"], 3 * moved["student"], micro_batches * matrices["student"]],
        head=[head("teacher") + 3 * head("student"), positions * vocabulary, streams],
        optimizer=[weights(of["student"], vocabulary)],
    )


def measure(of, seconds):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_world_apart(folder, of)
        run_ddk(folder, ["prepare", "config.toml"])
        done = subprocess.run(
            [DDK, "bench", "config.toml", "--json", "--seconds", str(seconds)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        said = predicted_peak(folder, [])
        peak = ddk_steps(folder, of, 4, "memory", [])["of_steps"]
    student = {part["name"]: part["seconds"] for part in found["student"]}
    parts = dict(
        teacher=found["teacher"]["seconds"],
        layers=student["forward"] + student["backward"],
        head=student["heads and losses"],
        optimizer=student["optimizer"],
    )
    return dict(parts=parts, overlapped=found["overlapped_seconds"], rate=found["student_rate"], said=said, peak=peak)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--from", type=pathlib.Path, dest="kept")
    options = parser.parse_args()
    if options.kept:
        measured = json.loads(options.kept.read_text())
    else:
        measured = [(of, measure(of, options.seconds)) for of in CALIBRATED + PREDICTED]
    if options.json:
        options.json.write_text(json.dumps(measured))
    constants = {}
    for part in ["teacher", "layers", "head", "optimizer"]:
        # Fit relative errors, so that a large configuration does not dominate.
        rows = [(numpy.array(terms(of)[part]) / found["parts"][part]) for of, found in measured[: len(CALIBRATED)]]
        # No negative constants: drop a term that would need one.
        keep = list(range(len(rows[0])))
        while True:
            solved, *_ = numpy.linalg.lstsq(numpy.array(rows)[:, keep], numpy.ones(len(rows)), rcond=None)
            if (solved >= 0).all():
                break
            keep.pop(int(numpy.argmin(solved)))
        constants[part] = [float(solved[keep.index(index)]) if index in keep else 0.0 for index in range(len(rows[0]))]
    rate = measured[0][1]["rate"]
    # How much two workers slow each other down.
    alone = lambda found: max(
        found["parts"]["teacher"], sum(found["parts"][part] for part in ["layers", "head", "optimizer"])
    )
    beside = statistics.median(found["overlapped"] / alone(found) for _, found in measured[: len(CALIBRATED)])
    print(f"side by side: {beside:.3f} of the slower one alone")
    print(f"rate {rate / 1e9:.0f} GFLOP/s a core")
    for part, of_part in constants.items():
        print(f"{part}: " + ", ".join(f"{constant:.3g} s" for constant in of_part))
    print(
        "| vocabulary | teacher | student | batch | teacher, s: predicted, measured | student, s: predicted,"
        " measured | overlapped tokens/s: predicted, measured | error | memory, MB: ddk check, measured | error |"
    )
    print("|---:|---|---|---|---:|---:|---:|---:|---:|---:|")
    for number, (of, found) in enumerate(measured):
        predicted = {
            part: sum(constant * term for constant, term in zip(constants[part], terms(of)[part]))
            for part in constants
        }
        teacher, student = predicted["teacher"], sum(predicted[part] for part in ["layers", "head", "optimizer"])
        real = sum(found["parts"][part] for part in ["layers", "head", "optimizer"])
        tokens = of["rows"] * of["length"]
        speed, was = tokens / max(teacher, student) / beside, tokens / found["overlapped"]
        mark = " (calibrated on)" if number < len(CALIBRATED) else ""
        size = lambda name: "x".join(map(str, [of[name][0], of[name][1], of[name][3]]))
        print(
            f"| {of['vocabulary']}{mark} | {size('teacher')} | {size('student')} | {of['rows']} x {of['length']} |"
            f" {teacher:.3f}, {found['parts']['teacher']:.3f} | {student:.3f}, {real:.3f} | {speed:.0f}, {was:.0f}"
            f" | {100 * (speed / was - 1):+.0f}% | {found['said'] / 1e6:.0f}, {found['peak'] / 1e6:.0f} |"
            f" {100 * (found['said'] / found['peak'] - 1):+.0f}% |"
        )


if __name__ == "__main__":
    main()
