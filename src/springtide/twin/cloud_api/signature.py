"""Who calls: the ACS3-HMAC-SHA256 signature of a request, checked as Alibaba Cloud documents it.

Source: "V3 request body and signature mechanism". The canonical request is method, path, sorted and encoded query,
signed headers with their values, their names, and the hash of the body; its hash is signed with the key's secret.
Requests whose x-acs-date is more than 15 minutes off are refused, and so is a nonce that was used.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import msgspec

from springtide.twin.cloud_api.answers import NOT_FOUND, ApiError, read_moment

ALGORITHM = "ACS3-HMAC-SHA256"
SKEW_MAX_MS = 900_000
NONCES_MAX = 100_000
_REQUIRED = frozenset({"host", "x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce"})


class AccessKey(msgspec.Struct, frozen=True):
    """An access key pair."""

    access_key_id: str
    access_key_secret: str


class Signed(msgspec.Struct, frozen=True):
    """What of a request is signed. `query` is decoded; header names are in lower case."""

    method: str
    path: str
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]
    body: bytes


class SignatureCheck:
    """The account's keys, and the nonces of the last quarter of an hour."""

    def __init__(self, keys: Sequence[AccessKey]) -> None:
        """All keys are of one account."""
        self._secrets = {key.access_key_id: key.access_key_secret for key in keys}
        self._nonces: dict[str, int] = {}

    def check(self, request: Signed, now_ms: int) -> str:
        """The access key id that signed the request. Raises ApiError."""
        key_id, names, signature = _read_authorization(request.headers.get("authorization", ""))
        secret = self._secrets.get(key_id)
        if secret is None:
            raise ApiError("InvalidAccessKeyId.NotFound", "Specified access key is not found.", NOT_FOUND)
        self._check_date(request.headers, now_ms)
        if not names >= _REQUIRED or request.headers.get("x-acs-content-sha256") != _hash(request.body):
            raise _mismatch()
        if not hmac.compare_digest(sign(request, sorted(names), secret), signature):
            raise _mismatch()
        self._use_nonce(request.headers["x-acs-signature-nonce"], now_ms)
        return key_id

    def _check_date(self, headers: Mapping[str, str], now_ms: int) -> None:
        try:
            sent_ms = read_moment(headers.get("x-acs-date", ""))
        except ValueError as error:
            raise ApiError(
                "InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted."
            ) from error
        if abs(now_ms - sent_ms) > SKEW_MAX_MS:
            raise ApiError("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")

    def _use_nonce(self, nonce: str, now_ms: int) -> None:
        while self._nonces:
            oldest = next(iter(self._nonces))
            if len(self._nonces) < NONCES_MAX and now_ms - self._nonces[oldest] <= SKEW_MAX_MS:
                break
            del self._nonces[oldest]
        if nonce in self._nonces:
            raise ApiError("SignatureNonceUsed", "Specified signature nonce was used already.")
        self._nonces[nonce] = now_ms


def sign(request: Signed, names: Sequence[str], secret: str) -> str:
    """The signature of a request over these headers, in hexadecimal."""
    query = "&".join(f"{_encode(name)}={_encode(value)}" for name, value in sorted(request.query))
    headers = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in names)
    canonical = "\n".join((request.method, request.path, query, headers, ";".join(names), _hash(request.body)))
    text = f"{ALGORITHM}\n{_hash(canonical.encode())}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _read_authorization(text: str) -> tuple[str, frozenset[str], str]:
    algorithm, _, rest = text.partition(" ")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    key_id, names, signature = (fields.get(name, "") for name in ("Credential", "SignedHeaders", "Signature"))
    if algorithm != ALGORITHM or not key_id or not names:
        raise ApiError("IncompleteSignature", f"The request is not signed with {ALGORITHM}.")
    return key_id, frozenset(names.split(";")), signature


def _mismatch() -> ApiError:
    return ApiError("SignatureDoesNotMatch", "Specified signature is not matched with our calculation.")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _encode(text: str) -> str:
    return quote(text, safe="~")
