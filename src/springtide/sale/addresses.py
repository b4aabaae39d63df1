"""Whose address a request comes from: that of the connection, or the one that trusted proxies in front have noted."""

import ipaddress
from functools import lru_cache

NETWORKS_CACHED = 8192
"""Texts of addresses of which it is remembered what network they name."""

NAME_LENGTH_MAX = 64
"""What is no address is its own name, cut off here, so that nobody can have long ones remembered."""

_V6_PREFIX = 64


def client_address(peer: str, forwarded: bytes | None, hops: int) -> str:
    """The client's address, by the `hops` proxies nearest to us; each is trusted to append its peer's address.

    `peer` is the network of the connection's other end, `forwarded` is X-Forwarded-For: what stands to the left of the
    trusted entries may be forged and is not looked at. When fewer entries are there than proxies, the leftmost is
    taken. IPv6 is cut to its /64, which is what one customer is given (RFC 6177).
    """
    if hops and forwarded:
        entries = forwarded.rsplit(b",", hops)
        return network(entries[-min(hops, len(entries))].strip().decode("latin-1"))
    return peer


@lru_cache(NETWORKS_CACHED)
def network(text: str) -> str:
    """An IPv4 address, an IPv6 /64, or the text itself when it is neither; a port is left out."""
    bare = _without_port(text)
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return bare[:NAME_LENGTH_MAX]
    if isinstance(address, ipaddress.IPv4Address):
        return bare
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _V6_PREFIX), strict=False))


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, port = text.rpartition(":")
    return host if colon and ":" not in host and port.isdigit() else text
