"""The access key of a served cloud in a file: a credentials file as the SDK reads it, with the address beside it."""

import configparser
import io
import os
from pathlib import Path

import msgspec

from springtide.errors import UserError
from springtide.twin.cloud_api import AccessKey

PROFILE = "default"
ADDRESS = "springtide"


class CloudAddress(msgspec.Struct, frozen=True):
    """Where a served cloud is, and what opens it."""

    endpoint: str
    region: str
    key: AccessKey


def write_keys(path: Path, key: AccessKey, endpoint: str, region: str) -> None:
    """Write the file, of mode 0600, in place of one that is there.

    The SDK finds the key in it when ALIBABA_CLOUD_CREDENTIALS_FILE names it (profile `default`).
    """
    file = configparser.ConfigParser(interpolation=None)
    file[PROFILE] = {"type": "access_key", **msgspec.structs.asdict(key)}
    file[ADDRESS] = {"endpoint": endpoint, "region": region}
    text = io.StringIO()
    file.write(text)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
        target.write(text.getvalue())


def read_keys(path: Path) -> CloudAddress:
    """What `write_keys` wrote. Raises UserError."""
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read_string(path.read_text())
        profile, address = file[PROFILE], file[ADDRESS]
        key = AccessKey(profile["access_key_id"], profile["access_key_secret"])
        return CloudAddress(address["endpoint"], address["region"], key)
    except (OSError, KeyError, configparser.Error) as error:
        raise UserError(f"{path} is not a file of `springtide cloud serve`: {error}; name it with --keys") from error
