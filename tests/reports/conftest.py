"""A real browser for the pages."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Browse = Callable[..., dict[str, Any]]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """`browse(page, function, width=1200)`: what a JavaScript function returns on a copy of `page` in Chromium."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.fail(f"no browser ({', '.join(BROWSERS)}); install Debian's package chromium")

    def run(page: Path, function: str, width: int = 1200) -> dict[str, Any]:
        probe = f"""<script>addEventListener("load", () => {{
            const element = document.createElement("pre");
            element.id = "probe";
            try {{ element.textContent = JSON.stringify(({function})()); }}
            catch (error) {{ element.textContent = JSON.stringify({{error: String(error)}}); }}
            document.body.append(element);
        }});</script>"""
        copy = tmp_path / "probed.html"
        copy.write_text(page.read_text(encoding="utf-8") + probe, encoding="utf-8")
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                f"--user-data-dir={tmp_path / 'browser'}",
                f"--window-size={width},1000",
                "--virtual-time-budget=5000",
                "--dump-dom",
                copy.as_uri(),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        values: dict[str, Any] = json.loads(html.unescape(found[1]))
        assert "error" not in values, values
        return values

    return run
