"""A payment provider to try a sale with: a page with one button, which reports the payment as a real provider would.

It takes no money and asks for no name: whoever knows an order may "pay" it. Never put it before the public.
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from springtide.errors import LedgerError
from springtide.model import Order, Payment
from springtide.ports import Ledger

Report = Callable[[Payment], Awaitable[str]]
"""Sends a signed payment to the back office; its outcome, or what went wrong."""

_AGAIN_S = 2


def create_pay_page(ledger: Ledger, report: Report) -> FastAPI:
    """`GET` and `POST /pay/{sale}/{order_id}`."""
    app = FastAPI(title="Springtide test payments", openapi_url=None)
    template = Environment(
        loader=PackageLoader("springtide.twin", "pages"), autoescape=True, undefined=StrictUndefined
    ).get_template("pay.html")

    def show(state: str, sale: str, order: Order | None) -> HTMLResponse:
        amount_fen = order.price_fen * order.reservation.quantity if order else 0
        text = template.render(
            state=state, sale=sale, order=order.reservation if order else None, amount=f"{amount_fen / 100:.2f}"
        )
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"}
        if state == "unknown":
            headers["Refresh"] = str(_AGAIN_S)
        return HTMLResponse(text, headers=headers)

    async def find(sale: str, order_id: str) -> Order | None:
        """The order, once the recorder has reached it."""
        order = await ledger.order(order_id)
        return order if order is not None and order.reservation.sale == sale else None

    @app.get("/pay/{sale}/{order_id}")
    async def ask(sale: str, order_id: str) -> HTMLResponse:
        try:
            order = await find(sale, order_id)
        except LedgerError:
            order = None
        return show("unknown" if order is None else order.state.value, sale, order)

    @app.post("/pay/{sale}/{order_id}")
    async def pay(sale: str, order_id: str) -> HTMLResponse:
        order = await find(sale, order_id)
        if order is None:
            return show("unknown", sale, None)
        held = order.reservation
        amount_fen = order.price_fen * held.quantity
        outcome = await report(Payment(f"try-{order_id}", order_id, sale, held.buyer, amount_fen))
        return show(outcome, sale, order)

    return app
