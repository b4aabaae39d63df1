"""Keys of the merchant's API: `sk_<key id>_<secret>`, of which the ledger has the SHA-256 alone.

The secret has at least 128 random bits, so a plain hash cannot be searched. Keys that were read are trusted for a
second: a key that is revoked, through whichever back office, is good for nothing after that.
"""

import asyncio
import hashlib
from hmac import compare_digest

import msgspec

from springtide.errors import SpringtideError
from springtide.model import ApiKey, Role
from springtide.ports import Clock, Ids, Ledger
from springtide.sale.merchant import MerchantError, Refusal

AGE_S_MAX = 1.0
"""The oldest that what is known of the keys may be."""

UNKNOWN_AGE_S_MAX = 0.1
"""The same for a key that is not among them: it may be new. Bounds what a stranger can make us read."""

KEYS_MAX = 1000
"""The keys that the ledger holds at most, the revoked ones included."""

_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.OWNER: 2}
_PARTS = 3


class NewKey(msgspec.Struct, frozen=True):
    """A key and its secret, which is not kept anywhere."""

    key: ApiKey
    secret: str


def make_key(ids: Ids, name: str, role: Role, now_ms: int) -> NewKey:
    """A fresh key, to be added to the ledger."""
    key_id = ids.new("k")
    secret = f"sk_{key_id}_{ids.new('')}{ids.new('')}"
    return NewKey(ApiKey(key_id, name, role, digest_of(secret), now_ms), secret)


def digest_of(secret: str) -> str:
    """The SHA-256 of a secret, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def may(has: Role, needed: Role) -> bool:
    """Whether a key of one role may do what needs the other."""
    return _RANK[has] >= _RANK[needed]


class KeyBook:
    """All keys of the API. Methods raise LedgerUnavailable while the keys cannot be read."""

    def __init__(self, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        """Nothing is read yet."""
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._keys: dict[str, ApiKey] = {}
        self._read_s: float | None = None
        self._reading = asyncio.Lock()

    @property
    def size(self) -> int:
        """Keys that are known, the revoked ones included."""
        return len(self._keys)

    async def check(self, secret: str) -> ApiKey | None:
        """The key of this secret; None when there is none, or it is revoked. Takes as long for a near miss."""
        parts = secret.split("_")
        key_id = parts[1] if len(parts) == _PARTS else ""
        await self._refresh(AGE_S_MAX)
        if key_id not in self._keys:
            await self._refresh(UNKNOWN_AGE_S_MAX)
        key = self._keys.get(key_id)
        # As bytes, and against something even when there is no such key.
        good = compare_digest(digest_of(secret).encode(), (key.secret_sha256 if key else "0" * 64).encode())
        return key if key is not None and good and key.revoked_ms is None else None

    async def keys(self) -> list[ApiKey]:
        """All keys, the revoked ones included, oldest first."""
        return await self._ledger.api_keys()

    async def create(self, name: str, role: Role) -> NewKey:
        """A new key. Raises MerchantError when there are as many as there may be."""
        if len(await self._ledger.api_keys()) >= KEYS_MAX:
            raise MerchantError(Refusal.TOO_MANY_KEYS, f"there are {KEYS_MAX} keys, the most there may be")
        new = make_key(self._ids, name, role, self._clock.now_ms())
        await self._ledger.add_api_key(new.key)
        self._read_s = None
        return new

    async def revoke(self, key_id: str) -> ApiKey:
        """Let a key be good for nothing. Raises MerchantError when there is none, or it is the last of an owner."""
        keys = await self._ledger.api_keys()
        key = next((one for one in keys if one.key_id == key_id), None)
        if key is None:
            raise MerchantError(Refusal.UNKNOWN_KEY, f"there is no key {key_id}; `key list` shows those there are")
        owners = {one.key_id for one in keys if one.role is Role.OWNER and one.revoked_ms is None}
        if owners == {key_id}:
            raise MerchantError(Refusal.LAST_OWNER, f"{key_id} is the last key of an owner; create another one first")
        await self._ledger.revoke_api_key(key_id)
        self._read_s = None
        return next(one for one in await self._ledger.api_keys() if one.key_id == key_id)

    async def _refresh(self, age_s_max: float) -> None:
        async with self._reading:
            now_s = self._clock.monotonic_s()
            if self._read_s is not None and now_s - self._read_s < age_s_max:
                return
            try:
                keys = await self._ledger.api_keys()
            except SpringtideError:
                self._read_s = None
                raise
            self._keys = {key.key_id: key for key in keys}
            # From before the call: what was revoked while it ran may be missing from it.
            self._read_s = now_s
