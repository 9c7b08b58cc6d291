"""Who may import whom, and that every public name is real and described; read from the sources, not run."""

import ast
import functools
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import airflow_hpc_provider
from airflow_hpc_provider import client

PACKAGE = "airflow_hpc_provider"
ROOT = Path(airflow_hpc_provider.__file__).parent
MODULES = sorted(
    ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)


def source_of(module):
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def tree_of(module):
    return ast.parse(source_of(module).read_text())


def only_for_types(tree):
    """All statements inside ``if TYPE_CHECKING``."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imports(module, *, for_types=True):
    """Everything that a module imports, at its top or inside of a function."""
    tree = tree_of(module)
    skipped = set() if for_types else only_for_types(tree)
    is_package = source_of(module).name == "__init__.py"
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")
            above = above[: len(above) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def below(name, *roots):
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def modules(*parts):
    found = [module for module in MODULES if below(module, *(f"{PACKAGE}.{part}" for part in parts))]
    assert found, parts
    return found


def importers(*names, among=MODULES, for_types=True):
    return {
        module.removeprefix(f"{PACKAGE}.")
        for module in among
        if any(below(name, *names) for name in imports(module, for_types=for_types))
    }


def test_the_reader_of_imports_reads_all_kinds():
    assert f"{PACKAGE}.client.errors.HpcError" in set(imports(f"{PACKAGE}.watch"))
    assert f"{PACKAGE}.client.calls" in set(imports(f"{PACKAGE}.client.jobs"))
    assert f"{PACKAGE}.client.jobs" in set(imports(f"{PACKAGE}.client"))
    assert "httpx" in set(imports(f"{PACKAGE}.client.calls"))
    assert "httpx" not in set(imports(f"{PACKAGE}.client.calls", for_types=False))


def test_the_client_knows_nothing_of_airflow_nor_of_the_rest():
    assert importers("airflow", among=modules("client")) == set()
    for module in modules("client"):
        assert all(below(name, f"{PACKAGE}.client") for name in imports(module) if below(name, PACKAGE))


def test_the_client_runs_where_there_is_no_airflow():
    program = "import sys; sys.modules['airflow'] = None; import airflow_hpc_provider.client.storage"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_embedded_gateway_is_a_reading_of_the_contract_of_its_own():
    for module in modules("devgateway"):
        assert all(below(name, f"{PACKAGE}.devgateway") for name in imports(module) if below(name, PACKAGE))
    assert importers("airflow", "httpx", "authlib", among=modules("devgateway")) == set()


def test_nobody_but_the_tests_needs_the_embedded_gateway():
    others = [module for module in MODULES if module not in modules("devgateway")]
    assert importers(f"{PACKAGE}.devgateway", among=others) == set()


def test_only_few_modules_speak_http():
    running = importers("httpx", for_types=False)
    assert {"client.session", "client.auth", "client.storage"} <= running
    # A file's content is no JSON: files read the answer itself.
    assert running <= {"client.session", "client.auth", "client.storage", "client.wire", "client.files"}
    assert importers("httpx") - running <= {"client.calls", "client.errors", "hooks.hpc"}


def test_only_auth_needs_authlib():
    assert importers("authlib", "joserfc") == {"client.auth"}


ORDER = [
    ["client"],
    ["settings", "watch", "submission"],
    ["known", "metrics"],
    ["hooks", "retries", "checkpoints"],
    ["filesystem", "streams", "universal_path", "object_storage"],
    ["triggers"],
    ["tasks"],
    ["operators", "sensors"],
]


def test_imports_go_one_way():
    for place, parts in enumerate(ORDER):
        above = [f"{PACKAGE}.{part}" for layer in ORDER[place + 1 :] for part in layer]
        assert importers(*above, among=modules(*parts)) == set(), parts


def test_pure_modules_know_nothing_of_airflow():
    assert (
        importers("airflow", among=modules("settings", "watch", "submission", "known", "provider_info"))
        == set()
    )


def test_the_provider_info_imports_nothing():
    assert [
        name for name in imports(f"{PACKAGE}.provider_info") if not below(name, "__future__", "typing")
    ] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is(module):
    text = source_of(module).read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), module


# What is run and not imported, and what only tells the version.
SCRIPTS = {PACKAGE, *(f"{PACKAGE}.devgateway.{name}" for name in ("__main__", "srun", "staging"))}


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name not in SCRIPTS and source_of(name).read_text().strip()]
)
def test_the_public_names_of_a_module_are_there(module):
    loaded = importlib.import_module(module)
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    assert all(hasattr(loaded, name) for name in loaded.__all__)


@pytest.mark.parametrize("module", modules("client", "settings", "watch", "submission"))
def test_what_is_not_private_is_among_the_public_names(module):
    defined = {
        node.name
        for node in tree_of(module).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    public = {name for name in defined if not name.startswith("_")}
    assert public <= set(importlib.import_module(module).__all__)


def test_every_module_can_be_found():
    found = {info.name for info in pkgutil.walk_packages(airflow_hpc_provider.__path__, f"{PACKAGE}.")}
    assert found | {PACKAGE} == set(MODULES)


def described(thing):
    return inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing)


@pytest.mark.parametrize("name", client.__all__)
def test_every_public_name_of_the_client_is_described(name):
    thing = getattr(client, name)
    assert described(thing)
    assert inspect.getdoc(thing)
    if inspect.ismodule(thing):
        for inner in thing.__all__:
            inside = getattr(thing, inner)
            assert not described(inside) or inspect.getdoc(inside), f"{name}.{inner}"
    elif inspect.isclass(thing):
        for inner, method in vars(thing).items():
            if not inner.startswith("_") and inspect.isfunction(method):
                assert inspect.getdoc(method), f"{name}.{inner}"
