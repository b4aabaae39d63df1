"""Scaling figures from a real Prometheus."""

import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from springtide.drivers.child import spawn
from springtide.drivers.embedded_valkey import free_port
from springtide.drivers.http_get import http_get
from springtide.drivers.prometheus_query import PrometheusSensor
from springtide.drivers.system import SystemClock
from springtide.errors import SensorError

PROMETHEUS = shutil.which("prometheus")
START_S = 20.0

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A Prometheus that scrapes nothing: its queries are arithmetic."""
    clock, port = SystemClock(), free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text("global: {}\n")
    child = spawn(
        "prometheus",
        [
            str(PROMETHEUS),
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        tmp_path / "log",
    )
    try:
        until_s = clock.monotonic_s() + START_S
        while not await answers(clock, port):
            assert child.returncode is None, child.log.read_text()
            assert clock.monotonic_s() < until_s, child.log.read_text()
            await clock.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        await child.stop(clock, 5.0)


async def answers(clock: SystemClock, port: int) -> bool:
    try:
        return (await http_get(clock, "127.0.0.1", port, "/-/ready", 1.0))[0] == 200
    except (OSError, TimeoutError):
        return False


async def read(url: str, query: str) -> float:
    sensor = PrometheusSensor(url, query)
    try:
        return await sensor.read()
    finally:
        await sensor.close()


async def test_one_figure_and_what_is_none(url: str) -> None:
    assert await read(url, "20 + 22") == 42
    assert await read(url, "vector(1.5)") == 1.5
    for query, complaint in (
        ('vector(1) or label_replace(vector(2), "x", "y", "", "")', "gives 2 series instead of one; aggregate it"),
        ("missing_metric", "gives 0 series"),
        ("sum(", "refused 'sum('"),
        ("vector(0) / 0", "must be a number"),
    ):
        with pytest.raises(SensorError, match=re.escape(complaint)):
            await read(url, query)


async def test_a_prometheus_that_is_away_is_an_error() -> None:
    with pytest.raises(SensorError, match="does not answer"):
        await read(f"http://127.0.0.1:{free_port()}", "1")
