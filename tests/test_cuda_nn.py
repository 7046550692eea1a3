"""The same network, the same code, on CuPy arrays."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cuda_emulator import emulated_cuda
from cuda_emulator.emulated_cupy import real_cupy_answers
from xpconv import nn
from xpconv.nn.lenet import cosine, lenet, shifted_by_a_pixel


def digits(count):
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=count)
    images = 0.2 * rng.normal(size=(count, 8, 8, 1))
    images[np.arange(count), labels % 8, labels // 2] += 2
    return images.astype(np.float32), labels


def trained(xp, **options):
    images, labels = (xp.asarray(part) for part in digits(48))
    model = lenet(filters=(4, 8), hidden=16, rng=0).to(xp)
    options = dict(epochs=2, batch_size=16, optimizer=nn.Adam(0.01), progress=False) | options
    return nn.fit(model, images, labels, **options), model


def test_lenet_trains_as_it_does_on_numpy(cupy):
    options = dict(augment=shifted_by_a_pixel, schedule=cosine)
    here, model = trained(cupy, **options)
    there, _ = trained(np, **options)
    assert here.loss[-1] < here.loss[0]
    assert_allclose(here.loss, there.loss, rtol=1e-4)
    assert all(isinstance(tensor.value, cupy.ndarray) for tensor in model.state().values())


def test_the_same_seed_gives_the_same_bits(cupy):
    assert trained(cupy)[0].loss == trained(cupy)[0].loss


def test_training_waits_for_the_device_once_an_epoch(cupy):
    if real_cupy_answers():
        pytest.skip("a real device does not count how often it was waited for")
    before = emulated_cuda.machine().synchronisations
    trained(cupy, epochs=3)
    uploads = 2 + 3 * 3  # images and labels, and the order of every batch
    assert emulated_cuda.machine().synchronisations - before <= 3 + uploads
