"""Image caches on real registries that are killed, filled up, damaged and collected while images move."""

import asyncio
import contextlib
import signal
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from springtide.drivers import embedded_registry, small_disk
from springtide.drivers.embedded_registry import EmbeddedRegistry, RegistrySettings, blob_bytes, start_registry
from springtide.drivers.registry import RegistryImageCache
from springtide.drivers.registry_client import RegistryClient
from springtide.drivers.registry_copy import CopySettings
from springtide.drivers.registry_keeper import RegistryKeeper
from springtide.drivers.registry_manifest import INDEXES, Manifest, Platform, digest_of, this_machine
from springtide.drivers.registry_push import push_archive
from springtide.drivers.system import SystemClock
from springtide.errors import EngineError, ImageError, ImageUnavailable
from tests.images import archive, noise, push_blobs

pytestmark = pytest.mark.skipif(bool(embedded_registry.missing()), reason=embedded_registry.missing() or "possible")

CLOCK = SystemClock()
LAYER = 400_000
LAYERS = [noise(LAYER, seed) for seed in range(4)]
LITTLE = 2_000
SLOW = CopySettings(layers_at_once=1, tries=10, pause_s=0.05, bytes_per_s=1_000_000)
QUICK = CopySettings(tries=2, pause_s=0.05)


class Pair:
    """An origin and a zone's registry; caches between them are closed at the end."""

    def __init__(self, origin: EmbeddedRegistry, zone: EmbeddedRegistry, closing: contextlib.AsyncExitStack) -> None:
        self.origin = origin
        self.zone = zone
        self._closing = closing

    def cache(self, settings: CopySettings = QUICK) -> RegistryImageCache:
        cache = RegistryImageCache(
            self.origin.address, self.zone.address, CLOCK, settings=settings, garbage=self.zone.collect_garbage
        )
        self._closing.push_async_callback(cache.close)
        return cache

    async def push(self, reference: str, layers: Sequence[bytes]) -> str:
        return await push_blobs(self.origin.address, reference, layers)

    def client(self, registry: EmbeddedRegistry) -> RegistryClient:
        client = RegistryClient(registry.address)
        self._closing.push_async_callback(client.close)
        return client

    async def until_the_zone_has(self, layers: int, name: str = "app") -> None:
        """Wait until so many of LAYERS are there; in which order they are copied is nobody's business."""
        client = self.client(self.zone)
        while sum([await client.blob_size(name, digest_of(layer)) is not None for layer in LAYERS]) < layers:
            await asyncio.sleep(0.01)

    async def whole(self, name: str, version: str) -> str:
        """Read every byte of an image in the zone, which verifies the digests; the image's."""
        client = self.client(self.zone)
        manifest = await client.manifest(name, version)
        assert manifest is not None
        for blob in manifest.blobs:
            assert sum([len(chunk) async for chunk in client.blob(name, blob.digest, blob.size)]) == blob.size
        return manifest.digest


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as closing:
        origin = await start_registry(tmp_path / "origin", CLOCK)
        closing.push_async_callback(origin.stop)
        zone = await start_registry(tmp_path / "zone", CLOCK)
        closing.push_async_callback(zone.stop)
        yield Pair(origin, zone, closing)


def damage(registry: EmbeddedRegistry, digest: str) -> None:
    """Change one byte of a blob on the registry's disk."""
    (path,) = registry.folder.glob(f"data/docker/registry/v2/blobs/sha256/*/{digest.removeprefix('sha256:')}/data")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["origin", "zone"])
async def test_a_copy_goes_on_when_a_registry_was_killed_and_comes_back(pair: Pair, which: str) -> None:
    digest = await pair.push("app:1", LAYERS)
    copy = asyncio.create_task(pair.cache(SLOW).warm("app:1"))
    await pair.until_the_zone_has(2)
    killed = pair.origin if which == "origin" else pair.zone
    killed.child.signal(signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert not copy.done()
    await killed.restart()
    transfer = await copy
    assert transfer.digest == digest == await pair.whole("app", "1")
    # Two layers were there already; what was on its way when it broke may have crossed twice.
    assert transfer.copied_bytes <= 5 * LAYER + LITTLE


async def test_a_copy_that_was_given_up_goes_on_with_the_layers_that_are_missing(pair: Pair) -> None:
    await pair.push("app:1", LAYERS)
    cache = pair.cache(msgspec.structs.replace(SLOW, tries=2))
    copy = asyncio.create_task(cache.warm("app:1"))
    await pair.until_the_zone_has(2)
    pair.origin.child.signal(signal.SIGKILL)
    with pytest.raises(ImageUnavailable, match="did not answer"):
        await copy
    with pytest.raises(ImageError, match="no image app:1"):
        await cache.reference("app:1")
    await pair.origin.restart()
    assert (await cache.warm("app:1")).copied_bytes <= 2 * LAYER + LITTLE
    await pair.whole("app", "1")


async def test_a_caller_who_gives_up_does_not_end_the_copy_of_the_others(pair: Pair) -> None:
    await pair.push("app:1", LAYERS)
    cache = pair.cache(SLOW)
    first, second = asyncio.create_task(cache.warm("app:1")), asyncio.create_task(cache.warm("app:1"))
    await pair.until_the_zone_has(1)
    first.cancel()
    assert (await second).digest == await pair.whole("app", "1")


async def test_a_layer_that_is_damaged_at_the_origin_never_arrives(pair: Pair) -> None:
    await pair.push("app:1", LAYERS)
    damage(pair.origin, digest_of(LAYERS[2]))
    with pytest.raises(ImageError, match=rf"{digest_of(LAYERS[2])}.* is damaged"):
        await pair.cache().warm("app:1")
    client = pair.client(pair.zone)
    assert await client.blob_size("app", digest_of(LAYERS[2])) is None
    assert await client.digest("app", "1") is None
    assert await client.blob_size("app", digest_of(LAYERS[3])) == LAYER


async def test_a_damaged_manifest_is_refused(pair: Pair) -> None:
    digest = await pair.push("app:1", LAYERS[:1])
    damage(pair.origin, digest)
    with pytest.raises(ImageError):
        await pair.cache().warm("app:1")
    assert await pair.cache().images() == []


async def test_a_cut_off_layer_in_the_cache_is_named(pair: Pair) -> None:
    await pair.push("app:1", LAYERS[:1])
    cache = pair.cache()
    await cache.warm("app:1")
    hexdigest = digest_of(LAYERS[0]).removeprefix("sha256:")
    (path,) = pair.zone.folder.glob(f"data/docker/registry/v2/blobs/sha256/*/{hexdigest}/data")
    path.write_bytes(LAYERS[0][:100])
    with pytest.raises(ImageError, match=r"is damaged .100 of 400000 bytes.*image gc"):
        await cache.warm("app:1")
    await cache.collect([])
    assert LAYER <= (await cache.warm("app:1")).copied_bytes <= LAYER + LITTLE
    await pair.whole("app", "1")


async def test_an_upload_by_somebody_else_survives_a_collection(pair: Pair) -> None:
    """Another process copies, so that the collection knows nothing of it: layers that it lost are sent again."""
    digest = await pair.push("app:1", LAYERS)
    await pair.push("old:1", [noise(LAYER, 9)])
    collector, other = pair.cache(), pair.cache(SLOW)
    await collector.warm("old:1")
    copy = asyncio.create_task(other.warm("app:1"))
    await pair.until_the_zone_has(1)
    assert await collector.collect([]) >= LAYER
    assert not copy.done()
    assert (await copy).digest == digest == await pair.whole("app", "1")
    assert [image.reference for image in await collector.images()] == ["app:1"]


async def test_a_collection_that_waits_for_a_copy_holds_up_no_other(pair: Pair) -> None:
    await pair.push("app:1", LAYERS)
    await pair.push("little:1", [noise(1000, 8)])
    await pair.push("old:1", [noise(LAYER, 9)])
    # Three at once: while the fourth and last layer moves, there is room for the little one.
    cache = pair.cache(msgspec.structs.replace(SLOW, layers_at_once=3, bytes_per_s=400_000))
    await cache.warm("old:1")
    copy = asyncio.create_task(cache.warm("app:1"))
    await pair.until_the_zone_has(1)
    collection = asyncio.create_task(cache.collect([]))
    await cache.warm("little:1")
    assert not copy.done()
    assert not collection.done()
    assert await collection >= LAYER
    assert copy.done()
    assert {image.reference for image in await cache.images()} == {"app:1", "little:1"}


async def test_a_keeper_gives_the_room_back_when_somebody_else_deleted(pair: Pair) -> None:
    keeper = RegistryKeeper(pair.zone, CLOCK)
    await pair.push("app:1", LAYERS)
    cache = RegistryImageCache(pair.origin.address, pair.zone.address, CLOCK)
    try:
        await cache.warm("app:1")
        assert await keeper.collect_if_due() == 0
        assert await cache.collect([]) == 0
    finally:
        await cache.close()
    assert await keeper.collect_if_due() >= 4 * LAYER
    assert await keeper.collect_if_due() == 0
    assert keeper.collections == 1


async def test_a_keeper_waits_for_an_upload_that_moves(pair: Pair) -> None:
    keeper = RegistryKeeper(pair.zone, CLOCK)
    await pair.push("app:1", LAYERS)
    await pair.push("old:1", [noise(LAYER, 9)])
    await pair.cache().warm("old:1")
    await keeper.collect_if_due()
    client = pair.client(pair.zone)
    copy = asyncio.create_task(pair.cache(SLOW).warm("app:1"))
    await pair.until_the_zone_has(1)
    digest = await client.digest("old", "1")
    assert digest is not None
    await client.delete_manifest("old", digest)
    assert await keeper.collect_if_due() == 0
    # Nothing was cut off, and so nothing crossed twice.
    assert (await copy).copied_bytes <= 4 * LAYER + LITTLE
    assert await keeper.collect_if_due() >= LAYER
    assert await pair.whole("app", "1")


async def test_a_keeper_starts_a_registry_that_died(pair: Pair) -> None:
    await pair.push("app:1", LAYERS[:1])
    keeping = asyncio.create_task(RegistryKeeper(pair.origin, CLOCK).run())
    pair.origin.child.signal(signal.SIGKILL)
    while not pair.origin.child.returncode:
        await asyncio.sleep(0.01)
    try:
        patient = CopySettings(tries=10, pause_s=0.05)
        assert (await pair.cache(patient).warm("app:1")).copied_bytes >= LAYER
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_collected_garbage_is_what_the_disk_gets_back(pair: Pair) -> None:
    await pair.push("app:1", LAYERS)
    cache = pair.cache()
    await cache.warm("app:1")
    before = blob_bytes(pair.zone.folder)
    freed = await cache.collect([])
    assert before - blob_bytes(pair.zone.folder) == freed >= 4 * LAYER
    assert await pair.zone.collect_garbage() == 0


async def test_a_tag_that_moved_leaves_garbage(pair: Pair) -> None:
    cache = pair.cache()
    await pair.push("app:1", LAYERS[:1])
    await cache.warm("app:1")
    await pair.push("app:1", LAYERS[1:2])
    assert (await cache.warm("app:1")).digest == await pair.whole("app", "1")
    assert LAYER <= await cache.collect(["app:1"]) <= LAYER + LITTLE
    await pair.whole("app", "1")


async def test_of_a_list_only_the_image_for_this_machine_crosses(pair: Pair) -> None:
    mine, other = await pair.push("app:mine", LAYERS[:1]), await pair.push("app:other", LAYERS[1:2])
    client = pair.client(pair.origin)
    entries = []
    for digest, machine in ((other, Platform("vax")), (mine, this_machine())):
        manifest = await client.manifest("app", digest)
        assert manifest is not None
        entries.append(
            {
                "mediaType": manifest.media_type,
                "digest": digest,
                "size": len(manifest.body),
                "platform": msgspec.to_builtins(machine),
            }
        )
    body = msgspec.json.encode({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": entries})
    assert await client.put_manifest("app", "1", Manifest.read(body, INDEXES[0]))
    transfer = await pair.cache().warm("app:1")
    assert transfer.digest == mine
    assert transfer.copied_bytes <= LAYER + LITTLE
    # At the origin, where lists are, a collection leaves their parts.
    at_origin = RegistryImageCache(pair.origin.address, pair.origin.address, CLOCK, garbage=pair.origin.collect_garbage)
    await at_origin.collect(["app:1"])
    await at_origin.close()
    assert [await client.digest("app", part) for part in (mine, other)] == [mine, other]


async def test_beside_the_origin_nothing_has_to_be_copied(pair: Pair) -> None:
    digest = await pair.push("app:1", LAYERS[:1])
    beside = RegistryImageCache(pair.origin.address, pair.origin.address, CLOCK)
    try:
        assert (await beside.warm("app:1")).copied_bytes == 0
        assert await beside.reference("app:1") == f"{pair.origin.address}/app@{digest}"
        with pytest.raises(ImageError, match="no image other:1"):
            await beside.warm("other:1")
    finally:
        await beside.close()


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    if reason := small_disk.missing():
        pytest.skip(reason)
    folder = tmp_path / "small"
    try:
        small_disk.mount_small_disk(tmp_path / "disk.img", folder, 8)
    except EngineError as error:
        pytest.skip(str(error))
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_is_said_and_loses_nothing_else(pair: Pair, small_folder: Path) -> None:
    first = await pair.push("app:1", LAYERS[:1])
    await pair.push("app:2", [noise(10 * LAYER, seed) for seed in (7, 8)])
    zone = await start_registry(small_folder / "zone", CLOCK)
    cache = RegistryImageCache(pair.origin.address, zone.address, CLOCK, settings=QUICK, garbage=zone.collect_garbage)
    try:
        await cache.warm("app:1")
        with pytest.raises(ImageError, match=r"disk of the registry .* is full.*image gc") as caught:
            await cache.warm("app:2")
        assert not isinstance(caught.value, ImageUnavailable)
        assert (await cache.reference("app:1")).endswith(first)
        assert (await cache.warm("app:1")).copied_bytes == 0
        # Room is made by deleting what is not needed, and then the next image fits.
        await cache.collect(["app:1"])
        await pair.push("app:3", [noise(10 * LAYER, 9)])
        assert (await cache.warm("app:3")).copied_bytes >= 10 * LAYER
    finally:
        await cache.close()
        await zone.stop()


async def test_a_registry_that_passes_through_serves_what_nobody_warmed_and_takes_no_copies(
    pair: Pair, tmp_path: Path
) -> None:
    digest = await pair.push("app:1", LAYERS)
    through = await start_registry(tmp_path / "through", CLOCK, RegistrySettings(upstream=pair.origin.address))
    cache = RegistryImageCache(pair.origin.address, through.address, CLOCK, settings=QUICK)
    client = pair.client(through)
    try:
        manifest = await client.manifest("app", "1")
        assert manifest is not None
        assert manifest.digest == digest
        layer = digest_of(LAYERS[0])
        assert b"".join([chunk async for chunk in client.blob("app", layer, LAYER)]) == LAYERS[0]
        with pytest.raises(ImageUnavailable, match="passes pulls through"):
            await cache.warm("app:1")
    finally:
        await cache.close()
        await through.stop()


async def test_a_registry_that_passes_through_is_not_started_without_its_upstream(pair: Pair, tmp_path: Path) -> None:
    await pair.origin.stop()
    with pytest.raises(EngineError, match="start the upstream first"):
        await start_registry(tmp_path / "through", CLOCK, RegistrySettings(upstream=pair.origin.address))


async def test_a_port_in_use_is_said(pair: Pair, tmp_path: Path) -> None:
    port = int(pair.origin.address.rpartition(":")[2])
    with pytest.raises(EngineError, match="port is in use"):
        await start_registry(tmp_path / "other", CLOCK, RegistrySettings(port=port))


async def test_an_archive_is_pushed_once_and_comes_out_whole(pair: Pair, tmp_path: Path) -> None:
    saved = archive(tmp_path / "image.tar", [LAYERS[0], LAYERS[1]])
    pushed = await push_archive(saved, pair.origin.address, "app:1", CLOCK)
    assert pushed.copied_bytes >= 2 * LAYER
    assert (await push_archive(saved, pair.origin.address, "app:1", CLOCK)).copied_bytes == 0
    assert (await pair.cache().warm("app:1")).digest == pushed.digest == await pair.whole("app", "1")


async def test_a_damaged_archive_is_refused(pair: Pair, tmp_path: Path) -> None:
    saved = archive(tmp_path / "image.tar", [LAYERS[0]])
    content = bytearray(saved.read_bytes())
    content[content.index(LAYERS[0]) + 100] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ImageError, match="layer of the archive is damaged"):
        await push_archive(saved, pair.origin.address, "app:1", CLOCK)
    saved.write_bytes(b"no archive")
    with pytest.raises(ImageError, match="docker save"):
        await push_archive(saved, pair.origin.address, "app:1", CLOCK)
    with tarfile.open(saved, "w"):
        pass
    with pytest.raises(ImageError, match="docker save"):
        await push_archive(saved, pair.origin.address, "app:1", CLOCK)
