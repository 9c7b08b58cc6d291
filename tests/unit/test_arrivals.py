"""Which files are new: the decisions of a watcher, without clock, gateway and Airflow."""

import json

from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.arrivals import GRACE, Arrivals, version_of

FILE = "/scratch/in.dat"


def arrivals(owner="me", kept=None, *, stable_for=10.0, now=0.0) -> Arrivals:
    made = Arrivals(owner=owner, stable_for=stable_for)
    made.learn(kept, now)
    return made


def written(of: Arrivals):
    of.written()
    return json.loads(json.dumps(of.to_json()))


def paths(files):
    return [file["path"] for file in files]


def tell(of: Arrivals, number, files, now=0.0):
    of.begin(number, files, now)
    assert of.holds(number, written(of))
    assert of.end(number)


def test_a_file_is_new_when_it_has_rested():
    watch = arrivals()
    assert watch.saw({FILE: (3, 100, 7)}, 0) == []
    assert watch.saw({FILE: (3, 100, 7)}, 9) == []
    assert watch.saw({FILE: (3, 100, 7)}, 10) == [
        {"path": FILE, "size": 3, "modified": 100, "version": "3-100-7"}
    ]


def test_a_file_that_still_grows_is_not_there_yet():
    watch = arrivals()
    for now in range(0, 100, 9):
        assert watch.saw({FILE: (now, 100 + now, 7)}, now) == []


def test_each_version_is_told_once():
    watch, told = arrivals(stable_for=0), []
    for number, sight in enumerate([(1, 1, 1), (1, 1, 1), (1, 2, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]):
        files = watch.saw({FILE: sight}, number)
        if files:
            told.append(files[0]["version"])
            tell(watch, number, files)
    assert told == ["1-1-1", "1-2-1", "1-2-2", "2-2-2"]


def test_a_file_that_was_out_of_sight_is_not_new():
    watch = arrivals(stable_for=0)
    tell(watch, 1, watch.saw({FILE: (1, 1, 1)}, 1))
    assert watch.saw({}, 2) == []
    assert watch.saw({FILE: (1, 1, 1)}, 3) == []


def test_a_restart_repeats_nothing():
    watch = arrivals(stable_for=0)
    tell(watch, 1, watch.saw({FILE: (1, 1, 1)}, 1))
    again = arrivals("other", written(watch), stable_for=0)
    assert again.saw({FILE: (1, 1, 1)}, 2) == []
    assert paths(again.saw({FILE: (1, 5, 1)}, 3)) == [FILE]


def test_what_a_dead_process_only_began_is_told_again_after_a_while_and_marked():
    watch = arrivals(stable_for=0)
    watch.begin(1, watch.saw({FILE: (1, 1, 1)}, 1), 1)
    again = arrivals("other", written(watch), stable_for=0, now=2)
    assert again.saw({FILE: (1, 1, 1)}, 2) == []
    (file,) = again.saw({FILE: (1, 1, 1)}, 1 + GRACE)
    assert file["repeated"] is True
    again.learn(written(watch), 1 + GRACE)
    tell(again, 9, [file], 1 + GRACE)
    assert written(again) == {"told": {FILE: "1-1-1"}, "begun": {}}


def test_what_another_process_began_and_ended_is_not_told():
    watch = arrivals(stable_for=0)
    watch.begin(1, watch.saw({FILE: (1, 1, 1)}, 1), 1)
    again = arrivals("other", written(watch), stable_for=0, now=2)
    watch.end(1)
    again.learn(written(watch), 3)
    assert again.saw({FILE: (1, 1, 1)}, 1 + 2 * GRACE) == []


def test_of_two_that_begin_the_same_one_gives_way():
    first, second = arrivals("a", stable_for=0), arrivals("b", stable_for=0)
    files = first.saw({FILE: (1, 1, 1)}, 1)
    second.saw({FILE: (1, 1, 1)}, 1)
    first.begin(1, files, 1.0)
    kept = written(first)
    second.learn(kept, 1.1)
    second.begin(1, files, 1.1)
    kept = written(second)
    first.learn(kept, 1.6)
    assert first.holds(1, kept)
    assert not second.holds(1, kept)


def test_who_was_overwritten_gives_way():
    first, second = arrivals("a", stable_for=0), arrivals("b", stable_for=0)
    files = first.saw({FILE: (1, 1, 1)}, 1)
    first.begin(1, files, 1.0)
    written(first)
    second.begin(1, files, 1.0)
    kept = written(second)
    first.learn(kept, 1.6)
    second.learn(kept, 1.6)
    assert (first.holds(1, kept), second.holds(1, kept)) == (False, True)


def test_who_comes_so_late_that_another_one_has_told_gives_way():
    first, second = arrivals("a", stable_for=0), arrivals("b", stable_for=0)
    files = first.saw({FILE: (1, 1, 1)}, 1)
    tell(first, 1, files, 1.0)
    second.begin(1, files, 1.0)
    written(second)  # over what the first one has begun
    kept = written(first) | {"begun": second.to_json()["begun"]}
    second.learn(kept, 9)
    assert not second.holds(1, kept)


def test_what_could_not_be_written_is_not_forgotten_for_what_was():
    watch = arrivals(stable_for=0)
    tell(watch, 1, watch.saw({FILE: (1, 1, 1)}, 1))
    kept = written(watch)
    files = watch.saw({FILE: (2, 2, 1)}, 2)
    watch.begin(2, files, 2)
    watch.end(2)
    watch.learn(kept, 3)
    assert watch.saw({FILE: (2, 2, 1)}, 3) == []


def test_the_memory_of_files_that_are_gone_is_bounded():
    watch = arrivals(stable_for=0)
    for number in range(1500):
        tell(watch, number, watch.saw({f"/in/{number}": (1, 1, number)}, number))
    assert len(watch.told) <= 1001
    assert "/in/1499" in watch.told
    assert "/in/0" not in watch.told


def test_the_next_look_is_soon_while_something_changes():
    watch = arrivals(stable_for=10)
    assert watch.delay(1000, 30) == 30
    watch.saw({FILE: (1, 1, 1)}, 1000)
    assert watch.delay(1000, 30) == 1
    watch.saw({FILE: (1, 1, 1)}, 1008)
    assert watch.delay(1008, 30) < 2
    assert watch.delay(1008, 0.1) == 0.1


SIGHTS = st.lists(
    st.dictionaries(st.sampled_from(["/a", "/b", "/c"]), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    max_size=30,
)


@given(SIGHTS, st.lists(st.booleans(), min_size=30, max_size=30))
def test_whatever_comes_and_whenever_it_restarts_each_change_is_told_once(sights, restarts):
    """Of each file the told versions are those that were seen, without the repetitions in a row."""
    watch, seen, told = arrivals(stable_for=0), {}, {}
    for number, (sight, restart) in enumerate(zip(sights, restarts, strict=False)):
        for path, one in sight.items():
            if seen.setdefault(path, [])[-1:] != [version_of(one)]:
                seen[path].append(version_of(one))
        files = watch.saw(sight, number)
        for file in files:
            assert "repeated" not in file
            told.setdefault(file["path"], []).append(file["version"])
        if files:
            tell(watch, number, files, number)
        if restart:
            watch = arrivals(str(number), written(watch), stable_for=0, now=number)
    assert told == seen
