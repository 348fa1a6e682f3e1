"""Compares one process with several that share each step, at case A of `pytorch.py`, alternating in one run.

usage: python3 benches/ranks.py [--ranks 2] [--pairs 5] [--steps 8]
       python3 benches/ranks.py --memory

One process runs in two ways: teacher and student side by side with half of the cores each, and in turns with all of
them. With several ranks, each has one thread per model, and both take turns. All train the same run (`parallel.slots` =
ranks). Prints the tokens per second, the ratio to the faster way of one process, and what the exchange of a step takes.

With --memory, it prints the peak memory of a rank's steps with a student of 60 million parameters and 4 slots on 1, 2
and 4 ranks, beside the prediction of `ddk check`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

import pytorch
from builds import write_world


def of_run(folder, name):
    """The mean seconds of a step by phase, without the first steps."""
    lines = (folder / "runs" / name / "run.jsonl").read_text().splitlines()
    steps = [json.loads(line)["seconds"] for line in lines[pytorch.WARM_UP :]]
    return {phase: statistics.mean(step.get(phase, 0.0) for step in steps) for phase in steps[-1]}


def start(folder, sets, ranks):
    """Starts the processes of a run."""
    command = [pytorch.DDK, "train", "config.toml", *(word for set_ in sets for word in ["--set", set_])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for rank in range(ranks):
        own = dict(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        environment = {**os.environ, **own} if ranks > 1 else None
        yield subprocess.Popen(command, cwd=folder, env=environment, **silent)


def print_memory(folder):
    """The highest peak of a rank before the snapshot at the end, beside the prediction without it."""
    shape = {**pytorch.A, "teacher": [128, 2, 2, 256], "student": [512, 16, 8, 1408], "length": 32}
    write_world(folder, shape, pytorch.DDK)
    sets = ["parallel.slots=4", "training.micro_batch_size=2", "run.max_steps=3"]
    for ranks in [1, 2, 4]:
        file = folder / "runs" / f"of-{ranks}" / "run.jsonl"
        running, peak = list(start(folder, [*sets, f"run.name=of-{ranks}"], ranks)), 0
        while any([process.poll() is None for process in running]):
            is_training = not file.exists() or len(file.read_text().splitlines()) < 3
            for process in running if is_training else []:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
                    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                    peak = max(peak, 1024 * int(status.split("VmHWM:")[1].split()[0]))
            time.sleep(0.01)
        assert all(process.returncode == 0 for process in running)
        command = [pytorch.DDK, "check", "config.toml", "--ranks", str(ranks)]
        command += [word for set_ in sets for word in ["--set", set_]]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
        parts = re.findall(r"^ +([\d.]+) (kB|MB|GB)  (?!run: a snapshot)", said, re.M)
        predicted = sum(float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] for number, unit in parts)
        print(f"{ranks} ranks: {peak / 1e9:.2f} GB each, ddk check says {predicted / 1e9:.2f} GB", flush=True)


def train(folder, name, count, ranks, threads, slots):
    """Trains on this many processes. Returns the mean seconds of a step by phase, those of rank 0."""
    sets = [f"run.name={name}", f"run.max_steps={pytorch.WARM_UP + count}", f"parallel.slots={slots}"]
    sets += [f"teacher.threads={threads}", f"student.threads={threads}"]
    # Side by side, both models together have as many threads as there are cores.
    takes_turns = ranks * threads == os.cpu_count()
    sets += [f"pipeline.time_slicing={str(takes_turns).lower()}"]
    running = list(start(folder, sets, ranks))
    assert all([process.wait() == 0 for process in running]), f"a process of {name} failed"
    return of_run(folder, name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            return print_memory(pathlib.Path(folder))
    shape, ranks, cores = pytorch.A, options.ranks, os.cpu_count()
    tokens = shape["rows"] * shape["length"]
    ways = {
        "one process, side by side": (1, cores // 2),
        "one process, in turns": (1, cores),
        f"{ranks} ranks": (ranks, cores // ranks),
    }
    rates, exchanges = {way: [] for way in ways}, []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_world(folder, shape, pytorch.DDK)
        for pair in range(options.pairs):
            for way in sorted(ways, reverse=pair % 2 == 1):
                name = f"round-{pair}"
                phases = train(folder, name, options.steps, *ways[way], ranks)
                shutil.rmtree(folder / "runs" / name)
                rates[way].append(tokens / sum(phases.values()))
                exchanges += [phases["exchange"]] if "exchange" in phases else []
            print("; ".join(f"{way}: {rates[way][-1]:.0f}" for way in ways), "tokens/s", flush=True)
    medians = {way: statistics.median(found) for way, found in rates.items()}
    *one, many = medians
    print(f"case A, medians of {options.pairs}, tokens/s:", "; ".join(f"{way} {medians[way]:.0f}" for way in ways))
    print(
        f"{many} / the faster of one process: {medians[many] / max(medians[way] for way in one):.3f}; "
        f"exchange {statistics.median(exchanges):.3f} s of a step of {tokens / medians[many]:.3f} s"
    )


if __name__ == "__main__":
    main()
