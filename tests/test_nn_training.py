"""Training: it learns, it repeats to the bit, and it is the same on every library."""

import sys

import numpy
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpconv import nn
from xpconv.nn.lenet import cosine, shifted_by_a_pixel


def stripes(count=120, seed=0):
    """Images of 6 x 6 with a bright row (label 0) or a bright column (label 1), and noise."""
    generator = numpy.random.default_rng(seed)
    labels = generator.integers(2, size=count)
    images = 0.3 * generator.normal(size=(count, 6, 6, 1))
    for image, label, place in zip(images, labels, generator.integers(6, size=count), strict=True):
        if label == 0:
            image[place, :] += 1
        else:
            image[:, place] += 1
    return images.astype(numpy.float32), labels


def small_network():
    return nn.Sequential(
        nn.Conv2D(1, 4, 3, padding="same", bias=False, rng=0),
        nn.BatchNorm(4),
        nn.Relu(),
        nn.MaxPool(2),
        nn.Dropout(0.1, rng=1),
        nn.Flatten(),
        nn.Dense(36, 2, init="glorot", rng=2),
    )


def train(model, x, y, **options):
    options = {"epochs": 3, "batch_size": 16, "optimizer": nn.Adam(0.01), "progress": False} | options
    return nn.fit(model, x, y, **options)


def test_a_small_network_learns_to_tell_rows_from_columns():
    model = small_network()
    history = train(model, *stripes(), epochs=12, validation=stripes(60, seed=1))
    assert history.loss[-1] < history.loss[0] / 2
    assert history.validation_accuracy[-1] > 0.95
    assert len(history.loss) == len(history.validation_loss) == len(history.validation_accuracy) == 12


def test_a_dense_layer_learns_a_linear_map_by_mse():
    generator = numpy.random.default_rng(0)
    x, matrix = generator.normal(size=(64, 3)), generator.normal(size=(3, 2))
    model = nn.Dense(3, 2, rng=0).to(numpy, dtype="float64")
    history = train(
        model, x, x @ matrix, epochs=50, optimizer=nn.SGD(0.1, momentum=0.5), loss=nn.mse, validation=(x, x @ matrix)
    )
    assert_allclose(model.weight.value, matrix, atol=1e-3)
    assert history.validation_loss[-1] < 1e-6
    assert history.validation_accuracy == []


def test_the_same_seed_trains_to_the_same_bits():
    x, y = stripes()
    first, second = small_network(), small_network()
    assert train(first, x, y, seed=3).loss == train(second, x, y, seed=3).loss
    for name, tensor in first.state().items():
        assert_array_equal(tensor.value, second.state()[name].value)


def test_another_seed_shuffles_otherwise():
    x, y = stripes()
    assert train(small_network(), x, y, seed=3).loss != train(small_network(), x, y, seed=4).loss


def test_training_on_the_strict_array_api_gives_the_losses_of_numpy():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")  # not the default one: whatever is made must follow the data
    x, y = stripes(64)
    on_numpy = train(small_network(), x, y, validation=(x, y))
    strict_data = strict.asarray(x, device=device), strict.asarray(y, device=device)
    on_strict = train(small_network().to(strict, device=device), *strict_data, validation=strict_data)
    assert_allclose(on_strict.loss, on_numpy.loss, rtol=1e-4)
    assert_allclose(on_strict.validation_loss, on_numpy.validation_loss, rtol=1e-4)


def test_augmentation_and_schedule_run_on_the_strict_array_api():
    strict = pytest.importorskip("array_api_strict")
    x, y = stripes(16)
    options = {"augment": shifted_by_a_pixel, "schedule": cosine}
    on_numpy = train(small_network(), x, y, **options)
    on_strict = train(small_network().to(strict), strict.asarray(x), strict.asarray(y), **options)
    assert_allclose(on_strict.loss, on_numpy.loss, rtol=1e-4)


def test_every_item_is_shown_once_an_epoch_and_the_last_batch_takes_the_rest():
    shown = []

    def record(prediction, target):
        shown.append(target)
        return nn.mse(prediction, target)

    y = numpy.arange(10.0).reshape(10, 1)
    train(nn.Dense(1, 1, rng=0), y, y, epochs=2, batch_size=4, loss=record, optimizer=nn.SGD(1e-6))
    assert [len(batch) for batch in shown] == [4, 4, 2, 4, 4, 2]
    first, second = numpy.concatenate(shown[:3]), numpy.concatenate(shown[3:])
    assert_array_equal(numpy.sort(first, axis=0), y)
    assert_array_equal(numpy.sort(second, axis=0), y)
    assert not numpy.array_equal(first, second)


def test_the_recorded_loss_is_the_mean_over_the_items():
    x, y = numpy.zeros((3, 1)), numpy.array([[1.0], [1.0], [4.0]])
    history = train(nn.Dense(1, 1, bias=False, rng=0), x, y, epochs=1, batch_size=2, loss=nn.mse)
    assert_allclose(history.loss, [6.0])  # (1 + 1 + 16) / 3, in whatever batches


def test_augment_changes_what_is_trained_on_and_not_what_is_validated():
    x, y = stripes(32)
    model = nn.Sequential(nn.Flatten(), nn.Dense(36, 2, rng=0))
    blank = train(model, x, y, epochs=1, augment=lambda batch, _: batch * 0, validation=(x, y))
    assert_allclose(blank.loss[0], numpy.log(2), atol=0.02)
    assert abs(blank.validation_loss[0] - numpy.log(2)) > 0.02


def test_the_schedule_scales_the_learning_rate_which_fit_gives_back():
    optimizer, seen = nn.SGD(0.5), []

    def halfway_down(done):
        seen.append(done)
        return 0.0 if done >= 0.5 else 1.0

    model, y = nn.Dense(1, 1, rng=0), numpy.ones((4, 1))
    train(model, y, y, epochs=2, batch_size=2, loss=nn.mse, optimizer=optimizer, schedule=halfway_down)
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert optimizer.learning_rate == 0.5


def test_predict_in_batches_is_the_model_at_once():
    model, (x, _) = small_network(), stripes(10)
    assert_allclose(nn.predict(model, x, batch_size=3), model(x), rtol=1e-5, atol=1e-6)
    assert nn.predict(model, x[:0]).shape == (0, 2)


def test_accuracy_is_the_part_of_the_rows_that_is_right():
    logits = numpy.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert nn.accuracy(logits, numpy.array([1, 0, 0, 0])) == 0.75


def test_the_progress_bar_shows_loss_and_validation_accuracy(capsys):
    pytest.importorskip("rich")
    x, y = stripes(32)
    history = train(small_network(), x, y, epochs=2, progress=True, validation=(x, y))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"epoch 2/2 loss {history.loss[-1]:.4f} validation {history.validation_accuracy[-1]:.2%}" in shown


def test_without_rich_one_line_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "rich.progress", raising=False)
    x, y = stripes(8)
    with pytest.raises(ModuleNotFoundError, match=r'^rich is not installed; pip install "xpconv\[nn\]"$'):
        train(small_network(), x, y, progress=True)
    train(small_network(), x, y, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"y": numpy.zeros(3, int)}, r"shapes: x \(8, 6, 6, 1\), y \(3,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    x, y = stripes(8)
    with pytest.raises(ValueError, match=message):
        train(small_network(), **({"x": x, "y": y} | options))
