"""What a staged transfer's job does on the cluster: fetch an object into a file, or a file into an object.

The job script calls this file with Python's standard library alone.
"""

import contextlib
import http.client
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

NOT_YET = 75
DIRECTORY = 3
EMPTY = 70
_BLOCK = 1 << 20


def log(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%a %b %e %H:%M:%S UTC %Y', time.gmtime())} {text}\n")
    sys.stdout.flush()


def request(
    method: str,
    url: str,
    body: bytes | Iterable[bytes] | None = None,
    length: int = 0,
    span: str | None = None,
) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=600)
    headers = {"Content-Length": str(length)} if body is not None else {}
    headers |= {"Range": f"bytes={span}"} if span else {}
    connection.request(method, f"{parts.path}?{parts.query}", body=body, headers=headers)
    return connection.getresponse()


def ingress(target: str, part_size: str, head_url: str, url: str) -> int:
    """Write the object to its target, once it is complete: the old file goes first, then piece by piece."""
    if Path(target).is_dir():
        sys.stderr.write(f"targetPath must point to a file path: {target} is a directory.\n")
        return DIRECTORY
    head = request("HEAD", head_url)
    if head.status != 200:
        return NOT_YET
    log("File to transfer found in S3 bucket")
    log(f"Downloading file to: {target} ...")
    size, step, received = int(head.headers["Content-Length"]), int(part_size), 0
    with contextlib.suppress(OSError):
        Path(target).unlink()
    for number, start in enumerate(range(0, size, step), start=1):
        answer = request("GET", url, span=f"{start}-{start + step - 1}")
        if answer.status not in (200, 206):
            log(f"Download failed: part {number}")
            return 1
        received += append(answer, Path(f"{target}.{number}"), Path(target))
    log(f"Received {received} bytes")
    log(f"File was successfully downloaded (size: {received / 2**20:.3f}MB)")
    return 0


def append(answer: http.client.HTTPResponse, piece: Path, target: Path) -> int:
    """As curl and cat do it: what goes wrong with the disk stops nothing."""
    with contextlib.suppress(OSError):
        with piece.open("wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
        if not target.exists():
            return piece.rename(target).stat().st_size
        with piece.open("rb") as file, target.open("ab") as whole:
            shutil.copyfileobj(file, whole, _BLOCK)
        size = piece.stat().st_size
        piece.unlink()
        return size
    return 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def egress(source: str, part_size: str, complete_url: str, *part_urls: str) -> int:
    """Publish the file as an object, part by part."""
    log(f"Upload File Job (id:{os.environ.get('SLURM_JOB_ID', 'unknown')})")
    say(f"Uploading file:{source} into {len(part_urls)} chunks")
    if not part_urls:
        sys.stderr.write("[ERROR] Nothing to upload\n")
        return EMPTY
    tags = []
    for number, url in enumerate(part_urls, start=1):
        say(f"[INFO] Uploading part {number}...")
        tag = put_part(source, (number - 1) * int(part_size), int(part_size), url)
        if tag is None:
            sys.stderr.write(f"[ERROR] Upload of part {number} failed\n")
            return 1
        tags.append(tag)
    say("[INFO] Parts upload completed.")
    for number, tag in enumerate(tags, start=1):
        say(f"[INFO] Upload of part {number} succeded with ETag: {tag}|")
    say("[INFO] Signaling multipart upload completion")
    listed = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>{t}</ETag></Part>" for n, t in enumerate(tags, 1)
    )
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    if request("POST", complete_url, body, len(body)).status != 200:
        sys.stderr.write("[ERROR] Completion failed\n")
        return 1
    say("[INFO] Multipart file upload successfully completed")
    return 0


def put_part(source: str, offset: int, size: int, url: str) -> str | None:
    with Path(source).open("rb") as file:
        length = min(size, os.fstat(file.fileno()).st_size - offset)
        file.seek(offset)
        answer = request("PUT", url, blocks(file, length), length)
    if answer.status != 200:
        return None
    return re.sub('"', "", answer.headers["ETag"])


def blocks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0:
        block = file.read(min(_BLOCK, length))
        if not block:
            return
        length -= len(block)
        yield block


if __name__ == "__main__":
    raise SystemExit(ingress(*sys.argv[2:]) if sys.argv[1] == "ingress" else egress(*sys.argv[2:]))
