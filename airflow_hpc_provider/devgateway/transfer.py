"""`/filesystem/.../transfer`: what takes long runs as a job, and large files go through the storage."""

import math
import shlex
import sys
import uuid
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from .directives import Submission
from .errors import GatewayError
from .fields import Fields
from .filesystem import path_of
from .local import LocalScheduler
from .systems import Call

__all__ = ["HANDLERS"]

_STAGING = Path(__file__).with_name("staging.py")
_METHODS = ("s3", "streamer", "wormhole")
_COMPRESSIONS = ("none", "bzip2", "gzip", "xz")
_TAR_FLAGS = {"none": "", "bzip2": "j", "gzip": "z", "xz": "J"}
_TRIES = 1440


def upload(call: Call) -> Response:
    path, body = path_of(call), Fields(call.body)
    size = _directives(call, body).maybe_integer("fileSize")
    call.system.require("scheduler")
    if call.system.transfer_method != "s3":
        return _stream(call, "receive", path, "IngressFileTransfer", body)
    if size is None:
        raise GatewayError(500, "(\"unsupported operand type(s) for /: 'NoneType' and 'int'\",)")
    storage, limit = call.world.storage, call.system.max_part_size
    bucket, key = call.world.user.name, f"{uuid.uuid4()}/{Path(path).name}"
    upload_id = storage.create_upload(bucket, key)
    head = storage.object_url(bucket, key, method="HEAD", private=True)
    get = storage.object_url(bucket, key, private=True)
    prelude, step = _step(call, "ingress", str(call.system.files.locate(path)), str(limit), head, get)
    script = f"{prelude}{_ingress_script(step, call.world.ingress_poll)}"
    job = _submit(call, "IngressFileTransfer", script, body)
    directives = {
        "transferMethod": "s3",
        "partsUploadUrls": storage.part_urls(upload_id, math.ceil(size / limit)),
        "completeUploadUrl": storage.complete_url(upload_id),
        "maxPartSize": limit,
    }
    return JSONResponse({"transferJob": job, "transferDirectives": directives}, status_code=201)


def download(call: Call) -> Response:
    path, body = path_of(call), Fields(call.body)
    _directives(call, body)
    call.system.require("scheduler")
    if call.system.transfer_method != "s3":
        return _stream(call, "send", path, "OutgressFileTransfer", body)
    size = call.system.files.stat(path, dereference=True)["size"]
    storage, limit = call.world.storage, call.system.max_part_size
    bucket, key = call.world.user.name, f"{uuid.uuid4()}/{Path(path).name}"
    upload_id = storage.create_upload(bucket, key)
    parts = storage.part_urls(upload_id, math.ceil(size / limit), private=True)
    complete = storage.complete_url(upload_id, private=True)
    prelude, step = _step(call, "egress", str(call.system.files.locate(path)), str(limit), complete, *parts)
    job = _submit(call, "OutgressFileTransfer", f"{prelude}{step}\n", body)
    directives = {"transferMethod": "s3", "downloadUrl": storage.object_url(bucket, key)}
    return JSONResponse({"transferJob": job, "transferDirectives": directives}, status_code=201)


def _stream(call: Call, operation: str, path: str, name: str, body: Fields) -> Response:
    """A job that waits for one client."""
    if call.system.transfer_method != "streamer":
        raise GatewayError(501, "The embedded gateway moves files by s3 and streamer only.")
    script, directives = call.system.streamer.prepare(operation, str(call.system.files.locate(path)))
    job = _submit(call, name, script, body)
    return JSONResponse({"transferJob": job, "transferDirectives": directives}, status_code=201)


def mv(call: Call) -> Response:
    source, target = _two_paths(call)
    return _command(call, "MoveFiles", f"mv -- {source} {target}", "Move", ("moved", "move"))


def cp(call: Call) -> Response:
    source, target = _two_paths(call)
    options = "-rL" if Fields(call.body).flag("dereference") else "-r"
    return _command(call, "CopyFiles", f"cp {options} -- {source} {target}", "Copy", ("copied", "copy"))


def rm(call: Call) -> Response:
    path = shlex.quote(str(call.system.files.locate(path_of(call), follow=False)))
    command = f"rm -r -- {path}"
    return _command(call, "DeleteFiles", command, "Delete", ("deleted", "delete"), status=200)


def compress(call: Call) -> Response:
    body, source = Fields(call.body), call.system.files.locate(path_of(call), follow=False)
    target = shlex.quote(str(call.system.files.locate(body.text("targetPath"))))
    flag = _TAR_FLAGS[body.choice("compression", _COMPRESSIONS, "gzip")]
    options = "--dereference " if body.flag("dereference") else ""
    folder, pattern = shlex.quote(str(source.parent)), body.maybe_text("matchPattern")
    command = f"tar {options}-c{flag}f {target} -C {folder} -- {shlex.quote(source.name)}"
    if pattern:
        found = f"cd {folder}; find . -type f -regex {shlex.quote(pattern)} -print0"
        command = f"{found} | tar {options}-c{flag}f {target} --null --files-from -"
    return _command(call, "CompressFiles", command, "Compress", ("compressed", "compress"))


def extract(call: Call) -> Response:
    source, target = _two_paths(call)
    flag = _TAR_FLAGS[Fields(call.body).choice("compression", _COMPRESSIONS, "gzip")]
    command = f"tar -x{flag}f {source} -C {target}"
    return _command(call, "ExtractFiles", command, "Extract", ("extracted", "extract"))


def _two_paths(call: Call) -> tuple[str, str]:
    source, target = path_of(call), Fields(call.body).text("targetPath")
    files = call.system.files
    return shlex.quote(str(files.locate(source, follow=False))), shlex.quote(str(files.locate(target)))


def _directives(call: Call, body: Fields) -> Fields:
    directives = body.child("transferDirectives")
    directives.text("transferMethod")
    method = directives.choice("transferMethod", _METHODS, "s3")
    if method != call.system.transfer_method:
        raise GatewayError(400, "Requested transfer method is not available.")
    return directives


def _step(call: Call, *words: str) -> tuple[str, str]:
    """What a job script needs first, and the command that runs this gateway's own code in it."""
    if isinstance(call.system.scheduler, LocalScheduler):
        return "", shlex.join([sys.executable, "-I", str(_STAGING), *words])
    # The job may run as another user, or elsewhere: it finds no files of the gateway's, and brings the code.
    code = f"STAGING=$(cat <<'END_OF_STAGING'\n{_STAGING.read_text(encoding='utf-8')}END_OF_STAGING\n)\n"
    return code, f'python3 -I -c "$STAGING" {shlex.join(words)}'


def _ingress_script(step: str, poll: float) -> str:
    """Look for the object at once, and then after every nap."""
    return (
        'echo "$(date -u) Ingress File Transfer Job (id:${SLURM_JOB_ID:-unknown})"\n'
        'echo "$(date -u) Waiting till file to tranfer is available..."\n'
        f"for i in $(seq {_TRIES}); do\n"
        f"  {step}\n"
        "  code=$?\n"
        '  if [ "$code" != 75 ]; then exit "$code"; fi\n'
        f"  sleep {poll:g}\n"
        "done\n"
    )


def _command(
    call: Call, name: str, command: str, title: str, words: tuple[str, str], *, status: int = 201
) -> Response:
    done, verb = words
    call.system.require("scheduler")
    script = (
        f'echo "$(date -u) {title} Files Job (id:${{SLURM_JOB_ID:-unknown}})"\n'
        f"status=$({command})\n"
        'if [[ "$?" == "0" ]]; then\n'
        f'  echo "$(date -u) Files were successfully {done}."\n'
        "else\n"
        # As in the original, the echo's own success is what the job ends with.
        f'  echo "$(date -u) Unable to {verb} files exit code:$? error: $status" >&2\n'
        "fi\n"
    )
    account = call.query.get("account")
    job = _submit(call, name, script, Fields({"account": account} if account else call.body))
    return JSONResponse({"transferJob": job}, status_code=status)


def _submit(call: Call, name: str, script: str, body: Fields) -> dict[str, Any]:
    directives = _filled_directives(call, body.maybe_text("account"))
    home, unique = call.world.user.home, uuid.uuid4()
    logs = {
        "outputLog": f"{home}/.f7t_file_handling_job_{unique}.log",
        "errorLog": f"{home}/.f7t_file_handling_job_error_{unique}.log",
    }
    submission = Submission(
        working_directory=str(home),
        script=f"#!/bin/bash\n{directives}\n\n{script}",
        name=name,
        standard_input="/dev/null",
        standard_output=logs["outputLog"],
        standard_error=logs["errorLog"],
        env={"PATH": "/bin:/usr/bin/:/usr/local/bin/"},
    )
    job_id = call.system.scheduler.submit(submission)
    return {
        "jobId": job_id,
        "system": call.path_params["system"],
        "workingDirectory": str(home),
        "logs": logs,
    }


def _filled_directives(call: Call, account: str | None) -> str:
    text = "\n".join(call.system.directives)
    if "{account}" not in text:
        return text
    if account is None:
        raise GatewayError(400, "Account parameter is required on this system.")
    if not account.isidentifier():
        raise GatewayError(400, "Invalid account.")
    return text.replace("{account}", account)


HANDLERS = {
    "transfer_upload": upload,
    "transfer_download": download,
    "transfer_mv": mv,
    "transfer_cp": cp,
    "transfer_rm": rm,
    "transfer_compress": compress,
    "transfer_extract": extract,
}
