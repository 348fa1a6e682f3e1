#!/usr/bin/env python3
"""Controls a run from its live page, as a user does.

    control_page.py URL OUT

URL holds the token. The script saves a screenshot of the paused run in the folder OUT. If a check fails, the script
exits with a message."""

import os
import sys

from webdriver import Browser, wait_for

STATE = "return document.getElementById('state').textContent"
ANSWER = "return document.getElementById('answer').textContent"
STEP = "return document.getElementById('done').textContent"
READY = "return !document.getElementById('commands').hidden && !document.getElementById(arguments[0]).disabled"


def check(holds, message):
    if not holds:
        raise SystemExit(message)


def press(browser, button, answer):
    """Presses a button and waits until the page shows a response that begins with `answer`."""
    wait_for(f"the button {button}", lambda: browser.run(READY, button))
    browser.run("document.getElementById(arguments[0]).click()", button)
    wait_for(f"the answer '{answer}'", lambda: browser.run(ANSWER).startswith(answer), seconds=60)


def main():
    address, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    with Browser() as browser:
        browser.look_like(1280, 900, "light")
        browser.open(address)
        wait_for("a run", lambda: browser.run(STATE) == "running")
        press(browser, "pause", "paused after step")
        wait_for("the word 'paused'", lambda: browser.run(STATE) == "paused")
        # The page updates from the run's files a moment later.
        paused = f"step {int(browser.run(ANSWER).split()[-1]):,} of"
        wait_for(paused, lambda: browser.run(STEP).startswith(paused))
        press(browser, "evaluate", "perplexity after step")
        press(browser, "checkpoint", "saved step")
        check(browser.run(STEP).startswith(paused), f"the run went from {paused} to {browser.run(STEP)}")
        browser.picture(os.path.join(out, "live-paused.png"))
        press(browser, "pause", "resumed after step")
        wait_for("the word 'running'", lambda: browser.run(STATE) == "running")
        wait_for("a later step", lambda: not browser.run(STEP).startswith(paused))
        complaints = [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        check(not complaints, f"the console complains: {complaints}")
    print("the run did what the page told it")


main()
