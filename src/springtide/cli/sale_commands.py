"""`springtide sale …`: what a merchant does with sales and orders, through the back office.

Exit status: 0 done, 1 refused or not reached, 2 bad input.
"""

import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from cyclopts import App, Parameter

from springtide.cli.sale_client import DEFAULT, Api, Client
from springtide.cli.sale_files import read_sale
from springtide.cli.sale_show import moment, say, say_json, show_sale, table, yuan
from springtide.drivers.system import SystemIds
from springtide.errors import UserError

sale = App(
    name="sale",
    help="Sales, orders, tokens and keys of a running Springtide, through its back office.",
)

SaleFile = Annotated[Path, Parameter(help="The sale, as TOML or JSON: docs/operations.md lists its keys.")]
SaleName = Annotated[str, Parameter(help="The sale's id.")]
State = Annotated[str, Parameter(help="reserved, paid, cancelled or expired.")]


@sale.command
def create(file: SaleFile, /, *, api: Api = DEFAULT) -> int:
    """Draft a sale."""
    body = read_sale(file)
    with Client(api) as client:
        return _shown(api, client.post("/v1/sales", body))


@sale.command
def edit(
    file: SaleFile,
    /,
    *,
    revision: Annotated[int | None, Parameter(help="Edit only if this is still the revision.")] = None,
    api: Api = DEFAULT,
) -> int:
    """Replace the definition of a sale; of a published one the stock stays, and once it is open the prices."""
    body = read_sale(file)
    name = body.pop("sale", None)
    body.pop("buckets", None)
    if not isinstance(name, str):
        raise UserError(f"{file}: sale: missing; the file names the sale it is about")
    with Client(api) as client:
        path = f"/v1/sales/{_part(name)}"
        current = client.get(path)["revision"] if revision is None else revision
        return _shown(api, client.put(path, body, f'"{current}"'))


@sale.command(name="list")
def list_sales(*, api: Api = DEFAULT) -> int:
    """All sales."""
    with Client(api) as client:
        found = list(client.pages("/v1/sales", "sales"))
    if api.json:
        say_json({"sales": found})
        return 0
    rows = [
        (one["sale"], one["title"], one["stage"], moment(one["opens_ms"]), moment(one["closes_ms"])) for one in found
    ]
    table(("sale", "title", "stage", "opens", "closes"), rows)
    return 0


@sale.command
def show(name: SaleName, /, *, api: Api = DEFAULT) -> int:
    """One sale, and how it sells now."""
    with Client(api) as client:
        return _shown(api, client.get(f"/v1/sales/{_part(name)}"))


@sale.command
def publish(name: SaleName, /, *, api: Api = DEFAULT) -> int:
    """Sell a draft from its opening on; one that opens later is scheduled."""
    return _step(api, name, "publish")


@sale.command(name="open")
def open_sale(name: SaleName, /, *, api: Api = DEFAULT) -> int:
    """Open a published sale now, ahead of its time."""
    return _step(api, name, "open")


@sale.command
def pause(name: SaleName, /, *, api: Api = DEFAULT) -> int:
    """Stop selling until it is resumed; open orders can still be paid."""
    return _step(api, name, "pause")


@sale.command
def resume(name: SaleName, /, *, api: Api = DEFAULT) -> int:
    """Sell on after a pause."""
    return _step(api, name, "resume")


@sale.command
def close(name: SaleName, /, *, api: Api = DEFAULT) -> int:
    """End a sale for good; open orders can still be paid."""
    return _step(api, name, "close")


@sale.command
def restock(
    name: SaleName,
    sku: Annotated[str, Parameter(help="The SKU's id.")],
    quantity: Annotated[int, Parameter(help="Units to add.")],
    /,
    *,
    key: Annotated[str, Parameter(help="Names this restock: the same key again adds nothing.")] = "",
    api: Api = DEFAULT,
) -> int:
    """Add units while a sale runs."""
    # Told before it is used: after a timeout the same restock can be asked for again.
    key = key or SystemIds().new("restock-")
    sys.stderr.write(f"springtide: --key {key}\n")
    with Client(api) as client:
        done = client.post(
            f"/v1/sales/{_part(name)}/skus/{_part(sku)}/restocks", {"quantity": quantity}, {"Idempotency-Key": key}
        )
    if api.json:
        say_json(done)
    else:
        what = "had been added before" if done["repeated"] else "added"
        left = "" if done["stock"] is None else f", {done['stock']:,} are left now"
        say(f"{done['quantity']:,} units of {done['sku']} {what}{left}")
    return 0


@sale.command
def orders(  # noqa: PLR0913 - each is an option of the command line
    name: SaleName,
    /,
    *,
    buyer: str = "",
    sku: str = "",
    state: State = "",
    order_id: str = "",
    count: Annotated[int, Parameter(help="The most that are shown.")] = 100,
    api: Api = DEFAULT,
) -> int:
    """Search the orders of a sale."""
    found: list[Any] = []
    query: dict[str, str | int] = {"buyer": buyer, "sku": sku, "state": state, "order_id": order_id}
    with Client(api) as client:
        for order in client.pages(f"/v1/sales/{_part(name)}/orders", "orders", limit=max(1, min(count, 500)), **query):
            if len(found) == count:
                break
            found.append(order)
    if api.json:
        say_json({"orders": found})
        return 0
    rows = [
        (
            one["order_id"],
            one["buyer"],
            one["sku"],
            one["quantity"],
            yuan(one["amount_fen"]),
            one["state"],
            moment(one["reserved_ms"]),
        )
        for one in found
    ]
    table(("order", "buyer", "SKU", "quantity", "amount (CNY)", "state", "reserved"), rows)
    return 0


@sale.command
def cancel(name: SaleName, order_id: str, /, *, api: Api = DEFAULT) -> int:
    """Cancel an order that is not paid; its units are sold again. Exit status 1 when it stays what it is."""
    with Client(api) as client:
        done = client.post(f"/v1/sales/{_part(name)}/orders/{_part(order_id)}/cancel")
    if api.json:
        say_json(done)
    else:
        say(f"{done['order_id']} is {done['state']}")
    return 0 if done["state"] == "cancelled" else 1


@sale.command
def export(
    name: SaleName,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The file; without it, standard output.")] = None,
    sku: str = "",
    state: State = "",
    api: Api = DEFAULT,
) -> int:
    """All orders of a sale as CSV; with --json, one order a line."""
    with Client(api) as client:
        if out is None:
            _export(client, api, name, sys.stdout.buffer, {"sku": sku, "state": state})
            return 0
        aside = out.with_name(f"{out.name}.part")
        try:
            with aside.open("wb") as file:
                _export(client, api, name, file, {"sku": sku, "state": state})
            aside.replace(out)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
        finally:
            aside.unlink(missing_ok=True)
    return 0


@sale.command
def refunds(
    *,
    name: Annotated[str, Parameter(name="--sale", help="Of this sale alone.")] = "",
    see: Annotated[tuple[str, ...], Parameter(negative=(), help="Payments whose refund is taken care of.")] = (),
    api: Api = DEFAULT,
) -> int:
    """Payments to be given back: they came when their order had ended, or were another amount."""
    with Client(api) as client:
        for payment_id in see:
            client.post(f"/v1/refunds/{_part(payment_id)}/seen")
        found = list(client.pages("/v1/refunds", "refunds", sale=name))
    if api.json:
        say_json({"refunds": found})
        return 0
    rows = [
        (
            one["payment_id"],
            one["sale"],
            one["order_id"],
            one["buyer"],
            yuan(one["amount_fen"]),
            moment(one["received_ms"]),
            moment(one["seen_ms"]),
        )
        for one in found
    ]
    table(("payment", "sale", "order", "buyer", "amount (CNY)", "received", "seen"), rows)
    return 0


def _export(client: Client, api: Api, name: str, file: Any, query: dict[str, str | int]) -> None:  # noqa: ANN401 - any binary file
    if not api.json:
        with client.stream(f"/v1/sales/{_part(name)}/orders.csv", **query) as pieces:
            for piece in pieces:
                file.write(piece)
        file.flush()
        return
    import json  # noqa: PLC0415 - the name is an option's too

    for order in client.pages(f"/v1/sales/{_part(name)}/orders", "orders", limit=500, **query):
        file.write(json.dumps(order).encode() + b"\n")
    file.flush()


def _step(api: Api, name: str, step: str) -> int:
    with Client(api) as client:
        return _shown(api, client.post(f"/v1/sales/{_part(name)}/{step}"))


def _shown(api: Api, answer: dict[str, Any]) -> int:
    if api.json:
        say_json(answer)
    else:
        show_sale(answer)
    return 0


def _part(text: str) -> str:
    """As one segment of a path."""
    if text in {"", ".", ".."}:
        raise UserError(f"{text!r} is not an id")
    return quote(text, safe="")
