"""The functions that a server runs for the inventory, and how it gets them."""

from functools import cache
from importlib import resources

from springtide.drivers.valkey_wire import Connection, command

_FILES = ("common", "reserve", "orders", "sales", "transfers", "journal", "rebuild", "register")
"""Of the folder `lua`; a file uses what those before it define."""


@cache
def library_source() -> bytes:
    """The library `springtide` of this version, as FUNCTION LOAD takes it."""
    folder = resources.files("springtide.drivers").joinpath("lua")
    return b"\n".join(folder.joinpath(f"{name}.lua").read_bytes() for name in _FILES)


async def prepare(connection: Connection, library: bytes | None = None) -> None:
    """Give the server this version of the library, or the one given, unless it has exactly that.

    Raises InventoryUnavailable and OutcomeUnknown.
    """
    wanted = library or library_source()
    found = await connection.send(command("FUNCTION", "LIST", "LIBRARYNAME", "springtide", "WITHCODE"))
    if not found or wanted not in found[0]:
        await connection.send(command("FUNCTION", "LOAD", "REPLACE", wanted))
