"""`springtide image …`: container images, from this machine's source to the caches of the zones.

Exit status: 0 done, 1 refused, 2 bad input.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from springtide.cli.platform_options import HERE, Here
from springtide.cli.running import run_command

ENGINE = "unix:///var/run/docker.sock"

image = App(name="image", help="Container images: built here, pushed to the origin, warmed in the zones' caches.")

Reference = Annotated[str, Parameter(help="NAME:TAG, without the address of a registry.")]
Engine = Annotated[
    str, Parameter(env_var="SPRINGTIDE_ENGINE", help="A Docker Engine, unix:///PATH or tcp://HOST:PORT.")
]
Zones = Annotated[tuple[str, ...], Parameter(name="--zone", negative=(), help="Zones; without any, all with a cache.")]
Origin = Annotated[str, Parameter(help="HOST:PORT of the registry that images come from; else this platform's.")]


@image.command
def build(  # noqa: PLR0913 - each is an option of the command line
    reference: Reference,
    /,
    *,
    folder: Annotated[
        Path | None, Parameter(help="What becomes /app; without it, the image is Springtide's own.")
    ] = None,
    command: Annotated[str, Parameter(help="What the image runs.")] = "",
    python: Annotated[bool, Parameter(help="--no-python: nothing but the folder, for a static program.")] = True,
    dockerfile: Annotated[str, Parameter(help="A Dockerfile in the folder, for the engine to build.")] = "",
    engine: Engine = ENGINE,
    here: Here = HERE,
) -> int:
    """Build an image in an engine, with no registry and no network; by default that of the counter."""
    from springtide.cli.fleet_image_run import BuildOptions, run_build  # noqa: PLC0415 - each loads what it needs

    options = BuildOptions(reference, folder, command, python, dockerfile, engine)
    return run_command(run_build(here, options))


@image.command
def push(reference: Reference, /, *, engine: Engine = ENGINE, origin: Origin = "", here: Here = HERE) -> int:
    """Copy an image from an engine into the registry that images come from; layers that are there do not move."""
    from springtide.cli.fleet_image_run import run_push  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_push(here, reference, engine, origin))


@image.command
def warm(reference: Reference, /, *, zone: Zones = (), origin: Origin = "", here: Here = HERE) -> int:
    """Copy an image over the line into the caches of zones, once, before anything of it starts there."""
    from springtide.cli.fleet_image_run import run_warm  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_warm(here, reference, zone, origin))


@image.command(name="list")
def list_images(*, zone: Zones = (), here: Here = HERE) -> int:
    """What the caches of zones hold."""
    from springtide.cli.fleet_image_run import run_list  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_list(here, zone))


@image.command
def gc(*, zone: Zones = (), here: Here = HERE) -> int:
    """Delete from the caches all images that no service uses and the configuration does not keep."""
    from springtide.cli.fleet_image_run import run_gc  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_gc(here, zone))


@image.command
def serve(
    *,
    folder: Annotated[Path, Parameter(help="Where the images are kept.")],
    host: Annotated[str, Parameter(help="The address to listen on; engines have to reach it.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="The port to listen on.")] = 5000,
    upstream: Annotated[str, Parameter(help="HOST:PORT of a registry to pass pulls through to; else none.")] = "",
) -> int:
    """Run a registry here until Ctrl-C: the cache of a zone, or an origin."""
    from springtide.cli.fleet_image_run import run_serve  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_serve(folder, host, port, upstream))
