"""`springtide simulate --compare`, `--report`, `--demand` as a user runs them, and the page as a browser draws it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.e2e.commandline import command, environment, springtide

QUICK = "small"
POLICIES = ["springtide", "static-peak", "hpa", "keda", "idc-only", "idc-first", "cloud-first"]
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page and the JSON of a comparison."""
    out = tmp_path_factory.mktemp("compare")
    done = springtide("simulate", QUICK, "--compare", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"the report is in {out / 'comparison.html'}" in done.stderr
    for word in (*POLICIES, "bound", "instability"):
        assert word in done.stdout, word
    return out


def test_the_json_has_every_policy_with_all_figures(folder: Path) -> None:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    assert [row["outcome"]["policy"] for row in found["rows"]] == POLICIES
    assert found["left_out"] == []
    for row in found["rows"]:
        assert {"under_accuracy", "over_accuracy", "under_share", "over_share", "instability"} == row["elastic"].keys()
        assert row["outcome"]["clairvoyant_cost_cny"] > 0
        assert row["outcome"]["samples"]


def test_standard_output_has_the_same_as_json(folder: Path, tmp_path: Path) -> None:
    done = springtide("simulate", QUICK, "--compare", "--json", "--out", str(tmp_path))
    said, written = json.loads(done.stdout), json.loads((folder / "comparison.json").read_text())
    said["wall_s"] = written["wall_s"]
    assert said == written


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


DRAWN = "document.querySelectorAll('.js-plotly-plot .svg-container').length"
LINES = """[...document.querySelectorAll('#chart-0 .scatterlayer .trace .js-line')]
    .filter(line => line.getBBox().width > 100).length"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize("width", [1400, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_every_chart(
    folder: Path, browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"], width: int
) -> None:
    page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True).new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: faults.append(request.url) if not request.url.startswith("file:") else None)
    page.goto((folder / "comparison.html").as_uri())
    assert page.evaluate(DRAWN) == 6 + len(POLICIES)
    assert page.evaluate(LINES) == len(POLICIES) + 1
    assert page.evaluate(OVERFLOW) <= 0
    red, green, blue = (int(part) for part in re.findall(r"\d+", page.evaluate(BACKGROUND))[:3])
    assert min(red, green, blue) > 200 if scheme == "light" else max(red, green, blue) < 60
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 100_000  # a plain surface of this size has a few thousand bytes
    assert faults == []
    page.context.close()


def test_a_single_run_has_a_page_too(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "page.html"
    done = springtide("simulate", QUICK, "--policy", "hpa", "--report", str(file))
    assert done.returncode == 0, done.stderr
    assert str(file) in done.stderr
    page = file.read_text()
    assert "hpa, seed 1" in page
    assert len(re.findall(r'id="chart-\d+"', page)) == 6


def test_counts_drive_a_comparison(tmp_path: Path) -> None:
    counts = tmp_path / "counts.csv"
    lines = [f"2026-01-01T20:{n:02}:00Z;{6_000 if 5 <= n < 15 else 600}" for n in range(25)]
    counts.write_text("time;hits\n" + "\n".join(lines))
    done = springtide(
        "simulate", QUICK, "--compare", "--json", "--demand", str(counts), "--scale", "20", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    rows = {row["outcome"]["policy"]: row["outcome"] for row in json.loads(done.stdout)["rows"]}
    came = 20 * (10 * 6_000 + 15 * 600)
    assert rows["static-peak"]["requests"] - rows["static-peak"]["retries"] == pytest.approx(came, rel=0.02)
    assert rows["static-peak"]["until_s"] == 1_500
    assert "people who come" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "hpa"), "--compare runs all policies once"),
        (("--seeds", "3"), "--compare runs all policies once"),
        (("--demand", "/nowhere.csv"), "cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = springtide("simulate", QUICK, "--compare", "--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = springtide("simulate", QUICK, "--compare", "--out", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "choose another folder with --out" in done.stderr


def test_ctrl_c_keeps_the_policies_that_are_finished(tmp_path: Path) -> None:
    """The bar on a terminal says which policy is under way: Ctrl-C comes in the second one."""
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        command("simulate", "double-eleven", "--compare", "--json", "--out", str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(TERM="xterm"),
        text=True,
    )
    os.close(theirs)
    shown = b""
    with process:
        while b"static-peak" not in shown:
            assert select.select([terminal], [], [], 100)[0], shown
            shown += os.read(terminal, 65_536)
        assert b"/s on" in shown  # what stands in the simulation
        os.kill(process.pid, signal.SIGINT)
        reader = threading.Thread(target=drain, args=(terminal,))
        reader.start()
        out, _ = process.communicate(timeout=100)
        reader.join(timeout=10)
    os.close(terminal)
    assert process.returncode == 130
    found = json.loads(out)
    assert found["rows"]
    assert found["left_out"]
    assert [row["outcome"]["policy"] for row in found["rows"]] + found["left_out"] == POLICIES
    assert json.loads((tmp_path / "comparison.json").read_text()) == found
    assert f"left out: {', '.join(found['left_out'])}" in (tmp_path / "comparison.html").read_text()


def drain(terminal: int) -> None:
    """Read what is left, so that nobody waits for it to be read."""
    try:
        while os.read(terminal, 65_536):
            pass
    except OSError:
        pass  # the other end is closed
