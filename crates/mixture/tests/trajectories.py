#!/usr/bin/env python3
"""Writes trajectories.json beside itself: trajectories of the policies, from their papers' formulas as they stand
there.

Independent of the Rust code: plain Python floats, exp and log without any rearrangement for stability. Standard
library only.
"""
import json
import math
import pathlib

PPL_STUDENT = [[9.1, 6.4, 12.7, 4.9], [8.0, 6.3, 10.9, 4.6], [7.2, 6.1, 9.6, 4.4], [6.9, 5.9, 9.0, 3.4]]
PPL_TEACHER = [6.1, 5.2, 7.9, 3.6]
NATURAL = [0.4, 0.3, 0.2, 0.1]


def normalized(values):
    total = math.fsum(values)
    return [value / total for value in values]


def no_smoothing():
    """Eq. 1 of DDK at each interval's start."""
    return {
        "student": PPL_STUDENT,
        "teacher": PPL_TEACHER,
        "weights": [
            normalized([math.exp(s / t) for s, t in zip(student, PPL_TEACHER)]) for student in PPL_STUDENT
        ],
    }


def sheared(reference):
    """Algorithm 1 of Sheared LLaMA (arXiv 2310.06694); the first interval draws by NATURAL."""
    weights, all_weights = NATURAL, []
    for student in PPL_STUDENT[1:]:
        behind = [max(math.log(s) - r, 0.0) for s, r in zip(student, reference)]
        weights = normalized([w * math.exp(b) for w, b in zip(weights, behind)])
        all_weights.append(weights)
    return {
        "natural": NATURAL,
        "student": PPL_STUDENT,
        "teacher": PPL_TEACHER,
        "reference": reference,
        "weights": all_weights,
    }


def odm(smoothing):
    """Online Data Mixing (arXiv 2312.02406): EXP3 with the moving average of the importance-weighted loss as reward.

    A loss of None: nothing of the domain was drawn in that step.
    """
    losses = [
        [3.1, 2.4, 4.0, 1.9],
        [3.0, None, 3.8, 1.8],
        [2.9, 2.2, None, None],
        [2.7, 2.1, 3.5, 1.6],
        [2.6, None, 3.1, 1.5],
    ]
    # Exploration alone rules the first N ln N turns.
    losses += [
        [2.5, 2.0, 3.0, None],
        [2.5, 1.9, 2.8, 1.5],
        [None, 1.8, 2.7, 1.4],
        [2.4, 1.8, 2.7, 1.4],
        [2.3, 1.7, None, 1.3],
    ]
    count = 4
    epsilon = lambda turn: min(1 / count, math.sqrt(math.log(count) / (count * turn)))
    reward = [0.0] * count
    weights = [1 / count] * count
    all_weights = [weights]
    for turn, step in enumerate(losses, start=2):
        reward = [
            r if loss is None else smoothing * r + (1 - smoothing) * loss / w
            for r, loss, w in zip(reward, step, weights)
        ]
        soft = normalized([math.exp(epsilon(turn - 1) * r) for r in reward])
        weights = [(1 - count * epsilon(turn)) * p + epsilon(turn) for p in soft]
        all_weights.append(weights)
    return {"smoothing": smoothing, "losses": losses, "weights": all_weights}


# Perplexities of the student at each evaluation, and of the teacher.
UNEVEN = (
    [[90.0, 30.0, 8.0], [60.0, 28.0, 7.9], [41.0, 27.0, 8.1], [33.0, 24.0, 7.6], [30.0, 21.0, 7.5]],
    [20.0, 18.0, 8.0],
)
# The first domain reaches the cap.
CAPPED = (
    [[900.0, 6.0, 7.0, 8.0, 9.0], [700.0, 6.0, 6.9, 7.9, 9.1], [400.0, 5.5, 6.0, 7.7, 9.0]],
    [9.0, 5.0, 6.0, 7.0, 8.5],
)


def excess(alpha, gain, lag, case=UNEVEN):
    """Shares by the excess, as docs/methods.md states it: some domains are past their teacher.

    The list of gaps is that of the evaluations; with a lag, decision k uses evaluation k - 1 (the first one twice).
    """
    student, teacher = case
    decay_left = [1.0, 1.0, 0.75, 0.25, 0.0][: len(student)]
    gaps = [[math.log(s) - math.log(t) for s, t in zip(now, teacher)] for now in student]
    count = len(teacher)
    average = lambda values: math.fsum(values) / count
    # u at the end of interval k, from the gaps before and after it and the weights in it.
    drawn, values, decisions = [], None, []
    for decision in range(len(student)):
        evaluation = max(decision - lag, 0)
        now = gaps[evaluation]
        # Interval `evaluation - 1` ended at this evaluation; nothing is learned from interval 0.
        if evaluation >= 2:
            drop = [before - after for before, after in zip(gaps[evaluation - 1], now)]
            scale = max(average(drop), 0.002)
            u = [
                math.log((max(d, 0.0) + 0.1 * scale) / (w + 1 / count)) for d, w in zip(drop, drawn[evaluation - 1])
            ]
            clipped = [min(max(value - average(u), -1.0), 1.0) for value in u]
            values = clipped if values is None else [(old + new) / 2 for old, new in zip(values, clipped)]
        excess = [max(gap, 0.0) for gap in now]
        m = max(average(excess), 0.02)
        powers = [(e + 0.1 * m) * math.exp(gain * v) for e, v in zip(excess, values or [0.0] * count)]
        fade = alpha * decay_left[decision]
        target = normalized([min(fade * q + (1 - fade) / count, 2.5 / count) for q in normalized(powers)])
        drawn.append(target if not drawn else [(old + new) / 2 for old, new in zip(drawn[-1], target)])
        decisions.append(evaluation)
    return {
        "alpha": alpha,
        "gain": gain,
        "lag": lag,
        "teacher": teacher,
        "student": [student[evaluation] for evaluation in decisions],
        "decay_left": decay_left,
        "weights": drawn,
    }


folder = pathlib.Path(__file__).parent
given = [2.0, 1.9, 2.1, 1.7]
trajectories = {
    "no_smoothing": no_smoothing(),
    "sheared": [sheared([math.log(t) for t in PPL_TEACHER]), sheared(given)],
    "odm": [odm(0.9), odm(0.0)],
    "excess": [excess(0.8, 1.0, 0), excess(0.9, 0.0, 0), excess(0.8, 1.0, 1), excess(0.8, 1.0, 0, CAPPED)],
}
(folder / "trajectories.json").write_text(json.dumps(trajectories, indent=1) + "\n")
