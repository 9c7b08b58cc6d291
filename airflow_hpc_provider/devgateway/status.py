"""`/status`: systems, nodes, partitions, reservations, the user, liveness."""

import grp
import os
import time
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse, Response

from .files import group_name
from .systems import Call

__all__ = ["HANDLERS"]

_STARTED = time.time()


def systems(call: Call) -> Response:
    storage = call.world.storage
    listed = [s.to_json(storage.public_url, storage.lifetime) for s in call.world.systems.values()]
    return JSONResponse({"systems": listed})


def liveness(call: Call) -> Response:
    runs = {
        system.name: datetime.fromtimestamp(system.checked_at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        for system in call.world.systems.values()
    }
    return JSONResponse({"healthcheckRuns": runs, "lastUpdate": int(time.time() - _STARTED)})


def nodes(call: Call) -> Response:
    found = call.system.scheduler.nodes()
    return JSONResponse({"nodes": [_rest_node(node) for node in found] if call.system.rest else found})


def _rest_node(node: dict[str, Any]) -> dict[str, Any]:
    other = {"cores": 1, "threads": 1, "freeMemory": None, "allocMemory": 0, "idleCpus": None}
    return {**node, **other, "features": [node["features"]]}


def partitions(call: Call) -> Response:
    call.system.require("scheduler")
    found = call.system.scheduler.partitions()
    if call.system.rest:
        found = [{**partition, "partition": [partition["partition"]]} for partition in found]
    return JSONResponse({"partitions": found})


def reservations(call: Call) -> Response:
    call.system.require("scheduler")
    return JSONResponse({"reservations": call.system.scheduler.reservations()})


def userinfo(call: Call) -> Response:
    call.system.require("scheduler", "ssh")
    user = call.world.user
    groups = {gid: group_name(gid) for gid in [user.gid, *os.getgroups()]}
    groups |= {g.gr_gid: g.gr_name for g in grp.getgrall() if user.name in g.gr_mem}
    return JSONResponse(
        {
            "user": {"id": str(user.uid), "name": user.name},
            "group": {"id": str(user.gid), "name": user.group},
            "groups": [{"id": str(gid), "name": name} for gid, name in groups.items()],
            "accounts": call.system.scheduler.accounts(),
        }
    )


HANDLERS = {
    "systems": systems,
    "liveness": liveness,
    "nodes": nodes,
    "partitions": partitions,
    "reservations": reservations,
    "userinfo": userinfo,
}
