"""Files that hold keys: only their owner may read them."""

import os
from pathlib import Path

import msgspec


def write_private(path: Path, value: msgspec.Struct) -> None:
    """Write a value as JSON into a new file of mode 0600, in place of one that is there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(value))
