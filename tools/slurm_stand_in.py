#!/usr/bin/env python3
"""Stands in for ddk and vllm in the jobs of tools/slurm_loopback.py.

`train ...`: writes a line of JSON into RECORDS/JOB.START.RESTART.RANK for its start and for each SIGTERM. The first
start of a job does what STAND_IN says: `wait` for SIGTERM, which it takes seconds to answer, as DDK does; `fail`; or
`end`. A later start ends at once, as a resumed run that is done.
`serve ... --port N ...`: answers /health on this port."""

import http.server
import json
import os
import pathlib
import signal
import sys
import time

SAVE_SECONDS = 4
PATIENCE_SECONDS = 240


def train():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    variables = os.environ
    name = ".".join([variables["SLURM_JOB_ID"], variables.get("SLURM_RESTART_COUNT", "0"),
                     variables["TORCHELASTIC_RESTART_COUNT"], variables["RANK"]])
    with open(pathlib.Path(variables["RECORDS"]) / name, "a", buffering=1) as file:
        def record(event, **more):
            file.write(json.dumps({"event": event, "time": time.time(), **more}) + "\n")

        record("start", node=os.uname().nodename, arguments=sys.argv[1:], variables=dict(variables))
        does = variables["STAND_IN"]
        if does == "end" or "SLURM_RESTART_COUNT" in variables:
            return 0
        if does == "fail":
            return 3
        if signal.sigtimedwait({signal.SIGTERM}, PATIENCE_SECONDS) is None:
            record("timeout")
            return 1
        record("TERM")
        # DDK ends at once after a second signal.
        if signal.sigtimedwait({signal.SIGTERM}, SAVE_SECONDS):
            record("TERM")
            return 143
        record("saved")
        return 143


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()


class Everything(http.server.BaseHTTPRequestHandler):
    """Answers every path, as the server behind a proxy."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


def serve():
    port = int(sys.argv[sys.argv.index("--port") + 1])
    http.server.HTTPServer(("0.0.0.0", port), Health).serve_forever()


if __name__ == "__main__":
    sys.exit({"train": train, "serve": serve}[sys.argv[1]]())
