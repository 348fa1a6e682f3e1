"""Checks DDK on this machine's GPU, or with --device cpu the GPU path on the CPU. Takes at most 4 minutes.

usage: python3 verify.py [--device cuda:0]
Writes verify.json and verify.md. Exits with 1 if a check failed. The output of each check is in logs/.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

import torch

from bundle import DDK, HERE, Report, environment

# Time limit for all checks together, in seconds.
LIMIT = 4 * 60


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    device = parser.parse_args().device
    gpu = device.startswith("cuda")
    report = Report("verify", device, ["check", "result", "seconds", "said"])
    (HERE / "logs").mkdir(exist_ok=True)
    (HERE / "tmp").mkdir(exist_ok=True)
    tests = dict(
        DDK_TEST_DEVICE=device,
        DDK_TEST_FIXTURES=str(HERE / "fixtures"),
        DDK_TEST_TMP=str(HERE / "tmp"),
        DDK_TEST_PROGRAM=str(DDK),
    )
    if not gpu:
        tests["DDK_GPU_PATH"] = "1"
    elif torch.cuda.device_count() > 1:
        tests["DDK_TEST_DEVICE_2"] = "cuda:1"

    def run(name, command, expect=lambda code, out, said: code == 0):
        """Runs one check: the command must end as expected. Returns what it printed to stdout."""
        began = time.time()
        process = subprocess.Popen(
            [str(word) for word in command],
            env=environment(**tests),
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, errors = process.communicate(timeout=max(1, LIMIT - report.seconds()))
            code, said = process.returncode, out + errors
        except subprocess.TimeoutExpired:
            # Kill the runs that a test has started, too.
            os.killpg(process.pid, signal.SIGKILL)
            out, errors = process.communicate()
            code, said = None, f"error: no time left after {LIMIT} s in all\n{out}{errors}"
        (HERE / "logs" / f"{name.replace(' ', '-')}.log").write_text(said)
        good = expect(code, out, said)
        telling = [
            line for line in said.splitlines() if "panicked" in line or "error" in line.lower() or "FAILED" in line
        ]
        passed = [line for line in said.splitlines() if line.startswith("test result")]
        words = (passed or [""])[-1].partition(";")[0] if good else " / ".join(telling[:3])[:300] or f"exit code {code}"
        report.add(check=name, result="ok" if good else "FAILED", seconds=f"{time.time() - began:.1f}", said=words)
        return out

    generate = lambda where: [
        DDK,
        "generate",
        "--model",
        "model",
        "--prompt",
        "the river",
        "--max-new-tokens",
        "24",
        "--device",
        where,
    ]
    on_cpu = run("loading, cpu", generate("cpu"))
    run("loading, the same text", generate(device), lambda code, out, said: code == 0 and out == on_cpu and out)
    run(
        "a GPU that is not there",
        generate("cuda:97"),
        lambda code, out, said: code != 0 and ("libtorch sees" in said or "could not be loaded" in said),
    )
    run("objectives, goldens", ["bin/goldens"])
    run("objectives, padded, fp32 and bf16", ["bin/variants"])
    run("models, fp32 and bf16", ["bin/reference"])
    run("steps, fused and cast", ["bin/gpu_path"])
    run("whole runs", ["bin/it", "device::"])
    if gpu:
        # Really fill the memory: another process takes all of it, except too little for a context.
        index = torch.device(device).index
        hog = (
            f"import torch; free = torch.cuda.mem_get_info({index})[0]; x = torch.empty(free - 64_000_000,"
            f" dtype=torch.uint8, device='{device}'); print('full', flush=True); input()"
        )
        holder = subprocess.Popen([sys.executable, "-c", hog], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if holder.stdout.readline() == "full\n":
            run(
                "memory that runs out",
                generate(device),
                lambda code, out, said: code != 0 and "out of memory" in said.lower(),
            )
        else:
            report.add(check="memory that runs out", result="FAILED", said="the memory could not be filled")
        holder.kill()
        holder.wait()
    report.write()
    sys.exit(any(row["result"] != "ok" for row in report.rows))


if __name__ == "__main__":
    main()
