"""How the house is built: who imports whom, what an import costs, and that every public name is documented."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xpconv

SOURCE = Path(xpconv.__file__).parent

# Data flows one way: each part may import the parts named here, and itself.
GEOMETRY = {"spec", "dtypes", "plan"}
OPERATIONS = {"convolution", "pooling", "patches", "signal"}
MAY_IMPORT = {
    "spec": set(),
    "dtypes": {"spec"},
    "plan": {"spec"},
    "workspace": set(),
    "activations": {"spec", "dtypes"},
    "device": set(),
    "request": {"plan"},
    "indices": {"spec"},
    "dispatch": {"spec", "dtypes", "plan", "request", "workspace"},  # and engines, by name
    "repeats": {"spec", "plan", "dispatch", "request", "workspace"},
    "variants": {"request", "repeats"},
    **dict.fromkeys(OPERATIONS, GEOMETRY | {"dispatch", "indices", "request", "variants", "activations"}),
    "explanation": GEOMETRY | {"dispatch", "request"},
    "cpu": {"spec", "plan", "files", "workspace"},
    "cuda": GEOMETRY | {"files", "workspace"},
    "chunks": GEOMETRY | {"dispatch", "indices", "request", "workspace"},
    "engines": GEOMETRY | {"activations", "chunks", "cpu", "cuda", "indices", "request", "workspace"},
    "files": set(),
    "nn": {"convolution", "pooling", "spec", "activations", "device", "files"},
    "filters": {"convolution", "device"},
    "layers": {"spec"},
    "bench": {"cpu", "cuda", "device", "explanation", "files", "layers", "nn", "spec"},  # of nn: extras
    "pictures": {"files"},
    "figures": {"files", "nn"},
    "demo": {"files", "filters", "figures", "nn", "device"},
    "outofcore": {"files", "filters"},
    "cli": {"bench", "cuda", "files", "filters", "layers", "outofcore", "pictures", "demo", "device", "spec"},
    "__main__": {"cli"},
    "__init__": OPERATIONS | {"device", "explanation", "workspace"},
}


def part_of(path):
    """The top-level module or package a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path):
    """The parts of xpconv that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "xpconv" and rest:
                yield rest.partition(".")[0]


def test_the_guide_names_the_files_that_there_are():
    checkout = Path(__file__).parents[1]
    named = set(re.findall(r"`([\w/]+\.py)`", (checkout / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    there = {str(path.relative_to(checkout)) for path in checkout.rglob("*.py")}
    assert {name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)} == set()
    parts = {path.name for path in (SOURCE / "cpu").rglob("*.py")} - {"__init__.py"}
    assert parts - {name.rpartition("/")[2] for name in named} == set()


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    unexpected = set(imports_of(path)) - MAY_IMPORT[part] - {part}
    assert not unexpected, f"{part} may not import {unexpected}"


def test_engines_import_only_the_reference_engine():
    own = {  # of NumPy's
        "averages", "compiled", "finishing", "gradient_pieces", "gradient_replays", "methods", "numpy_pools",
        "piecewise", "plans", "pooled", "replays", "small",
    }  # fmt: skip
    for path in (SOURCE / "engines").glob("*.py"):
        allowed = {"agnostic", "fft"} | (own if path.stem in own | {"numpy"} else set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "xpconv.engines":
                assert {alias.name for alias in node.names} <= allowed


def test_importing_xpconv_loads_no_array_library():
    heavy = ("numpy", "scipy", "torch", "jax", "cupy", "dask", "typer", "rich", "matplotlib", "sklearn", "safetensors")
    assert loaded_by("import xpconv", heavy) == []
    assert loaded_by("import xpconv.nn", heavy) in ([], ["numpy"])


def test_a_library_is_loaded_only_for_its_own_arrays():
    assert loaded_by("import xpconv; xpconv.conv1d([1, 2], [1])", ("torch", "jax", "cupy", "dask")) == []


def loaded_by(statement, names):
    """Those of the modules that a fresh interpreter has after the statement."""
    code = f"import sys; {statement}; print(*(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


CONTRACT = """
conv conv1d conv2d conv3d corr corr1d corr2d corr3d
conv_transpose conv_transpose1d conv_transpose2d conv_transpose3d
corr_transpose corr_transpose1d corr_transpose2d corr_transpose3d
conv_grad_input conv_grad_weight corr_grad_input corr_grad_weight
max_pool max_pool1d max_pool2d max_pool3d min_pool min_pool1d min_pool2d min_pool3d
avg_pool avg_pool1d avg_pool2d avg_pool3d sum_pool sum_pool1d sum_pool2d sum_pool3d
lp_pool lp_pool1d lp_pool2d lp_pool3d global_max_pool global_avg_pool adaptive_max_pool adaptive_avg_pool
max_unpool max_unpool1d max_unpool2d max_unpool3d max_pool_grad avg_pool_grad
unfold fold signal backend devices to_device synchronize DeviceInfo explain Explanation workspace_limit
""".split()


def test_the_public_names_are_those_of_the_contract():
    assert sorted(xpconv.__all__) == sorted(CONTRACT)


def public_objects():
    """Every public function and class with its qualified name."""
    return list(_public_objects())


def _public_objects():
    for module_name in ("xpconv", "xpconv.signal", "xpconv.nn", "xpconv.nn.lenet"):
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not inspect.ismodule(thing):
                yield pytest.param(thing, id=f"{module_name}.{name}")


@pytest.mark.parametrize("thing", public_objects())
def test_every_public_name_has_an_example_that_runs(thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert thing.__doc__
    assert "$" not in thing.__doc__
    names = {"xpconv": xpconv, **vars(sys.modules[thing.__module__])}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(thing), names, thing.__name__, None, 0)
    assert example.examples, f"{thing.__name__} shows no example"
    report = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", [name for name in CONTRACT if name.startswith(("conv", "corr"))])
def test_convolutions_say_in_their_second_line_which_way_the_kernel_is_read(name):
    second = inspect.getdoc(getattr(xpconv, name)).splitlines()[1]
    assert second.startswith("The kernel is flipped" if name.startswith("conv") else "The kernel is not flipped")
    twin = name.replace("conv", "corr") if name.startswith("conv") else name.replace("corr", "conv")
    assert f"`{twin}`" in second


def test_signatures_are_the_contracts():
    written = str(inspect.signature(xpconv.conv2d))
    assert written.startswith("(x: 'Array', w: 'Array', bias: 'Array | None' = None, *, stride")
    parameters = inspect.signature(xpconv.conv2d).parameters
    assert list(parameters) == [
        "x", "w", "bias", "stride", "padding", "dilation", "groups", "padding_mode", "fill_value", "activation",
        "layout", "dtype", "precision", "method", "out",
    ]  # fmt: skip
    assert list(inspect.signature(xpconv.max_pool2d).parameters) == [
        "x", "window", "stride", "padding", "dilation", "ceil_mode", "return_indices", "layout",
    ]  # fmt: skip
