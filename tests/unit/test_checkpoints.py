"""Transfers in Airflow's task state store: encrypted with its Fernet key, or not at all."""

import contextlib

import pytest
from airflow_home import StateStore, context_of
from cryptography.fernet import Fernet

from airflow_hpc_provider.checkpoints import TaskKeeper
from airflow_hpc_provider.client.checkpoint import Journal


class Store(StateStore):
    def delete(self, key):
        self.pop(key, None)


@pytest.fixture
def key(monkeypatch):
    """Configure a Fernet key; none for None."""
    from airflow.sdk.crypto import get_fernet

    def configure(value):
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", value or "")
        get_fernet.cache_clear()

    yield configure
    monkeypatch.undo()
    get_fernet.cache_clear()


def test_urls_are_kept_encrypted_and_found_again(key):
    key(Fernet.generate_key().decode())
    store = Store()
    context = context_of(store=store)
    keeper = TaskKeeper.of(context)
    assert keeper.seals
    assert Journal(keeper, "up").keep_urls("7", ["https://storage/x?X-Amz-Signature=5ec2e7"])
    assert "Signature" not in str(store)
    assert Journal(TaskKeeper.of(context), "up").urls("7", 1) == ["https://storage/x?X-Amz-Signature=5ec2e7"]
    Journal(keeper, "up").forget()
    assert store == {}


def test_another_key_reads_nothing(key):
    key(Fernet.generate_key().decode())
    store = Store()
    Journal(TaskKeeper(store, "1"), "up").keep_urls("7", ["https://x"])
    key(Fernet.generate_key().decode())
    assert Journal(TaskKeeper(store, "1"), "up").urls("7", 1) is None


@pytest.mark.filterwarnings("ignore")
def test_without_a_key_nothing_secret_is_kept(key):
    key(None)
    store = Store()
    keeper = TaskKeeper.of(context_of(store=store))
    assert not keeper.seals
    assert not Journal(keeper, "up").keep_urls("7", ["https://x"])
    assert (store, keeper.unseal("x"), keeper.seal(b"x")) == ({}, None, None)


def test_where_airflow_has_no_store_there_is_no_keeper():
    assert TaskKeeper.of({}) is None


def test_a_retry_has_the_generation_of_the_try_before_and_a_clear_another():
    def generation(max_tries):
        return TaskKeeper.of(context_of(max_tries=max_tries)).generation

    assert generation(2) == generation(2) != generation(3)


def test_nothing_breaks_off_the_talk_with_the_supervisor():
    inside = []

    @contextlib.contextmanager
    def shield():
        inside.append(True)
        yield
        inside.append(False)

    class Watched(Store):
        def get(self, key, default=None):
            assert inside[-1]
            return super().get(key, default)

        def set(self, key, value, **_):
            assert inside[-1]
            super().set(key, value)

        def delete(self, key):
            assert inside[-1]
            super().delete(key)

    keeper = TaskKeeper(Watched(), "1", shield=shield)
    keeper.set("a", 1)
    assert keeper.get("a") == 1
    keeper.delete("a")
    assert inside == [True, False] * 3
