"""Systems, health, nodes, partitions, reservations and user: from answers as gateways gave them."""

import base64

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import WORLDS, Reply, in_turn, serve

from airflow_hpc_provider.client import systems
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.errors import BadAnswerError, InvalidInputError
from airflow_hpc_provider.client.retry import RetryPolicy

KEY = "minio-secret-key"


def gateway_system(**changes):
    system = {
        "name": "daint",
        "ssh": {"host": "10.0.0.1", "port": 22, "maxClients": 500},
        "scheduler": {"type": "slurm", "connectionMode": "rest", "version": "24.11.5", "timeout": 10},
        "servicesHealth": [
            {
                "serviceType": "scheduler",
                "lastChecked": "2026-11-22T04:55:43Z",
                "healthy": True,
                "message": None,
            },
            {
                "serviceType": "filesystem",
                "lastChecked": None,
                "latency": 0.4,
                "healthy": False,
                "message": "stale",
                "path": "/scratch",
            },
        ],
        "probing": {"intervalCheck": 120},
        "fileSystems": [
            {"path": "/home", "dataType": "users", "defaultWorkDir": True},
            {"path": "/scratch", "dataType": "scratch", "defaultWorkDir": False},
        ],
        "dataOperation": {
            "datatransfer_jobs_directives": ["#SBATCH --nodes=1", "#SBATCH --account={account}"],
            "max_ops_file_size": 1048576,
            "data_transfer": {
                "serviceType": "s3",
                "name": "s3-storage",
                "privateUrl": f"http://{KEY}",
                "publicUrl": "http://s3.example.org",
                "accessKeyId": KEY,
                "secretAccessKey": KEY,
                "ttl": 604800,
                "multipart": {"use_split": False, "max_part_size": 134217728},
            },
        },
    }
    return system | changes


def read(call, body):
    """The result of a call that is answered like this."""
    return call.read(httpx.Response(200, json=body, request=httpx.Request("GET", "http://gateway")))


def read_system(raw):
    (system,) = read(systems.listing(), {"systems": [raw]})
    return system


def test_a_system_is_read_with_health_file_systems_and_limits():
    system = read_system(gateway_system())
    assert system == systems.System(
        name="daint",
        scheduler="slurm",
        scheduler_version="24.11.5",
        connection_mode="rest",
        health=(
            systems.ServiceHealth(kind="scheduler", healthy=True, last_checked="2026-11-22T04:55:43Z"),
            systems.ServiceHealth(kind="filesystem", healthy=False, message="stale", path="/scratch"),
        ),
        file_systems=(
            systems.FileSystem(path="/home", kind="users", default_directory=True),
            systems.FileSystem(path="/scratch", kind="scratch"),
        ),
        max_direct_bytes=1048576,
        transfer_method="s3",
        max_part_bytes=134217728,
        needs_account=True,
    )
    assert system.default_directory == "/home"
    assert system.rest_mode
    assert not system.healthy
    assert [service.path for service in system.unhealthy] == ["/scratch"]


def snake(value):
    if isinstance(value, list):
        return [snake(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        "".join("_" + letter.lower() if letter.isupper() else letter for letter in key): snake(item)
        for key, item in value.items()
    }


def test_snake_case_reads_as_camel_case():
    assert read_system(snake(gateway_system())) == read_system(gateway_system())


def test_the_storages_keys_are_not_kept():
    assert KEY not in repr(read_system(gateway_system()))


@pytest.mark.parametrize(
    "bare",
    [
        {"name": "daint"},
        dict.fromkeys(gateway_system()) | {"name": "daint"},
        {"name": "daint", "scheduler": {"connectionMode": None}, "dataOperation": {"data_transfer": None}},
    ],
    ids=["missing", "null", "null inside"],
)
def test_what_is_missing_or_null_has_a_default(bare):
    system = read_system(bare)
    assert system == systems.System(name="daint")
    assert system.healthy
    assert not system.rest_mode
    assert system.default_directory is None
    assert (system.connection_mode, system.max_direct_bytes) == ("ssh", 5 * 1024 * 1024)


@pytest.mark.parametrize("method", ["streamer", "wormhole"])
def test_other_ways_of_transfer_are_told(method):
    raw = gateway_system(dataOperation={"data_transfer": {"serviceType": method}})
    system = read_system(raw)
    assert (system.transfer_method, system.max_part_bytes, system.needs_account) == (method, None, False)


def test_a_probe_without_a_verdict_is_no_good_news():
    assert not read_system(gateway_system(servicesHealth=[{"serviceType": "exception"}])).healthy


def test_the_direct_download_limit_is_the_one_measured():
    assert systems.System(name="x").max_direct_download_bytes == 3_932_157


@given(st.integers(0, 4000))
def test_the_largest_direct_download_is_below_the_limit_in_base64_and_one_byte_more_is_not(limit):
    largest = systems.System(name="x", max_direct_bytes=limit).max_direct_download_bytes
    assert largest == 0 or len(base64.b64encode(b"x" * largest)) < limit
    assert len(base64.b64encode(b"x" * (largest + 1))) >= limit


def test_no_systems_are_no_systems():
    assert read(systems.listing(), {"systems": []}) == ()


@pytest.mark.parametrize(
    "body",
    [{}, {"systems": None}, {"systems": 1}, {"systems": [None]}, {"systems": [{}]}, {"systems": ["daint"]}],
)
def test_what_is_no_list_of_systems_is_told(body):
    with pytest.raises(BadAnswerError, match="Could not list the systems"):
        read(systems.listing(), body)


@pytest.mark.parametrize(
    ("features", "expected"),
    [("mc,gpu", ("mc", "gpu")), (["mc", "gpu"], ("mc", "gpu")), ("", ()), (None, ()), ([], ())],
)
def test_nodes_read_alike_in_both_connection_modes(features, expected):
    raw = {
        "sockets": 64,
        "cores": 64,
        "threads": 64,
        "cpus": 64,
        "cpuLoad": 2.29,
        "freeMemory": 22576,
        "features": features,
        "name": "nid002",
        "state": ["IDLE", "DRAIN"],
        "partitions": ["normal", "debug"],
        "allocMemory": 20000,
        "allocCpus": 3,
    }
    assert read(systems.nodes("daint"), {"nodes": [raw]}) == (
        systems.Node(
            name="nid002",
            state=("IDLE", "DRAIN"),
            partitions=("normal", "debug"),
            features=expected,
            cpus=64,
            allocated_cpus=3,
            free_memory=22576,
        ),
    )


def test_a_node_may_tell_little():
    raw = {"name": "nid1", "cpus": 4, "state": ["DOWN"], "freeMemory": None, "partitions": None}
    assert read(systems.nodes("daint"), {"nodes": [raw]}) == (
        systems.Node(name="nid1", cpus=4, state=("DOWN",)),
    )


@pytest.mark.parametrize(
    ("state", "words", "up"),
    [("UP", ("UP",), True), (["UP"], ("UP",), True), ("DOWN", ("DOWN",), False), (None, (), False)],
)
def test_partitions_read_alike_in_both_connection_modes(state, words, up):
    raw = {"name": "normal", "cpus": 64, "totalNodes": 1, "partition": state}
    (partition,) = read(systems.partitions("daint"), {"partitions": [raw]})
    assert partition == systems.Partition(name="normal", state=words, cpus=64, nodes=1)
    assert partition.up is up


def test_reservations_are_read():
    raw = {
        "name": "course",
        "nodeList": "nid[001-004]",
        "endTime": 1795321578,
        "startTime": 1795320978,
        "features": None,
        "state": "active",
    }
    assert read(systems.reservations("daint"), {"reservations": [raw]}) == (
        systems.Reservation(
            name="course", nodes="nid[001-004]", start=1795320978, end=1795321578, state="active"
        ),
    )


def test_the_user_is_read():
    body = {
        "user": {"id": "1001", "name": "fireuser"},
        "group": {"id": "100", "name": "users"},
        "groups": [{"id": "100", "name": "users"}, {"id": "7", "name": "gpu"}],
        "accounts": [{"name": "users", "default": False}, {"name": "staff", "default": True}],
    }
    assert read(systems.user_info("daint"), body) == systems.UserInfo(
        name="fireuser",
        group="users",
        groups=("users", "gpu"),
        accounts=("users", "staff"),
        default_account="staff",
    )


def test_a_user_may_have_no_accounts():
    body = {"user": {"id": "1", "name": "u"}, "group": None, "groups": [], "accounts": None}
    assert read(systems.user_info("daint"), body) == systems.UserInfo(name="u")


def test_liveness_is_read():
    body = {"healthcheckRuns": {"Daint-SSH_1": "2026-11-22T04:09:39Z"}, "lastUpdate": 102}
    assert read(systems.liveness(), body) == systems.Liveness(
        checked={"Daint-SSH_1": "2026-11-22T04:09:39Z"}, age=102
    )


EMPTY = {"systems": [], "nodes": [], "partitions": [], "reservations": [], "user": {"name": "u"}}


@pytest.mark.parametrize("world", WORLDS, ids=["blocking", "on-loop"])
@pytest.mark.parametrize(
    ("call", "target"),
    [
        (systems.listing(), "/status/systems"),
        (systems.nodes("da/int"), "/status/da%2Fint/nodes"),
        (systems.partitions("daint"), "/status/daint/partitions?show_hidden=false"),
        (systems.partitions("daint", show_hidden=True), "/status/daint/partitions?show_hidden=true"),
        (systems.reservations("daint"), "/status/daint/reservations"),
        (systems.user_info("daint"), "/status/daint/userinfo"),
        (systems.liveness(), "/status/liveness/"),
    ],
    ids=["systems", "nodes", "partitions", "hidden partitions", "reservations", "user", "liveness"],
)
def test_each_call_asks_its_endpoint(world, call, target):
    with (
        serve(in_turn(Reply(200, EMPTY))) as server,
        world(server.url, AccessToken(server.url, "t"), policy=RetryPolicy(attempts=1)) as client,
    ):
        client.send(call)
        assert [(request.method, request.target) for request in server.requests] == [("GET", target)]
    assert call.replayable


@pytest.mark.parametrize("call", [systems.nodes, systems.partitions, systems.reservations, systems.user_info])
def test_a_system_needs_a_name(call):
    assert call("daint").system == "daint"
    with pytest.raises(InvalidInputError):
        call("")
