"""Drives chromium through chromedriver over plain HTTP (WebDriver) for the tests, using only the standard library."""

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

INSTALL = (
    "the browser test needs chromium and its driver: tools/test-tools installs them, SKIP=browser leaves the"
    " test out"
)

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-proxy-server",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
]


class Browser:
    """One browser with its own profile; use it in a `with` statement."""

    def __enter__(self):
        self.chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        driver = shutil.which("chromedriver")
        if not self.chromium or not driver:
            raise SystemExit(INSTALL)
        self.profile = tempfile.TemporaryDirectory(prefix="ddk-chromium-", ignore_cleanup_errors=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.base = f"http://127.0.0.1:{port}"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.session = ""
        wait_for("chromedriver", lambda: self._send("GET", "/status")["ready"])
        options = {
            "binary": self.chromium,
            "args": FLAGS + [f"--user-data-dir={self.profile.name}"],
            "perfLoggingPrefs": {"enableNetwork": True},
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{answer['sessionId']}"
        # Discard the requests of the browser's own first tab, which no page of ours made.
        self.open("about:blank")
        self.log("performance")
        return self

    def __exit__(self, *_):
        try:
            if self.session:
                self._send("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait()
            self.profile.cleanup()

    def _send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with self.opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def open(self, url):
        self._send("POST", f"{self.session}/url", {"url": url})

    def run(self, script, *arguments):
        """Runs a script and returns its result."""
        body = {"script": script, "args": list(arguments)}
        return self._send("POST", f"{self.session}/execute/sync", body)

    def press(self, key, times=1):
        """Presses a key as a user does."""
        actions = [{"type": kind, "value": key} for _ in range(times) for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._send("POST", f"{self.session}/actions", body)

    def tell(self, command, **parameters):
        """Sends a command of the DevTools protocol."""
        body = {"cmd": command, "params": parameters}
        return self._send("POST", f"{self.session}/goog/cdp/execute", body)

    def look_like(self, width, height, scheme):
        """Emulates a screen of this size and a preference for a light or dark color scheme."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)

    def picture(self, path, whole=True):
        """Saves a screenshot of the visible page, or of the whole page if `whole`."""
        shot = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(path, "wb") as out:
            out.write(base64.b64decode(shot["data"]))

    def log(self, kind):
        """Returns the browser's log entries since the last call."""
        return self._send("POST", f"{self.session}/se/log", {"type": kind})


def wait_for(what, ask, seconds=60):
    """Repeats `ask` until it returns something, and returns that."""
    deadline = time.monotonic() + seconds
    problem = None
    while time.monotonic() < deadline:
        try:
            found = ask()
        except (OSError, RuntimeError) as error:
            problem, found = error, None
        if found:
            return found
        time.sleep(0.1)
    raise SystemExit(f"waited {seconds} s in vain for: {what} ({problem})")
