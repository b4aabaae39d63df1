"""The reference: the purchase as a small FastAPI program does it, with the same durability.

`python -m bench.reference_fastapi VALKEY_PORT TOKEN_KEY`; prints its port. One EVALSHA for each request; it
checks the same token, lets a buyer buy once, and writes the same facts to a stream.
"""

import base64
import hashlib
import hmac
import socket
import sys
import time
import uuid
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
import valkey.asyncio
from fastapi import FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, Field

SCRIPT = """
local held = redis.call('HGET', KEYS[2], ARGV[1])
if held then return {'held', held} end
local left = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or '0')
if left < tonumber(ARGV[3]) then return {'sold_out', ''} end
redis.call('HINCRBY', KEYS[1], ARGV[2], -tonumber(ARGV[3]))
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
redis.call('XADD', KEYS[3], '*', 'order', ARGV[4], 'buyer', ARGV[1], 'sku', ARGV[2],
  'quantity', ARGV[3], 'key', ARGV[5])
return {'reserved', ARGV[4]}
"""


class Purchase(BaseModel):
    sku: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    quantity: int = Field(default=1, ge=1, le=1_000_000)


def buyer_of(authorization: str, sale: str, token_key: bytes) -> str:
    text, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
    wanted = base64.urlsafe_b64encode(hmac.digest(token_key, text.encode(), hashlib.sha256)).rstrip(b"=")
    if not hmac.compare_digest(wanted, signature.encode()):
        raise HTTPException(401, "the token is not ours")
    _, buyer, for_sale, expires_s = text.split(".")
    if for_sale != sale or int(expires_s) <= time.time():
        raise HTTPException(401, "the token is for another sale or has expired")
    return buyer


def make_app(valkey_port: int, token_key: bytes) -> FastAPI:
    store: Any = valkey.asyncio.Valkey(host="127.0.0.1", port=valkey_port)  # its stubs are not typed strictly
    state: dict[str, str] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:  # noqa: ANN401 - an asynchronous generator, as FastAPI takes it
        state["script"] = await store.script_load(SCRIPT)
        yield
        await store.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/sales/{sale}/orders", status_code=201)
    async def buy(
        sale: str,
        purchase: Purchase,
        response: Response,
        authorization: Annotated[str, Header()],
        idempotency_key: Annotated[str, Header(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")],
    ) -> dict[str, Any]:
        buyer = buyer_of(authorization, sale, token_key)
        keys = (f"{{ref}}:{sale}:stock", f"{{ref}}:{sale}:held", f"{{ref}}:{sale}:journal")
        order_id = uuid.uuid4().hex
        outcome, held = await store.evalsha(
            state["script"], 3, *keys, buyer, purchase.sku, purchase.quantity, order_id, idempotency_key
        )
        if outcome == b"sold_out":
            raise HTTPException(409, "sold out")
        if outcome == b"held":
            response.status_code = 200
        return {
            "order_id": held.decode(),
            "sale": sale,
            "sku": purchase.sku,
            "quantity": purchase.quantity,
            "status": "reserved",
            "pay_by_ms": time.time_ns() // 1_000_000 + 60_000,
        }

    return app


def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    app = make_app(int(sys.argv[1]), bytes.fromhex(sys.argv[2]))
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False, lifespan="on")
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
