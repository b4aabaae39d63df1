"""Watches a demo: several times a second for the live view, once a second for the report."""

from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.table import Table

from springtide.cli.world import Engines
from springtide.config import Config
from springtide.console.figures import VERDICTS, FleetSecond, RunFigures, exit_status, percent, verdict
from springtide.console.live import REDRAW_S, LiveState, LiveView, Phase, StockLive, ZoneLive, phase_at
from springtide.errors import InventoryError, LedgerError
from springtide.fleet.loop import ControlLoop
from springtide.model import FEN_PER_CNY, NodeState, Replica, ReplicaState, Sale, SetEndpoints, Snapshot, Zone
from springtide.ports import Clock, Cloud
from springtide.twin.crowd.demand import Demand
from springtide.twin.crowd.spec import SECONDS, CrowdSecond, read_seconds

DECISIONS_KEPT = 8


class Watch:
    """A context manager that owns the terminal. `fleet` is what it has kept for the report."""

    def __init__(self, clock: Clock, out: Path, config: Config, demand: Demand) -> None:
        """Nothing is drawn before it is entered."""
        self.fleet: list[FleetSecond] = []
        self._clock = clock
        self._out = out
        self._config = config
        self._demand = demand
        self._console = Console()
        self._view = LiveView(self._console, clock)
        self._later: Phase | None = None
        self._stock: dict[str, int] = {}
        self._orders: dict[str, int] = {}
        self._cost_cny = 0.0
        self._decisions: deque[str] = deque(maxlen=DECISIONS_KEPT)
        self._told_tick = 0

    def __enter__(self) -> Self:
        """Take the terminal, and say that the engines are starting."""
        self._view.__enter__()
        self._view.update(LiveState(phase=Phase.STARTING, elapsed_s=0.0, opens_s=0.0, demand=self._demand.rates))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back."""
        self._view.__exit__(kind, error, trace)

    def settling(self) -> None:
        """The crowd has gone; what is open is waited for."""
        self._later = Phase.SETTLING

    def auditing(self) -> None:
        """Everything has settled; it is being proved."""
        self._later = Phase.AUDITING

    async def follow(self, loop: ControlLoop, engines: Engines, cloud: Cloud, sale: Sale, start_ms: int) -> None:
        """Watch until cancelled. An engine that does not answer is asked again in the next second."""
        kept = -1
        while True:
            elapsed_s = (self._clock.now_ms() - start_ms) / 1000
            if loop.latest is not None:
                snapshot, _ = loop.latest
                if elapsed_s >= kept + 1:
                    kept = int(elapsed_s)
                    await self._look(engines, cloud, sale)
                    self.fleet.append(self._fleet_second(kept, snapshot))
                self._tell(loop)
                self._view.update(self._state(elapsed_s, snapshot, sale, start_ms))
            await self._clock.sleep(REDRAW_S)

    def conclude(self, figures: RunFigures) -> None:
        """Print the verdict and where things are."""
        table = Table(box=None, padding=(0, 2), show_header=False)
        for check in verdict(figures):
            mark = "[green]✓" if check.ok else "[red]✗" if check.judged else "[yellow]–"
            table.add_row(mark, check.name, check.value, f"[dim]{check.bound}[/]")
        self._console.print(table)
        status = exit_status(figures)
        self._console.print(f"[bold {'green' if status == 0 else 'red'}]{VERDICTS[status]}[/]")
        if not figures.scaled:
            shed = percent(figures.crowd.shed_share_at_peak)
            self._console.print(
                f"Without scaling, {shed} of the first attempts at the peak were asked to come back later."
            )
        for name in ("report.html", "report.json", "journal.jsonl", "logs"):
            self._console.print(f"[dim]{self._out / name}[/]")

    async def _look(self, engines: Engines, cloud: Cloud, sale: Sale) -> None:
        self._cost_cny = await cloud.cost_fen(self._clock.now_ms()) / FEN_PER_CNY
        try:
            view = await engines.inventory.view(sale.sale)
            totals = await engines.ledger.totals(sale.sale)
        except (InventoryError, LedgerError):
            return
        self._stock = view.stock if view is not None else {}
        self._orders = {
            "reserved": sum(row.reserved for row in totals),
            "paid": sum(row.paid for row in totals),
            "returning": sum(row.returning for row in totals),
        }

    def _fleet_second(self, second: int, snapshot: Snapshot) -> FleetSecond:
        zones = [zone.name for zone in snapshot.zones]
        ready = [one.zone for one in snapshot.replicas if one.state is ReplicaState.READY]
        return FleetSecond(
            second=second,
            capacity_by_zone={zone: ready.count(zone) * self._config.counter.rate_max for zone in zones},
            replicas_by_zone={zone: sum(one.zone == zone for one in snapshot.replicas) for zone in zones},
            nodes_by_zone={zone: sum(node.zone == zone for node in snapshot.nodes) for zone in zones},
            stock=dict(self._stock),
            orders=dict(self._orders),
            cost_cny=self._cost_cny,
        )

    def _tell(self, loop: ControlLoop) -> None:
        if loop.latest is None or loop.latest[1].tick == self._told_tick:
            return
        plan = loop.latest[1]
        self._told_tick = plan.tick
        for action in plan.actions:
            if not isinstance(action, SetEndpoints):
                self._decisions.append(f"{type(action).__name__}: {action.reason}")

    def _state(self, elapsed_s: float, snapshot: Snapshot, sale: Sale, start_ms: int) -> LiveState:
        seconds = read_seconds(self._out / SECONDS)
        last = seconds[-1] if seconds else None
        opens_s = (sale.opens_ms - start_ms) / 1000
        lasts_s = max((event.lasts_s for event in self._config.calendar), default=0.0)
        phase = self._later or phase_at(elapsed_s, opens_s, lasts_s, float(len(self._demand.rates)))
        return LiveState(
            phase=phase,
            elapsed_s=elapsed_s,
            opens_s=opens_s,
            demand=self._demand.rates,
            sent_rps=_sent(last, phase),
            p99_ms=last.p99_ms if last else 0.0,
            shed=sum(one.shed for one in seconds),
            failed=sum(one.failed for one in seconds),
            cost_cny=self._cost_cny,
            zones=tuple(self._zone(zone, snapshot) for zone in snapshot.zones),
            stock=tuple(StockLive(sku.sku, self._stock.get(sku.sku, sku.stock), sku.stock) for sku in sale.skus),
            orders=self._orders,
            decisions=tuple(self._decisions),
        )

    def _zone(self, zone: Zone, snapshot: Snapshot) -> ZoneLive:
        here = [one for one in snapshot.replicas if one.zone == zone.name]
        ready = _count(here, ReplicaState.READY)
        return ZoneLive(
            name=zone.name,
            kind=zone.kind,
            capacity=ready * self._config.counter.rate_max,
            starting=_count(here, ReplicaState.STARTING),
            ready=ready,
            draining=_count(here, ReplicaState.DRAINING),
            nodes=sum(node.zone == zone.name and node.state is not NodeState.RELEASING for node in snapshot.nodes),
        )


def _count(replicas: list[Replica], state: ReplicaState) -> int:
    return sum(one.state is state for one in replicas)


def _sent(last: CrowdSecond | None, phase: Phase) -> float:
    """Nobody sends any more once the crowd has gone."""
    return 0.0 if last is None or phase in {Phase.SETTLING, Phase.AUDITING} else float(last.sent)
