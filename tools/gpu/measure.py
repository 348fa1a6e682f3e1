"""Measures DDK on this machine's GPU in the shapes of the paper's pairs, sized for 80 GB. Takes at most 8 minutes.

usage: python3 measure.py [--device cuda:0] [--small]
Writes measure.json and measure.md: DDK with and without padded columns, other variants, PyTorch (if transformers is
installed) at the same shapes, then single operations. --device cpu --small tries the script itself.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from bundle import DDK, HERE, Report, environment, reason

# The approximate total time in seconds. No measurement starts after its share of it.
LIMIT = 8 * 60


def main():
    """Writes what was measured, even if something fails."""
    options = parse()
    os.environ.update(environment(DDK=str(DDK)))
    report = Report("measure", options.device, ["what", "result", "detail"])
    try:
        measure(options, report)
    finally:
        report.write()


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the GPU in dense bf16; an H100's by default")
    return parser.parse_args()


def measure(options, report):
    sys.path.insert(0, str(HERE / "benches"))
    import gpu
    import pytorch
    import worlds
    from operations import operations

    # Qwen1.5 7B to 1.8B: both fit into 80 GB without activation checkpointing. With the 14B teacher they would not.
    shape = dict(vocabulary=151_936, teacher=[4096, 32, 32, 11008], student=[2048, 24, 16, 5504], rows=4, length=2048)
    words = 151_646
    if options.small:
        shape, words = dict(vocabulary=4096, teacher=[128, 4, 4, 352], student=[64, 2, 2, 176], rows=4, length=64), 4000
    shape |= dict(method="kd", device=options.device, dtype="bfloat16")
    tokens, work = shape["rows"] * shape["length"], gpu.operations(shape)
    steps = 3 if options.small else 5

    def line(what, seconds, peak, detail=""):
        mfu = f"MFU {work / seconds / options.peak_tflops / 1e12:.1%}, " if not options.small else ""
        report.add(
            what=what,
            result=f"{tokens / seconds:.0f} tokens/s",
            detail=f"{seconds:.3f} s per step, {mfu}{peak / 1e9:.1f} GB; {detail}",
        )

    variants = [
        ("ddk", [], {}, True),
        ("ddk, libtorch's operations instead of kernels", [], {"DDK_CUDA_KERNELS": "0"}, True),
        ("ddk, deterministic", ["run.deterministic=true"], {}, True),
        ("ddk, flash attention", [], {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}, True),
        ("ddk, recomputing", ["student.activation_checkpointing=true"], {}, True),
        ("ddk, columns not padded", [], {}, False),
    ]
    # Keep the models in memory if they and a run's files fit: reading them is not part of the measurement.
    memory = pathlib.Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > (1e9 if options.small else 60e9)
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        world = pathlib.Path(folder) / "world"
        written = None
        for number, (what, sets, variables, padded) in enumerate(variants):
            if report.seconds() > 0.55 * LIMIT:
                report.add(what=what, result="not measured: no time left")
                continue
            # Tables with exactly the tokenizer's words have no rows for padding.
            of = shape if padded else shape | dict(vocabulary=words)
            os.environ.update(variables)
            try:
                if written != padded:
                    shutil.rmtree(world, ignore_errors=True)
                    world.mkdir()
                    gpu.write_world(world, of, options.device)
                    for model in ["teacher", "student", "tokenizer"]:
                        worlds.write_tokenizer(world / model, words)
                    worlds.write_text([world / "text.jsonl"], words, 24, 16 * of["length"])
                    pytorch.run_ddk(world, ["prepare", "config.toml"])
                    written = padded
                with gpu.GpuMemory(options.device) as used:
                    got = pytorch.ddk_steps(world, of, steps, number, sets)
                line(
                    what,
                    got["seconds"],
                    used.largest,
                    ", ".join(f"{part} {seconds:.3f}" for part, seconds in got["parts"].items()),
                )
            except Exception as error:
                report.add(what=what, result="failed", detail=reason(error))
            for name in variables:
                os.environ.pop(name)
            shutil.rmtree(world / "runs", ignore_errors=True)
    for mode in ["eager", "compile"]:
        if subprocess.run([sys.executable, "-c", "import transformers"], capture_output=True).returncode:
            report.add(what=f"PyTorch, {mode}", result="not measured: transformers is not installed")
            continue
        if report.seconds() > 0.75 * LIMIT:
            report.add(what=f"PyTorch, {mode}", result="not measured: no time left")
            continue
        try:
            with gpu.GpuMemory(options.device) as used:
                peer = pytorch.Peer(mode, shape, {})
                seconds = peer.steps(steps)["seconds"]
                peer.end()
            line(f"PyTorch, {mode}", seconds, used.largest)
        except Exception as error:
            report.add(what=f"PyTorch, {mode}", result="failed", detail=reason(error))
    operations(options.device, report, options.small)


if __name__ == "__main__":
    main()
