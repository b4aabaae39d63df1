"""How busy an engine is, from the kernel's account of its process."""

import sys
from pathlib import Path

import pytest

from springtide.drivers.child import Child, spawn
from springtide.drivers.engine_load import EngineLoad
from springtide.drivers.system import SystemClock
from springtide.errors import SensorError

BUSY = "while True: pass"
IDLE = "import time; time.sleep(60)"


async def test_busy_and_idle_are_told_apart_and_an_end_is_an_error(tmp_path: Path) -> None:
    clock = SystemClock()
    children = {
        name: spawn(name, [sys.executable, "-S", "-c", program], tmp_path / name)
        for name, program in (("busy", BUSY), ("idle", IDLE))
    }
    now: list[Child] = [children["busy"]]
    try:
        load = EngineLoad("valkey", lambda: now[0].pid, clock)
        assert await load.read() == 0.0, "there is nothing to compare with yet"
        await clock.sleep(1.0)
        busy = await load.read()
        assert await load.read() == busy, "too soon for another figure"
        now[0] = children["idle"]
        assert await load.read() == 0.0, "another process begins anew"
        await clock.sleep(1.0)
        assert await load.read() < busy <= 1.0
    finally:
        for child in children.values():
            await child.stop(clock, 5.0)
    with pytest.raises(SensorError, match="does not run"):
        await load.read()
