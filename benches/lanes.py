"""Measures the gain of balancing threads on the CPU: `pipeline.threads = "auto"` and one thread per model, alternating.

usage: make build; FOLDER/bin/python benches/lanes.py [--rounds 5] [--steps 12]          FOLDER: from tools/python-env

There are two pairs of models. In one, the teacher takes about four times as long as the student's whole step; in the
other, the student does. Prints the medians of tokens per second, and the ratio over the rounds with its spread.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile

from pytorch import ddk_steps, run_ddk, write_world_apart

COMMON = dict(method="kd", vocabulary=4096, rows=8, length=256)
PAIRS = {
    "teacher slower": {**COMMON, "teacher": [512, 8, 8, 1408], "student": [128, 4, 4, 352]},
    "student slower": {**COMMON, "teacher": [512, 4, 8, 1408], "student": [512, 4, 8, 1408]},
}
WANTED = 1.3
SETTINGS = {"fixed": [], "auto": ["pipeline.threads=auto"]}


def compare(rounds, steps):
    """Prints the table."""
    print("| pair | one thread each, tokens/s | auto, tokens/s | ratio (spread) | wanted |")
    print("|---|---:|---:|---:|---:|")
    for name, shape in PAIRS.items():
        tokens = shape["rows"] * shape["length"]
        rates = {kind: [] for kind in SETTINGS}
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            write_world_apart(folder, shape)
            run_ddk(folder, ["prepare", "config.toml"])
            for number in range(rounds):
                for kind, sets in SETTINGS.items():
                    result = ddk_steps(folder, shape, steps, f"{kind}-{number}", sets)
                    rates[kind].append(tokens / result["seconds"])
            said = [line for line in (folder / "said").read_text().splitlines() if "pipeline.threads" in line]
            print(f"{name}: {said}", file=sys.stderr)
        ratios = sorted(auto / fixed for fixed, auto in zip(rates["fixed"], rates["auto"]))
        medians = " | ".join(f"{statistics.median(rates[kind]):.0f}" for kind in SETTINGS)
        print(
            f"| D, {name} | {medians} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            f" {WANTED} |"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    compare(options.rounds, options.steps)


if __name__ == "__main__":
    main()
