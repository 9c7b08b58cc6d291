"""A gateway that only knows how to tell of jobs: FirecREST's paths and bodies, simulated records.

Runs in a process of its own, on loopback, so that its CPU time is nobody else's. Prints its port, and ends
when its standard input does. ``POST /plan`` says how many jobs there are and when they end; ``GET /counts``
tells how many requests came and how many bytes went over the wire (heads and bodies, both ways).
"""

import json
import socket
import sys
import threading
import time
from typing import Any

import uvicorn

SYSTEM = "cluster"
_WINDOWS = {"1h": 3600, "8h": 8 * 3600, "24h": 24 * 3600, "3d": 3 * 86400, "7d": 7 * 86400}


class Jobs:
    """So many jobs that run, and the moments at which some of them end."""

    def __init__(self, count: int, ends: dict[str, float]) -> None:
        self.ends = {int(job_id): end for job_id, end in ends.items()}
        start = int(time.time()) - 60
        self._running = [_record(job_id, start, None) for job_id in range(1, count + 1)]
        self._over = {job_id: _record(job_id, start, int(end)) for job_id, end in self.ends.items()}

    def body(self, job_id: int) -> bytes | None:
        if not 0 < job_id <= len(self._running):
            return None
        over = self.ends.get(job_id, float("inf")) <= time.time()
        return self._over[job_id] if over else self._running[job_id - 1]

    def bodies(self, window: int) -> list[bytes]:
        now = time.time()
        found = list(self._running)
        for job_id, end in self.ends.items():
            if end <= now:
                found[job_id - 1] = self._over[job_id] if end > now - window else b""
        return [body for body in found if body]


def _record(job_id: int, start: int, end: int | None) -> bytes:
    """As FirecREST 2 told of a job on Slurm 24.11 in ssh mode."""
    state = "COMPLETED" if end else "RUNNING"
    status = {
        "state": state,
        "stateReason": "None",
        "exitCode": 0,
        "interruptSignal": 0 if end else None,
    }
    times = {"elapsed": (end or start) - start, "start": start, "end": end or 0, "suspended": 0}
    record = {
        "jobId": str(job_id),
        "name": f"train-{job_id:010x}",
        "status": status,
        "tasks": [
            {
                "id": f"{job_id}.batch",
                "name": "batch",
                "status": {**status, "stateReason": None},
                "time": {**times, "limit": None},
            }
        ],
        "time": {**times, "limit": 3600},
        "account": "staff",
        "allocationNodes": 1,
        "cluster": SYSTEM,
        "group": "users",
        "nodes": "nid002",
        "partition": "normal",
        "killRequestUser": "",
        "user": "fireuser",
        "workingDirectory": "/scratch/fireuser/train",
        "priority": 4294901759,
    }
    return json.dumps(record, separators=(",", ":")).encode()


class App:
    """The ASGI application."""

    def __init__(self) -> None:
        self._jobs = Jobs(0, {})
        self._counts = {"requests": 0, "lists": 0, "bytes": 0}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        if path == "/plan":
            plan = json.loads(body)
            self._jobs = Jobs(plan["count"], plan["ends"])
            self._counts = dict.fromkeys(self._counts, 0)
            await self._answer(send, 200, b"{}")
        elif path == "/counts":
            await self._answer(send, 200, json.dumps(self._counts).encode())
        else:
            await self._tell(scope, send, path)

    async def _tell(self, scope: Any, send: Any, path: str) -> None:
        self._counts["requests"] += 1
        base = f"/compute/{SYSTEM}/jobs"
        if path == base:
            self._counts["lists"] += 1
            query = scope["query_string"].decode()
            window = query.partition("time_window=")[2].partition("&")[0] or "24h"
            status, answer = 200, b'{"jobs":[' + b",".join(self._jobs.bodies(_WINDOWS[window])) + b"]}"
        else:
            number = path.removeprefix(base + "/")
            found = self._jobs.body(int(number)) if number.isdigit() else None
            status = 200 if found else 404
            answer = b'{"jobs":[' + found + b"]}" if found else b'{"message":"Job not found."}'
        asked = len(scope["method"]) + len(scope["raw_path"]) + len(scope["query_string"]) + 12
        asked += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        self._counts["bytes"] += asked + await self._answer(send, status, answer)

    @staticmethod
    async def _answer(send: Any, status: int, body: bytes) -> int:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"f7t-appversion", b"2.6.0"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return 17 + sum(len(name) + len(value) + 4 for name, value in headers) + len(body)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = uvicorn.Server(uvicorn.Config(App(), log_level="warning", access_log=False, lifespan="off"))

    def end_with_parent() -> None:
        sys.stdin.read()
        server.should_exit = server.force_exit = True

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
