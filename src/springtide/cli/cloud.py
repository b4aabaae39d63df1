"""`springtide cloud …`: a cloud to test against, which speaks the API of ECS and ECI, and faults for it.

Exit status: 0 done, 1 refused, 2 bad input.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from springtide.cli.running import run_command

KEYS = Path("springtide-cloud.ini")

cloud = App(name="cloud", help="A cloud to test against: the HTTP API of ECS and ECI over a simulated market.")
faults = App(name="faults", help="What goes wrong in a cloud that `springtide cloud serve` serves.")
cloud.command(faults)

Keys = Annotated[Path, Parameter(help="The file that `springtide cloud serve` wrote.")]
ForS = Annotated[float, Parameter(help="For how long, in seconds of the cloud's clock.")]


@cloud.command
def serve(  # noqa: PLR0913 - each is an option of the command line
    *,
    port: Annotated[int, Parameter(help="The port on 127.0.0.1; 0 takes a free one.")] = 0,
    seed: Annotated[int, Parameter(help="Of boot times, stock and prices: the same seed, the same cloud.")] = 1,
    config: Annotated[Path | None, Parameter(help="TOML: [market] and [api]; without it, a dozen types.")] = None,
    speed: Annotated[float, Parameter(help="The cloud's clock runs so many times as fast as the real one.")] = 1.0,
    stock: Annotated[int | None, Parameter(help="Machines of every offer; without it, as configured.")] = None,
    data: Annotated[Path | None, Parameter(help="A file that it survives a restart with.")] = None,
    keys: Annotated[Path, Parameter(help="Where the access key goes: a credentials file of the SDK.")] = KEYS,
) -> int:
    """Serve a cloud until SIGTERM. It prints its address, and writes the access key that opens it into a file."""
    from springtide.cli.cloud_serve import ServeCloud, run_serve_cloud  # noqa: PLC0415 - loads only what it needs

    return run_command(run_serve_cloud(ServeCloud(port, seed, config, speed, stock, data, keys)))


@faults.command
def show(*, keys: Keys = KEYS) -> int:
    """How the cloud is: machines, calls, throttled calls, cost, and the stock that its API never tells. JSON."""
    from springtide.cli.cloud_faults import send  # noqa: PLC0415 - loads only what it needs

    return send(keys, None)


@faults.command(name="stock")
def set_stock(
    prefix: Annotated[str, Parameter(help="Offers whose key ZONE/TYPE/MARKET begins like this.")],
    count: Annotated[int | None, Parameter(help="Machines of each; without it, as it was before.")] = None,
    /,
    *,
    keys: Keys = KEYS,
) -> int:
    """Let offers have so many machines, and no more come; without a number, end that."""
    from springtide.cli.cloud_faults import send  # noqa: PLC0415 - loads only what it needs

    return send(keys, {"fault": "stock", "prefix": prefix, "count": count})


@faults.command
def throttle(
    api: Annotated[str, Parameter(help="The API, RunInstances say; without it, all.")] = "",
    /,
    *,
    for_s: ForS = 60.0,
    keys: Keys = KEYS,
) -> int:
    """Throttle every call of an API."""
    from springtide.cli.cloud_faults import send  # noqa: PLC0415 - loads only what it needs

    return send(keys, {"fault": "throttle", "api": api, "for_s": for_s})


@faults.command
def slow_boots(
    factor: Annotated[float, Parameter(help="So many times as long.")],
    /,
    *,
    for_s: ForS = 600.0,
    keys: Keys = KEYS,
) -> int:
    """Let machines that are ordered meanwhile take longer to boot."""
    from springtide.cli.cloud_faults import send  # noqa: PLC0415 - loads only what it needs

    return send(keys, {"fault": "slow_boots", "factor": factor, "for_s": for_s})


@faults.command
def reclaim(
    share: Annotated[float, Parameter(help="Of the spot machines, 0 to 1.")],
    /,
    *,
    zone: Annotated[str, Parameter(help="Only of this zone.")] = "",
    keys: Keys = KEYS,
) -> int:
    """Announce to spot machines that they will be taken away in five minutes."""
    from springtide.cli.cloud_faults import send  # noqa: PLC0415 - loads only what it needs

    return send(keys, {"fault": "reclaim", "share": share, "zone": zone})


@faults.command
def lose_answers(
    count: Annotated[int, Parameter(help="So many calls.")],
    /,
    *,
    api: Annotated[str, Parameter(help="The API, RunInstances say; without it, any.")] = "",
    keys: Keys = KEYS,
) -> int:
    """Carry out the next calls, and answer them with ServiceUnavailable all the same."""
    from springtide.cli.cloud_faults import send  # noqa: PLC0415 - loads only what it needs

    return send(keys, {"fault": "lose_answers", "count": count, "api": api})


@faults.command
def lose_zone(zone: str, /, *, for_s: ForS = 600.0, keys: Keys = KEYS) -> int:
    """Let a zone fail: its machines are gone, and none is sold there."""
    from springtide.cli.cloud_faults import send  # noqa: PLC0415 - loads only what it needs

    return send(keys, {"fault": "lose_zone", "zone": zone, "for_s": for_s})
