"""Compares the forward pass of each family with Hugging Face transformers, and loading with `cat`; alternating in one
run, medians.

usage: cargo build --release -p ddk-model --example time_model
       PYTHON benches/models.py [forward|load]        PYTHON: from tools/python-env

`forward` prints the seconds of a forward pass of 4 x 256 tokens on one thread, for hidden sizes 256 and 1024, of
transformers (eager and sdpa) and of DDK. It also prints the ratio of the better peer to DDK (over 1: DDK is faster).
`load` creates a checkpoint of 2 GB and prints GB/s beside `cat`, and the peak of resident memory as a multiple of the
model's size.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers

ROUNDS, BATCH, TIME, THREADS = 5, 4, 256, 1
BINARY = pathlib.Path(__file__).parent.parent / "target/release/examples/time_model"
torch.set_num_threads(THREADS)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def shape(family, hidden, layers):
    if family == "GPTBigCode":
        return dict(vocab_size=2048, n_embd=hidden, n_layer=layers, n_head=hidden // 64, n_positions=512)
    return dict(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        head_dim=64,
        max_position_embeddings=512,
    )


class Ours:
    def __init__(self, folder, dtype="f32"):
        self.process = subprocess.Popen(
            [BINARY, folder, str(THREADS), dtype], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        return [float(word) for word in self.process.stdout.readline().split()]


def forward():
    print(f"{'family':12} {'hidden':>6} {'eager':>8} {'sdpa':>8} {'ddk':>8}  {'ratio':>5}  spread")
    for family in ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "GPTBigCode"]:
        for hidden, layers, repetitions in [(256, 4, 8), (1024, 2, 2)]:
            config = getattr(transformers, family + "Config")(**shape(family, hidden, layers))
            with tempfile.TemporaryDirectory() as folder:
                getattr(transformers, family + "ForCausalLM")(config).save_pretrained(folder)
                load = lambda attention: transformers.AutoModel.from_pretrained(
                    folder, attn_implementation=attention
                ).eval()
                peers = {attention: load(attention) for attention in ["eager", "sdpa"]}
                ours = Ours(folder)
                ours.ask("load")
                tokens = (torch.arange(BATCH * TIME) % config.vocab_size).reshape(BATCH, TIME)
                seconds = {"eager": [], "sdpa": [], "ddk": []}
                for turn in range(ROUNDS + 1):
                    for name, peer in peers.items():
                        began = time.perf_counter()
                        with torch.no_grad():
                            for _ in range(repetitions):
                                peer(tokens, use_cache=False)
                        seconds[name].append((time.perf_counter() - began) / repetitions)
                    seconds["ddk"].append(ours.ask(f"forward {BATCH} {TIME} {repetitions}")[0] / repetitions)
                seconds = {name: times[1:] for name, times in seconds.items()}  # the first round warms up
                ratios = [min(eager, sdpa) / ddk for eager, sdpa, ddk in zip(*seconds.values())]
                eager, sdpa, ddk = (statistics.median(times) for times in seconds.values())
                print(
                    f"{family:12} {hidden:6} {eager:8.4f} {sdpa:8.4f} {ddk:8.4f}  {statistics.median(ratios):5.2f} "
                    f" {min(ratios):.2f} to {max(ratios):.2f}",
                    flush=True,
                )


def load():
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.LlamaConfig(
            vocab_size=32000, hidden_size=1536, intermediate_size=4096, num_hidden_layers=15, num_attention_heads=12
        )
        torch.set_default_dtype(torch.float32)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        files = sorted(str(path) for path in pathlib.Path(folder).glob("*.safetensors"))
        size = sum(pathlib.Path(path).stat().st_size for path in files)
        print(f"checkpoint of {size / 1e9:.2f} GB in f32")
        for dtype in ["f32", "bf16"]:
            cat, ours, ratios, peaks = [], [], [], []
            process = Ours(folder, dtype)
            for turn in range(ROUNDS + 1):
                began = time.perf_counter()
                subprocess.run(["sh", "-c", 'cat "$@" > /dev/null', "sh", *files], check=True)
                cat.append(size / (time.perf_counter() - began) / 1e9)
                seconds, in_memory, peak = process.ask("load")
                ours.append(size / seconds / 1e9)
                peaks.append(peak / in_memory)
            print(
                f"{dtype}: ddk {statistics.median(ours[1:]):.2f} GB/s, cat {statistics.median(cat[1:]):.2f} GB/s;"
                f" peak of resident memory {peaks[0]:.3f} times the model"
            )


{"forward": forward, "load": load}[sys.argv[1] if len(sys.argv) > 1 else "forward"]()
