"""Strikes and heals, as the schedule says, and only when something is in flight."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from springtide.cli.torture_world import RESERVE_MB, Target, TortureWorld
from springtide.drivers.disk_guard import LOOK_S
from springtide.drivers.small_disk import MB
from springtide.errors import InventoryError
from springtide.ports import Clock
from springtide.twin.torture.client import Client
from springtide.twin.torture.history import Struck
from springtide.twin.torture.schedule import Fault, FaultKind

WELL_S = 60.0
"""How long a target may take to be well again before the next fault strikes something else."""

LOAD_S = 5.0
"""How long a fault waits for something to be in flight at its target."""

EXTRA_FAULTS = 20
"""Faults beyond those wanted, in place of those that did not count."""

LEFT_MB = 8
"""What a full disk leaves free: far under the guard's reserve, and enough for what goes on nevertheless."""

POLL_S = 0.004
_DISK = "disk"


class Striker:
    """Carries a schedule out. Faults of different targets may overlap; those of one target never do."""

    def __init__(self, world: TortureWorld, client: Client, clock: Clock, log: Callable[[Struck], None]) -> None:
        """`log` gets each fault when it is healed."""
        self._world = world
        self._client = client
        self._clock = clock
        self._log = log
        self._healing: dict[str, asyncio.Task[None]] = {}

    async def run(self, plan: Iterator[Fault], wanted: int) -> int:
        """Strike until `wanted` faults have counted; how many did. Afterwards everything is healed."""
        counted = 0
        try:
            for _ in range(wanted + EXTRA_FAULTS):
                if counted >= wanted:
                    break
                fault = next(plan)
                await self._clock.sleep(fault.gap_s)
                counted += await self._strike(fault)
        finally:
            await asyncio.gather(*self._healing.values())
        return counted

    async def _strike(self, fault: Fault) -> bool:
        """Wait for the target to be well and loaded, then strike. Whether it counts."""
        if (before := self._healing.get(fault.target)) is not None:
            await before
        in_flight = await self._until_loaded(fault)
        at_ms = self._clock.now_ms()
        self._hit(fault)
        heal = (
            self._fill_up(fault, at_ms, in_flight)
            if fault.kind is FaultKind.DISK
            else self._heal(fault, at_ms, in_flight)
        )
        self._healing[fault.target] = asyncio.create_task(heal)
        return in_flight > 0

    async def _until_loaded(self, fault: Fault) -> int:
        until_s = self._clock.monotonic_s() + LOAD_S
        while not (in_flight := await self._in_flight(fault.target)) and self._clock.monotonic_s() < until_s:
            await self._clock.sleep(POLL_S)
        return in_flight

    async def _in_flight(self, target: str) -> int:
        """What the fault would hit.

        Requests that a counter or the back office has, entries that recorder and ledger have yet to take, or for the
        inventory and its disk all purchases under way.
        """
        if target.startswith("counter") or target == "backoffice":
            return self._client.asking[target]
        if target in {"recorder", "postgres"}:
            sale, inventory = self._world.sale, self._world.stores.inventory
            with contextlib.suppress(InventoryError):
                return sum([await inventory.journal_depth(sale.sale, bucket) for bucket in range(sale.buckets)])
            return 0
        return self._client.purchases_asking

    def _hit(self, fault: Fault) -> None:
        if fault.kind is FaultKind.DISK:
            return
        target = self._world.targets[fault.target]
        if fault.kind is FaultKind.KILL:
            target.supervisor.child.signal(signal.SIGKILL)
        elif fault.kind is FaultKind.STOP:
            _signal_all(target, signal.SIGSTOP)
        elif target.node is not None:
            target.node.cut()

    async def _heal(self, fault: Fault, at_ms: int, in_flight: int) -> None:
        target = self._world.targets[fault.target]
        killed = target.supervisor.child.pid
        await self._clock.sleep(fault.lasts_s)
        if fault.kind is FaultKind.STOP:
            _signal_all(target, signal.SIGCONT)
        elif fault.kind is FaultKind.CUT and target.node is not None:
            target.node.heal()
        note = ""
        until_s = self._clock.monotonic_s() + WELL_S
        while not target.serving() or (fault.kind is FaultKind.KILL and target.supervisor.child.pid == killed):
            if self._clock.monotonic_s() > until_s:
                note = f"was not well again after {WELL_S:.0f} s"
                break
            await self._clock.sleep(POLL_S)
        self._log(Struck(fault, at_ms, self._clock.now_ms(), in_flight, in_flight > 0, note))

    async def _fill_up(self, fault: Fault, at_ms: int, in_flight: int) -> None:
        """Fill the disk up to the reserve, then, once the guard has seen it, nearly to its end; then clean up."""
        ballast, guard, valkey = self._world.ballast, self._world.stores.guard, self._world.stores.valkey
        if ballast is None or guard is None or valkey is None:
            return
        restarts = valkey.restarts
        try:
            ballast.leave(RESERVE_MB * MB - MB)
            await self._clock.sleep(3 * LOOK_S)
            refused = guard.figures.refusing
            ballast.leave(LEFT_MB * MB)
            await self._clock.sleep(fault.lasts_s)
        finally:
            ballast.drop()
        note = "" if refused else "the disk guard did not stop the selling"
        if valkey.restarts != restarts:
            note = "Valkey ended while the disk was full"
        self._log(Struck(fault, at_ms, self._clock.now_ms(), in_flight, in_flight > 0, note))


def _signal_all(target: Target, number: signal.Signals) -> None:
    for pid in target.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
