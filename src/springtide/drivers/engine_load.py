"""How busy an engine is, as a sensor: the share of one core that its process used since it was last asked.

An engine whose work is done by one thread (Valkey executes commands in one) is saturated at 1.
"""

from collections.abc import Callable

from springtide.drivers.pids import started_ticks, usage_of
from springtide.errors import SensorError
from springtide.ports import Clock

_SPAN_S_MIN = 0.05
"""CPU time is counted in hundredths of a second: over a shorter time the share would be noise."""


class EngineLoad:
    """`ports.Sensor` for a local process; `pid` is asked each time, because an engine may be started again."""

    def __init__(self, name: str, pid: Callable[[], int], clock: Clock) -> None:
        self._name = name
        self._pid = pid
        self._clock = clock
        self._process = (0, 0)
        self._cpu_s = 0.0
        self._at_s = 0.0
        self._share = 0.0

    async def read(self) -> float:
        """From 0 to 1; the first figure after a start is 0. Raises SensorError when the process is gone."""
        pid = self._pid()
        process, now_s = (pid, started_ticks(pid)), self._clock.monotonic_s()
        if process[1] < 0:
            raise SensorError(f"{self._name} (process {pid}) does not run, so nobody knows how busy it is; see its log")
        cpu_s = usage_of([pid]).cpu_s
        if process != self._process:
            self._process, self._cpu_s, self._at_s, self._share = process, cpu_s, now_s, 0.0
        elif now_s - self._at_s >= _SPAN_S_MIN:
            self._share = min(1.0, max(0.0, (cpu_s - self._cpu_s) / (now_s - self._at_s)))
            self._cpu_s, self._at_s = cpu_s, now_s
        return self._share
