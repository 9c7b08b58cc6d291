"""A service of docker-compose.yaml without a container engine: namespaces over this machine's own files."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from live_airflow import CannotRunError, Process, until

__all__ = ["Container"]

ROOT = Path(__file__).parents[1]
# What the images have beside Debian's packages: the user, start-up files, a Python that finds the package.
# All that is written stays in memory, and is gone with the last process.
_ENTRY = """\
set -eu
umask 022
changes={changes}
mount -t tmpfs tmpfs "$changes"
mkdir "$changes/upper" "$changes/work" "$changes/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$changes/upper,workdir=$changes/work" "$changes/root"
cd "$changes/root"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
rm -rf etc/munge/munge.key opt/start opt/venv opt/provider opt/site-packages
mkdir -p opt/venv/bin opt/start opt/provider opt/site-packages {volumes}
mount --bind {start} opt/start
mount --bind {package} opt/provider
mount --bind {packages} opt/site-packages
# The programs of a Python under somebody's home are for everybody here.
for folder in {homes}; do chmod a+x ".$folder"; done
ln -s {python} opt/venv/bin/python
chmod 1777 tmp
ip link set lo up
# A name means nothing to those who see no other address than 127.0.0.1.
ip address add 127.0.0.2/8 dev lo
hostname {name}
echo '127.0.0.1 {name} localhost' > etc/hosts
chroot . useradd --create-home --shell /bin/bash hpc
exec chroot . {command}
"""


class Container:
    """What one service runs, as root of namespaces of its own: processes, mounts, network, host name.

    :param service: the service in docker-compose.yaml
    :param name: its name there, and that of its host
    :param environment: what replaces the service's variables
    :param log_folder: where its log goes
    """

    def __init__(
        self, service: dict[str, Any], name: str, environment: dict[str, str], log_folder: Path
    ) -> None:
        self._service = service
        self._changes = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        python = Path(sys.executable).resolve()
        values = {
            "changes": self._changes,
            "start": ROOT / ".docker" / "start",
            "package": ROOT,
            "packages": sysconfig.get_path("purelib"),
            "python": python,
            "homes": " ".join(shlex.quote(str(one)) for one in reversed(python.parents[:-1])),
            "volumes": " ".join(one.split(":")[1].lstrip("/") for one in service.get("volumes", [])),
            "name": name,
            "command": service["command"],
        }
        script = _ENTRY.format(**values)
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": "/opt/provider:/opt/site-packages",
            **environment,
        }
        namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child")
        self._process = Process(
            name, ["unshare", *namespaces, "bash", "-c", script], self._environment, log_folder
        )

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not self._may_unshare():
            raise CannotRunError("namespaces are for root, in a container only with --privileged")
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        shutil.rmtree(self._changes, ignore_errors=True)

    @staticmethod
    def _may_unshare() -> bool:
        return subprocess.run(["unshare", "--mount", "--net", "true"], check=False).returncode == 0

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run something in the container, as ``docker compose exec`` does."""
        us = self._process.pid
        (first,) = Path(f"/proc/{us}/task/{us}/children").read_text().split()
        root = f"/proc/{first}/root"
        enter = ("nsenter", f"--target={first}", "--all", f"--root={root}", f"--wd={root}")
        return subprocess.run(
            [*enter, *command], env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )

    def wait_until_healthy(self, timeout: float) -> None:
        """Wait until the service's own health check succeeds.

        :param timeout: seconds
        """
        kind, *words = self._service["healthcheck"]["test"]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words

        def healthy() -> bool:
            assert self._process.alive, self._process.tail()
            with contextlib.suppress(ValueError):
                return self.run(*command).returncode == 0
            return False

        until(healthy, timeout, self._process.tail)

    def said(self) -> str:
        """The end of its log."""
        return self._process.tail()
