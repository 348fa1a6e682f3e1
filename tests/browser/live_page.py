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

FOCUSED = """
const at = document.activeElement;
const inside = () => `${at.closest('[id]')?.id ?? at.tagName} ${at.textContent}`;
return at === document.body ? 'BODY' : at.hash || at.getAttribute('aria-labelledby') || at.id ||
  (at.pathname ?? inside());
"""
# The values of a column of the domains' table, as numbers or words.
COLUMN = """
const cells = [...document.querySelectorAll(`#domain-rows tr > :nth-child(${arguments[0]})`)];
return cells.map((cell) => Number(cell.dataset.value ?? NaN));
"""
SORT = "return document.querySelector(`#domains thead th:nth-child(${arguments[0]})`).getAttribute('aria-sort')"
HEADER = "document.querySelector(`#domains thead th:nth-child(${arguments[0]}) button`).focus()"
RAW = "return document.querySelectorAll('#loss-chart polyline[opacity=\"0.3\"]').length"
SMOOTH = """
const slider = document.getElementById('smoothing');
slider.value = arguments[0];
slider.dispatchEvent(new Event('input'));
"""
LEGEND = """
const list = document.querySelector('#gap-chart .series');
const items = [...list.querySelectorAll('button')];
items.at(-1).focus();
const [box, outer] = [items.at(-1).getBoundingClientRect(), list.getBoundingClientRect()];
return {
  names: items.map((item) => item.textContent),
  colors: new Set(items.map((item) => item.firstChild.style.background)).size,
  height: list.clientHeight, scrolls: list.scrollHeight > list.clientHeight,
  lastIsInside: box.bottom <= outer.bottom + 1 && box.top >= outer.top - 1,
};
"""
DIMMED = "return document.querySelectorAll('#gap-chart polyline.dim').length"
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
    for _ in range(120):
        browser.press(TAB)
        reached.append(browser.run(FOCUSED))
        if reached[-1] == "BODY":
            break
        check(browser.run(OUTLINE) == "solid", f"the focus at {reached[-1]} cannot be seen")
    check(reached[0] == "#main", f"the first stop is {reached[0]}")
    wanted = ["#learning", "#domains", "#mixture", "#time", "#events", "domains-title", "report", "api-status"]
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
    check(said.startswith("step "), f"'{said}' does not name the step")


def check_smoothing(browser):
    """Checks that the slider smooths the loss, keeps the raw values visible, and remembers its place."""
    wait_for("raw values behind the smoothed ones", lambda: browser.run(RAW) == 3)
    browser.run(SMOOTH, 0)
    wait_for("a chart without smoothing", lambda: browser.run(RAW) == 0)
    browser.run(SMOOTH, 4)
    wait_for("a smoothed chart", lambda: browser.run(RAW) == 3)
    said = browser.run("return document.getElementById('smoothing-value').textContent")
    check(said == "0.95", f"the slider says {said}")
    check(browser.run("return localStorage.getItem('ddk-smoothing')") == "4", "the page forgets the smoothing")
    browser.run(SMOOTH, 2)


def check_sorting(browser):
    """Checks that a header sorts the table by keyboard: largest first, smallest first, as given."""
    gap = 2
    names = "return [...document.querySelectorAll('#domain-rows th')].map((cell) => cell.textContent)"
    given = browser.run(names)
    check(given == sorted(given), f"the domains are not in the order of their names: {given}")
    browser.run(HEADER, gap)
    for direction, reverse in (("descending", True), ("ascending", False)):
        browser.press(ENTER)
        check(browser.run(SORT, gap) == direction, f"the header does not say {direction}")
        values = browser.run(COLUMN, gap)
        check(values == sorted(values, reverse=reverse) and len(values) >= 3, f"not {direction}: {values}")
    browser.press(ENTER)
    check(browser.run(SORT, gap) is None, "the third press keeps the order")
    check(browser.run("return document.activeElement.tagName") == "BUTTON", "the focus is lost")


def check_words(browser):
    """Checks that the page names the models, the method and the means, and links the report and the files."""
    text = browser.run("return document.body.innerText")
    for said in ("teacher", "student", "gamma", "learning rate", "sequences of", "mean of", "since the start at"):
        check(said in text, f"'{said}' is not on the page")
    files = browser.run("return [...document.querySelectorAll('#files a')].map((link) => link.textContent)")
    check("run.jsonl" in files and "config.toml" in files, f"files: {files}")


def check_samples(browser):
    """Checks that the page shows what the models write, and that the student's text is of a later step than 0."""
    shown = "return [...document.querySelectorAll('#texts dt')].map((name) => name.textContent)"
    names = wait_for("a later text of the student", lambda: (said := browser.run(shown)) and len(said) == 3 and said)
    check(names[:2] == ["teacher", "student, step 0"] and names[2].startswith("student, step "), f"texts of {names}")
    texts = browser.run("return [...document.querySelectorAll('#texts q')].map((text) => text.textContent)")
    check(all(texts), f"a text is empty: {texts}")
    check(browser.run("return document.querySelector('#texts figcaption').textContent") == "The old", "no prompt")


def check_many(browser, address):
    """Checks a run of fourteen domains: each has a color, and the legend scrolls to each."""
    browser.open(address + "run?name=many")
    rows = "return document.querySelectorAll('#domain-rows tr').length"
    wait_for("fourteen domains", lambda: browser.run(rows) == 14)
    browser.look_like(390, 844, "light")
    legend = wait_for("a legend", lambda: browser.run(LEGEND))
    check(len(legend["names"]) == 14 and legend["colors"] == 14, f"names or colors are missing: {legend}")
    check(legend["scrolls"] and legend["height"] < 100, f"the legend does not scroll: {legend}")
    check(legend["lastIsInside"], f"the last name cannot be reached: {legend}")
    check(browser.run(DIMMED) == 0, "lines are dim before one is chosen")
    browser.press(SPACE)
    check(browser.run(DIMMED) == 13, "a name in the legend does not show its line alone")
    check_narrow(browser)
    browser.look_like(1280, 900, "light")


def check_report(browser, address, out):
    """Checks that the link opens a report in the same style, whose charts show values under the pointer."""
    font = browser.run("return getComputedStyle(document.body).fontFamily")
    check(browser.run("return document.getElementById('report').search") == "?name=many", "the link has no name")
    browser.run("document.getElementById('report').click()")
    wait_for("a report", lambda: browser.run("return document.body.className") == "report")
    check(browser.run("return getComputedStyle(document.body).fontFamily") == font, "the report has another font")
    text = browser.run("return document.body.innerText")
    check("SmolLM2-135M" in text and "process 1" in text, "the report names no teacher or machine")
    charts = browser.run("return document.querySelectorAll('figure svg polyline, figure svg polygon').length")
    check(charts > 14, f"{charts} shapes in the report")
    loss = POINT.replace("#loss-chart ", "figure:nth-of-type(2) ")
    said = wait_for("values under the pointer", lambda: browser.run(loss))
    check(said.startswith("step "), said)
    browser.picture(os.path.join(out, "report.png"))
    # The browser keeps the report away from the rest of the server.
    check(browser.run("return self.origin") == "null", "the report acts as a page of the server")


def check_list(browser):
    """Checks that the list of runs can be filtered and sorted."""
    names = "return [...document.querySelectorAll('#run-rows th a')].map((link) => link.textContent)"
    everything = browser.run(names)
    filtered = """
    const filter = document.getElementById('filter');
    filter.value = arguments[0];
    filter.dispatchEvent(new Event('input'));
    """
    browser.run(filtered, "MANY stopped")
    check(browser.run(names) == ["many"], f"the filter keeps {browser.run(names)}")
    check("1 of" in browser.run("return document.getElementById('state').textContent"), "the count does not say so")
    browser.run(filtered, "")
    check(browser.run(names) == everything, "the filter cannot be undone")
    browser.run("document.querySelector('thead th:nth-child(2) button').click()")
    browser.run("document.querySelector('thead th:nth-child(2) button').click()")
    check(browser.run(names) == sorted(everything, reverse=True), f"not sorted: {browser.run(names)}")
    browser.run("document.querySelector('thead th:nth-child(2) button').click()")


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
    check_smoothing(browser)
    check_sorting(browser)
    check_words(browser)
    check_samples(browser)
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
    check(count >= 3, f"{count} runs are listed")
    check_list(browser)
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
    check_many(browser, address)
    browser.picture(os.path.join(out, "many-light.png"))
    check_report(browser, address, out)
    check_logs(browser, address)


def main():
    live_address, runs_address, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    with Browser() as browser:
        live(browser, live_address, out)
        ended(browser, runs_address, out)
    print("the pages are as they should be; pictures are in", out)


main()
