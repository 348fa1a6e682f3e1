#!/usr/bin/env python3
"""Has the live page of a run open while that ends, as a person who waits for it does.

    ended_page.py URL PID SIGNAL EXPECTED

SIGNAL (`TERM`, `KILL`; `-`: none) goes to the process PID once the page shows its run. The page has to say EXPECTED,
and to keep that when it finds nobody at the address any more. Anything that is not as it should be ends this with a
message."""

import json
import os
import signal
import sys

from webdriver import Browser, wait_for

STATE = "return document.getElementById('state').textContent"


def check(holds, message):
    if not holds:
        raise SystemExit(message)


def failures(browser):
    """Requests for the status that found nobody."""
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
        # A run that is held at its end is shown as `ending`.
        seen = ("ending",) if name == "INT" else ("running", "ending", expected)
        wait_for("a run", lambda: browser.run(STATE) in seen)
        browser.log("performance")
        if name != "-":
            os.kill(int(process), getattr(signal, f"SIG{name}"))
        wait_for(f"the word '{expected}'", lambda: browser.run(STATE) == expected, seconds=120)
        wait_for("a request that nobody answers", lambda: failures(browser), seconds=30)
        state = browser.run(STATE)
        check(state == expected, f"the page says '{state}' in the end, not '{expected}'")
    print("the page keeps", expected)


main()
