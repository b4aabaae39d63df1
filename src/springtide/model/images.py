"""Container images: their names, what caches and engines hold of them, what moving one cost, and where they go when."""

import re

import msgspec

_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<name>{_PATH}(?:/{_PATH})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)
"""The distribution engine's grammar (its reference/reference.go), without the address of a registry."""

REFERENCE_MAX = 255


class ImageName(msgspec.Struct, frozen=True):
    """A reference in its parts. `tag` or `digest` may be "", not both; with a digest the tag is only a remark."""

    name: str
    tag: str
    digest: str = ""

    @classmethod
    def parse(cls, reference: str) -> "ImageName":
        """Read `NAME:TAG`, `NAME@sha256:HEX` or both; a bare `NAME` is `NAME:latest`. Raises ValueError."""
        found = _REFERENCE.fullmatch(reference) if len(reference) <= REFERENCE_MAX else None
        if found is None:
            raise ValueError(
                f"{reference!r} is not an image's reference: write NAME:TAG or NAME@sha256:DIGEST, in lower-case "
                "letters and without the address of a registry"
            )
        tag, digest = found["tag"] or "", found["digest"] or ""
        return cls(found["name"], tag or ("" if digest else "latest"), digest)

    @property
    def version(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag

    @property
    def reference(self) -> str:
        """As it is written."""
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


class CachedImage(msgspec.Struct, frozen=True):
    """An image that a zone's registry can deliver without the line: its reference there, its digest, and its bytes.

    `size_bytes` are its layers as they are transferred. `used_ms` is when it was last asked for; 0 is not known.
    """

    reference: str
    digest: str
    size_bytes: int
    used_ms: int = 0


class ImageTransfer(msgspec.Struct, frozen=True):
    """What one warm-up did. `copied_bytes` crossed the line: layers that were there already did not."""

    reference: str
    digest: str
    copied_bytes: int
    seconds: float


class EngineImage(msgspec.Struct, frozen=True):
    """An image in an engine's own store. `size_bytes` is unpacked; `in_use` while a container of it exists."""

    reference: str
    image_id: str
    size_bytes: int
    created_ms: int
    in_use: bool = False


class ImageDemand(msgspec.Struct, frozen=True):
    """An image that a zone needs: from `by_ms` on, on each of `engines`; 0 is now.

    `size_bytes` is what one pull transfers, `missing_bytes` what the zone's cache lacks of it. `nodes` are the engines
    that will pull it by then, those that are not there yet included.
    """

    zone: str
    reference: str
    size_bytes: int
    missing_bytes: int
    by_ms: int = 0
    engines: tuple[str, ...] = ()
    nodes: int = 0
    reason: str = ""


class ImageLine(msgspec.Struct, frozen=True):
    """What a zone's images move over: the line to the origin, its cache's own network, and an engine's unpacking.

    All in bytes/s. `pulls_max` is how many engines of the zone may pull at once.
    """

    zone: str
    line_bytes_per_s: float
    cache_bytes_per_s: float
    unpack_bytes_per_s: float = 100e6
    pulls_max: int = 16


class ImagePolicy(msgspec.Struct, frozen=True):
    """Limits of image distribution.

    Times are taken `safety` times and `slack_ms` on top. With `warm_early`, an image that any service wants is
    copied at once instead of just in time. A cache is collected above `cache_bytes_max`; an engine keeps `revisions`
    of each name. `begun_max` bounds what one plan begins.
    """

    safety: float = 1.5
    slack_ms: int = 60_000
    warm_early: bool = True
    cache_bytes_max: int = 50_000_000_000
    revisions: int = 3
    begun_max: int = 16


class WarmImage(msgspec.Struct, frozen=True, tag="warm_image"):
    """Copy an image into a zone's cache."""

    zone: str
    reference: str
    by_ms: int
    reason: str


class PrefetchImage(msgspec.Struct, frozen=True, tag="prefetch_image"):
    """Let an engine pull an image from its zone's cache before anything of it is to start."""

    zone: str
    engine: str
    reference: str
    by_ms: int
    reason: str


class CollectImages(msgspec.Struct, frozen=True, tag="collect_images"):
    """Delete from a zone's cache all but `keep`."""

    zone: str
    keep: tuple[str, ...]
    reason: str


class PruneImages(msgspec.Struct, frozen=True, tag="prune_images"):
    """Remove `references` from an engine's own store."""

    zone: str
    engine: str
    references: tuple[str, ...]
    reason: str


ImageAction = WarmImage | PrefetchImage | CollectImages | PruneImages
