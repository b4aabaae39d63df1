"""The page on which a buyer buys, `/s/{sale}`: one HTML document, the same for every sale and every buyer.

It speaks to the counter's API from the browser. Its style and script are inside it, and the policy it is sent with lets
the browser run exactly those.
"""

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import ClassVar

from springtide.sale import problems
from springtide.sale.extension import Exchange
from springtide.sale.glance import Request
from springtide.sale.page import Page

AGE_S = 60
"""How long a browser or a cache may keep the page: what changes is asked of the API."""

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


class BuyerPage:
    """`Extension` of the counter that serves the page."""

    claim: ClassVar[bytes] = b"/s/"
    for_buyers: ClassVar[bool] = False

    def handle(self, exchange: Exchange, request: Request, page: Page, buyer: str, rest: bytes) -> None:  # noqa: ARG002 - the signature of every extension
        """Answer with the document; it finds the sale's name in its own address."""
        if rest.strip(b"/"):
            exchange.refuse(problems.NOT_FOUND)
        elif request.method not in {b"GET", b"HEAD"}:
            exchange.refuse(problems.METHOD_NOT_ALLOWED, b"Allow: GET, HEAD\r\n")
        else:
            exchange.reply(b"HTTP/1.1 200 OK\r\n" + headers(), document())


@cache
def document() -> bytes:
    """The document, UTF-8."""
    return resources.files("springtide.sale").joinpath("pages/buyer.html").read_bytes()


@cache
def headers() -> bytes:
    """The header lines that go with it, each ended."""
    text = document().decode()
    policy = "; ".join(
        (
            "default-src 'none'",
            "connect-src 'self'",
            f"script-src {_hashes(_SCRIPT, text)}",
            f"style-src {_hashes(_STYLE, text)}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    lines = (
        "Content-Type: text/html; charset=utf-8",
        f"Cache-Control: public, max-age={AGE_S}",
        f"Content-Security-Policy: {policy}",
        "Referrer-Policy: no-referrer",
        "X-Content-Type-Options: nosniff",
    )
    return "".join(f"{line}\r\n" for line in lines).encode()


def _hashes(pattern: re.Pattern[str], text: str) -> str:
    """What a content security policy calls a hash source (CSP Level 3, 2.3.1), for each element that matches."""
    digests = (hashlib.sha256(body.encode()).digest() for body in pattern.findall(text))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
