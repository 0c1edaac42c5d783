"""The page in a real browser: its script runs under its own security policy, and sorting sorts."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sprachbund.report import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on the PATH to open the page with")

# Errors are recorded from the first moment; the clicks follow once the page's own script has run.
WATCH = """
window.found = {errors: [], orders: []};
window.addEventListener("error", (event) => found.errors.push(event.message));
document.addEventListener("securitypolicyviolation", (event) => found.errors.push(event.violatedDirective));
for (const kind of ["error", "warn"]) console[kind] = (...words) => found.errors.push(words.join(" "));
"""
CLICK = """
const table = document.querySelector("table.sortable");
const headers = Array.from(table.tHead.rows[0].cells);
for (const name of [...CLICKS]) {
  const header = headers.find((cell) => cell.textContent.trim() === name);
  header.querySelector("button").click();
  found.orders.push({
    clicked: name,
    sort: headers.map((cell) => cell.getAttribute("aria-sort")),
    tags: Array.from(table.tBodies[0].rows, (row) => row.cells[1].textContent),
    last: table.rows[table.rows.length - 1].cells[0].textContent,
  });
}
window.dispatchEvent(new Event("beforeprint"));
found.unfolded = document.querySelectorAll("details:not([open])").length;
window.dispatchEvent(new Event("afterprint"));
found.folded = document.querySelectorAll("details:not([open])").length;
const out = document.createElement("pre");
out.id = "found";
out.textContent = JSON.stringify(found);
document.body.append(out);
"""


def open_page(folder: Path, clicks: list[str]) -> dict[str, Any]:
    """Open a copy of the report that clicks on headers, and return what it saw."""
    page = write_report(folder).read_text(encoding="utf-8")
    scripts = [WATCH, f"const CLICKS = {json.dumps(clicks)};\n{CLICK}"]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    # The page's policy stays in force; it only learns of the two scripts of this test.
    allowed = "".join(f" 'sha256-{value}'" for value in hashes)
    page, replaced = re.subn(r"(script-src 'sha256-[^']+')", lambda match: match[1] + allowed, page)
    assert replaced == 1
    page = page.replace("<title>", f"<script>{scripts[0]}</script><title>", 1)
    page = page.replace("</body>", f"<script>{scripts[1]}</script></body>")
    copy = folder / "clicked.html"
    copy.write_text(page, encoding="utf-8")
    assert CHROMIUM is not None
    options = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update"
    command = [CHROMIUM, *(f"--{option}" for option in options.split()), "--disable-sync"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout.decode("utf-8"), re.DOTALL)
    assert match is not None, "the page's scripts did not run to the end"
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


def test_sorting_and_folding_without_a_console_error(planned_folder: Path) -> None:
    metrics = json.loads((planned_folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["languages"]["wol_Latn"]["bits_per_byte"]["dense"] = None
    (planned_folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    found = open_page(planned_folder, ["bits/byte dense", "bits/byte dense", "Tag", "Tag", "bits/byte dense"])
    assert found["errors"] == []

    bits = {tag: language["bits_per_byte"]["dense"] for tag, language in metrics["languages"].items()}
    rising = sorted((tag for tag in bits if bits[tag] is not None), key=lambda tag: bits[tag])
    up, down, by_tag, by_tag_down, again = found["orders"]
    assert up["tags"] == [*rising, "wol_Latn"]
    assert [bits[tag] for tag in down["tags"][:-1]] == [bits[tag] for tag in reversed(rising)]
    assert down["tags"][-1] == "wol_Latn"  # not measured: at the end either way
    assert by_tag["tags"] == sorted(bits)
    assert by_tag_down["tags"] == sorted(bits, reverse=True)
    assert again["tags"] == up["tags"]

    assert [order["sort"].count("ascending") for order in found["orders"]] == [1, 0, 1, 0, 1]
    assert [order["sort"].count("descending") for order in found["orders"]] == [0, 1, 0, 1, 0]
    assert {order["last"] for order in found["orders"]} == {"Average"}
    assert found["unfolded"] == 0
    assert found["folded"] == 4


def test_a_script_in_a_name_does_not_run(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["languages"]["wol_Latn"]["name"] = (
        "<script>console.error('ran')</script><img src=x onerror=console.error(1)>"
    )
    (run_folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert open_page(run_folder, ["Language"])["errors"] == []
