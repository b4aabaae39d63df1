"""A small disk of our own: an ext4 file system in a file, to be filled up in place of the machine's. Linux, root."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from springtide.errors import EngineError

_TOOLS = ("mount", "umount", "mkfs.ext4")
MB = 1_048_576


def missing() -> str:
    """Why there can be no small disk here; empty when it can be tried (a container may still refuse the mount)."""
    if os.geteuid() != 0:
        return "a disk to fill up has to be mounted, which needs root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"a disk to fill up needs {', '.join(absent)}" if absent else ""


def mount_small_disk(image: Path, folder: Path, size_mb: int) -> None:
    """Make a file system of this size in `image`, mounted at `folder`. Raises EngineError.

    Whoever removes the folder unmounts it first (`run_folder.release` does).
    """
    if reason := missing():
        raise EngineError(reason)
    with image.open("wb") as file:
        file.truncate(size_mb * MB)
    # No blocks kept for root: what the guard sees is what there is.
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    folder.mkdir(exist_ok=True)
    _run("mount", "-o", "loop", str(image), str(folder))


class Ballast:
    """A file that takes up the disk's room."""

    def __init__(self, folder: Path) -> None:
        """Nothing is taken yet."""
        self._folder = folder
        self._path = folder / "ballast"

    def leave(self, free_bytes: int) -> None:
        """Take everything but this much; nothing where less is free already."""
        disk = os.statvfs(self._folder)
        spare = disk.f_bavail * disk.f_frsize - free_bytes
        if spare > 0:
            with self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), file.tell(), spare)

    def drop(self) -> None:
        """Give it back."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, check=False, text=True)
    if done.returncode:
        raise EngineError(f"{words[0]} failed, so there is no disk to fill up: {done.stderr.strip()}")
