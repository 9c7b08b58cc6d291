"""What tests of staged transfers share: gateways on which little is large, keepers, and a client's ends."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet, InvalidToken

from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.devgateway import Gateway

KIB = 1024
#: A client's, whose tests have no time.
POLICY = RetryPolicy(attempts=3, base=0.01)


def digest(content: bytes) -> str:
    """The sha256 of some bytes, as hex digits."""
    return hashlib.sha256(content).hexdigest()


def transfer_jobs(gateway: Gateway, name: str) -> dict[str, str]:
    """The state of each job of this name, by its id."""
    return {
        entry.base_id: entry.state.split()[0] for entry in gateway.scheduler.records() if entry.name == name
    }


@pytest.fixture
def small_limits(make_gateway: Callable[..., Gateway], connect: Callable[..., None]) -> Gateway:
    """A gateway on which little is large: files above 64 KiB are staged, in parts of 50 KB."""
    gateway = make_gateway(max_ops_file_size=64 * KIB, max_part_size=50_000, ingress_poll=0.1)
    connect(gateway)
    return gateway


@pytest.fixture
def fernet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Airflow has a key to encrypt with."""
    from airflow.sdk.crypto import get_fernet

    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    get_fernet.cache_clear()
    yield
    monkeypatch.undo()
    get_fernet.cache_clear()


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
