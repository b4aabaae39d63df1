"""Container images made of this machine's own Python and any folder, with no registry and no network.

An image has up to three layers, of which a new version of the program replaces the smallest: Python with the shared
libraries it needs, the packages, the program. A layer that the engine has already is not sent to it. The same files
make the same image, whoever builds it and when.
"""

import asyncio
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

import springtide
from springtide.drivers.docker_container import BUILT_LABEL
from springtide.drivers.docker_engine import MOVE_S, DockerEngine
from springtide.drivers.image_layers import (
    Entry,
    Layer,
    archive,
    folder_entries,
    image_config,
    image_id,
    write_context,
    write_layer,
)
from springtide.drivers.image_python import (
    PREFIX,
    compiled_entries,
    library_entries,
    own_entries,
    package_entries,
    python_entries,
)
from springtide.errors import ImageError
from springtide.ports import Clock

USER = "10001:10001"
"""What the program runs as: nobody on any machine."""

PACKAGE = "springtide"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Recipe(msgspec.Struct, frozen=True):
    """What an image is made of.

    `reference` is NAME:TAG. `folder` becomes /app, where `command` runs; without a folder the image is Springtide
    itself, and `command` its command line. Without `python` there is nothing but the folder, for a program that needs
    no libraries. With `dockerfile`, a file in the folder, the engine builds the image, and everything else here but the
    reference is its own affair.
    """

    reference: str
    folder: Path | None = None
    command: tuple[str, ...] = ()
    python: bool = True
    dockerfile: str = ""


class BuiltLayer(msgspec.Struct, frozen=True):
    """One layer: what it holds, the digest of its tar, its bytes, and whether it had to be sent to the engine."""

    name: str
    digest: str
    size_bytes: int
    sent: bool


class BuiltImage(msgspec.Struct, frozen=True):
    """An image that an engine has now. Of an image that the engine built itself the layers are not known."""

    reference: str
    image_id: str
    size_bytes: int
    layers: tuple[BuiltLayer, ...] = ()


async def build(engine_url: str, recipe: Recipe, clock: Clock, cache: Path | None = None) -> BuiltImage:
    """Make the image and load it into the engine at `engine_url`. Raises ImageError.

    `cache` keeps layers from one build to the next (see `image_layers.py: CACHED_MAX`); None keeps none.
    """
    name, _, tag = recipe.reference.rpartition(":")
    if not name or not tag or "/" in tag:
        raise ImageError(f"{recipe.reference!r} is no name of an image; give NAME:TAG")
    if recipe.folder is not None and not recipe.folder.is_dir():
        raise ImageError(f"{recipe.folder} is no folder; give one that holds the program")
    engine = DockerEngine(engine_url, clock, ImageError)
    try:
        with tempfile.TemporaryDirectory(prefix="springtide-image-") as scratch:
            if recipe.dockerfile:
                return await _by_engine(engine, recipe, Path(scratch))
            layers = await asyncio.to_thread(make_layers, recipe, cache or Path(scratch) / "layers")
            return await _load(engine, recipe, layers, Path(scratch))
    finally:
        await engine.close()


def make_layers(recipe: Recipe, cache: Path) -> list[Layer]:
    """The layers of an image, lowest first. Raises ImageError."""
    layers: list[Layer] = []
    python: list[Entry] = []
    if recipe.python:
        python = python_entries()
        python += library_entries(python)
        layers.append(write_layer("python", python, cache, compiled_entries))
    if recipe.folder is None:
        packages = package_entries(PACKAGE)
        below = {entry.path for entry in python}
        # Libraries that only packages need are theirs: the layer below is the same for every image.
        packages += [entry for entry in library_entries([*python, *packages]) if entry.path not in below]
        layers.append(write_layer("packages", packages, cache, compiled_entries))
        program = own_entries(PACKAGE, Path(springtide.__file__).parent)
    else:
        program = [Entry("app", folder_mode=0o755), *folder_entries(recipe.folder, "app")]
    layers.append(write_layer("program", program, cache, compiled_entries if recipe.python else None))
    return layers


def settings_of(recipe: Recipe) -> dict[str, object]:
    """What the image runs, as whom, and where."""
    command = recipe.command
    if recipe.folder is None:
        command = (f"/{PREFIX}/bin/{PACKAGE}", *command)
    return {
        "User": USER,
        "WorkingDir": "/app",
        "Cmd": list(command),
        "Env": [
            f"PATH=/{PREFIX}/bin:/usr/bin:/bin:/app",
            "PYTHONUNBUFFERED=1",
            "PYTHONDONTWRITEBYTECODE=1",
            "LANG=C.UTF-8",
            "HOME=/tmp",
        ],
        "Labels": {BUILT_LABEL: springtide.__version__},
        "StopSignal": "SIGTERM",
    }


async def _load(engine: DockerEngine, recipe: Recipe, layers: Sequence[Layer], scratch: Path) -> BuiltImage:
    machine = platform.machine()
    config = image_config(layers, settings_of(recipe), _ARCHITECTURES.get(machine, machine))
    known = await _known_layers(engine, [layer.digest for layer in layers])
    try:
        await _send(engine, recipe.reference, layers, config, known, scratch / "image.tar")
    except ImageError:
        if not known:
            raise
        # An engine may list a layer that it cannot build on: then it gets them all.
        known = 0
        await _send(engine, recipe.reference, layers, config, known, scratch / "image.tar")
    return BuiltImage(
        recipe.reference,
        f"sha256:{image_id(config)}",
        sum(layer.size_bytes for layer in layers),
        tuple(
            BuiltLayer(layer.name, layer.digest, layer.size_bytes, sent=number >= known)
            for number, layer in enumerate(layers)
        ),
    )


async def _send(
    engine: DockerEngine, reference: str, layers: Sequence[Layer], config: bytes, known: int, target: Path
) -> None:
    await asyncio.to_thread(archive, layers, config, reference, known, target)
    client = engine.docker
    with target.open("rb") as data:
        await engine.ask(f"loading {reference}", client.images.import_image(data), MOVE_S)


async def _known_layers(engine: DockerEngine, digests: Sequence[str]) -> int:
    """How many of the lowest layers the engine has, in some image of ours."""
    client = engine.docker
    images = await engine.ask("listing images", client.images.list(filters={"label": [BUILT_LABEL]})) or []
    known = 0
    for image in images:
        about = await engine.ask("looking at an image", client.images.inspect(image["Id"]), accept=(404,)) or {}
        theirs = (about.get("RootFS") or {}).get("Layers") or []
        same = 0
        while same < min(len(theirs), len(digests)) and theirs[same] == digests[same]:
            same += 1
        known = max(known, same)
    return known


async def _by_engine(engine: DockerEngine, recipe: Recipe, scratch: Path) -> BuiltImage:
    """Let the engine follow the Dockerfile; what it is based on has to be on the engine."""
    if recipe.folder is None or not (recipe.folder / recipe.dockerfile).is_file():
        raise ImageError(f"{recipe.dockerfile} is not in the folder; give the folder that holds it")
    context = scratch / "context.tar"
    await asyncio.to_thread(write_context, recipe.folder, context)
    client = engine.docker
    with context.open("rb") as data:
        call = client.images.build(
            fileobj=data, encoding="identity", path_dockerfile=recipe.dockerfile, tag=recipe.reference
        )
        await engine.ask(f"building {recipe.reference}", call, MOVE_S)
    about = await engine.ask(f"looking at {recipe.reference}", client.images.inspect(recipe.reference)) or {}
    return BuiltImage(recipe.reference, str(about["Id"]), int(about["Size"]))
