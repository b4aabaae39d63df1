"""The commands.

Exit status: 0 done, 1 a verdict or audit that does not hold, or a refusal, 2 bad input, 3 machine too slow, 130 Ctrl-C.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter

from springtide import __version__
from springtide.cli.logs import configure_logs
from springtide.cli.running import EXIT_INTERRUPTED
from springtide.cli.running import run_command as _run
from springtide.errors import Refused, SpringtideError

EXIT_REFUSED = 1
EXIT_BAD_INPUT = 2
PLATFORM = Group("Platform", sort_key=1)

app = App(
    name="springtide",
    help="Sell a limited stock to a crowd: nothing oversold, nothing lost, capacity that rises with the sale.",
    version=__version__,
)
run = App(name="run", help="The processes a sale consists of. `springtide demo` starts them for you.", show=False)
app.command(run)
for _module, _name, _help in (
    ("fleet_commands", "up", "Run the services of a configuration, or change what runs into what it says."),
    ("fleet_commands", "down", "End what `up` started: drained, stopped, rented nodes given back."),
    ("fleet_commands", "status", "Services, replicas, traffic, zones, roll-outs and alerts."),
    ("fleet_commands", "logs", "What the replicas of a service wrote last."),
    ("fleet_commands", "scale", "Bound the replicas of a service by hand."),
    ("fleet_commands", "zone", "Take a zone out of use, by hand, and put it back."),
    ("why_commands", "why", "Why the fleet is as it is: decisions with their reasons."),
    ("why_commands", "replay", "Decide again what a journal holds, and show what would differ."),
    ("cloud_commands", "nodes", "The nodes of data centre and cloud; `nodes cordon` takes one out of use."),
    ("cloud_commands", "offers", "What machines there are to have, at what price, and how many."),
    ("cloud_commands", "cost", "What is spent on rented nodes: now, so far, and until the event is over."),
    ("cloud_commands", "sweep", "Find rented nodes that nobody wants any more, and give them back."),
    ("plan_commands", "plan", "What to rent for an event: when, at what cost, how surely; and hand it over."),
    ("fleet_image", "image", "Build, push, warm, list and collect container images."),
    ("cloud", "cloud", "A cloud to test against: the HTTP API of ECS and ECI over a simulated market."),
    ("calibrate_commands", "calibrate", "Measure what this machine's building blocks do, for simulations."),
    ("simulate", "simulate", "Rehearse a sale at any size, on a virtual clock, by the production decisions."),
):
    app.command(f"springtide.cli.{_module}:{_name}", name=_name, help=_help, group=PLATFORM)
app.command("springtide.cli.sale_app:sale", name="sale", help="A merchant's sales and orders, through the back office.")

SettingsFile = Annotated[Path, Parameter(help="The role's settings, written by the command that starts it.")]


@app.command
def demo(  # noqa: PLR0913 - each is an option of the command line
    config: Annotated[Path | None, Parameter(help="The sale; without it, the live room that comes along.")] = None,
    *,
    out: Annotated[Path, Parameter(help="Where the report and the logs go.")] = Path("out/demo"),
    scale: Annotated[bool, Parameter(help="--no-scale: the base replicas alone, to see what elasticity does.")] = True,
    chaos: Annotated[bool, Parameter(help="Kill a counter, the recorder and a whole zone while it sells.")] = False,
    port: Annotated[int, Parameter(help="The balancer's port; 0 takes a free one.")] = 0,
    inventory: Annotated[str, Parameter(help="HOST:PORT of a Valkey to use; without it, an embedded one.")] = "",
    ledger: Annotated[str, Parameter(help="URL of a PostgreSQL to use; without it, an embedded one.")] = "",
) -> int:
    """Run a whole flash sale on this machine: real engines, real HTTP, a crowd of buyers, and a verdict."""
    from springtide.cli.demo import DemoOptions, run_demo  # noqa: PLC0415 - each command loads only what it needs
    from springtide.cli.stores import Given  # noqa: PLC0415 - as above

    given = Given(inventory, ledger)
    options = DemoOptions(config=config, out=out, scale=scale, chaos=chaos, port=port, given=given)
    return _run(run_demo(options, dict(os.environ)))


@app.command
def serve(  # noqa: PLR0913 - each is an option of the command line
    config: Annotated[Path | None, Parameter(help="The shop; without it, the one that comes along.")] = None,
    *,
    data: Annotated[Path, Parameter(help="Where everything is kept, over restarts.")] = Path("springtide-data"),
    port: Annotated[int, Parameter(help="The shop's port, where buyers go.")] = 8080,
    backoffice_port: Annotated[int, Parameter(help="The back office's port, for the merchant alone.")] = 8000,
    try_payments: Annotated[bool, Parameter(help="A page where payments cost nothing, and links to buy by.")] = False,
    inventory: Annotated[str, Parameter(help="HOST:PORT of a Valkey, or several of a cluster; else embedded.")] = "",
    ledger: Annotated[str, Parameter(help="URL of a PostgreSQL to use; without it, an embedded one.")] = "",
) -> int:
    """Serve a shop on this machine until Ctrl-C: counters behind a balancer, back office, engines, all supervised."""
    from springtide.cli.serve import ServeOptions, run_serve  # noqa: PLC0415 - each command loads only what it needs
    from springtide.cli.stores import Given  # noqa: PLC0415 - as above

    given = Given(inventory, ledger)
    options = ServeOptions(config, data, port, backoffice_port, try_payments, given)
    return _run(run_serve(options, dict(os.environ)))


@app.command
def torture(  # noqa: PLR0913 - each is an option of the command line
    *,
    faults: Annotated[int, Parameter(help="How many faults have to strike while something is in flight.")] = 40,
    seed: Annotated[int, Parameter(help="Of the schedule: the same seed, the same faults.")] = 1,
    kinds: Annotated[str, Parameter(help="Kinds of fault: kill, stop, cut, disk_full.")] = "kill,stop,cut,disk_full",
    out: Annotated[Path, Parameter(help="Where the history, the logs and the verdict go.")] = Path("out/torture"),
    json: Annotated[bool, Parameter(help="The verdict as JSON on standard output.")] = False,
    replay: Annotated[Path | None, Parameter(help="Check the history in this folder again, then run it again.")] = None,
    again: Annotated[bool, Parameter(help="--no-again: with --replay, only check the history.")] = True,
    inventory: Annotated[str, Parameter(help="HOST:PORT of a Valkey to use; without it, an embedded one.")] = "",
    ledger: Annotated[str, Parameter(help="URL of a PostgreSQL to use; without it, an embedded one.")] = "",
    broken: Annotated[str, Parameter(show=False)] = "",
) -> int:
    """Kill, stop and cut off everything while it sells, and hold the ledger to every promise that was made."""
    from springtide.cli.stores import Given  # noqa: PLC0415 - each command loads only what it needs
    from springtide.cli.torture import run_replay, run_torture  # noqa: PLC0415 - as above
    from springtide.cli.torture_world import TortureOptions, parse_kinds  # noqa: PLC0415 - as above

    if replay is not None:
        return _run(run_replay(replay, again=again, as_json=json))
    options = TortureOptions(faults, seed, parse_kinds(kinds), out, broken, Given(inventory, ledger))
    return _run(run_torture(options, as_json=json))


@app.command
def audit(
    sale: Annotated[str, Parameter(help="The sale's id.")],
    *,
    inventory: Annotated[str, Parameter(help="HOST:PORT of Valkey.")],
    ledger: Annotated[str, Parameter(help="PostgreSQL's URL.")],
    wait_s: Annotated[float, Parameter(help="How long the ledger may take to reach the journal's end.")] = 10.0,
    json: Annotated[bool, Parameter(help="The report as JSON on standard output.")] = False,
) -> int:
    """Prove a sale: nothing oversold, nothing lost, stock + reserved + paid + returning = initial + restocked."""
    from springtide.cli.audit import run_audit  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_audit(sale, inventory, ledger, wait_s, as_json=json))


@run.command
def platform(*, data: Path) -> int:
    """The platform: engines and the control loop, until SIGTERM; `springtide up` starts it in the background."""
    from springtide.cli.platform_run import run_platform  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_platform(data))


@run.command(name="sweep")
def sweeper(*, data: Path) -> int:
    """The sweep beside a platform: strays among the rented nodes are given back, whatever became of the loop."""
    from springtide.cli.sweep import run_sweeper  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_sweeper(data))


@run.command
def counter(*, settings: SettingsFile, replica_id: str, announce: Path) -> int:
    """One replica of the counter."""
    from springtide.cli.run_counter import run_counter  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_counter(settings, replica_id, announce))


@run.command
def recorder(
    *,
    settings: SettingsFile,
    share: Annotated[str, Parameter(help="I/N: the I-th of N recorders, each with its share of the buckets.")] = "1/1",
) -> int:
    """The recorder: journal to ledger."""
    from springtide.cli.run_workers import run_recorder  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_recorder(settings, share))


@run.command
def backoffice(*, settings: SettingsFile, announce: Path) -> int:
    """The back office: payments, expiry, stock returns."""
    from springtide.cli.run_workers import run_backoffice  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_backoffice(settings, announce))


@run.command
def paypage(*, settings: SettingsFile, backoffice: str, announce: Path) -> int:
    """A page to try payments with."""
    from springtide.cli.run_workers import run_paypage  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_paypage(settings, backoffice, announce))


@run.command
def crowd(*, spec: Path) -> int:
    """The crowd of buyers of a demo."""
    from springtide.cli.run_workers import run_crowd_role  # noqa: PLC0415 - each command loads only what it needs

    return _run(run_crowd_role(spec))


def main() -> None:
    """The console script."""
    configure_logs()
    try:
        status = app(sys.argv[1:], print_error=True, exit_on_error=False)
    except CycloptsError:
        sys.exit(EXIT_BAD_INPUT)
    except Refused as error:
        sys.stderr.write(f"springtide: {error}\n")
        sys.exit(EXIT_REFUSED)
    except SpringtideError as error:
        sys.stderr.write(f"springtide: {error}\n")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)
