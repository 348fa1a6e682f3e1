"""Compares DDK with PyTorch on one GPU, in the shapes of Qwen1.5 14B to 1.8B with random weights; bf16 matmuls, the
student's weights in fp32.

usage: LIBTORCH_USE_PYTORCH=1 make build          PYTHON: an environment with PyTorch 2.11 for CUDA and transformers 5
       PYTHON benches/gpu.py [--device cuda:0] [--shape qwen|small] [--rounds 2] [--steps 8] [--peak-tflops 989]

The peer is `benches/pytorch_peer.py` (flash attention through sdpa), eager and with both models compiled. DDK is
`ddk train`, with teacher and student on the same GPU, each with its own stream. Peer and DDK do not fit beside each
other, so each is started, warmed up, measured and ended in turn, `--rounds` times. Prints tokens per second (medians),
the share of the GPU's peak that the models' matmuls reach (MFU), and the peak of its memory by `nvidia-smi`.
`--device cpu --shape small` tries the script itself without a GPU.
"""

import argparse
import json
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

from pytorch import Peer, ddk_steps, run_ddk, weights
from worlds import write_text, write_tokenizer

MODES = ["eager", "compile"]
SHAPES = {
    # Without Qwen1.5's biases, because the peer builds Llama's shape.
    "qwen": dict(vocabulary=151936, teacher=[5120, 40, 40, 13696], student=[2048, 24, 16, 5504], rows=4, length=2048),
    "small": dict(vocabulary=4096, teacher=[128, 4, 4, 352], student=[64, 2, 2, 176], rows=4, length=64),
}


def write_model(folder, sizes, vocabulary, length):
    """Writes a Llama with random bf16 weights. Repeats one random block, so that 28 GB are written as fast as the disk
    allows."""
    hidden, layers, heads, inner = sizes
    folder.mkdir()
    config = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        rms_norm_eps=1e-6,
        hidden_act="silu",
        rope_theta=10000.0,
        torch_dtype="bfloat16",
        eos_token_id=0,
    )
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "model.embed_tokens.weight": [vocabulary, hidden],
        "lm_head.weight": [vocabulary, hidden],
        "model.norm.weight": [hidden],
    }
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for part in "qkvo":
            shapes[f"{name}self_attn.{part}_proj.weight"] = [hidden, hidden]
        shapes |= {
            f"{name}mlp.gate_proj.weight": [inner, hidden],
            f"{name}mlp.up_proj.weight": [inner, hidden],
            f"{name}mlp.down_proj.weight": [hidden, inner],
        }
        shapes |= {f"{name}{norm}_layernorm.weight": [hidden] for norm in ["input", "post_attention"]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[end, end + size])
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Numbers of about 0.01 to 0.03 with either sign: exponents 0x3C, random mantissas.
    numbers = random.Random(0)
    block = b"".join(bytes([numbers.randrange(256), numbers.choice([0x3C, 0xBC])]) for _ in range(1 << 19))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(end // len(block)):
            file.write(block)
        file.write(block[: end % len(block)])


def write_world(folder, shape, device):
    vocabulary, length = shape["vocabulary"], shape["length"]
    for name in ["teacher", "student"]:
        write_model(folder / name, shape[name], vocabulary, length)
    for name in ["teacher", "student", "tokenizer"]:
        write_tokenizer(folder / name, vocabulary)
    write_text([folder / "text.jsonl"], vocabulary, 24, 16 * length)
    (folder / "config.toml").write_text(f"""
[run]
name = "run"
[corpus]
dir = "prepared"
tokenizer = "tokenizer"
sequence_length = {length}
validation_fraction = 0.3
validation_documents = 1
[domains.text]
files = ["text.jsonl"]
[teacher]
model = "teacher"
devices = ["{device}"]
dtype = "bf16"
[student]
model = "student"
device = "{device}"
dtype = "bf16"
[optimizer]
lr = 1e-4
[training]
global_batch_size = {shape['rows']}
micro_batch_size = {shape['rows']}
[checkpoint]
interval = 1000
[telemetry]
enabled = false
""")


class GpuMemory:
    """The peak memory in use on a GPU within the `with` block, in bytes; 0 on the CPU."""

    def __init__(self, device):
        # nvidia-smi and libtorch number GPUs differently, but both know their UUIDs.
        self.uuid = None
        if device.startswith("cuda:"):
            import torch

            self.uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self.largest, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while self.uuid is not None and not self.over.wait(0.2):
            used = subprocess.run(
                ["nvidia-smi", f"--id={self.uuid}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
            ).stdout
            self.largest = max(self.largest, int(used) * 2**20)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def operations(shape):
    """Operations of a step's matmuls: the teacher's forward pass, three times the student's, both LM heads."""
    positions, vocabulary, total = shape["rows"] * shape["length"], shape["vocabulary"], 0
    for name, passes in [("teacher", 1), ("student", 3)]:
        hidden, layers, _, _ = shape[name]
        # The embedding needs no matmul. Attention sees half of the squared length.
        products = 2 * (weights(shape[name], vocabulary) - vocabulary * hidden) + layers * 2 * shape["length"] * hidden
        total += passes * positions * products
    return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", default="qwen", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the GPU in dense bf16; an H100's by default")
    options = parser.parse_args()
    shape = dict(method="kd", device=options.device, dtype="bfloat16", **SHAPES[options.shape])
    found = {name: [] for name in [*MODES, "ddk"]}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_world(folder, shape, options.device)
        run_ddk(folder, ["prepare", "config.toml"])
        for number in range(options.rounds):
            for mode in MODES:
                with GpuMemory(options.device) as memory:
                    peer = Peer(mode, shape, {})
                    seconds = peer.steps(options.steps)["seconds"]
                    peer.end()
                found[mode].append((seconds, memory.largest))
            with GpuMemory(options.device) as memory:
                seconds = ddk_steps(folder, shape, options.steps, number, [])["seconds"]
            found["ddk"].append((seconds, memory.largest))
            shutil.rmtree(folder / "runs")
            print(
                f"  round {number + 1}: " + ", ".join(f"{name} {all[-1][0]:.3f} s" for name, all in found.items()),
                file=sys.stderr,
            )
    tokens, work = shape["rows"] * shape["length"], operations(shape)
    print(
        f"{options.shape} on {options.device}: {shape['rows']} rows of {shape['length']} tokens,"
        f" {shape['vocabulary']} ids"
    )
    print("| | tokens/s | MFU | peak memory, GB |\n|---|---:|---:|---:|")
    for name, all in found.items():
        seconds = statistics.median(seconds for seconds, _ in all)
        print(
            f"| {name} | {tokens / seconds:.0f} | {work / seconds / options.peak_tflops / 1e12:.1%} |"
            f" {max(peak for _, peak in all) / 1e9:.1f} |"
        )


if __name__ == "__main__":
    main()
