#!/usr/bin/env python3
"""Opens the live page of a training run and the page of ended runs, as a user does.

    live_page.py LIVE_URL RUNS_URL OUT

LIVE_URL is the page of a `ddk train`. RUNS_URL is the page of a `ddk serve` that lists the same run among others. The
script saves screenshots in the folder OUT. If a check fails, the script exits with a message."""

import json
import os
import sys
from urllib.parse import urlsplit

from webdriver import Browser, wait_for

TAB = "\ue004"
ENTER = "\ue007"
SPACE = "\ue00d"

# Counts what is drawn: lines, areas, and points in charts that have a length, and the colors in each lane.
DRAWN = """
const shapes = (id) => {
  const drawn = document.querySelectorAll(`#${id} svg polyline, #${id} svg polygon`);
  return [...drawn].filter((shape) => shape.getTotalLength() > 20).length;
};
const colors = (canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return new Set(new Uint32Array(copy.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
};
return {
  gap: shapes('gap-chart'), loss: shapes('loss-chart'),
  perplexity: shapes('perplexity-chart'), mixture: shapes('weights-chart'),
  pace: shapes('tokens_per_second-chart'),
  lanes: [...document.querySelectorAll('#lanes canvas')].map(colors),
  domains: document.querySelectorAll('#domain-rows tr').length,
  queues: document.querySelectorAll('#queues li').length, workers: document.querySelectorAll('#worker-rows tr').length,
  events: document.querySelectorAll('#event-rows li').length,
};
"""

NAMES = """
const svg = document.querySelector(`#${arguments[0]} svg`);
return svg ? JSON.parse(svg.dataset.panels)[0].lines.map((line) => line.name) : [];
"""

POINT = """
const svg = document.querySelector('#loss-chart svg');
const box = svg.getBoundingClientRect();
const at = { bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
svg.dispatchEvent(new PointerEvent('pointermove', at));
const tip = document.getElementById('tip');
return tip && !tip.hidden ? tip.textContent : '';
"""

FOCUSED = (
    "const at = document.activeElement; return at.hash || at.pathname || at.getAttribute('aria-labelledby') ||"
    " at.tagName;"
)
OUTLINE = "return getComputedStyle(document.activeElement).outlineStyle"


def check(holds, message):
    if not holds:
        raise SystemExit(message)


def check_logs(browser, *addresses):
    """Checks that the console has no errors and that the page sent no requests to other hosts."""
    complaints = [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    check(not complaints, f"the console complains: {complaints}")
    asked = set()
    for entry in browser.log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    ours = {urlsplit(address).netloc for address in addresses}
    foreign = [
        url
        for url in asked
        if urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).netloc not in ours
    ]
    check(not foreign, f"other places were asked: {foreign}")
    check(asked, "no request was seen: the log is off")


def is_drawn(browser):
    drawn = browser.run(DRAWN)
    charts = min(drawn["gap"], drawn["loss"], drawn["perplexity"], drawn["mixture"]) >= 3 and drawn["pace"]
    lanes = [colors for colors in drawn["lanes"] if colors > 1]
    return drawn if charts and len(lanes) >= 3 and drawn["events"] else None


def step(browser):
    text = browser.run("return document.getElementById('done').textContent")
    digits = "".join(character for character in text.split(" of ")[0] if character.isdigit())
    return int(digits or 0)


def check_values_move(browser):
    """Checks that values change without a reload: a mark on the window must survive."""
    browser.run("window.notReloaded = true")
    first = wait_for("a first step", lambda: step(browser))
    wait_for("a later step", lambda: step(browser) > first)
    check(browser.run("return window.notReloaded === true"), "the page was loaded again")


def check_keyboard(browser):
    """Checks that Tab reaches the skip link first, then every section's link and every table, and never gets stuck."""
    browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = []
    for _ in range(40):
        browser.press(TAB)
        reached.append(browser.run(FOCUSED))
        if reached[-1] == "BODY":
            break
        check(browser.run(OUTLINE) == "solid", f"the focus at {reached[-1]} cannot be seen")
    check(reached[0] == "#main", f"the first stop is {reached[0]}")
    wanted = ["#learning", "#domains", "#mixture", "#time", "#events", "domains-title", "/api/status"]
    missing = [stop for stop in wanted if stop not in reached]
    check(not missing, f"Tab does not reach {missing}: {reached}")
    stuck = [stop for stop, after in zip(reached, reached[1:]) if stop == after]
    check(not stuck, f"Tab stays at {stuck}")
    browser.run("document.activeElement.blur()")
    browser.press(TAB)
    browser.press(ENTER)
    check(browser.run("return location.hash") == "#main", "the skip link leads nowhere")


def check_pointer(browser):
    """Checks that the page shows the values under the pointer, and hides them outside the charts."""
    said = wait_for("values under the pointer", lambda: browser.run(POINT))
    for name in ("loss", "cross-entropy", "KL"):
        check(name in said, f"{name} is not in '{said}'")
    browser.run("document.body.dispatchEvent(new PointerEvent('pointermove', { bubbles: true }))")
    check(browser.run("return document.getElementById('tip').hidden"), "the values stay")


def check_narrow(browser):
    """Checks that nothing is wider than the screen."""
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    wait_for("a page that fits", lambda: browser.run(wide) <= 0, seconds=10)


def live(browser, address, out):
    browser.look_like(1280, 900, "light")
    browser.open(address)
    check_values_move(browser)
    drawn = wait_for("charts", lambda: is_drawn(browser))
    check(drawn["domains"] >= 3 and drawn["queues"] >= 2 and drawn["workers"] >= 5, f"something is missing: {drawn}")
    check_pointer(browser)
    check_keyboard(browser)
    browser.open(address)
    wait_for("charts after a reload", lambda: is_drawn(browser))
    browser.picture(os.path.join(out, "live-light.png"))
    # The README's screenshot.
    browser.look_like(1280, 1180, "light")
    browser.picture(os.path.join(out, "live-page.png"), whole=False)
    background = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(background)
    browser.look_like(1280, 900, "dark")
    wait_for("dark colors", lambda: browser.run(background) != light)
    wait_for("charts in the dark", lambda: is_drawn(browser))
    browser.picture(os.path.join(out, "live-dark.png"))
    browser.look_like(390, 844, "light")
    check_narrow(browser)
    wait_for("charts on a narrow screen", lambda: is_drawn(browser))
    browser.picture(os.path.join(out, "live-narrow.png"))
    # Leave the page, because it polls until then.
    browser.open("about:blank")
    check_logs(browser, address)


def ended(browser, address, out):
    browser.look_like(1280, 900, "light")
    browser.open(address)
    count = wait_for("runs", lambda: browser.run("return document.querySelectorAll('#run-rows tr').length"))
    check(count >= 2, f"{count} runs are listed")
    for index in range(2):
        browser.run("document.querySelectorAll('#run-rows input')[arguments[0]].focus()", index)
        browser.press(SPACE)
    charts = ("gap-chart", "loss-chart")
    wait_for("two runs side by side", lambda: all(len(browser.run(NAMES, chart)) == 2 for chart in charts))
    browser.picture(os.path.join(out, "runs-light.png"))
    browser.look_like(390, 844, "dark")
    check_narrow(browser)
    browser.picture(os.path.join(out, "runs-narrow-dark.png"))
    browser.look_like(1280, 900, "light")
    browser.run("document.querySelector('#run-rows a').click()")
    wait_for(
        "the run's own page", lambda: browser.run("return document.querySelectorAll('#domain-rows tr').length >= 3")
    )
    wait_for("its mixture", lambda: browser.run(DRAWN)["mixture"] >= 3)
    check_logs(browser, address)


def main():
    live_address, runs_address, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    with Browser() as browser:
        live(browser, live_address, out)
        ended(browser, runs_address, out)
    print("the pages are as they should be; pictures are in", out)


main()
