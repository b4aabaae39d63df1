"""Container images from this machine's own Python, with no registry and no network.

`build(engine_url, recipe, clock)` makes an image and loads it into an engine:

    class Recipe(msgspec.Struct, frozen=True):
        reference: str                    # NAME:TAG
        folder: Path | None = None        # becomes /app; None: the image is Springtide itself
        command: tuple[str, ...] = ()     # what the image runs (Springtide: `springtide` with arguments)
        python: bool = True               # False: nothing but the folder (a static program)
        dockerfile: str = ""              # a file in the folder: the engine builds it, instead of all of this

    async def build(engine_url: str, recipe: Recipe, clock: Clock) -> BuiltImage
    class BuiltImage: reference, image_id, size_bytes, layers: tuple[BuiltLayer(name, digest, size_bytes), ...]

Raises ImageError.
"""

from pathlib import Path

import msgspec

from springtide.errors import ImageError
from springtide.ports import Clock


class Recipe(msgspec.Struct, frozen=True):
    """What an image is made of."""

    reference: str
    folder: Path | None = None
    command: tuple[str, ...] = ()
    python: bool = True
    dockerfile: str = ""


class BuiltLayer(msgspec.Struct, frozen=True):
    """One layer: what it holds, the digest of its tar, and its bytes."""

    name: str
    digest: str
    size_bytes: int


class BuiltImage(msgspec.Struct, frozen=True):
    """An image that an engine has now."""

    reference: str
    image_id: str
    size_bytes: int
    layers: tuple[BuiltLayer, ...]


async def build(engine_url: str, recipe: Recipe, clock: Clock) -> BuiltImage:
    """Make the image and load it into the engine. Raises ImageError."""
    del engine_url, clock
    raise ImageError(f"{recipe.reference} cannot be built yet")
