"""What a poll loop for watched files asks in one tick."""

from airflow_hpc_provider.lookout import Place, plan


def test_the_plan_lists_a_directory_for_globs_and_for_many_files():
    one, two, three = (Place("daint", f"/in/{name}") for name in "abc")
    glob = Place("daint", "/in", "*.csv")
    assert plan([one, two]) == ({}, [one, two])
    inbox = ("daint", "/in")
    assert plan([one, two, three]) == ({inbox: [one, two, three]}, [])
    assert plan([one, glob]) == ({inbox: [one, glob]}, [])
    assert plan([one, two, three], [inbox]) == ({}, [one, two, three])
    assert plan([glob, glob], [inbox]) == ({inbox: [glob]}, [])


def test_the_plan_keeps_systems_apart():
    here, there = Place("daint", "/in", "*.csv"), Place("eiger", "/in", "*.csv")
    assert plan([here, there]) == ({("daint", "/in"): [here], ("eiger", "/in"): [there]}, [])
