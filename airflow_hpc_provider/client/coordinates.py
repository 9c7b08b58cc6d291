"""Where the job of a stream listens, as the gateway tells it: read and checked, and kept out of all texts."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Coordinates", "read_coordinates"]

_MOST_HOSTS = 64
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?")
# What an HTTP header may carry as a bearer token.
_SECRET = re.compile(r"[A-Za-z0-9._~+/=:-]{1,4096}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Where a job's server may listen, and the secret that it asks for: a credential, so in no text.

    :param hosts: host names or addresses
    :param ports: first and last port of the range
    :param secret: bearer token
    """

    hosts: tuple[str, ...] = field(repr=False)
    ports: tuple[int, int]
    secret: str = field(repr=False)

    def places(self) -> Iterator[tuple[str, int]]:
        """Every host and port, in the order in which the server tries them."""
        first, last = self.ports
        return ((host, port) for host in self.hosts for port in range(first, last + 1))

    def scrub(self, text: str) -> str:
        """A text of the job without the lines that tell them: its server prints them."""
        lines = [line for line in text.splitlines() if "coordinates" not in line.lower()]
        return "\n".join(lines).replace(self.secret, "***")


def read_coordinates(coded: object) -> Coordinates:
    """What the gateway answered, read and checked: a client connects to wherever they lead.

    :param coded: JSON in URL-safe base64
    :raises ValueError: it is not that; the text holds nothing of it
    """
    try:
        plain = json.loads(base64.b64decode(_padded(coded), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise ValueError("coordinates that are no JSON in base64") from None
    if not isinstance(plain, dict):
        raise ValueError("coordinates that are no JSON object")  # noqa: TRY004  its reader knows ValueError
    hosts, ports, secret = plain.get("ips"), plain.get("ports"), plain.get("secret")
    if not isinstance(hosts, list) or not 0 < len(hosts) <= _MOST_HOSTS or not all(map(_is_host, hosts)):
        raise ValueError("coordinates without addresses")
    if not isinstance(ports, list) or len(ports) != 2 or not all(map(_is_port, ports)) or ports[0] > ports[1]:
        raise ValueError("coordinates without a range of ports")
    if not isinstance(secret, str) or not _SECRET.fullmatch(secret):
        raise ValueError("coordinates without a secret")
    return Coordinates(hosts=tuple(hosts), ports=(ports[0], ports[1]), secret=secret)


def _padded(coded: object) -> bytes:
    if not isinstance(coded, str):
        raise ValueError("no text")  # noqa: TRY004  its reader knows ValueError
    return (coded + "=" * (-len(coded) % 4)).encode("ascii")


def _is_host(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return _HOST.fullmatch(value) is not None
    return "%" not in value


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536
