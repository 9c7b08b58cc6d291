"""Run by .ci/run in a virtual environment that holds the wheel and nothing else."""

# ruff: noqa: INP001, T201  a script that talks to its reader

from importlib import metadata, resources

from airflow_hpc_provider.provider_info import get_provider_info

wheel = metadata.distribution("airflow-hpc-provider")
tops = {file.parts[0] for file in wheel.files or ()}
expected = {"airflow_hpc_provider", f"airflow_hpc_provider-{wheel.version}.dist-info"}
if tops != expected:
    raise SystemExit(f"the wheel holds {sorted(tops)}, not only {sorted(expected)}")
if not resources.files("airflow_hpc_provider").joinpath("py.typed").is_file():
    raise SystemExit("the wheel lacks py.typed, so that no type checker would look at it")
names = {file.name for file in wheel.files or ()}
if "LICENSE" not in names:
    raise SystemExit("the wheel lacks the licence")
(point,) = wheel.entry_points.select(group="apache_airflow_provider")
if point.load() is not get_provider_info or get_provider_info()["package-name"] != wheel.name:
    raise SystemExit("the wheel's entry point is not the provider's info")
print(f"{wheel.name} {wheel.version}: {len(names)} files, no tests, entry point in place")
