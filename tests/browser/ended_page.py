#!/usr/bin/env python3
"""Keeps the live page of a run open while the run ends, as a user who waits for it does.

    ended_page.py URL PID SIGNAL EXPECTED

The script sends SIGNAL (`TERM`, `KILL`; `-`: none) to the process PID once the page shows its run. The page must show
EXPECTED and keep showing it after the server is gone. If a check fails, the script exits with a message."""

import json
import os
import signal
import sys

from webdriver import Browser, wait_for

STATE = "return document.getElementById('state').textContent"
ACTIVITY = "return document.getElementById('activity').textContent"


def check(holds, message):
    if not holds:
        raise SystemExit(message)


def failures(browser):
    """Counts the status requests that no server answered."""
    asked, failed = set(), 0
    for entry in browser.log("performance"):
        message = json.loads(entry["message"])["message"]
        parameters = message["params"]
        if message["method"] == "Network.requestWillBeSent" and "/api/status" in parameters["request"]["url"]:
            asked.add(parameters["requestId"])
        if message["method"] == "Network.loadingFailed" and parameters["requestId"] in asked:
            failed += 1
    return failed


def main():
    address, process, name, expected = sys.argv[1:]
    with Browser() as browser:
        browser.open(address)
        # The page shows a run that is held at its end as `ending`.
        seen = ("ending",) if name == "INT" else ("running", "ending", expected)
        wait_for("a run", lambda: browser.run(STATE) in seen)
        if name == "INT":
            wait_for("the phase", lambda: browser.run(ACTIVITY).startswith("exporting the student"))
        browser.log("performance")
        if name != "-":
            os.kill(int(process), getattr(signal, f"SIG{name}"))
        wait_for(f"the word '{expected}'", lambda: browser.run(STATE) == expected, seconds=120)
        wait_for("a request that nobody answers", lambda: failures(browser), seconds=30)
        state = browser.run(STATE)
        check(state == expected, f"the page says '{state}' in the end, not '{expected}'")
    print("the page keeps", expected)


main()
