"""`/filesystem/.../ops`: the small and quick things with files."""

from starlette.responses import JSONResponse, Response

from .errors import GatewayError
from .fields import Fields
from .systems import Call

__all__ = ["HANDLERS", "path_of"]

_COMPRESSIONS = ("none", "bzip2", "gzip", "xz")


def path_of(call: Call) -> str:
    """The path a request is about: a query parameter, or ``path`` or ``sourcePath`` in its body."""
    given = call.query.get("path") or call.query.get("source_path")
    body = Fields(call.body)
    path = given or body.maybe_text("path") or body.maybe_text("sourcePath")
    if not path:
        text = "Unable to decode request and retreive the required path or source_path parameter."
        raise GatewayError(400, text)
    # Out of bounds is refused before anything else is looked at.
    call.system.files.locate(path, follow=False)
    call.system.require("filesystem", "ssh", path=path)
    return path


def _output(value: object, status: int = 200) -> Response:
    return JSONResponse({"output": value}, status_code=status)


def _nothing() -> Response:
    return Response(status_code=204, media_type="application/json")


def ls(call: Call) -> Response:
    path, query = path_of(call), Fields(call.query, "query")
    found = call.system.files.ls(
        path,
        hidden=query.flag("showHidden"),
        numeric=query.flag("numericUid"),
        recursive=query.flag("recursive"),
        dereference=query.flag("dereference"),
    )
    return _output(found)


def _amount(query: Fields) -> tuple[int | None, str]:
    lines, size = query.maybe_integer("lines"), query.maybe_integer("bytes")
    if lines and size:
        raise GatewayError(400, "Only one of `bytes` or `lines` can be specified.")
    return (size, "bytes") if size else (lines, "lines")


def head(call: Call) -> Response:
    path, query = path_of(call), Fields(call.query, "query")
    (count, unit), skip = _amount(query), query.flag("skipTrailing")
    text = call.system.files.head(path, count=count or 10, unit=unit, skip=skip and bool(count))
    end = 10 if count is None else -count if skip else count
    return _output({"content": text, "contentType": unit, "startPosition": 0, "endPosition": end})


def tail(call: Call) -> Response:
    path, query = path_of(call), Fields(call.query, "query")
    (count, unit), skip = _amount(query), query.flag("skipHeading")
    text = call.system.files.tail(path, count=count or 10, unit=unit, skip=skip and bool(count))
    start = 10 if count is None else count if skip else -count
    return _output({"content": text, "contentType": unit, "startPosition": start, "endPosition": -1})


def view(call: Call) -> Response:
    path, query = path_of(call), Fields(call.query, "query")
    limit = call.system.max_ops_file_size
    # The real default is 5 MiB whatever the site's limit, and so refused where that is smaller.
    size, offset = query.maybe_integer("size"), query.maybe_integer("offset") or 0
    size = 5 * 2**20 if size is None else size
    if offset < 0:
        raise GatewayError(400, "`offset` value must be an integer value equal or greater than 0")
    if size <= 0:
        raise GatewayError(400, "`size` value must be an integer value greater than 0")
    if size > limit:
        raise GatewayError(400, f"`size` value must be less than {limit} bytes")
    return _output(call.system.files.view(path, size=size, offset=offset))


def checksum(call: Call) -> Response:
    return _output(call.system.files.checksum(path_of(call)))


def file(call: Call) -> Response:
    return _output(call.system.files.kind(path_of(call)))


def stat(call: Call) -> Response:
    path = path_of(call)
    return _output(call.system.files.stat(path, dereference=Fields(call.query, "query").flag("dereference")))


def rm(call: Call) -> Response:
    call.system.files.rm(path_of(call))
    return _nothing()


def mkdir(call: Call) -> Response:
    path = path_of(call)
    return _output(call.system.files.mkdir(path, parent=Fields(call.body).flag("parent")), 201)


def symlink(call: Call) -> Response:
    path, link = path_of(call), Fields(call.body).text("linkPath")
    return _output(call.system.files.symlink(path, link), 201)


def chmod(call: Call) -> Response:
    path, mode = path_of(call), Fields(call.body).text("mode")
    return _output(call.system.files.chmod(path, mode))


def chown(call: Call) -> Response:
    path, body = path_of(call), Fields(call.body)
    owner, group = body.maybe_text("owner") or "", body.maybe_text("group") or ""
    return _output(call.system.files.chown(path, owner, group))


def download(call: Call) -> Response:
    data = call.system.files.download(path_of(call))
    return Response(data, media_type="application/octet-stream")


def upload(call: Call) -> Response:
    path = path_of(call)
    if not call.upload_name:
        raise Fields({}).refuse("file", "Field required", "missing")
    call.system.files.upload(path, call.upload_name, call.upload_data)
    if not call.upload_data:
        # The remote command waits for bytes that never come; the file is there all the same.
        raise GatewayError(408, "Command execution timeout limit exceeded.")
    return _nothing()


def compress(call: Call) -> Response:
    path, body = path_of(call), Fields(call.body)
    call.system.files.compress(
        path,
        body.text("targetPath"),
        compression=body.choice("compression", _COMPRESSIONS, "gzip"),
        dereference=body.flag("dereference"),
        pattern=body.maybe_text("matchPattern"),
    )
    return _nothing()


def extract(call: Call) -> Response:
    path, body = path_of(call), Fields(call.body)
    body.choice("compression", _COMPRESSIONS, "gzip")
    call.system.files.extract(path, body.text("targetPath"))
    return _nothing()


HANDLERS = {
    "ls": ls,
    "head": head,
    "tail": tail,
    "view": view,
    "checksum": checksum,
    "file": file,
    "stat": stat,
    "rm": rm,
    "mkdir": mkdir,
    "symlink": symlink,
    "chmod": chmod,
    "chown": chown,
    "download": download,
    "upload": upload,
    "compress": compress,
    "extract": extract,
}
