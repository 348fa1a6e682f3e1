#!/usr/bin/env python3
"""Writes schedules.csv beside itself: learning rates by step, from the schedules of transformers.

Run it with the environment of tools/python-env. The optimizer's first step in transformers uses the factor of step 0;
DDK counts steps from 1, so its step s has the factor of s.
"""
import pathlib
import warnings

import torch
from transformers import optimization as of

PEAK, END = 2e-3, 1.5e-4


def rates(schedule, steps):
    """The learning rates at steps 0 to `steps`, by stepping an optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = schedule(optimizer)
    values = []
    for _ in range(steps + 1):
        values.append(scheduler.get_last_lr()[0])
        scheduler.step()
    return values


def of_shape(name, warmup, total, decay, form):
    if name == "constant":
        return lambda opt: of.get_constant_schedule_with_warmup(opt, warmup)
    if name == "linear":
        return lambda opt: of.get_polynomial_decay_schedule_with_warmup(opt, warmup, total, lr_end=END, power=1.0)
    if name == "cosine":
        return lambda opt: of.get_cosine_with_min_lr_schedule_with_warmup(opt, warmup, total, min_lr=END)
    return lambda opt: of.get_wsd_schedule(
        opt, warmup, decay, num_training_steps=total, decay_type=form, min_lr_ratio=END / PEAK
    )


CASES = [
    ("constant", 5, 40, 0, ""),
    ("linear", 5, 40, 0, ""),
    ("linear", 0, 40, 0, ""),
    ("cosine", 5, 40, 0, ""),
    ("cosine", 0, 40, 0, ""),
    ("wsd", 5, 40, 10, "linear"),
    ("wsd", 5, 40, 10, "cosine"),
    ("wsd", 5, 40, 10, "1-sqrt"),
    ("wsd", 0, 40, 4, "linear"),
    ("wsd", 8, 40, 32, "linear"),
]

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    lines = ["shape,warmup,total,decay,form,step,rate"]
    for name, warmup, total, decay, form in CASES:
        all_rates = rates(of_shape(name, warmup, total, decay, form), total + 3)
        warm = rates(of_shape("constant", warmup, total, 0, ""), total)
        # Past the end as well, where a cosine of transformers would rise again.
        for step in range(1, total + (1 if name == "cosine" else 4)):
            # The warmup of transformers' wsd starts at the end value instead of 0.
            rate = warm[step] if step < warmup else all_rates[step]
            lines.append(f"{name},{warmup},{total},{decay},{form},{step},{rate!r}")
    path = pathlib.Path(__file__).with_name("schedules.csv")
    path.write_text("\n".join(lines) + "\n")
