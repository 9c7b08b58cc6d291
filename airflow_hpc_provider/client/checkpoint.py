"""What a transfer writes down to be continued by another process, in pages of at most 64 KiB."""

from __future__ import annotations

import base64
import binascii
import hashlib
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

    def keep_urls(self, urls: Sequence[str]) -> bool:
        """Write URLs down, encrypted; False if that is not possible.

        :param urls: presigned URLs
        """
        if self._keeper is None or not self._keeper.seals:
            return False
        for number, page in enumerate(_pages(urls)):
            sealed = self._keeper.seal(zlib.compress(json.dumps(page).encode(), 9))
            if sealed is None:
                return False
            self._keeper.set(f"{self._key}_urls_{number}", sealed)
        return True

    def urls(self, count: int) -> list[str] | None:
        """The URLs written down; None if one is missing or cannot be decrypted.

        :param count: how many there must be
        """
        found: list[str] = []
        if self._keeper is None:
            return None
        for first in range(0, count, _PAGE):
            sealed = self._keeper.get(f"{self._key}_urls_{first // _PAGE}")
            page = _read(self._keeper.unseal(sealed) if isinstance(sealed, str) else None)
            if not page:
                return None
            found += page
        return found if len(found) == count else None

    def keep_tags(self, tags: Mapping[int, str], count: int) -> None:
        """Write down which parts the storage has.

        :param tags: tag of each part that it has, by its index
        :param count: parts in all
        """
        if self._keeper is None:
            return
        for number, page in enumerate(_pages([tags.get(index, "") for index in range(count)])):
            packed = base64.b64encode(zlib.compress(json.dumps(page).encode(), 9)).decode()
            key = f"{self._key}_tags_{number}"
            if any(page) and self._written.get(key) != packed:
                self._keeper.set(key, packed)
                self._written[key] = packed

    def tags(self, count: int) -> dict[int, str]:
        """The tags written down, by index.

        :param count: parts in all
        """
        found: dict[int, str] = {}
        if self._keeper is None:
            return found
        for first in range(0, count, _PAGE):
            packed = self._keeper.get(f"{self._key}_tags_{first // _PAGE}")
            try:
                page = _read(base64.b64decode(packed, validate=True)) if isinstance(packed, str) else None
            except binascii.Error:
                page = None
            found |= {first + index: tag for index, tag in enumerate(page or []) if tag}
        return {index: tag for index, tag in found.items() if index < count}

    def forget(self, count: int, *, all_of_it: bool = True) -> None:
        """Remove the pages of a transfer that is over.

        :param count: its parts
        :param all_of_it: the first page, too
        """
        if self._keeper is None:
            return
        self._written.clear()
        for number in range(-(-count // _PAGE)):
            self._keeper.delete(f"{self._key}_urls_{number}")
            self._keeper.delete(f"{self._key}_tags_{number}")
        if all_of_it:
            self._keeper.delete(self._key)


def _pages(items: Sequence[str]) -> Iterator[list[str]]:
    return (list(items[first : first + _PAGE]) for first in range(0, len(items), _PAGE))


def _read(packed: bytes | None) -> list[str] | None:
    """A page's items, or None if it cannot be read."""
    try:
        page = json.loads(zlib.decompress(packed)) if packed else None
    except (zlib.error, ValueError):
        return None
    return page if isinstance(page, list) and all(isinstance(item, str) for item in page) else None
