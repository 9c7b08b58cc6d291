"""The transfer method `streamer`: FirecREST's own server of it runs as the job, for one websocket client."""

import base64
import importlib.util
import json
import secrets
import shlex
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["Streamer", "streamer_is_there"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamer:
    """How the streamer is set up on a system.

    :param ports: first and last port of the range in which a job's server listens.
    :param public_ips: where clients reach it.
    :param host: on which interface it listens.
    :param wait_timeout: seconds for which it waits for its client.
    :param inbound_limit: bytes that it takes.
    """

    ports: tuple[int, int] = (5665, 5675)
    public_ips: tuple[str, ...] = ("127.0.0.1",)
    host: str = "127.0.0.1"
    wait_timeout: int = 86_400
    inbound_limit: int = 5 * 2**30

    def to_json(self) -> dict[str, Any]:
        return {
            "serviceType": "streamer",
            "pypiIndexUrl": None,
            "host": self.host,
            "portRange": list(self.ports),
            "publicIps": list(self.public_ips),
            "waitTimeout": self.wait_timeout,
            "inboundTransferLimit": self.inbound_limit,
        }

    def prepare(self, operation: str, path: str) -> tuple[str, dict[str, Any]]:
        """The script of one transfer, and what its client has to know.

        :param operation: `receive` or `send`.
        """
        secret = secrets.token_urlsafe(16)
        server = [sys.executable, "-I", "-m", "streamer", "server", "--secret", secret, "--host", self.host]
        for ip in self.public_ips:
            server += ["--public-ips", ip]
        server += ["--port-range", *map(str, self.ports), "--wait-timeout", str(self.wait_timeout)]
        server += ["--inbound-transfer-limit", str(self.inbound_limit), operation, "--path", path]
        # As in the original, nothing is written over, and nothing that is missing is waited for.
        wrong = f"[ {'-f' if operation == 'receive' else '! -f'} {shlex.quote(path)} ]"
        script = (
            f"if {wrong}; then\n"
            f"  echo 'Error: cannot {operation} this file.'\n"
            "  exit 1\n"
            "fi\n"
            f"{shlex.join(server)}\n"
        )
        told = {"ports": list(self.ports), "ips": list(self.public_ips), "secret": secret}
        coordinates = base64.urlsafe_b64encode(json.dumps(told).encode()).decode()
        return script, {"transferMethod": "streamer", "coordinates": coordinates}


def streamer_is_there() -> bool:
    """Its package is installed."""
    return importlib.util.find_spec("streamer") is not None
