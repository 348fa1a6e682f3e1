"""Compares the student's wait for a teacher on a server with that for a teacher in the process, alternating in one run.

usage: python3 benches/served.py DDK [--config config/demo.toml] [--steps 96] [--pairs 5]

The server is a stub that answers each request after the time that the teacher in the process takes for its tokens, one
request at a time. Its hidden states are constants, so the losses mean nothing. The models and the corpus of the
configuration must exist (`ddk demo` makes them). Prints the share of the steps' time in which the student waits for
the teacher, in both cases, and the difference: medians over the pairs.
"""

import argparse
import http.server
import json
import pathlib
import statistics
import struct
import subprocess
import tempfile
import threading
import time
import tomllib


class Stub(http.server.ThreadingHTTPServer):
    """Answers like vLLM. Computes nothing."""

    def __init__(self, width, context):
        super().__init__(("127.0.0.1", 0), Handler)
        self.width, self.context, self.seconds_per_token = width, context, 0.0
        self.lane, self.row = threading.Lock(), struct.pack("<f", 0.25) * width
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, headers=()):
        self.send_response(200)
        for name, value in [*headers, ("content-length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        models = {"data": [{"id": "teacher", "max_model_len": self.server.context}]}
        self.answer(json.dumps({"version": "stub"} if self.path == "/version" else models).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        data, start = [], 0
        with self.server.lane:
            began = time.monotonic()
            for index, tokens in enumerate(body["input"]):
                end = start + len(tokens) * len(self.server.row)
                data.append({"index": index, "start": start, "end": end, "shape": [len(tokens), self.server.width]})
                start = end
            taken = sum(map(len, body["input"])) * self.server.seconds_per_token
            rows = self.server.row * (start // len(self.server.row))
            time.sleep(max(0.0, taken - (time.monotonic() - began)))
        self.answer(rows, [("metadata", json.dumps({"data": data})), ("content-type", "application/octet-stream")])


def train(args, folder, name, sets):
    """Trains a run. Returns the share of time that the student waited, the teacher's seconds per token, the speed."""
    sets = {"run.name": name, "run.output_dir": str(folder), "run.max_steps": args.steps, "telemetry.enabled": False,
            **sets}
    command = [args.ddk, "train", args.config]
    command += [part for key, value in sets.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    run = folder / name
    # The first steps load the models into the caches.
    steps = [json.loads(line)["seconds"] for line in (run / "run.jsonl").read_text().splitlines()][8:]
    summary = json.loads((run / "summary.json").read_text())
    share = sum(step["teacher_wait"] for step in steps) / sum(sum(step.values()) for step in steps)
    return share, summary["teacher_busy_seconds"] / summary["tokens"], summary["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ddk")
    parser.add_argument("--config", default="config/demo.toml")
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    shown = subprocess.run([args.ddk, "config", "show", args.config], check=True, stdout=subprocess.PIPE, text=True)
    settings = tomllib.loads(shown.stdout)
    config = json.loads((pathlib.Path(settings["teacher"]["model"]) / "config.json").read_text())
    stub = Stub(config["hidden_size"], settings["corpus"]["sequence_length"] + 1)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for number in range(args.pairs + 1):
            local, stub.seconds_per_token, speed = train(args, folder, f"local-{number}", {})
            served, _, served_speed = train(args, folder, f"served-{number}", {"teacher.servers": [stub.address]})
            print(f"teacher_wait: local {local:.2%}, served {served:.2%}; {1e6 * stub.seconds_per_token:.1f} µs per "
                  f"token; {speed:.0f} and {served_speed:.0f} tokens/s", flush=True)
            # The first pair only warms up the machine.
            pairs += [(local, served)] if number else []
    local, served = (statistics.median(values) for values in zip(*pairs))
    print(f"medians of {args.pairs}: local {local:.2%}, served {served:.2%}, difference {served - local:+.2%}")


main()
