"""Times single operations in the shapes of Qwen1.5 14B to 1.8B, as a part of measure.py: where a step's time goes, and
what the alternatives are. On a GPU, each time is the median of eight after three to warm up, by CUDA events."""

import statistics
import time

import torch
import torch.nn.functional as F

from bundle import reason

VOCABULARY, PADDED, TABLE = 151_646, 151_680, 151_936


class Timer:
    def __init__(self, device, report):
        self.device, self.report, self.gpu = device, report, device.startswith("cuda")

    def __call__(self, name, work, operations=0, bytes_=0):
        try:
            for _ in range(3 if self.gpu else 1):
                work()
            milliseconds = statistics.median(self.once(work) for _ in range(8 if self.gpu else 2))
        except Exception as error:
            self.report.add(what=name, result=f"failed: {reason(error)}")
            return
        rate = (
            f"{operations / milliseconds / 1e9:.0f} TFLOP/s"
            if operations
            else f"{bytes_ / milliseconds / 1e6:.0f} GB/s" if bytes_ else ""
        )
        self.report.add(what=name, result=f"{milliseconds:.3f} ms", detail=rate)

    def once(self, work):
        if not self.gpu:
            began = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - began)
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def operations(device, report, small):
    timed, shrink = Timer(device, report), 16 if small else 1
    columns = {
        "cut to the vocabulary": VOCABULARY // shrink,
        "padded to 128": PADDED // shrink // 128 * 128,
        "the whole table": TABLE // shrink,
    }
    random = lambda *shape, dtype=torch.bfloat16: torch.randn(*shape, device=device).to(dtype)
    square = random(8192 // shrink, 8192 // shrink)
    timed("square product", lambda: square @ square, 2 * square.shape[0] ** 3)
    numbers = random(1 << (28 if timed.gpu else 20))
    timed("copy", lambda: numbers.clone(), bytes_=4 * numbers.numel())
    del square, numbers

    # The LM head: how columns are cut, and how many positions are computed at a time.
    for side, width in [("student", 2048 // shrink), ("teacher", 5120 // shrink)]:
        table = random(TABLE // shrink, width)
        for name, count in columns.items():
            for positions in (1024, 2048, 4096) if not small else (64,):
                hidden, weight = random(positions, width), table[:count]
                work = 2 * positions * count * width
                timed(f"{side}: logits of {positions} positions, {name}", lambda: hidden @ weight.t(), work)
                if side == "student":
                    gradient, total = random(positions, count), torch.zeros(count, width, device=device)
                    timed(
                        "its matrix gradient, rounded and added",
                        lambda: total.add_((gradient.t() @ hidden).float()),
                        work,
                    )
                    if timed.gpu:
                        add = torch.ops.aten.addmm.dtype_out
                        timed(
                            "its matrix gradient, added in the product",
                            lambda: add(total, gradient.t(), hidden, torch.float32, out=total),
                            work,
                        )
                    del gradient, total
        del table

    # Layers at micro-batches of 4 x 2,048.
    batch, time_ = (4, 2048) if not small else (1, 128)
    for side, heads, width, inner in [("teacher", 40, 5120, 13696), ("student", 16, 2048, 5504)]:
        width, inner, heads = width // shrink, inner // shrink, max(1, heads // shrink)
        positions = batch * time_
        for out, of in [(width, width), (inner, width), (width, inner)]:
            weight, x = random(out, of), random(positions, of)
            timed(f"{side}: linear {of} to {out}", lambda: x @ weight.t(), 2 * positions * out * of)
            del weight, x
        query = random(batch, time_, heads, width // heads).transpose(1, 2)
        causal = 2 * batch * time_ * time_ * width
        timed(
            f"{side}: attention, libtorch's choice",
            lambda: F.scaled_dot_product_attention(query, query, query, is_causal=True),
            causal,
        )
        gate, up = random(positions, inner), random(positions, inner)
        timed(f"{side}: silu x up", lambda: F.silu(gate) * up, bytes_=6 * gate.numel())
        hidden = random(positions, width)
        timed(f"{side}: rms norm", lambda: F.rms_norm(hidden, (width,), hidden[0], 1e-6), bytes_=4 * hidden.numel())
    # cuDNN plans each new length.
    if timed.gpu:
        for length in (384, 385, 512):
            x = random(8, 16, length, 128)
            torch.cuda.synchronize()
            began = time.perf_counter()
            F.scaled_dot_product_attention(x, x, x, is_causal=True)
            torch.cuda.synchronize()
            report.add(
                what=f"first attention of length {length}", result=f"{1e3 * (time.perf_counter() - began):.0f} ms"
            )
