"""The step that `benches/pytorch.py` compares DDK with, as a PyTorch user writes it with Hugging Face models; one JSON
line per round.

usage: PYTHON benches/pytorch_peer.py MODE SHAPE_AS_JSON          MODE: eager, compile or compile-step

SHAPE may name a `device` (default: the CPU) and a `dtype`: of the teacher, and of the student's matmuls over fp32
weights.

Builds both models with random weights and warms up until three steps in a row agree within 10% (at least 8, at most
40), so no figure includes compilation. Each line on standard input is a number of steps. For each line, makes the
steps and prints the mean seconds per step, and the process's idle, static and peak memory in bytes. Static memory is
the weights, and for the student also gradients and moments.
"""

import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
import transformers

MODE, SHAPE = sys.argv[1], json.loads(sys.argv[2])
VOCABULARY, ROWS, LENGTH = SHAPE["vocabulary"], SHAPE["rows"], SHAPE["length"]
DEVICE, DTYPE = SHAPE.get("device", "cpu"), getattr(torch, SHAPE.get("dtype", "float32"))
GAMMA, LEARNING_RATE = 0.2, 1e-4


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def model(sizes, dtype):
    hidden, layers, heads, inner = sizes
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "sdpa"
    # Initialize it on its device in its dtype: a large model would not fit otherwise.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        made = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    return made


def weight_bytes(module):
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


torch.manual_seed(0)
idle = resident()
teacher = model(SHAPE["teacher"], DTYPE).eval().requires_grad_(False) if SHAPE["method"] == "kd" else None
student = model(SHAPE["student"], torch.float32).train()
static = 4 * weight_bytes(student) + (weight_bytes(teacher) if teacher else 0)
optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def step(tokens):
    targets = tokens[:, 1:].reshape(-1)
    of_teacher = None
    if teacher:
        with torch.no_grad():
            of_teacher = teacher(input_ids=tokens).logits[:, :-1].reshape(-1, VOCABULARY).float()
    with torch.autocast(torch.device(DEVICE).type, dtype=torch.bfloat16, enabled=DTYPE == torch.bfloat16):
        logits = student(input_ids=tokens).logits
    logits = logits[:, :-1].reshape(-1, VOCABULARY).float()
    loss = F.cross_entropy(logits, targets)
    if of_teacher is not None:
        divergence = F.kl_div(
            F.log_softmax(logits, -1), F.log_softmax(of_teacher, -1), log_target=True, reduction="batchmean"
        )
        loss = loss + GAMMA * divergence
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


if MODE == "compile":
    student.forward = torch.compile(student.forward)
    if teacher:
        teacher.forward = torch.compile(teacher.forward)
run = torch.compile(step) if MODE == "compile-step" else step


def timed():
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), device=DEVICE)
    began = time.perf_counter()
    float(run(tokens))
    return time.perf_counter() - began


warm = []
while len(warm) < 8 or (len(warm) < 40 and max(warm[-3:]) > 1.1 * min(warm[-3:])):
    warm.append(timed())
print("warm", flush=True)
for line in sys.stdin:
    times = [timed() for _ in range(int(line))]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(seconds=sum(times) / len(times), idle=idle, static=static, peak=peak)), flush=True)
