"""Run by .ci/run in a clean environment, in which the wheel or the sdist has just been installed."""

# ruff: noqa: INP001, T201  a script that talks to its reader

from importlib import metadata, resources

from airflow_hpc_provider.provider_info import get_provider_info

package = metadata.distribution("airflow-hpc-provider")
tops = {file.parts[0] for file in package.files or ()}
expected = {"airflow_hpc_provider", f"airflow_hpc_provider-{package.version}.dist-info"}
if tops != expected:
    raise SystemExit(f"the package holds {sorted(tops)}, not only {sorted(expected)}")
if not resources.files("airflow_hpc_provider").joinpath("py.typed").is_file():
    raise SystemExit("the package lacks py.typed, so that no type checker would look at it")
names = {file.name for file in package.files or ()}
if "LICENSE" not in names:
    raise SystemExit("the package lacks the licence")
(point,) = package.entry_points.select(group="apache_airflow_provider")
if point.load() is not get_provider_info or get_provider_info()["package-name"] != package.name:
    raise SystemExit("the package's entry point is not the provider's info")
print(f"{package.name} {package.version}: {len(names)} files, no tests, entry point in place")
