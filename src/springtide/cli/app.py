"""The commands.

Exit status: 0 done, 1 a verdict or audit that does not hold, 2 bad input, 3 machine too slow, 130 Ctrl-C.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import uvloop
from cyclopts import App, CycloptsError, Parameter

from springtide import __version__
from springtide.errors import SpringtideError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = App(
    name="springtide",
    help="Sell a limited stock to a crowd: nothing oversold, nothing lost, capacity that rises with the sale.",
    version=__version__,
)
run = App(name="run", help="The processes a sale consists of. `springtide demo` starts them for you.", show=False)
app.command(run)

SettingsFile = Annotated[Path, Parameter(help="The role's settings, written by the command that starts it.")]


@app.command
def demo(
    config: Annotated[Path | None, Parameter(help="The sale; without it, the live room that comes along.")] = None,
    *,
    out: Annotated[Path, Parameter(help="Where the report and the logs go.")] = Path("out/demo"),
    scale: Annotated[bool, Parameter(help="--no-scale: the base replicas alone, to see what elasticity does.")] = True,
    chaos: Annotated[bool, Parameter(help="Kill a counter, the recorder and a whole zone while it sells.")] = False,
    port: Annotated[int, Parameter(help="The balancer's port; 0 takes a free one.")] = 0,
) -> int:
    """Run a whole flash sale on this machine: real engines, real HTTP, a crowd of buyers, and a verdict."""
    from springtide.cli.demo import DemoOptions, run_demo  # noqa: PLC0415 - each command loads only what it needs

    options = DemoOptions(config=config, out=out, scale=scale, chaos=chaos, port=port)
    return _run(run_demo(options, dict(os.environ)))


@app.command
def audit(
    sale: Annotated[str, Parameter(help="The sale's id.")],
    *,
    inventory: Annotated[str, Parameter(help="HOST:PORT of Valkey.")],
    ledger: Annotated[str, Parameter(help="PostgreSQL's URL.")],
    wait_s: Annotated[float, Parameter(help="How long the ledger may take to reach the journal's end.")] = 10.0,
) -> int:
    """Prove a sale: nothing oversold, nothing lost, stock + reserved + paid + returning = initial + restocked."""
    from springtide.cli.audit import run_audit  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_audit(sale, inventory, ledger, wait_s))


@run.command
def counter(*, settings: SettingsFile, replica_id: str, announce: Path) -> int:
    """One replica of the counter."""
    from springtide.cli.run_counter import run_counter  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_counter(settings, replica_id, announce))


@run.command
def recorder(*, settings: SettingsFile) -> int:
    """The recorder: journal to ledger."""
    from springtide.cli.run_workers import run_recorder  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_recorder(settings))


@run.command
def backoffice(*, settings: SettingsFile, announce: Path) -> int:
    """The back office: payments, expiry, stock returns."""
    from springtide.cli.run_workers import run_backoffice  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_backoffice(settings, announce))


@run.command
def crowd(*, spec: Path) -> int:
    """The crowd of buyers of a demo."""
    from springtide.cli.run_workers import run_crowd_role  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_crowd_role(spec))


def _run(work: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end. The first SIGTERM or SIGINT cancels it; more are ignored while it cleans up."""

    async def cancellable() -> int:
        loop = asyncio.get_running_loop()
        working = asyncio.ensure_future(work)
        stopping: list[bool] = []

        def stop() -> None:
            if not stopping:
                stopping.append(True)
                working.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        return await working

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(cancellable())
        except asyncio.CancelledError:
            sys.stderr.write("springtide: stopped; everything that was started has been ended\n")
            return EXIT_INTERRUPTED


def main() -> None:
    """The console script."""
    try:
        status = app(sys.argv[1:], print_error=True, exit_on_error=False)
    except CycloptsError:
        sys.exit(EXIT_BAD_INPUT)
    except SpringtideError as error:
        sys.stderr.write(f"springtide: {error}\n")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)
