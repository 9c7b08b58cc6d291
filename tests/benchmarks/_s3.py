"""A staging storage that is not the bottleneck: S3's answers, while the kernel moves the bytes.

Runs in a process of its own, on loopback, on the standard library alone. Prints its port, and ends when its
standard input does. Presigned URLs of any signature are taken, whatever origin they were signed for: a test
of the signatures it is not. Parts stay as they came, one file each, so that joining them costs nothing.

- ``PUT /bucket/key?uploadId=&partNumber=`` takes a part and answers its tag
- ``POST /bucket/key?uploadId=`` joins the parts that its XML lists
- ``GET`` and ``HEAD /bucket/key`` with ``Range`` and ``If-Match``
- ``DELETE /`` forgets all that it has

With ``--hollow`` it keeps the lengths of what comes and gives zeros in their place: files of any size, on no
disk.
"""

import argparse
import itertools
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_HEAD = 64 * 1024
_BLOCK = 8 * 1024 * 1024
_PART = re.compile(
    r"<Part>(?=.*?<PartNumber>\s*(\d+)\s*</PartNumber>)(?=.*?<ETag>\s*(.*?)\s*</ETag>).*?</Part>", re.DOTALL
)
_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 400: "Bad Request", 404: "Not Found"}
_REASONS |= {411: "Length Required", 412: "Precondition Failed", 416: "Range Not Satisfiable"}


@dataclass(frozen=True)
class Part:
    """A piece of an object.

    :param file: where its bytes are; None where they are zeros
    """

    file: Path | None
    length: int
    tag: str


@dataclass(frozen=True)
class Answer:
    """What is said of a request, and which bytes of what follow."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    parts: tuple[Part, ...] = ()
    span: tuple[int, int] = (0, 0)


class Objects:
    """All that the storage has.

    :param folder: for the parts; None to keep lengths only
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._uploads: dict[str, dict[int, Part]] = {}
        self._objects: dict[str, tuple[str, tuple[Part, ...]]] = {}

    def new_file(self) -> Path | None:
        return self._folder / str(next(self._numbers)) if self._folder else None

    def put(self, query: Mapping[str, str], file: Path | None, length: int) -> Answer:
        number = int(query["partNumber"])
        tag = f"{next(self._numbers):032x}"
        self._uploads.setdefault(query["uploadId"], {})[number] = Part(file, length, tag)
        return Answer(200, {"ETag": f'"{tag}"'})

    def join(self, path: str, query: Mapping[str, str], xml: str) -> Answer:
        parts = self._uploads.get(query.get("uploadId", ""))
        if parts is None:
            return refusal(404, "NoSuchUpload", "The specified upload does not exist.")
        listed = [(int(number), re.sub(r'&quot;|&#34;|"', "", tag)) for number, tag in _PART.findall(xml)]
        if any(number not in parts or parts[number].tag != tag for number, tag in listed) or not listed:
            return refusal(400, "InvalidPart", "One or more of the specified parts could not be found.")
        tag = f"{next(self._numbers):032x}-{len(listed)}"
        self._objects[path] = tag, tuple(parts[number] for number, _ in listed)
        del self._uploads[query["uploadId"]]
        return Answer(200, {"Content-Type": "application/xml"}, b"<CompleteMultipartUploadResult/>")

    def get(self, path: str, headers: Mapping[str, str]) -> Answer:
        if path not in self._objects:
            return refusal(404, "NoSuchKey", "The specified key does not exist.")
        tag, parts = self._objects[path]
        size = sum(part.length for part in parts)
        if headers.get("if-match", tag).strip('"') not in (tag, "*"):
            return refusal(412, "PreconditionFailed", "A pre-condition did not hold.")
        told = {"ETag": f'"{tag}"', "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if wanted is None:
            return Answer(200, told, parts=parts, span=(0, size))
        start, end = int(wanted[1]), min(int(wanted[2] or size), size - 1) + 1
        if start >= size:
            return refusal(416, "InvalidRange", "The requested range is not satisfiable.")
        told["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return Answer(206, told, parts=parts, span=(start, end))

    def clear(self) -> Answer:
        self._uploads, self._objects = {}, {}
        if self._folder:
            for file in self._folder.iterdir():
                file.unlink()
        return Answer(204)


def refusal(status: int, code: str, message: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, text.encode())


class Connection:
    """One client: requests one after another."""

    def __init__(self, sock: socket.socket, objects: Objects) -> None:
        self._sock = sock
        self._objects = objects
        self._ahead = bytearray()

    def serve(self) -> None:
        with self._sock, suppress(ConnectionError):
            while (request := self._request()) is not None:
                method, target, headers = request
                if headers.get("expect", "").lower() == "100-continue":
                    self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._send(self._answer(method, target, headers), bodiless=method == "HEAD")

    def _request(self) -> tuple[str, str, dict[str, str]] | None:
        while b"\r\n\r\n" not in self._ahead:
            got = self._sock.recv(_HEAD)
            if not got:
                return None
            self._ahead += got
        head, _, rest = self._ahead.partition(b"\r\n\r\n")
        self._ahead = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        return method, target, {name.lower(): value.strip() for name, _, value in pairs}

    def _answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if method in ("GET", "HEAD"):
            return self._objects.get(url.path, headers)
        if method == "DELETE":
            return self._objects.clear()
        if "content-length" not in headers:
            return refusal(411, "MissingContentLength", "You must provide the Content-Length header.")
        length = int(headers["content-length"])
        if method == "PUT":
            file = self._objects.new_file()
            self._take(file, length)
            return self._objects.put(query, file, length)
        while len(self._ahead) < length:
            self._ahead += self._got(self._sock.recv(_HEAD))
        xml, self._ahead = self._ahead[:length].decode(), self._ahead[length:]
        return self._objects.join(url.path, query, xml)

    def _take(self, file: Path | None, length: int) -> None:
        """Receive a body, past Python."""
        ahead, self._ahead = self._ahead[:length], self._ahead[length:]
        left = length - len(ahead)
        if file is None:
            void = bytearray(_BLOCK)
            while left:
                # Linux throws away what is received so.
                left -= self._some(self._sock.recv_into(void, min(left, _BLOCK), socket.MSG_TRUNC))
            return
        with file.open("wb", buffering=0) as target:
            target.write(ahead)
            buffer = memoryview(bytearray(1024 * 1024))
            while left:
                count = self._some(self._sock.recv_into(buffer, min(left, len(buffer))))
                target.write(buffer[:count])
                left -= count

    def _send(self, answer: Answer, *, bodiless: bool) -> None:
        start, end = answer.span
        lines = [f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines.append(f"Content-Length: {len(answer.body) + end - start}")
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body)
        at = 0
        for part in () if bodiless else answer.parts:
            first, last = max(start, at) - at, min(end, at + part.length) - at
            if first < last:
                self._send_part(part, first, last)
            at += part.length

    def _send_part(self, part: Part, first: int, last: int) -> None:
        with part.file.open("rb") if part.file else tempfile.TemporaryFile() as source:
            if part.file is None:
                source.truncate(part.length)
            while first < last:
                size = min(last - first, _BLOCK)
                first += self._some(os.sendfile(self._sock.fileno(), source.fileno(), first, size))

    @staticmethod
    def _some(count: int) -> int:
        if not count:
            raise ConnectionError("the client went away")
        return count

    @staticmethod
    def _got(data: bytes) -> bytes:
        if not data:
            raise ConnectionError("the client went away")
        return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where a folder for the parts is made")
    parser.add_argument("--hollow", action="store_true", help="keep lengths only")
    chosen = parser.parse_args()
    folder = None if chosen.hollow else Path(tempfile.mkdtemp(prefix="s3-", dir=chosen.folder))
    objects = Objects(folder)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=Connection(sock, objects).serve, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    try:
        sys.stdin.read()
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
