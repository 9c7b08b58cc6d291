"""What a transfer writes down to be continued by another process, in pages of at most 64 KiB."""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from .calls import JSONObject

__all__ = ["Journal", "Keeper"]

# Keys in the keeper begin so. Running tasks depend on it: it never changes.
_KEY = "hpc_transfer"
# A presigned URL's signature is 32 bytes that nothing can compress: a page of this many URLs, compressed,
# encrypted and twice in base64, has about half of the 64 KiB that the task state store allows.
_PAGE = 500
_KINDS = ("urls", "tags")


class Keeper(Protocol):
    """Where a transfer is written down: small JSON values under keys, and a way to encrypt."""

    @property
    def generation(self) -> str:
        """What another one wrote is not gone on with."""

    @property
    def seals(self) -> bool:
        """It can encrypt."""

    def get(self, key: str) -> Any:
        """The value of a key, or None."""

    def set(self, key: str, value: Any) -> None:
        """Write a value: JSON of at most 64 KiB."""

    def delete(self, key: str) -> None:
        """Forget a key; it may not be there."""

    def seal(self, secret: bytes) -> str | None:
        """Encrypt; None if that is not possible."""

    def unseal(self, sealed: str) -> bytes | None:
        """Decrypt; None if that is not possible any more."""


class Journal:
    """The pages of one transfer.

    :param keeper: where they are kept; None to keep none
    :param name: what is moved where: tells the transfers of one task from each other
    """

    def __init__(self, keeper: Keeper | None, name: str) -> None:
        self._keeper = keeper
        self._key = f"{_KEY}_{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}"
        self._written: dict[str, str] = {}

    @property
    def key(self) -> str:
        """Key of the first page."""
        return self._key

    @property
    def seals(self) -> bool:
        """URLs can be kept."""
        return self._keeper is not None and self._keeper.seals

    def load(self) -> tuple[JSONObject | None, bool]:
        """What an earlier try wrote, and whether this one may go on with it.

        What another generation wrote is only good for cleaning up after it.
        """
        found = self._keeper.get(self._key) if self._keeper else None
        if self._keeper is None or not isinstance(found, dict) or not isinstance(found.get("about"), dict):
            return None, False
        return found["about"], found.get("generation") == self._keeper.generation

    def save(self, about: Mapping[str, Any]) -> None:
        """Write down how far the transfer is; nothing in it may be secret."""
        if self._keeper is not None:
            self._keeper.set(self._key, {"generation": self._keeper.generation, "about": dict(about)})

    def keep_urls(self, job_id: str, urls: Sequence[str]) -> bool:
        """Write URLs down, encrypted; False if that is not possible.

        :param job_id: the transfer job that they belong to
        :param urls: presigned URLs
        """
        if self._keeper is None or not self._keeper.seals:
            return False
        for number, page in enumerate(_pages(urls)):
            sealed = self._keeper.seal(_packed(job_id, page))
            if sealed is None:
                return False
            self._keeper.set(self._page("urls", number), sealed)
        return True

    def urls(self, job_id: str, count: int) -> list[str] | None:
        """The URLs written down; None if one is missing or cannot be decrypted.

        :param job_id: the transfer job that they belong to
        :param count: how many there must be
        """
        found: list[str] = []
        if self._keeper is None:
            return None
        for first in range(0, count, _PAGE):
            sealed = self._keeper.get(self._page("urls", first // _PAGE))
            page = _read(job_id, self._keeper.unseal(sealed) if isinstance(sealed, str) else None)
            if not page:
                return None
            found += page
        return found if len(found) == count else None

    def keep_tags(self, job_id: str, tags: Mapping[int, str]) -> None:
        """Write down which parts the storage has.

        :param job_id: the transfer job that they belong to
        :param tags: tag of each part that it has, by its index
        """
        if self._keeper is None:
            return
        # Whole pages, so that none is written again for what a later one holds.
        known = -(-(max(tags, default=-1) + 1) // _PAGE) * _PAGE
        for number, page in enumerate(_pages([tags.get(index, "") for index in range(known)])):
            packed = base64.b64encode(_packed(job_id, page)).decode()
            key = self._page("tags", number)
            if self._written.get(key) != packed:
                self._keeper.set(key, packed)
                self._written[key] = packed

    def tags(self, job_id: str, count: int) -> dict[int, str]:
        """The tags written down, by index.

        :param job_id: the transfer job that they belong to
        :param count: parts in all
        """
        found: dict[int, str] = {}
        if self._keeper is None:
            return found
        for first in range(0, count, _PAGE):
            packed = self._keeper.get(self._page("tags", first // _PAGE))
            try:
                raw = base64.b64decode(packed, validate=True) if isinstance(packed, str) else None
            except binascii.Error:
                raw = None
            found |= {first + index: tag for index, tag in enumerate(_read(job_id, raw) or []) if tag}
        return {index: tag for index, tag in found.items() if index < count}

    def forget(self) -> None:
        """Remove all that is written down of a transfer."""
        if self._keeper is not None:
            self.forget_pages()
            self._keeper.delete(self._key)

    def forget_pages(self) -> None:
        """Remove the URLs and tags of a transfer; what was saved of it stays."""
        if self._keeper is None:
            return
        self._written.clear()
        for kind in _KINDS:
            # From the last to the first: who is broken off amid this leaves none that is not found again.
            for number in reversed(range(self._count(kind))):
                self._keeper.delete(self._page(kind, number))

    def _count(self, kind: str) -> int:
        """How many pages of a kind there are: there is none behind a gap."""
        pages = itertools.count()
        return next(n for n in pages if self._keeper is None or self._keeper.get(self._page(kind, n)) is None)

    def _page(self, kind: str, number: int) -> str:
        """Key of a page."""
        return f"{self._key}_{kind}_{number}"


def _pages(items: Sequence[str]) -> Iterator[list[str]]:
    return (list(items[first : first + _PAGE]) for first in range(0, len(items), _PAGE))


def _packed(job_id: str, items: Sequence[str]) -> bytes:
    return zlib.compress(json.dumps([job_id, *items]).encode(), 9)


def _read(job_id: str, packed: bytes | None) -> list[str] | None:
    """A page's items, or None if it cannot be read or is another job's."""
    try:
        page = json.loads(zlib.decompress(packed)) if packed else None
    except (zlib.error, ValueError):
        return None
    if not isinstance(page, list) or not all(isinstance(item, str) for item in page):
        return None
    return page[1:] if page[:1] == [job_id] else None
