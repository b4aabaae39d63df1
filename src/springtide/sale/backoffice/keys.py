"""Keys over HTTP: those of this API, and the tokens of buyers with the keys they are signed with."""

from typing import Annotated

from fastapi import Path

from springtide.model import Role
from springtide.sale.backoffice.auth import guarded_router, needs
from springtide.sale.backoffice.office import TheOffice
from springtide.sale.backoffice.sales import SaleName
from springtide.sale.backoffice.schemas import (
    KeyOut,
    KeysOut,
    Name,
    NewKeyBody,
    NewKeyOut,
    RetireBody,
    RingOut,
    TokenOut,
    TokensBody,
    TokensOut,
)

router = guarded_router("keys")


@router.get("/keys", openapi_extra=needs(Role.OWNER))
async def list_keys(office: TheOffice) -> KeysOut:
    """All keys of this API, the revoked ones included; their secrets are not kept."""
    return KeysOut(keys=[KeyOut.of(key) for key in await office.keys.keys()])


@router.post("/keys", status_code=201, openapi_extra=needs(Role.OWNER))
async def create_key(body: NewKeyBody, office: TheOffice) -> NewKeyOut:
    """Make a key. Its secret is in this answer and nowhere else."""
    new = await office.keys.create(body.name, body.role)
    return NewKeyOut(**KeyOut.of(new.key).model_dump(), secret=new.secret)


@router.delete("/keys/{key_id}", openapi_extra=needs(Role.OWNER))
async def revoke_key(key_id: Annotated[Name, Path(description="The key's id.")], office: TheOffice) -> KeyOut:
    """Let a key be good for nothing, everywhere within a second."""
    return KeyOut.of(await office.keys.revoke(key_id))


@router.post("/sales/{sale}/tokens", openapi_extra=needs(Role.OPERATOR))
async def issue_tokens(sale: SaleName, body: TokensBody, office: TheOffice) -> TokensOut:
    """Tokens with which these buyers can buy in this sale. Whoever holds one is this buyer: give it to nobody else."""
    await office.merchant.record(sale)
    issued = await office.tokens.issue(sale, body.buyers, body.ttl_s)
    tokens = [TokenOut(buyer=buyer, token=token) for buyer, token in zip(body.buyers, issued.tokens, strict=True)]
    return TokensOut(tokens=tokens, expires_s=issued.expires_s, generation=issued.generation)


@router.get("/token-keys", openapi_extra=needs(Role.OPERATOR))
async def show_token_keys(office: TheOffice) -> RingOut:
    """The generations of token keys in use."""
    return RingOut.of(await office.tokens.ring())


@router.post("/token-keys/rotate", openapi_extra=needs(Role.OWNER))
async def rotate_token_keys(office: TheOffice) -> RingOut:
    """Sign with a new generation from a few seconds on; tokens of those before it stay good."""
    return RingOut.of(await office.tokens.rotate())


@router.post("/token-keys/retire", openapi_extra=needs(Role.OWNER))
async def retire_token_keys(body: RetireBody, office: TheOffice) -> RingOut:
    """Let all tokens of the oldest generation be good for nothing."""
    return RingOut.of(await office.tokens.retire(body.generation))
