"""Who may import whom: the table of docs/architecture.md, enforced on the parsed imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {
    "engine.errors",
    "engine.durable",
    "engine.event_types",
    "engine.events",
    "engine.window",
    "engine.settings",
    "engine.metrics",
    "engine.logs",
    "engine.item_rows",
}
ENGINE_CORE = {
    "engine.recall",
    "engine.merge",
    "engine.refresh",
    "engine.snapshot",
    "engine.hotswap",
    "engine.catalog",
    "engine.microbatch",
    "engine.adhoc",
    "engine.pulse",
    "engine.erasures",
    "engine.served_items",
    "engine.popular",
    "engine.recaller",
    "engine.recall_audit",
}
MAY_IMPORT = {
    "engine.model": {"engine.errors", "engine.durable", "engine.event_types", "engine.model"},
    "engine.compiled": set(),
    "engine.ann": {
        "engine.compiled",
        "engine.errors",
        "engine.durable",
        "engine.item_rows",
        "engine.metrics",
        "engine.ann",
    },
    "engine.merge": {"engine.compiled", "engine.item_rows", "engine.recall", "engine.settings"},
    "engine.store": LEAVES | {"engine.store"},
    "engine.log": LEAVES | {"engine.log"},
    "engine.pulse": {"engine.errors"},
    "engine.item_rows": set(),
    "engine.durable": set(),
    "engine.popular": {"engine.recall"},
    "engine.recaller": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann"},
    "engine.recall_audit": LEAVES | {"engine.ann"},
    "engine.catalog": LEAVES | {"engine.log"},
    "engine.erasures": LEAVES | {"engine.log"},
    "engine.recall": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann", "engine.store", "engine.log"},
    "engine.served_items": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann", "engine.log"},
    "engine.microbatch": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann", "engine.store", "engine.log"},
    "engine.adhoc": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann", "engine.store", "engine.log"},
    "engine.refresh": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann", "engine.store", "engine.log"},
    "engine.snapshot": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann", "engine.store", "engine.log"},
    "engine.hotswap": LEAVES | ENGINE_CORE | {"engine.model", "engine.ann", "engine.store", "engine.log"},
    "engine.streams": LEAVES
    | (ENGINE_CORE - {"engine.recall"})
    | {"engine.store", "engine.log", "engine.processes", "engine.streams"},
    "engine.serving": LEAVES
    | (ENGINE_CORE - {"engine.refresh", "engine.microbatch"})
    | {"engine.store.lists", "engine.log", "engine.serving"},
    "engine.sources": LEAVES | {"engine.sources"},
    "engine.simulate": LEAVES | {"engine.sources"},
    "engine.replay": LEAVES | {"engine.log", "engine.sources"},
    "engine.sending": LEAVES | {"engine.replay", "engine.simulate", "engine.sources"},
    "engine.audit": {"engine.errors", "engine.settings", "engine.audit"},
    "trainer": LEAVES | {"engine.model", "engine.ann", "engine.merge", "trainer"},
    "trainer.offline": LEAVES
    | {"engine.model", "engine.ann", "engine.compiled", "engine.merge", "engine.sources", "engine.options", "trainer"},
}
LIBRARY_OWNERS = {
    "faust": {"engine.streams"},
    "mode": {"engine.streams"},
    "aiokafka": {"engine.log", "engine.streams"},
    "kafka": {"trainer", "engine.audit"},
    "rocksdict": {"engine.store"},
    "hnswlib": {"engine.ann"},
    "numba": {"engine.compiled"},
    "torch": {"engine.model", "engine.ann.exact", "trainer"},
    "safetensors": {"engine.model", "trainer.checkpoint"},
    "fastapi": {"engine.serving"},
    "starlette": {"engine.serving"},
    "uvicorn": {"engine.serving"},
    "pyarrow": {"engine.sources"},
    "matplotlib": {"trainer.offline.plots"},
    "jgo": {"engine.streams"},
    "fsspec": {"engine.model.registry", "engine.store.checkpoints"},
    "psutil": {"engine.streams"},
    "prometheus_client": {"engine.metrics", "engine.serving"},
    "pydantic_settings": {"engine.settings"},
}
FORBIDDEN_CALLS = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("yaml", "load")}


def modules() -> list[str]:
    paths = [path for package in ("engine", "trainer") for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return sorted(name.removesuffix(".__init__") for name in names)


def source_of(module: str) -> str:
    path = ROOT / Path(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def imports_of(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source_of(module))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            known = modules()
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


def is_inside(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def layer_of(module: str) -> str | None:
    return max((layer for layer in MAY_IMPORT if is_inside(module, {layer})), key=len, default=None)


@pytest.mark.parametrize("module", [name for name in modules() if layer_of(name)])
def test_module_imports_only_what_its_layer_may(module: str):
    layer = layer_of(module)
    assert layer is not None

    ours = {name for name in imports_of(module) if name.split(".")[0] in ("engine", "trainer")}

    assert {name for name in ours if not is_inside(name, MAY_IMPORT[layer])} == set()


@pytest.mark.parametrize("module", modules())
def test_library_is_imported_only_in_the_package_that_owns_it(module: str):
    libraries = {name.split(".")[0] for name in imports_of(module)} & set(LIBRARY_OWNERS)

    assert {library for library in libraries if not is_inside(module, LIBRARY_OWNERS[library])} == set()


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("engine")])
def test_only_the_command_line_reaches_into_the_trainer(module: str):
    if module != "engine.cli":
        assert not [name for name in imports_of(module) if name.startswith("trainer")]


def test_arrows_between_modules_never_run_in_a_circle():
    left = {module: set(imports_of(module)) & set(modules()) - {module} for module in modules()}
    # Modules that import none of those left are taken away; what remains leads into a circle.
    while free := {module for module, arrows in left.items() if not arrows & set(left)}:
        left = {module: arrows for module, arrows in left.items() if module not in free}

    assert left == {}


@pytest.mark.parametrize("module", modules())
def test_nothing_unpickles(module: str):
    tree = ast.parse(source_of(module))
    calls = {
        (node.func.value.id, node.func.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }

    assert calls & FORBIDDEN_CALLS == set()
    assert not {"pickle", "shelve", "dill", "cloudpickle"} & {name.split(".")[0] for name in imports_of(module)}


def test_command_line_answers_help_without_loading_the_heavy_libraries():
    heavy = "{'torch', 'faust', 'fastapi', 'pyarrow', 'hnswlib', 'aiokafka', 'rocksdict'}"
    code = f"import sys, engine.cli; print(sorted({heavy} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
