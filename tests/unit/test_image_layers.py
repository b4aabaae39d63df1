"""Layers: the same files make the same bytes, and what an image cannot hold is refused."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from springtide.drivers import image_layers
from springtide.drivers.image_layers import Entry, archive, folder_entries, image_config, image_id, write_layer
from springtide.errors import ImageError


def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "inner").mkdir(parents=True)
    (made / "inner/program").write_text("#!/bin/sh\n")
    (made / "inner/program").chmod(0o700)
    (made / "text").write_text("hello")
    (made / "text").chmod(0o600)
    (made / "link").symlink_to("inner/program")
    for left_out in (".git/config", "__pycache__/x.pyc", "inner/y.pyc"):
        (made / left_out).parent.mkdir(exist_ok=True)
        (made / left_out).write_text("x")
    return made


def test_a_layer_has_no_owner_no_time_and_no_private_mode(tmp_path: Path) -> None:
    layer = write_layer("app", list(folder_entries(folder(tmp_path), "app")), tmp_path / "cache")
    with tarfile.open(layer.path) as tar:
        seen = {each.name: (each.mode, each.uid, each.gid, each.mtime, each.type) for each in tar}
    assert seen == {
        "app": (0o755, 0, 0, 0, tarfile.DIRTYPE),
        "app/inner": (0o755, 0, 0, 0, tarfile.DIRTYPE),
        "app/inner/program": (0o755, 0, 0, 0, tarfile.REGTYPE),
        "app/link": (0o777, 0, 0, 0, tarfile.SYMTYPE),
        "app/text": (0o644, 0, 0, 0, tarfile.REGTYPE),
    }


def test_the_same_files_make_the_same_layer(tmp_path: Path) -> None:
    made = folder(tmp_path)
    first = write_layer("app", list(folder_entries(made, "app")), tmp_path / "one")
    os.utime(made / "text", (1, 1))
    second = write_layer("app", list(reversed(list(folder_entries(made, "app")))), tmp_path / "two")
    assert (second.digest, second.size_bytes) == (first.digest, first.size_bytes)
    (made / "text").write_text("hallo")
    assert write_layer("app", list(folder_entries(made, "app")), tmp_path / "two").digest != first.digest


def test_what_has_not_changed_is_not_made_again(tmp_path: Path) -> None:
    entries = [Entry("a.py", source=tmp_path / "a.py")]
    (tmp_path / "a.py").write_text("pass")
    made: list[int] = []

    def derive(given: object, folder: Path) -> list[Entry]:
        made.append(1)
        return [Entry("derived", data=b"x")]

    first = write_layer("app", entries, tmp_path / "cache", derive)
    second = write_layer("app", entries, tmp_path / "cache", derive)
    assert (first, len(made)) == (second, 1)
    with tarfile.open(first.path) as tar:
        assert tar.getnames() == ["a.py", "derived"]


def test_a_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "CACHED_MAX", 2)
    layers = []
    for number in range(4):
        layers.append(write_layer("app", [Entry("a", data=bytes([number]))], tmp_path))
        os.utime(layers[-1].path, (number, number))
    assert {layer.path.exists() for layer in layers[:2]} == {False}
    assert {layer.path.exists() for layer in layers[2:]} == {True}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "away").symlink_to(target)
    with pytest.raises(ImageError, match="leaves"):
        list(folder_entries(tmp_path, "app"))


def test_links_of_the_standard_library_are_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("site")
    (tmp_path / "library").mkdir()
    (tmp_path / "library/site.py").symlink_to(tmp_path / "outside")
    (entry,) = folder_entries(tmp_path / "library", "lib", follow=True)
    assert (entry.path, entry.source) == ("lib/site.py", tmp_path / "outside")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="neither a file nor a folder"):
        list(folder_entries(tmp_path, "app"))


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "FILES_MAX", 1)
    with pytest.raises(ImageError, match="more than 1 files"):
        write_layer("app", [Entry("a"), Entry("b")], tmp_path)


def test_too_many_bytes_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "LAYER_BYTES_MAX", 1)
    with pytest.raises(ImageError, match="larger than 1 bytes"):
        write_layer("app", [Entry("a", data=b"xx")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_names_layers_that_the_engine_has_and_leaves_them_out(tmp_path: Path) -> None:
    layers = [write_layer(name, [Entry(name, data=name.encode())], tmp_path) for name in ("low", "high")]
    config = image_config(layers, {"User": "1"}, "amd64")
    archive(layers, config, "shop:1", 1, tmp_path / "image")
    with tarfile.open(tmp_path / "image") as tar:
        names = tar.getnames()
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        (said,) = json.load(manifest)
    assert said["RepoTags"] == ["shop:1"]
    assert said["Config"] == f"{image_id(config)}.json"
    assert [layer.digest.partition(":")[2] in name for layer, name in zip(layers, said["Layers"], strict=True)] == [
        True
    ] * 2
    assert said["Layers"][0] not in names
    assert said["Layers"][1] in names
