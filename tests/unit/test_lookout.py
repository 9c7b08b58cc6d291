"""What a poll loop for watched files asks in one tick."""

from airflow_hpc_provider.lookout import Place, plan


def test_the_plan_lists_a_directory_for_globs_and_for_many_files():
    one, two, three = (Place(f"/in/{name}") for name in "abc")
    glob = Place("/in", "*.csv")
    assert plan([one, two]) == ({}, [one, two])
    assert plan([one, two, three]) == ({"/in": [one, two, three]}, [])
    assert plan([one, glob]) == ({"/in": [one, glob]}, [])
    assert plan([one, two, three], ["/in"]) == ({}, [one, two, three])
    assert plan([glob, glob], ["/in"]) == ({"/in": [glob]}, [])
