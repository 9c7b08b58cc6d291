"""Operators for what happens on the systems: making directories, listing, deleting, copying and moving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import InvalidInputError, WatchError
from airflow_hpc_provider.tasks import HpcTask, carried

from .moving import Killed, Switch, TransferOperator

if TYPE_CHECKING:
    from airflow_hpc_provider.client.copying import Copied, Copying

__all__ = ["HpcCopyOperator", "HpcDeleteOperator", "HpcListOperator", "HpcMakeDirectoryOperator"]

_COLOR = "#eaf6ec"
_WORKING_DIR = "{working_dir}"


class HpcMakeDirectoryOperator(HpcTask):
    """Make a directory on a system.

    :param path: absolute path, or a list of them. ``{working_dir}`` in it stands for the connection's working
        directory
    :param parents: also make the directories above, and let an existing one be
    :param mode: permissions as octal digits (``"750"``) or bits (``0o750``). Default: the user's usual ones
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: the path; with a list, a list of paths
    """

    template_fields: Sequence[str] = ("path", "mode", "system", "hpc_conn_id")
    ui_color = _COLOR

    def __init__(
        self,
        *,
        path: str | Sequence[str],
        parents: bool = True,
        mode: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.parents = parents
        self.mode = mode

    def execute(self, context: Any) -> str | list[str]:
        """Make."""
        del context
        wanted = _checked(self.path, "path")
        hook = self.hook
        made = [
            hook.make_directory(path, system=self.system, parents=self.parents, mode=self.mode)
            for path in wanted
        ]
        self.log.info("Made %s.", ", ".join(made) or "nothing")
        return made[0] if isinstance(self.path, str) else made


class HpcListOperator(HpcTask):
    """List a directory on a system, for tasks downstream: ``download.expand(remote_path=names.output)``.

    :param path: absolute path of a directory or a file. ``{working_dir}`` in it stands for the connection's
        working directory
    :param glob: only what matches this pattern, or one of these. Without a slash it is about the last name
        (``*.nc``), with one about the path below the directory (``run-*/out/*.nc``); ``**`` stands for any
        number of directories. A directory stands for all that is below it
    :param recursive: also all directories below
    :param hidden: also names that start with a dot
    :param kind: only ``file``, ``directory`` or ``link``
    :param limit: so many entries at the most, in the order of their names; the log tells of those left out
    :param paths_only: return the paths alone
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: of each entry ``path``, ``name`` below the directory, ``type`` (``file``, ``directory``, ``link``
        or ``other``), ``size`` in bytes, ``modified`` (time of the system, ISO 8601 without zone),
        ``permissions``, ``user``, ``group``, ``link_target``
    """

    template_fields: Sequence[str] = ("path", "glob", "kind", "limit", "system", "hpc_conn_id")
    ui_color = _COLOR

    def __init__(
        self,
        *,
        path: str,
        glob: str | Sequence[str] = (),
        recursive: bool = False,
        hidden: bool = False,
        kind: str | None = None,
        limit: int | None = None,
        paths_only: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.glob = glob
        self.recursive = recursive
        self.hidden = hidden
        self.kind = kind
        self.limit = limit
        self.paths_only = paths_only

    def execute(self, context: Any) -> list[JSONObject] | list[str]:
        """List."""
        del context
        (path,) = _checked(self.path, "path", several=False)
        found = self.hook.list(
            path,
            system=self.system,
            glob=self.glob,
            recursive=self.recursive,
            hidden=self.hidden,
            kind=self.kind,
            limit=int(self.limit) if self.limit is not None else None,
        )
        self.log.info("%s: %d entries.", path, len(found))
        return [entry["path"] for entry in found] if self.paths_only else found


class HpcDeleteOperator(HpcTask):
    """Delete files on a system, or directories with all that is in them.

    Never deleted are the root, the mount points of the system's file systems, the user's own directories on
    them, the connection's working directory, and whatever is above one of these; also not by another name
    through a link. Of a link, the link is deleted. What takes longer than the gateway waits is left to a job,
    and whether it did its work is looked at.

    :param path: absolute path, or a list of them. ``{working_dir}`` in it stands for the connection's working
        directory
    :param allow_glob: ``*``, ``?`` and ``[...]`` in the last name are wildcards, which match no leading dot;
        without it they are refused
    :param missing_ok: it is no error if there is nothing, or nothing matches
    :param account: account for the job that deletes what takes long. Default: the connection's
    :param poll_interval: seconds between two looks at that job at the most
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: the paths that were deleted
    """

    template_fields: Sequence[str] = ("path", "account", "system", "hpc_conn_id")
    ui_color = _COLOR

    def __init__(
        self,
        *,
        path: str | Sequence[str],
        allow_glob: bool = False,
        missing_ok: bool = False,
        account: str | None = None,
        poll_interval: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.allow_glob = allow_glob
        self.missing_ok = missing_ok
        self.account = account
        self.poll_interval = poll_interval
        self._switch: Switch | None = None

    def execute(self, context: Any) -> list[str]:
        """Delete."""
        from airflow_hpc_provider.client.removal import split_removal

        del context
        wanted = _checked(self.path, "path")
        for path in wanted:
            split_removal(path.replace(_WORKING_DIR, "/"), allow_glob=self.allow_glob)
        self._switch = switch = Switch()
        try:
            with switch.watching():
                removed = self.hook.delete(
                    wanted,
                    system=self.system,
                    allow_glob=self.allow_glob,
                    missing_ok=self.missing_ok,
                    account=self.account,
                    poll_interval=self.poll_interval,
                )
        except Killed:
            raise WatchError("The task was told to end while it deleted; some may be gone.") from None
        self.log.info("Deleted %s.", ", ".join(removed) or "nothing")
        return removed

    def on_kill(self) -> None:
        """Stop deleting; a job that does it is cancelled."""
        if self._switch is not None:
            self._switch.trip()


class HpcCopyOperator(TransferOperator):
    """Copy or move on a system, or copy or move a file from one system to another.

    On one system a job does it, for files and directories alike. Between two systems, or the systems of two
    connections, a file passes through this worker's memory, never its disk. A job of this kind ends well
    whatever happened, so its log is read and its result looked at.

    :param source_path: absolute path. ``{working_dir}`` in it stands for the working directory of its
        connection
    :param target_path: absolute path of the copy, or of a directory to copy into: one that is there, or with
        ``/`` at its end
    :param move: remove the source once its copy is there; between systems only if both sides have the same
        sha256, unless ``verify`` is ``never``, and if it has not changed meanwhile
    :param target_system: system of the target. Default: that of the source; with ``target_conn_id`` that
        connection's
    :param target_conn_id: id of the connection of the target. Default: ``hpc_conn_id``
    :param if_exists: what to do with a file that is there already, see
        :class:`~airflow_hpc_provider.operators.files.HpcUploadOperator`. A directory is never replaced
    :param verify: compare the sha256 of both sides of a copy between systems: ``auto`` of large files, if
        the gateway can tell it in time; ``always``, by a job if need be; ``never``
    :param preserve_mode: give a copy on another system the permissions of the original
    :param account: account for the jobs. Default: that of each connection
    :param deferrable: on one system, wait for the job in the triggerer, without holding a worker.
        Default: Airflow's ``[operators] default_deferrable``
    :param poll_interval: seconds between two looks at a job at the most
    :param gateway_patience: in the triggerer, seconds for which a gateway that cannot be asked is waited for
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the source's system. Default: the connection's
    :return: ``source_path``, ``target_path``, ``source_system``, ``target_system``, ``size`` in bytes (None
        of a directory), ``moved`` and ``skipped``
    """

    template_fields: Sequence[str] = (
        "source_path",
        "target_path",
        "target_system",
        "target_conn_id",
        "account",
        "system",
        "hpc_conn_id",
    )

    def __init__(
        self,
        *,
        source_path: str,
        target_path: str,
        move: bool = False,
        target_system: str | None = None,
        target_conn_id: str | None = None,
        preserve_mode: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(preserve_mode=preserve_mode, **kwargs)
        self.source_path = source_path
        self.target_path = target_path
        self.move = move
        self.target_system = target_system
        self.target_conn_id = target_conn_id

    def execute(self, context: Any) -> JSONObject:
        """Copy."""
        terms = self._terms()
        _checked(self.source_path, "source_path", several=False)
        _checked(self.target_path, "target_path", several=False)
        with self._while_moving(context) as kept:
            begun = self._begin(kept["keeper"]) if self.deferrable and self._stays else None
            if begun is None:
                copied = self.hook.copy(
                    self.source_path,
                    self.target_path,
                    system=self.system,
                    target_system=self.target_system,
                    target_conn_id=self.target_conn_id,
                    move=self.move,
                    account=self.account,
                    terms=terms,
                    poll_interval=self.poll_interval,
                    **kept,
                )
                return self._result(copied)
        from airflow_hpc_provider.client.copying import Copied

        if not isinstance(begun, Copied):
            self._defer_until_over(context, begun.job, begun.to_json(), copy=begun)
        return self._result(begun)

    def execute_complete(self, context: Any, event: Any) -> JSONObject:
        """Look whether the job did its work."""
        from airflow_hpc_provider.client import copying

        verdict, carry = carried(event)
        begun = copying.Copying.from_json(carry)
        hook = self.hook
        with self._while_moving(context) as kept, hook.client() as client:
            system = hook.system(client, self.system)
            wait = hook.waiting(client, system, poll_interval=self.poll_interval)
            account = self.account or hook.settings.account
            clean = partial(copying.remove_unfinished, client, system, begun, wait=wait, account=account)
            ended = self._resumed(client, verdict, begun.job, kept, clean)
            copied = copying.finish_copy(
                client, system, begun, ended, wait=wait, account=account, keeper=kept["keeper"]
            )
            return self._result(copied)

    @property
    def _stays(self) -> bool:
        """Source and target are on one system, as far as names tell."""
        elsewhere = self.target_conn_id not in (None, "", self.hpc_conn_id)
        return not elsewhere and self.target_system in (None, "", self.system)

    def _begin(self, keeper: Any) -> Copied | Copying:
        from airflow_hpc_provider.client import copying

        hook = self.hook
        with hook.client() as client:
            system = hook.system(client, self.system)
            return copying.begin_copy(
                client,
                system,
                hook.resolve_path(client, system, self.source_path),
                hook.resolve_path(client, system, self.target_path),
                guard=hook.guard(client, system) if self.move else None,
                wait=hook.waiting(client, system, poll_interval=self.poll_interval),
                account=self.account or hook.settings.account,
                move=self.move,
                if_exists=self.if_exists,
                keeper=keeper,
            )

    def _result(self, copied: Copied) -> JSONObject:
        plain = asdict(copied)
        source, target = plain.pop("source"), plain.pop("target")
        if not copied.skipped:
            self.log.info("%s %s to %s.", "Moved" if self.move else "Copied", source, target)
        return {
            "source_path": source,
            "target_path": target,
            **plain,  # systems, size, skipped
            "moved": self.move and not copied.skipped,
        }


def _checked(given: Any, field: str, *, several: bool = True) -> list[str]:
    """Remote paths, refused before the gateway is asked for anything if they cannot be sent."""
    from airflow_hpc_provider.client.paths import remote_path

    if several and isinstance(given, Sequence) and not isinstance(given, str):
        return [path for one in given for path in _checked(one, field, several=False)]
    if given is None:
        raise InvalidInputError(
            field, "is None; if it comes from another task, that task did not run or returned nothing."
        )
    shape = given
    if isinstance(given, str) and given.startswith(_WORKING_DIR):
        shape = given.replace(_WORKING_DIR, "/", 1)
    remote_path(shape, field)
    return [given]
