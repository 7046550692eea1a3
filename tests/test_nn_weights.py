"""Saving and loading: the same bits come back, and a file is whole or not there."""

import pickle
import sys
from pathlib import Path

import numpy
import pytest
from numpy.testing import assert_array_equal

from xpconv import nn

pytest.importorskip("safetensors")


def network(seed=0, filters=4):
    return nn.Sequential(
        nn.Conv2D(1, filters, 3, rng=seed), nn.BatchNorm(filters), nn.Flatten(), nn.Dense(16 * filters, 2, rng=seed)
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def test_what_is_saved_is_what_is_loaded(path):
    saved, loaded = network(seed=0), network(seed=1)
    x = numpy.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(numpy.float32)
    saved.forward(x, training=True)  # running statistics that are not the initial ones
    nn.save(saved, path)

    assert nn.load(loaded, path) is loaded
    for name, tensor in saved.state().items():
        assert_array_equal(loaded.state()[name].value, tensor.value, err_msg=name)
    assert_array_equal(loaded(x), saved(x))


def test_the_file_is_safetensors_and_no_pickle(path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("pickle was used")

    for function in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, function, refuse)
    nn.save(network(), path)
    nn.load(network(), path)
    header = path.read_bytes()
    assert header[8:9] == b"{"
    assert b'"1.mean"' in header


def test_the_tensors_keep_the_models_library_and_dtype(path):
    strict = pytest.importorskip("array_api_strict")
    nn.save(network(seed=0).to(strict), path)
    model = nn.load(network(seed=1).to(strict, dtype="float64"), path)
    weight = model.parameters()["0.weight"].value
    assert weight.dtype == strict.float64
    assert isinstance(weight, type(strict.empty(0)))
    assert_array_equal(numpy.asarray(weight), network(seed=0).parameters()["0.weight"].value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm(4)), "unexpected: 3.bias, 3.weight$"),
        (nn.Sequential(*network().layers, nn.Dense(2, 2)), "missing: 4.bias, 4.weight$"),
        (
            nn.Sequential(nn.Conv2D(1, 4, (3, 1)), *network().layers[1:]),
            r"misshapen: 0.weight is \(3, 3, 1, 4\), the model has \(3, 1, 1, 4\)$",
        ),
    ],
    ids=["unexpected", "missing", "misshapen"],
)
def test_a_file_that_does_not_fit_is_named_tensor_by_tensor_and_changes_nothing(path, model, message):
    nn.save(network(seed=5), path)
    before = {name: tensor.value for name, tensor in model.state().items()}
    with pytest.raises(ValueError, match=message) as raised:
        nn.load(model, path)
    assert "\n" not in str(raised.value)
    assert all(tensor.value is before[name] for name, tensor in model.state().items())


def test_a_file_that_is_not_safetensors_is_named(path):
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        nn.load(network(), path)


def test_a_file_that_is_cut_off_is_named(path):
    nn.save(network(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        nn.load(network(), path)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch, failing):
    nn.save(network(seed=0), path)
    whole = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(*{"fsync": ("os.fsync", full), "replace": (Path, "replace", full)}[failing])
    with pytest.raises(OSError, match="no space left"):
        nn.save(network(seed=1), path)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_an_error_of_the_system_names_the_path_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no folder")
    for path, kind in (("none/w", FileNotFoundError), ("folder", OSError), ("file/w", OSError)):
        with pytest.raises(kind) as raised:
            nn.save(network(), path)
        assert (raised.value.filename, raised.value.filename2) == (path, None)
        assert str(raised.value).endswith(f": {path!r}")
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder"]


def test_saving_replaces_the_file_that_was_there(path):
    nn.save(network(seed=0), path)
    nn.save(network(seed=1), str(path))
    assert_array_equal(nn.load(network(), path).layers[0].weight.value, network(seed=1).layers[0].weight.value)


def test_without_safetensors_one_line_names_the_command(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    for call in (nn.save, nn.load):
        with pytest.raises(ModuleNotFoundError, match=r'^safetensors is not installed; pip install "xpconv\[nn\]"$'):
            call(network(), path)
    assert not path.exists()
