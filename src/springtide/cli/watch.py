"""Watches a demo: once a second it keeps the fleet's figures for the report."""

from types import TracebackType
from typing import Self
from pathlib import Path

from springtide.cli.world import Engines
from springtide.console.figures import FleetSecond, RunFigures
from springtide.drivers.localcloud import LocalCloud
from springtide.errors import SpringtideError
from springtide.fleet.loop import ControlLoop
from springtide.model import ReplicaState, Sale, Snapshot, Zone
from springtide.ports import Clock
from springtide.twin.crowd.demand import Demand
from springtide.twin.crowd.spec import SECONDS, read_seconds

class Watch:
    def __init__(self, clock: Clock, out: Path, demand: Demand) -> None:
        self._clock = clock; self._out = out
        self.fleet: list[FleetSecond] = []
        self.rate_max = 250.0
    def __enter__(self) -> Self: return self
    def __exit__(self, *a) -> None: pass
    def settling(self): print("settling")
    def auditing(self): print("auditing")
    def conclude(self, figures): 
        from springtide.console.figures import verdict, exit_status
        for c in verdict(figures): print(c)
    async def follow(self, loop, engines, cloud, sale, start_ms) -> None:
        while True:
            now=self._clock.now_ms()
            second=(now-start_ms)//1000
            if second>=0 and loop.latest:
                snap,plan=loop.latest
                view=await engines.inventory.view(sale.sale)
                totals=await engines.ledger.totals(sale.sale)
                ready=[r for r in snap.replicas if r.state is ReplicaState.READY]
                cap={z.name: 250.0*sum(r.zone==z.name for r in ready) for z in snap.zones}
                self.fleet.append(FleetSecond(second, cap, {z.name: sum(r.zone==z.name for r in snap.replicas) for z in snap.zones},{z.name: sum(n.zone==z.name for n in snap.nodes) for z in snap.zones}, view.stock if view else {}, {"reserved": sum(t.reserved for t in totals),"paid": sum(t.paid for t in totals)}, await cloud.cost_fen(now)/100))
                secs=read_seconds(self._out/SECONDS)
                last=secs[-1] if secs else None
                print(second, cap, plan.replicas_wanted, plan.demand.reason, view.stock, last and (last.second,last.planned,last.sent,last.answers,last.shed,last.failed,last.late,last.p99_ms), flush=True)
            await self._clock.sleep(1-(self._clock.now_ms()-start_ms)%1000/1000)
