"""Faults of `springtide demo --chaos`: processes of this run, killed by pid while the sale is at its peak."""

import signal
from dataclasses import dataclass

import msgspec

from springtide.cli.supervisor import Supervisor
from springtide.drivers.process import ProcessRuntime
from springtide.model import Replica, ReplicaState
from springtide.ports import Clock


class Fault(msgspec.Struct, frozen=True):
    """One fault that struck: what, and in which second of the run."""

    second: float
    what: str


@dataclass(frozen=True)
class Chaos:
    """Three faults, each some seconds after the opening."""

    runtime: ProcessRuntime
    recorder: Supervisor
    clock: Clock
    start_ms: int
    opens_ms: int
    zone: str
    struck: list[Fault]

    async def run(self) -> None:
        """Kill one counter, then the recorder, then every replica of a zone."""
        await self._until(1.5)
        for replica in (await self._ready())[:1]:
            self.runtime.kill(replica.replica_id)
            self._strike(f"counter {replica.replica_id} killed")
        await self._until(3.0)
        self.recorder.child.signal(signal.SIGKILL)
        self._strike("recorder killed")
        await self._until(5.0)
        lost = [replica for replica in await self._ready() if replica.zone == self.zone]
        for replica in lost:
            self.runtime.kill(replica.replica_id)
        self._strike(f"zone {self.zone} lost: {len(lost)} replicas killed")

    async def _until(self, after_opening_s: float) -> None:
        wait_ms = self.opens_ms + after_opening_s * 1000 - self.clock.now_ms()
        await self.clock.sleep(max(0.0, wait_ms / 1000))

    async def _ready(self) -> list[Replica]:
        return [replica for replica in await self.runtime.list() if replica.state is ReplicaState.READY]

    def _strike(self, what: str) -> None:
        self.struck.append(Fault(second=(self.clock.now_ms() - self.start_ms) / 1000, what=what))
