"""`python -m airflow_hpc_provider.devgateway`: serve until Ctrl-C, and say how to connect."""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .gateway import Gateway
from .server import is_loopback

_ID = "HPC_DEVGATEWAY_CLIENT_ID"
_SECRET = "HPC_DEVGATEWAY_CLIENT_SECRET"  # noqa: S105 - the variable's name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_hpc_provider.devgateway",
        description="FirecREST v2 on this machine, for demos and tests. Not for production: "
        "whoever knows its secret runs commands as you.",
    )
    parser.add_argument("--root", type=Path, help="folder of the file systems (default: a temporary one)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--storage-port", type=int, default=0, help="port of the staging storage (default: any)"
    )
    parser.add_argument(
        "--public-host", help="host name under which clients reach the gateway and its storage"
    )
    parser.add_argument("--system", default="embedded", help="name of the system")
    parser.add_argument("--scheduler", choices=["auto", "local", "slurm"], default="auto")
    parser.add_argument("--connection-mode", choices=["ssh", "rest"], default="ssh")
    parser.add_argument(
        "--transfer-method", choices=["s3", "streamer"], default="s3", help="how large files travel"
    )
    parser.add_argument("--token-lifetime", type=float, default=300, help="seconds")
    parser.add_argument("--cpus", type=int, default=64, help="CPUs the local scheduler pretends to have")
    parser.add_argument("--write-env", type=Path, metavar="FILE", help="write the connection as NAME=VALUE")
    parser.add_argument("--print-connection", action="store_true", help="print the connection's JSON only")
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help=f"serve other hosts too, as a container must; {_ID} and {_SECRET} have to be set",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    known = os.environ.get(_ID), os.environ.get(_SECRET)
    if not is_loopback(options.host) and not (options.allow_remote and all(known)):
        parser.error(f"a host other than loopback needs --allow-remote, {_ID} and {_SECRET}")
    gateway = Gateway(
        options.root,
        host=options.host,
        port=options.port,
        storage_port=options.storage_port,
        public_host=options.public_host,
        system=options.system,
        scheduler=options.scheduler,
        connection_mode=options.connection_mode,
        transfer_method=options.transfer_method,
        token_lifetime=options.token_lifetime,
        job_cpus=options.cpus,
        allow_remote=options.allow_remote,
        client_id=known[0],
        client_secret=known[1],
    )
    # From here on a signal only ends the wait below, so that jobs and sockets are always cleaned up.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with gateway:
            _keep(gateway, options.write_env)
            if options.print_connection or not known[1]:
                _announce(gateway, json_only=options.print_connection)
            where = f"files in {gateway.root}{f'; its secret is that of {_SECRET}' if known[1] else ''}"
            sys.stderr.write(f"FirecREST v2 for demos and tests on {gateway.url}; {where}\n")
            signal.sigwait(ends)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    return 0


def _keep(gateway: Gateway, env_file: Path | None) -> None:
    if env_file is not None:
        env_file.touch(mode=0o600)
        connection = shlex.quote(json.dumps(gateway.connection()))
        env_file.write_text(f"AIRFLOW_CONN_HPC_DEFAULT={connection}\n", encoding="utf-8")


def _announce(gateway: Gateway, *, json_only: bool) -> None:
    """Print the connection. A secret that was given is known where it is needed; nobody wants it in a log."""
    connection = json.dumps(gateway.connection())
    if json_only:
        sys.stdout.write(f"{connection}\n")
    else:
        sys.stdout.write(f"export AIRFLOW_CONN_HPC_DEFAULT={shlex.quote(connection)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
