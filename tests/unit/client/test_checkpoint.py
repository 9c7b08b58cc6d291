"""What a transfer writes down fits into the store, tells no secret, and is read again."""

import json
import secrets

import pytest
from transfers import DiskKeeper

from airflow_hpc_provider.client.checkpoint import Journal

URL = (
    "https://rgw.example.org/firecrest-upload/0fa0b884-b58f-40e8-a37b-261cce54beac/a%20file.bin"
    "?uploadId=2~16ef6a0cdf33a35d5d0ff9346d99c9ca&partNumber={}&X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=ABCDEFGHIJKLMNOPQRST%2F20261122%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20261122T050517Z&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&X-Amz-Signature={}"
)


def urls(count):
    return [URL.format(number, secrets.token_hex(32)) for number in range(1, count + 1)]


@pytest.fixture
def keeper(tmp_path):
    return DiskKeeper(tmp_path / "kept")


@pytest.mark.parametrize("count", [1, 499, 500, 501, 10_000])
def test_thousands_of_parts_fit_into_pages_of_64_kib(keeper, count):
    journal, given = Journal(keeper, "up"), urls(count)
    assert journal.keep_urls("7", given)
    tags = {index: f'"{secrets.token_hex(16)}"' for index in range(0, count, 2)}
    journal.keep_tags("7", tags)
    journal.save({"phase": "parts"})
    again = Journal(keeper, "up")
    assert again.urls("7", count) == given
    assert again.tags("7", count) == tags
    assert again.load() == ({"phase": "parts"}, True)
    assert "example" not in keeper.text
    assert again.urls("7", count + 1) is None
    again.forget_pages()
    assert keeper.keys == [again.key]
    again.forget()
    assert keeper.keys == []


def test_what_belongs_to_another_job_is_not_taken_up(keeper):
    journal = Journal(keeper, "up")
    journal.keep_urls("7", urls(2))
    journal.keep_tags("7", {0: "x"})
    again = Journal(keeper, "up")
    assert (again.urls("8", 2), again.tags("8", 2)) == (None, {})


def test_only_the_pages_that_changed_are_written(keeper, monkeypatch):
    journal, tags = Journal(keeper, "up"), {}
    journal.keep_tags("7", tags)
    assert keeper.keys == []
    written = []
    keep = DiskKeeper.set

    def noted(self, key, value):
        written.append(key)
        keep(self, key, value)

    monkeypatch.setattr(DiskKeeper, "set", noted)
    for index in (3, 700, 701):
        tags[index] = "x"
        journal.keep_tags("7", tags)
    assert [key[-1] for key in written] == ["0", "1", "1"]
    journal.forget_pages()
    assert keeper.keys == []


def test_two_transfers_of_one_task_do_not_meet(keeper):
    one, two = Journal(keeper, "up a"), Journal(keeper, "up b")
    one.save({"a": 1})
    assert two.load() == (None, False)
    two.keep_urls("7", ["https://x"])
    one.forget()
    assert two.urls("7", 1) == ["https://x"]


def test_another_generation_may_read_and_not_go_on(keeper, tmp_path):
    Journal(keeper, "up").save({"job": "12"})
    later = DiskKeeper(tmp_path / "kept", "2")
    assert Journal(later, "up").load() == ({"job": "12"}, False)


def test_without_a_key_no_url_is_kept(tmp_path):
    keeper = DiskKeeper(tmp_path / "kept", seals=False)
    journal = Journal(keeper, "up")
    assert not journal.seals
    assert not journal.keep_urls("7", urls(3))
    assert keeper.keys == []
    assert journal.urls("7", 3) is None


def test_without_a_keeper_nothing_is_kept():
    journal = Journal(None, "up")
    journal.save({"a": 1})
    journal.keep_tags("7", {0: "x"})
    journal.forget()
    assert (journal.load(), journal.urls("7", 1), journal.tags("7", 1)) == ((None, False), None, {})


@pytest.mark.parametrize("garbage", ["x", 5, [], {}, "////", "eNo=", json.dumps("eA==")])
def test_a_garbled_page_counts_as_missing(keeper, garbage):
    journal = Journal(keeper, "up")
    journal.keep_urls("7", urls(2))
    journal.keep_tags("7", {0: "x"})
    for key in keeper.keys:
        keeper.set(key, garbage)
    keeper.set(journal.key, garbage)
    assert (journal.load(), journal.urls("7", 2), journal.tags("7", 2)) == ((None, False), None, {})
