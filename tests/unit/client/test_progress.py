import pytest

from airflow_hpc_provider.client.progress import Progress, amount


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (999_600, "1.0 MB"),
        (123_456_789, "123 MB"),
        (8e9, "8.0 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_amounts_are_told_in_words(size, words):
    assert amount(size) == words


def test_a_line_comes_every_ten_seconds_with_rate_and_rest():
    progress = Progress(1000_000_000, now=100.0)
    assert progress.line(50_000_000, 109.9) is None
    assert progress.line(100_000_000, 110.0) == "10 % (100 MB of 1.0 GB), 10.0 MB/s, 1 min 30 s left."
    assert progress.line(150_000_000, 115.0) is None
    assert progress.line(300_000_000, 120.0) == "30 % (300 MB of 1.0 GB), 20.0 MB/s, 35 s left."
    assert progress.end(150.0) == "1.0 GB in 50.0 s, 20.0 MB/s."


def test_a_transfer_that_stands_still_promises_nothing():
    progress = Progress(10**12, now=0.0, done=10**9)
    assert progress.line(10**9, 10.0) == "0 % (1.0 GB of 1.0 TB), 0 bytes/s."
    assert progress.line(2 * 10**9, 20.0) == "0 % (2.0 GB of 1.0 TB), 100 MB/s, 2 h 46 min left."
    # What has to be moved again makes it no slower than nothing.
    assert progress.line(10**9, 30.0) == "0 % (1.0 GB of 1.0 TB), 0 bytes/s."


def test_what_was_there_before_counts_for_no_rate():
    progress = Progress(1000, now=0.0, done=900)
    assert progress.rate(10.0) == 10.0


def test_nothing_is_done_at_once():
    progress = Progress(0, now=0.0, every=0.0)
    assert progress.line(0, 1.0) == "100 % (0 bytes of 0 bytes), 0 bytes/s."
