"""What the house promises: imports point one way, importing is free, the wheel holds two names at most."""

import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a module may import comes on an earlier line, or on its own.
ORDER = [
    {"errors", "axes", "draw", "hardware", "heap", "hlo", "page"},
    {"fold", "windows", "words", "files", "extras"},
    {"config"},
    {"bench.settings", "scaling.settings", "arguments"},
    {"scaling.law"},
    {"scaling.surface"},
    {"scaling.allocation"},
    {"document", "cluster"},
    {"data.images", "data.records", "peer"},
    {"data.index"},
    {"data.sources", "data.packing", "data.mixture", "data.glyphs", "data.picture"},
    {"data.build", "data.pipeline"},
    {"model.mesh"},
    {"model.param"},
    {"model.causal"},
    {"model.embed", "model.attention"},
    {"model.block", "model.halo", "model.chunk"},
    {"model.stem"},
    {"model.encoder", "model.patches", "model.trunk", "model.decoder", "model.heads"},
    {"model.model"},
    {"likelihood", "sharding", "transfer", "stepper", "flops"},
    {"optim"},
    {"step", "generate"},
    {"reader"},
    {"checkpoint", "metrics", "signals", "run", "watchdog", "goodput", "programs", "profile"},
    {"weights"},
    {"train", "evaluate", "sample", "codec", "convert", "bench.data", "bench.memory", "bench.trace", "compile"},
    {"bench.train", "scaling.runs", "scaling.plan"},
    {"scaling.fit", "scaling.launch"},
    {"scaling.tables"},
    {"scaling.report"},
    {"scaling.verbs"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
KERNELS = sorted((ROOT / "kernels" / "pixtok_kernels").rglob("*.py"))
FILES = sorted((ROOT / "pixtok").rglob("*.py"))
NUMPY_ONLY = ("errors", "axes", "config", "fold", "windows", "words", "document", "data.")


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT / "pixtok").with_suffix("").parts)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=module)
def test_imports_point_one_way(file):
    if file.name == "__init__.py":
        assert not imports(file)
        return
    own = LEVEL[module(file)]
    for name in imports(file):
        target = name.removeprefix("pixtok.")
        if name.startswith("pixtok.") and target in LEVEL and target != module(file):
            assert LEVEL[target] <= own, f"{module(file)} imports {target}"
            if LEVEL[target] == own:
                assert target == "data.glyphs"


@pytest.mark.parametrize("file", [f for f in FILES if module(f).startswith(NUMPY_ONLY)], ids=module)
def test_tokens_and_data_import_no_jax(file):
    roots = {name.split(".")[0] for name in imports(file)}
    assert not roots & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("file", KERNELS, ids=lambda file: file.stem)
def test_kernels_know_no_models(file):
    assert not {name for name in imports(file) if name.split(".")[0] == "pixtok"}


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_pixtok_imports_nothing():
    assert run("import sys; before = set(sys.modules); import pixtok; print(*set(sys.modules) - before)") == "pixtok\n"


def test_importing_every_module_touches_no_device():
    names = [f"pixtok.{module(f)}" for f in FILES if not f.name.startswith("__")]
    code = (
        f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\nprint(xla_bridge._backends)"
    )
    assert run(code) == "{}\n"


@pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="needs the package build")
def test_a_wheel_installs_no_other_name(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} <= {"pixtok", "pixtok_kernels"}
    assert "pixtok/model/model.py" in zipfile.ZipFile(wheel).namelist()
