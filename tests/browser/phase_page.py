#!/usr/bin/env python3
"""Opens the live page of a run that is held in a phase, and ends the run.

    phase_page.py URL PID PHASE

The page must show PHASE, an elapsed time that ticks, and the time that is left, long before the first step. After
SIGINT to PID, it must show that the run was stopped. If a check fails, the script exits with a message."""

import os
import signal
import sys

from webdriver import Browser, wait_for

STATE = "return document.getElementById('state').textContent"
ACTIVITY = "const line = document.getElementById('activity'); return line.hidden ? '' : line.textContent"


def main():
    address, process, phase = sys.argv[1:]
    with Browser() as browser:
        browser.open(address)

        def activity(but=()):
            text = browser.run(ACTIVITY)
            complete = text.startswith(phase) and " elapsed" in text and " left" in text
            return text if complete and text not in but else None

        first = wait_for("the phase", activity)
        second = wait_for("the next second", lambda: activity([first]))
        wait_for("another second", lambda: activity([first, second]))
        os.kill(int(process), signal.SIGINT)
        wait_for("the end of the run", lambda: browser.run(STATE) == "stopped", seconds=60)
        if browser.run(ACTIVITY):
            raise SystemExit("a stopped run still shows a phase")
    print("the page shows the phase and the end")


main()
