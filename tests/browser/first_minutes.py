#!/usr/bin/env python3
"""Watches the first minutes of a training run on all sides at once, as an impatient user does.

    first_minutes.py [--program DDK] [--seconds 300] [--window 2] CONFIG [DDK_OPTION ...]

Starts `ddk train CONFIG` on a pseudo-terminal, and samples the bar, `/api/status` and the live page several times a
second. In each window, each of them must show a phase, a count or an elapsed time that moves, and a time that is left.
The script prints every window in which one of them does not, and exits with 1 if there was one. It ends the run with
SIGINT."""

import argparse
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request

from webdriver import Browser

ACTIVITY = """
const text = (id) => { const node = document.getElementById(id); return node && !node.hidden ? node.textContent : ''; };
return [text('activity'), text('left'), text('state')];
"""


# Seconds in which the program itself starts.
GRACE = 3.0


class Bar:
    """The last line that the program has drawn on its terminal."""

    def __init__(self, command, columns=150):
        near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=far, env=environment
        )
        os.close(far)
        self.near, self.said, self.line = near, "", ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while True:
            try:
                chunk = os.read(self.near, 65536).decode(errors="replace")
            except OSError:
                return
            if not chunk:
                return
            self.said += chunk
            pieces = re.split(r"[\r\n]|\x1b\[[0-9;]*[A-Za-z]", self.said[-4000:])
            pieces = [piece for piece in pieces if "elapsed" in piece]
            self.line = pieces[-1].strip(" █░") if pieces else ""

    def address(self):
        found = re.search(r"live page: (http://[^/]+)/", self.said)
        return found.group(1) if found else None


def ask(address):
    try:
        with urllib.request.urlopen(f"{address}/api/status", timeout=2) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def of_api(status):
    """Phase, what moves, and whether a rest is known."""
    activity = (status or {}).get("activity") or {}
    moves = (activity.get("done"), int(activity.get("seconds", -1)))
    rest = activity.get("seconds_left") or status and status.get("seconds_left")
    return activity.get("phase", ""), moves, bool(rest)


def of_text(text, more=""):
    phase = re.split(r"[:,…]", text)[0]
    return phase, text, " left" in text + more


def check(name, samples, window):
    """Returns the windows in which there was no phase, nothing moved, or no rest was shown. A window with fewer than
    three samples says nothing: the machine was too busy to take them."""
    faults, start = [], GRACE
    if not samples:
        return [(0.0, "no sample")]
    end = samples[-1][0]
    while start + window <= end:
        inside = [sample for at, sample in samples if start <= at < start + window]
        problems = []
        if len(inside) < 3:
            faults.append((start, None))
            start += window / 2
            continue
        if not any(phase for phase, _, _ in inside):
            problems.append("no phase")
        if len({str(moves) for _, moves, _ in inside}) < 2:
            problems.append("nothing moves")
        if not any(rest for _, _, rest in inside):
            problems.append("no time left")
        if problems:
            phases = ", ".join(sorted({phase for phase, _, _ in inside if phase})) or "-"
            faults.append((start, f"{name}: {' and '.join(problems)} ({phases})"))
        start += window / 2
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="ddk")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--window", type=float, default=2)
    parser.add_argument("config")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    bars, answers, pages, lefts = [], [], [], []
    with Browser() as browser:
        bar = Bar([args.program, "train", args.config, *args.options])
        began = time.monotonic()
        is_open = False
        while time.monotonic() - began < args.seconds and bar.process.poll() is None:
            at = time.monotonic() - began
            bars.append((at, of_text(bar.line)))
            address = bar.address()
            if address:
                status = ask(address)
                answers.append((time.monotonic() - began, of_api(status)))
                if status is None and bar.process.poll() is not None:
                    break
                if not is_open:
                    browser.open(address)
                    is_open = True
                activity, left, _ = browser.run(ACTIVITY)
                pages.append((time.monotonic() - began, of_text(activity, left)))
                if status and status.get("seconds_left"):
                    lefts.append(f"{at:6.1f} s: run {status['seconds_left']:.0f} s | {bar.line[-60:]} | {left}")
            select.select([], [], [], 0.25)
        if bar.process.poll() is None:
            bar.process.send_signal(signal.SIGINT)
            bar.process.wait()
        elif bar.process.returncode:
            sys.exit(f"ddk ended with {bar.process.returncode}:\n{bar.said[-2000:]}")
    faults = []
    for name, samples in (("bar", bars), ("api", answers), ("page", pages)):
        phases = []
        for _, (phase, _, _) in samples:
            if phase and (not phases or phases[-1] != phase):
                phases.append(phase)
        first = samples[0][0] if samples else float("nan")
        print(f"{name}: {len(samples)} samples from {first:.1f} s on; phases: {'; '.join(phases)}")
        faults += check(name, samples, args.window)
    print("time left, as the API, the bar and the page showed it:")
    print("\n".join(lefts[:: max(1, len(lefts) // 20)]))
    unseen = sum(problem is None for _, problem in faults)
    faults = [(at, problem) for at, problem in faults if problem]
    for at, problem in faults:
        print(f"{at:6.1f} s: {problem}")
    print(f"{unseen} windows had too few samples")
    if faults:
        sys.exit(1)
    print(f"every window of {args.window:g} s shows a phase, a movement and a time left")


if __name__ == "__main__":
    main()
