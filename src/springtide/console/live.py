"""A run while it goes on: a live view on a terminal, one plain line every five seconds elsewhere."""

import itertools
from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from springtide.model import ZoneKind
from springtide.ports import Clock

REDRAW_S = 0.25
PLAIN_LINE_S = 5.0
COUNTDOWN_S = 8.0
"""The countdown is the time from this long before the opening on."""
DECISIONS_SHOWN = 5
BAR_CELLS = 28
SPARK_CELLS = 64
_BLOCKS = "▁▂▃▄▅▆▇█"
_LABEL_CELLS = 10


class Phase(StrEnum):
    """Where a run is, as it is shown."""

    STARTING = "engines starting"
    EVENING = "normal evening"
    COUNTDOWN = "countdown"
    OPEN = "OPEN"
    TAIL = "tail"
    SETTLING = "settling"
    AUDITING = "auditing"


def phase_at(elapsed_s: float, opens_s: float, lasts_s: float, demand_s: float) -> Phase:
    """The phase by the clock: `lasts_s` is the length of the opening's peak, `demand_s` of the demand."""
    if elapsed_s < 0:
        return Phase.STARTING
    if elapsed_s >= demand_s:
        return Phase.SETTLING
    if elapsed_s < opens_s:
        return Phase.COUNTDOWN if elapsed_s >= opens_s - COUNTDOWN_S else Phase.EVENING
    return Phase.OPEN if elapsed_s < opens_s + lasts_s else Phase.TAIL


class ZoneLive(msgspec.Struct, frozen=True):
    """One zone: capacity of its ready replicas in requests/s, and counts."""

    name: str
    kind: ZoneKind
    capacity: float
    starting: int
    ready: int
    draining: int
    nodes: int


class StockLive(msgspec.Struct, frozen=True):
    """One SKU: units left of those there were."""

    sku: str
    left: int
    initial: int


class LiveState(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown. `demand` is the planned requests/s of each second of the run; `elapsed_s` counts from 0.

    `shed` and `failed` are counts since the start; `p99_ms` is of the last second; `decisions` has the
    newest last.
    """

    phase: Phase
    elapsed_s: float
    opens_s: float
    demand: tuple[float, ...] = ()
    sent_rps: float = 0.0
    p99_ms: float = 0.0
    shed: int = 0
    failed: int = 0
    cost_cny: float = 0.0
    zones: tuple[ZoneLive, ...] = ()
    stock: tuple[StockLive, ...] = ()
    orders: dict[str, int] = {}
    decisions: tuple[str, ...] = ()


class LiveView:
    """A context manager; call `update` as often as there is news: it draws at most four times a second."""

    def __init__(self, console: Console, clock: Clock) -> None:
        """Live when the console is a terminal, plain lines when it is not."""
        self._console = console
        self._clock = clock
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._drawn_s = float("-inf")
        self._phase: Phase | None = None

    def __enter__(self) -> Self:
        """Take the terminal."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back; the last picture stays."""
        if self._live is not None:
            self._live.stop()

    def update(self, state: LiveState) -> None:
        """Show the state, unless something was shown a moment ago; a new phase is always shown."""
        now_s = self._clock.monotonic_s()
        pause_s = PLAIN_LINE_S if self._live is None else REDRAW_S
        if state.phase is self._phase and now_s - self._drawn_s < pause_s:
            return
        self._drawn_s, self._phase = now_s, state.phase
        if self._live is None:
            self._console.print(plain_line(state), highlight=False, soft_wrap=True, markup=False)
        else:
            self._live.update(picture(state), refresh=True)


def plain_line(state: LiveState) -> str:
    """One line for a log."""
    ready = " ".join(f"{zone.name}={zone.ready}" for zone in state.zones)
    stock = " ".join(f"{one.sku}={one.left}" for one in state.stock)
    orders = " ".join(f"{name}={count}" for name, count in state.orders.items())
    parts = [
        f"{state.elapsed_s:6.1f} s  {state.phase}",
        f"{state.sent_rps:.0f} requests/s of {sum(zone.capacity for zone in state.zones):.0f}",
        f"replicas {ready or '-'}",
        f"stock {stock or '-'}",
        f"orders {orders or '-'}",
        f"p99 {state.p99_ms:.1f} ms",
        f"shed {state.shed} failed {state.failed}",
        f"cost {state.cost_cny:.3f} CNY",
    ]
    return " | ".join(parts)


def picture(state: LiveState) -> RenderableType:
    """The live view of one moment."""
    parts: list[RenderableType] = [_head(state)]
    if state.demand:
        parts.append(_demand(state))
    if state.zones:
        parts.append(_zones(state))
    if state.stock:
        parts.append(_stock(state))
    parts.append(_figures(state))
    if state.decisions:
        parts.append(_decisions(state))
    return Panel(Group(*parts), title="Springtide", title_align="left", border_style="blue", padding=(0, 1))


def _head(state: LiveState) -> Text:
    text = Text()
    style = "bold white on red" if state.phase is Phase.OPEN else "bold black on cyan"
    text.append(f" {state.phase} ", style=style)
    text.append(f"  second {max(0, int(state.elapsed_s))}", style="bold")
    if state.phase in {Phase.EVENING, Phase.COUNTDOWN}:
        text.append(f"   opens in {max(0.0, state.opens_s - state.elapsed_s):.0f} s", style="yellow")
    return text


def _demand(state: LiveState) -> Text:
    line, done = sparkline(state.demand, state.elapsed_s, SPARK_CELLS)
    text = Text("\nrequests/s".ljust(_LABEL_CELLS + 1))
    text.append(f" {state.sent_rps:6,.0f}  ", style="bold")
    text.append(line[:done], style="cyan")
    text.append(line[done:], style="bright_black")
    return text


def sparkline(values: Sequence[float], elapsed_s: float, cells: int) -> tuple[str, int]:
    """The highest value of each stretch of seconds as a block, and how many cells of it are past."""
    cells = min(cells, len(values))
    top = max(values) or 1.0
    edges = [at * len(values) // cells for at in range(cells + 1)]
    highest = [max(values[low:high]) for low, high in itertools.pairwise(edges)]
    line = "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(value / top * len(_BLOCKS)))] for value in highest)
    done = sum(edge <= elapsed_s for edge in edges[:-1]) if elapsed_s >= 0 else 0
    return line, done


def _zones(state: LiveState) -> Table:
    top = max(1.0, state.sent_rps, max(state.demand, default=0.0), sum(zone.capacity for zone in state.zones))
    table = _table("capacity", "", "requests/s", "ready", "starting", "draining", "nodes")
    for zone in state.zones:
        style = "cyan" if zone.kind is ZoneKind.IDC else "yellow"
        table.add_row(
            zone.name,
            bar(zone.capacity / top, style),
            f"{zone.capacity:,.0f}",
            *(str(count) if count else "·" for count in (zone.ready, zone.starting, zone.draining, zone.nodes)),
        )
    return table


def _stock(state: LiveState) -> Table:
    table = _table("stock", "", "units", "of")
    for one in state.stock:
        share = one.left / one.initial if one.initial else 0.0
        table.add_row(one.sku, bar(share, "green"), f"{one.left:,}" if one.left else "sold out", f"{one.initial:,}")
    return table


def _table(first: str, second: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column(first, min_width=_LABEL_CELLS, no_wrap=True)
    table.add_column(second, width=BAR_CELLS, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def bar(share: float, style: str) -> Text:
    """A bar of 28 cells; anything above 0 shows at least one."""
    share = min(1.0, max(0.0, share))
    full = max(1, round(share * BAR_CELLS)) if share > 0 else 0
    return Text.assemble(("█" * full, style), ("·" * (BAR_CELLS - full), "bright_black"))


def _figures(state: LiveState) -> Text:
    orders = "  ".join(f"{name} {count:,}" for name, count in state.orders.items()) or "none yet"
    text = Text("\n")
    text.append("orders    ", style="bright_black")
    text.append(f"{orders}\n", style="bold")
    text.append("p99 ", style="bright_black")
    text.append(f"{state.p99_ms:.1f} ms", style="bold")
    for name, count in (("asked to come later", state.shed), ("failed", state.failed)):
        text.append(f"   {name} ", style="bright_black")
        text.append(f"{count:,}", style="bold red" if count else "bold")
    text.append("   cost ", style="bright_black")
    text.append(f"{state.cost_cny:.3f} CNY", style="bold")
    return text


def _decisions(state: LiveState) -> Text:
    text = Text("\n")
    text.append("decisions", style="bright_black")
    for decision in state.decisions[-DECISIONS_SHOWN:]:
        text.append(f"\n  {decision}")
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
