"""How often an address may guess the password: a few wrong ones are forgiven, then it is refused for longer and longer.

What is counted is forgotten an hour after the last wrong one. The right password does not clear it: else who knows it
would clear it for everybody behind the same proxy.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE = 10
"""Wrong passwords before the first refusal."""
FIRST_WAIT, LONGEST_WAIT = 60.0, 3600.0
"""s of the first refusal, of the longest; each wrong password doubles it."""
FORGET = 3600.0
"""s after which an address begins anew: counted from its last wrong password, or from the end of its refusal."""
MOST = 10_000
"""Addresses that are remembered; beyond these the one that guessed longest ago is forgotten."""


@dataclass
class _Count:
    wrong: int = 0
    until: float = -math.inf
    """When the refusal ends; before the first one, when the last guess was made."""
    last: bytes = b""
    """The digest of the last wrong password: the same once more, as a page sends that was left open, is no new guess."""


class Guesses:
    """clock: the time in s, which never goes back. free: wrong passwords before the first refusal."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, free: int = FREE) -> None:
        self._clock, self._free = clock, free
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        self._salt = secrets.token_bytes(16)

    def wait(self, address: str) -> float:
        """s for which this address is refused still; 0.0: it may guess."""
        count = self._counts.get(_network(address))
        return 0.0 if count is None else max(0.0, count.until - self._clock())

    def wrong(self, address: str, given: bytes) -> None:
        """It guessed, and `given` was not right."""
        network, now = _network(address), self._clock()
        count = self._counts.get(network)
        if count is None or now - count.until > FORGET:
            count = _Count()
        digest = hashlib.blake2b(given, key=self._salt, digest_size=16).digest()
        if digest != count.last:
            count.wrong, count.last = count.wrong + 1, digest
            surplus = count.wrong - self._free
            count.until = now + min(FIRST_WAIT * 2.0 ** min(surplus, 30), LONGEST_WAIT) if surplus >= 0 else now
        self._counts[network] = count
        self._counts.move_to_end(network)
        while len(self._counts) > MOST:
            self._counts.popitem(last=False)

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._counts)


def _network(address: str) -> str:
    """What is counted together: an address, and of IPv6 the network of 64 bits, all of which one machine may have."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))
