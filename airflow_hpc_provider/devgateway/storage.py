"""S3-style staging: presigned part, complete and download URLs on an origin of their own."""

import calendar
import contextlib
import hashlib
import hmac
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import escape

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

__all__ = ["Storage", "StorageError"]

_ALGORITHM = "AWS4-HMAC-SHA256"
_REGION = "us-east-1"
_BLOCK = 1 << 20
_PART = re.compile(
    r"<Part>(?=.*?<PartNumber>\s*(\d+)\s*</PartNumber>)(?=.*?<ETag>\s*(.*?)\s*</ETag>).*?</Part>", re.DOTALL
)
_ENTITIES = {"&quot;": '"', "&#34;": '"', "&amp;": "&"}


class StorageError(Exception):
    """S3's error response."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(slots=True)
class _Upload:
    bucket: str
    key: str
    folder: Path
    parts: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Object:
    path: Path
    etag: str


class Storage:
    """Objects and uploads on disk, and the signatures of the URLs that lead to them."""

    def __init__(self, folder: Path, *, lifetime: int = 604_800) -> None:
        self.public_url = ""
        #: Where jobs on this machine reach the storage; clients may know it under another name.
        self.private_url = ""
        self.lifetime = lifetime
        #: Requests that carried an Authorization header to a presigned URL: a leaked bearer token.
        self.leaked_tokens = 0
        self._folder = folder
        self._secret = secrets.token_hex(20)
        self._generation = 1
        self._uploads: dict[str, _Upload] = {}
        self._objects: dict[tuple[str, str], _Object] = {}
        self._lock = threading.Lock()

    def expire_urls(self) -> None:
        """The URLs signed so far count as expired."""
        self._generation += 1

    @property
    def objects(self) -> list[str]:
        return [f"{bucket}/{key}" for bucket, key in self._objects]

    # --- what the gateway asks ---

    def create_upload(self, bucket: str, key: str) -> str:
        upload_id = secrets.token_hex(16)
        folder = self._folder / upload_id
        folder.mkdir(parents=True)
        with self._lock:
            self._uploads[upload_id] = _Upload(bucket, key, folder)
        return upload_id

    def part_urls(self, upload_id: str, count: int, *, private: bool = False) -> list[str]:
        upload, numbers = self._uploads[upload_id], range(1, count + 1)
        queries = [{"uploadId": upload_id, "partNumber": str(number)} for number in numbers]
        return [self._presign("PUT", upload.bucket, upload.key, query, private=private) for query in queries]

    def complete_url(self, upload_id: str, *, private: bool = False) -> str:
        upload = self._uploads[upload_id]
        return self._presign("POST", upload.bucket, upload.key, {"uploadId": upload_id}, private=private)

    def object_url(self, bucket: str, key: str, *, method: str = "GET", private: bool = False) -> str:
        return self._presign(method, bucket, key, {}, private=private)

    # --- signatures ---

    def _presign(self, method: str, bucket: str, key: str, query: dict[str, str], *, private: bool) -> str:
        origin = self.private_url if private else self.public_url
        path = "/" + quote(f"{bucket}/{key}", safe="/~")
        now = time.gmtime()
        scope = f"{time.strftime('%Y%m%d', now)}/{_REGION}/s3/aws4_request"
        signed = {
            **query,
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"devgateway{self._generation}/{scope}",
            "X-Amz-Date": time.strftime("%Y%m%dT%H%M%SZ", now),
            "X-Amz-Expires": str(self.lifetime),
            "X-Amz-SignedHeaders": "host",
        }
        signature = self._signature(method, path, signed, origin.partition("://")[2])
        return f"{origin}{path}?{_canonical(signed)}&X-Amz-Signature={signature}"

    def _signature(self, method: str, path: str, query: dict[str, str], host: str) -> str:
        """AWS's signature version 4 of a presigned URL."""
        canonical = "\n".join(
            [method, path, _canonical(query, sort=True), f"host:{host}\n", "host", "UNSIGNED-PAYLOAD"]
        )
        scope = query.get("X-Amz-Credential", "").partition("/")[2]
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join([_ALGORITHM, query.get("X-Amz-Date", ""), scope, digest])
        key = f"AWS4{self._secret}".encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        return hmac.digest(key, text.encode(), "sha256").hex()

    def _check(self, request: Request) -> dict[str, str]:
        if "authorization" in request.headers:
            self.leaked_tokens += 1
            text = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, "
            text += "Signature query string parameter or the Authorization header should be specified"
            raise StorageError(400, "InvalidArgument", text)
        query = dict(parse_qsl(request.url.query, keep_blank_values=True))
        given = query.pop("X-Amz-Signature", "")
        path = quote(request.scope["path"], safe="/~")
        wanted = self._signature(request.method, path, query, request.headers.get("host", ""))
        if not given:
            raise StorageError(403, "AccessDenied", "Access Denied.")
        if not hmac.compare_digest(given, wanted):
            text = "The request signature we calculated does not match the signature you provided. "
            raise StorageError(403, "SignatureDoesNotMatch", text + "Check your key and signing method.")
        if self._expired(query):
            raise StorageError(403, "AccessDenied", "Request has expired")
        return query

    def _expired(self, query: dict[str, str]) -> bool:
        age = time.time() - calendar.timegm(time.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ"))
        generation = query["X-Amz-Credential"].partition("/")[0]
        return age > int(query["X-Amz-Expires"]) or generation != f"devgateway{self._generation}"

    # --- the storage's own server ---

    def app(self) -> Starlette:
        route = Route("/{bucket}/{key:path}", self._serve, methods=["PUT", "POST", "GET", "HEAD"])
        return Starlette(routes=[route])

    async def _serve(self, request: Request) -> Response:
        try:
            query = self._check(request)
            if request.method == "PUT":
                return await self._put_part(request, query)
            if request.method == "POST":
                body = (await request.body()).decode(errors="replace")
                return await run_in_threadpool(self._complete, query, body)
            return self._get(request)
        except StorageError as error:
            return _error_response(error, request.url.path)

    async def _put_part(self, request: Request, query: dict[str, str]) -> Response:
        upload = self._upload_of(query)
        number = int(query["partNumber"])
        length = request.headers.get("content-length")
        if length is None:
            raise StorageError(
                411, "MissingContentLength", "You must provide the Content-Length HTTP header."
            )
        place = upload.folder / f"part{number}.{secrets.token_hex(4)}"
        etag = await _receive(request, place, int(length))
        with self._lock:
            place.rename(upload.folder / f"part{number}")
            upload.parts[number] = etag
        return Response(headers={"etag": f'"{etag}"'})

    def _upload_of(self, query: dict[str, str]) -> _Upload:
        upload = self._uploads.get(query.get("uploadId", ""))
        if upload is None:
            text = "The specified multipart upload does not exist. The upload ID may be invalid, "
            raise StorageError(404, "NoSuchUpload", text + "or it may have been aborted or completed.")
        return upload

    def _complete(self, query: dict[str, str], body: str) -> Response:
        upload = self._upload_of(query)
        listed = [(int(number), _unquoted(etag)) for number, etag in _PART.findall(body)]
        if not listed:
            text = "The XML you provided was not well-formed or did not validate against our published schema"
            raise StorageError(400, "MalformedXML", text)
        if [number for number, _ in listed] != sorted({number for number, _ in listed}):
            text = "The list of parts was not in ascending order."
            raise StorageError(400, "InvalidPartOrder", text)
        if any(upload.parts.get(number) != etag for number, etag in listed):
            text = (
                "One or more of the specified parts could not be found. The part may not have been uploaded, "
            )
            raise StorageError(400, "InvalidPart", text + "or its entity tag may not match.")
        stored = self._join(upload, [number for number, _ in listed])
        with self._lock:
            self._objects[upload.bucket, upload.key] = stored
            self._uploads.pop(query["uploadId"], None)
        location = f"{self.public_url}/{upload.bucket}/{quote(upload.key)}"
        return _xml(200, _completed(location, upload, stored.etag))

    def _join(self, upload: _Upload, numbers: list[int]) -> _Object:
        place = upload.folder / "object"
        parts = [upload.folder / f"part{number}" for number in numbers]
        digests = b"".join(bytes.fromhex(upload.parts[number]) for number in numbers)
        parts[0].rename(place)
        if len(parts) > 1:
            with place.open("ab") as target:
                for part in parts[1:]:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target, _BLOCK)
                    part.unlink()
        return _Object(place, f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(numbers)}")

    def _get(self, request: Request) -> Response:
        name = (request.path_params["bucket"], request.path_params["key"])
        stored = self._objects.get(name)
        if stored is None:
            raise StorageError(404, "NoSuchKey", "The specified key does not exist.")
        tag = f'"{stored.etag}"'
        if request.headers.get("if-match", tag) not in (tag, stored.etag, "*"):
            text = "At least one of the pre-conditions you specified did not hold"
            raise StorageError(412, "PreconditionFailed", text)
        modified = formatdate(stored.path.stat().st_mtime, usegmt=True)
        headers = {"etag": tag, "last-modified": modified, "accept-ranges": "bytes"}
        return _ObjectResponse(stored.path, headers=headers, media_type="binary/octet-stream")


class _ObjectResponse(FileResponse):
    chunk_size = _BLOCK


async def _receive(request: Request, place: Path, length: int) -> str:
    """Stream the body to disk in large blocks; answers its MD5, S3's ETag of a part."""
    digest = hashlib.md5(usedforsecurity=False)
    with _sink(place) as blocks:
        pending = bytearray()
        try:
            async for chunk in request.stream():
                pending += chunk
                if len(pending) >= _BLOCK:
                    await run_in_threadpool(blocks.add, bytes(pending), digest)
                    pending.clear()
        except ClientDisconnect:
            raise StorageError(400, "IncompleteBody", "The request body terminated unexpectedly") from None
        await run_in_threadpool(blocks.add, bytes(pending), digest)
        if blocks.size != length:
            raise StorageError(400, "IncompleteBody", "The request body terminated unexpectedly")
        blocks.done = True
    return digest.hexdigest()


class _Blocks:
    def __init__(self, place: Path) -> None:
        self.file = place.open("wb")
        self.size = 0
        self.done = False

    def add(self, block: bytes, digest: "hashlib._Hash") -> None:
        self.file.write(block)
        digest.update(block)
        self.size += len(block)


@contextlib.contextmanager
def _sink(place: Path) -> Iterator[_Blocks]:
    blocks = _Blocks(place)
    try:
        yield blocks
    finally:
        blocks.file.close()
        if not blocks.done:
            place.unlink(missing_ok=True)


def _canonical(query: dict[str, str], *, sort: bool = False) -> str:
    pairs = [(quote(key, safe="-_.~"), quote(value, safe="-_.~")) for key, value in query.items()]
    return "&".join(f"{key}={value}" for key, value in (sorted(pairs) if sort else pairs))


def _unquoted(etag: str) -> str:
    for entity, character in _ENTITIES.items():
        etag = etag.replace(entity, character)
    return etag.strip('"')


def _completed(location: str, upload: _Upload, etag: str) -> str:
    return (
        '<CompleteMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Location>{escape(location)}</Location><Bucket>{escape(upload.bucket)}</Bucket>"
        f"<Key>{escape(upload.key)}</Key><ETag>&#34;{etag}&#34;</ETag></CompleteMultipartUploadResult>"
    )


def _error_response(error: StorageError, resource: str) -> Response:
    text = f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
    return _xml(error.status, f"{text}<Resource>{escape(resource)}</Resource></Error>")


def _xml(status: int, text: str) -> Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'
    return Response(body, status_code=status, media_type="application/xml")
