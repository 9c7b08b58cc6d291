"""What tests of staged transfers share: a store on disk, a keeper of it, and bytes."""

import json
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken


class DiskKeeper:
    """Keeps transfers in files, as another process of the same task would find them.

    :param folder: where they lie; the key, too
    :param generation: see ``client.checkpoint.Keeper``
    :param seals: whether there is a key
    """

    def __init__(self, folder: Path, generation: str = "1", *, seals: bool = True) -> None:
        self.folder = folder
        self.generation = generation
        self.seals = seals
        folder.mkdir(exist_ok=True)
        key = folder / "key"
        if not key.exists():
            key.write_bytes(Fernet.generate_key())
        self._fernet = Fernet(key.read_bytes())

    def get(self, key: str) -> Any:
        path = self.folder / f"{key}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def set(self, key: str, value: Any) -> None:
        text = json.dumps(value)
        assert len(text) <= 65_535, key
        path = self.folder / f"{key}.json"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def delete(self, key: str) -> None:
        (self.folder / f"{key}.json").unlink(missing_ok=True)

    def seal(self, secret: bytes) -> str | None:
        return self._fernet.encrypt(secret).decode() if self.seals else None

    def unseal(self, sealed: str) -> bytes | None:
        try:
            return self._fernet.decrypt(sealed) if self.seals else None
        except InvalidToken:
            return None

    @property
    def keys(self) -> list[str]:
        """What is kept."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    @property
    def text(self) -> str:
        """All that can be read."""
        return "\n".join(path.read_text() for path in self.folder.glob("*.json"))
