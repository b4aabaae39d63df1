"""`springtide sale token | key … | keys …`: buyers' tokens, the keys that sign them, and the keys of the API."""

import asyncio
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from cyclopts import App, Parameter

from springtide.cli.sale_client import DEFAULT, Api, Client
from springtide.cli.sale_commands import SaleName
from springtide.cli.sale_show import moment, say, say_json, table
from springtide.errors import UserError
from springtide.model import Role

BUYERS_AT_ONCE = 1000
DAY_S = 86_400
NAME_LETTERS_MAX = 200

key = App(name="key", help="Keys of the merchant's API.")
keys = App(name="keys", help="The keys that buyer tokens are signed with.")


def token(
    name: SaleName,
    buyers: Annotated[tuple[str, ...], Parameter(help="Buyers' ids.")] = (),
    /,
    *,
    file: Annotated[Path | None, Parameter(help="A file with more of them, one a line.")] = None,
    ttl_s: Annotated[int, Parameter(help="How long the tokens are good.")] = DAY_S,
    api: Api = DEFAULT,
) -> int:
    """Sign buyer tokens. Each line of the output is a buyer and a secret: his token."""
    wanted = [*buyers, *_lines(file)]
    if not wanted:
        raise UserError("no buyer: name some, or give --file")
    with Client(api) as client:
        for first in range(0, len(wanted), BUYERS_AT_ONCE):
            body = {"buyers": wanted[first : first + BUYERS_AT_ONCE], "ttl_s": ttl_s}
            done = client.post(f"/v1/sales/{quote(name, safe='')}/tokens", body)
            if api.json:
                say_json(done)
            else:
                for one in done["tokens"]:
                    say(f"{one['buyer']} {one['token']}")
    return 0


@key.command(name="create")
def create_key(
    name: Annotated[str, Parameter(help="Whose it is; people read it.")],
    /,
    *,
    role: Annotated[Role, Parameter(help="What it may do; each may do what those before it may.")],
    ledger: Annotated[
        str, Parameter(env_var="SPRINGTIDE_LEDGER", help="PostgreSQL's URL: make it there, as for the first owner.")
    ] = "",
    api: Api = DEFAULT,
) -> int:
    """Make a key. Its secret is printed this once and kept nowhere."""
    if not 1 <= len(name) <= NAME_LETTERS_MAX or not name.isprintable():
        raise UserError(f"the name of a key has 1 to {NAME_LETTERS_MAX} letters that can be printed")
    if ledger:
        made = asyncio.run(_create_in_ledger(ledger, name, role))
    else:
        with Client(api) as client:
            made = client.post("/v1/keys", {"name": name, "role": role.value})
    if api.json:
        say_json(made)
    else:
        say(made["secret"])
    return 0


@key.command(name="list")
def list_keys(*, api: Api = DEFAULT) -> int:
    """All keys, the revoked ones included."""
    with Client(api) as client:
        found = client.get("/v1/keys")
    if api.json:
        say_json(found)
        return 0
    rows = [
        (one["key_id"], one["name"], one["role"], moment(one["created_ms"]), moment(one["revoked_ms"]))
        for one in found["keys"]
    ]
    table(("key", "name", "role", "created", "revoked"), rows)
    return 0


@key.command
def revoke(key_id: Annotated[str, Parameter(help="The key's id, as in `key list`.")], /, *, api: Api = DEFAULT) -> int:
    """Let a key be good for nothing, everywhere within a second."""
    with Client(api) as client:
        done = client.delete(f"/v1/keys/{quote(key_id, safe='')}")
    if api.json:
        say_json(done)
    else:
        say(f"{done['key_id']} ({done['name']}) is revoked")
    return 0


@keys.command
def rotate(*, api: Api = DEFAULT) -> int:
    """Sign with a new key from a few seconds on; tokens of those before it stay good until they are retired."""
    with Client(api) as client:
        return _ring(api, client.post("/v1/token-keys/rotate"))


@keys.command
def retire(
    generation: Annotated[int, Parameter(help="The oldest generation, as `keys show` tells.")], /, *, api: Api = DEFAULT
) -> int:
    """Let all tokens of the oldest generation be good for nothing."""
    with Client(api) as client:
        return _ring(api, client.post("/v1/token-keys/retire", {"generation": generation}))


@keys.command(name="show")
def show_keys(*, api: Api = DEFAULT) -> int:
    """The generations in use."""
    with Client(api) as client:
        return _ring(api, client.get("/v1/token-keys"))


def _ring(api: Api, ring: dict[str, int]) -> int:
    if api.json:
        say_json(ring)
    else:
        say(f"tokens of the generations {ring['oldest']} to {ring['newest']} are taken")
    return 0


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file {path}: cannot be read: {error}") from error


async def _create_in_ledger(dsn: str, name: str, role: Role) -> dict[str, Any]:
    """Whoever has the ledger has everything, so this asks for no key."""
    from springtide.drivers.postgres import PostgresLedger, migrate  # noqa: PLC0415 - the client needs no driver
    from springtide.drivers.system import SystemClock, SystemIds  # noqa: PLC0415 - as above
    from springtide.sale.api_keys import KeyBook  # noqa: PLC0415 - as above

    clock = SystemClock()
    await migrate(dsn)
    ledger = await PostgresLedger.connect(dsn, clock)
    try:
        made = await KeyBook(ledger, clock, SystemIds()).create(name, role)
    finally:
        await ledger.close()
    return {
        "key_id": made.key.key_id,
        "name": made.key.name,
        "role": made.key.role.value,
        "created_ms": made.key.created_ms,
        "revoked_ms": None,
        "secret": made.secret,
    }
