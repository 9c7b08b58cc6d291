"""What may be removed: decided by names, before anything is asked."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.client.paths import is_inside
from airflow_hpc_provider.client.removal import Guard, split_removal
from airflow_hpc_provider.client.systems import FileSystem, System

SYSTEM = System(
    name="daint",
    file_systems=(
        FileSystem(path="/users", kind="users", default_directory=True),
        FileSystem(path="/capstor/scratch/", kind="scratch"),
    ),
)
GUARD = Guard.of(SYSTEM, "me", "/capstor/scratch/proj/area/")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", "is the root directory"),
        ("//", "is the root directory"),
        ("/users", "mount point"),
        ("/users/", "mount point"),
        ("/users//me/.", "the home directory of me"),
        ("/capstor", "above /capstor/scratch"),
        ("/capstor/scratch", "mount point"),
        ("/capstor/scratch/me", "the directory of me on"),
        ("/capstor/scratch/proj/area", "the connection's working directory"),
        ("/capstor/scratch/proj", "above /capstor/scratch/proj/area"),
    ],
)
def test_what_stays_is_named(path, words):
    with pytest.raises(InvalidInputError, match=rf"^path: .*{words}.*: it is not removed\.$"):
        GUARD.check(path)


@pytest.mark.parametrize(
    "path",
    ["/users/me/run", "/users/you", "/capstor/scratch/me2", "/capstor/scratch/proj/area/x", "/elsewhere"],
)
def test_what_is_below_or_beside_goes(path):
    assert GUARD.check(f"{path}/") == path


@pytest.mark.parametrize("path", ["relative", "~", "/users/me/..", "/users/me/../..", "/it's", ""])
def test_a_path_that_cannot_be_sent_is_not_even_looked_at(path):
    with pytest.raises(InvalidInputError):
        GUARD.check(path)


names = st.text("abm/.", min_size=1, max_size=14)


@given(names, st.lists(names, max_size=4), names)
def test_no_spelling_of_a_path_removes_a_place_that_stays(mount, mounts, given_):
    system = System(
        name="x",
        file_systems=tuple(
            FileSystem(path=f"/{path}", kind="scratch") for path in [mount, *mounts] if ".." not in path
        ),
    )
    guard = Guard.of(system, "me")
    path = f"/{given_}"
    try:
        removed = guard.check(path)
    except InvalidInputError:
        return
    for mounted in system.file_systems:
        for place in (mounted.path, f"{mounted.path}/me"):
            assert not is_inside(posixpath.normpath(place), removed)


@pytest.mark.parametrize("pattern", ["*", "*.tmp", "core.?", "[a-c]x", "[[]1]"])
def test_wildcards_need_a_word(pattern):
    with pytest.raises(InvalidInputError, match=r"holds a wildcard; allow_glob=True"):
        split_removal(f"/users/me/{pattern}", allow_glob=False)
    assert split_removal(f"/users/me//{pattern}/", allow_glob=True) == ("/users/me", pattern)


def test_wildcards_are_for_the_last_name_only():
    with pytest.raises(InvalidInputError, match="only the last name may"):
        split_removal("/users/*/run", allow_glob=True)
    assert split_removal("/*", allow_glob=True) == ("/", "*")
    assert split_removal("/users/me/run/", allow_glob=True) == ("/users/me/run", None)
