"""A LeNet that learns to read digits: convolution, pooling, convolution, pooling, two dense layers.

After LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998), with
relu and max pooling, on the 1,797 scans of 8 x 8 pixels that scikit-learn ships.
"""

from dataclasses import dataclass
from math import cos, pi
from time import perf_counter
from typing import Any

import numpy
from array_api_compat import array_namespace

from xpconv.nn.activations import Relu
from xpconv.nn.extras import require
from xpconv.nn.layers import Dense, Dropout, Flatten, Sequential
from xpconv.nn.optimizers import Adam
from xpconv.nn.spatial import Conv2D, MaxPool
from xpconv.nn.training import History, accuracy, fit, predict
from xpconv.nn.transfer import from_host, like, to_host
from xpconv.spec import Array


def lenet(
    *,
    size: tuple[int, int] = (8, 8),
    channels: int = 1,
    classes: int = 10,
    filters: tuple[int, int] = (32, 64),
    hidden: int = 96,
    rng: int | numpy.random.Generator | None = None,
) -> Sequential:
    """Build the network: two rounds of 3 x 3 convolution, relu and 2 x 2 max pooling, then two dense layers.

    Parameters
    ----------
    size : pair of int, at least 4
        Height and width of the images, in pixels.
    channels, classes : int
        Of the images, and of the logits that come out.
    filters : pair of int
        Of the first and the second convolution.
    hidden : int
        Features between the dense layers.
    rng : int, numpy.random.Generator or None
        Where the weights are drawn from.

    Returns
    -------
    Sequential
        Takes ``(N, *size, channels)`` and returns logits ``(N, classes)``.

    Examples
    --------
    >>> import numpy
    >>> lenet(rng=0)(numpy.zeros((2, 8, 8, 1), numpy.float32)).shape
    (2, 10)
    """
    if min(size) < 4:
        raise ValueError(f"size must be at least 4 in both directions to be pooled twice, got {size}")
    rng = numpy.random.default_rng(rng)
    features = (size[0] // 4) * (size[1] // 4) * filters[1]
    return Sequential(
        Conv2D(channels, filters[0], 3, padding="same", rng=rng),
        Relu(),
        MaxPool(2),
        Conv2D(filters[0], filters[1], 3, padding="same", rng=rng),
        Relu(),
        MaxPool(2),
        Flatten(),
        Dense(features, hidden, rng=rng),
        Relu(),
        Dropout(0.3, rng=rng),
        Dense(hidden, classes, init="glorot", rng=rng),
    )


@dataclass(frozen=True)
class Digits:
    """Hold the digits, on the host: images (N, 8, 8, 1) of float32 from 0 to 1, labels (N,) of int64.

    Examples
    --------
    >>> load_digit_data().train_images.shape
    (1347, 8, 8, 1)
    """

    train_images: numpy.ndarray
    train_labels: numpy.ndarray
    test_images: numpy.ndarray
    test_labels: numpy.ndarray


def load_digit_data(seed: int = 0) -> Digits:
    """Split scikit-learn's handwritten digits into 1,347 to train on and 450 held out, each digit in proportion.

    Parameters
    ----------
    seed : int
        Of the split.

    Raises
    ------
    ModuleNotFoundError
        Without scikit-learn, which ships the scans: ``pip install "xpconv[cli]"``.

    Examples
    --------
    >>> load_digit_data(seed=0).test_labels.shape
    (450,)
    """
    digits = require("sklearn.datasets", extra="cli").load_digits()
    split = require("sklearn.model_selection", extra="cli").train_test_split
    images = (digits.images[..., None] / 16).astype(numpy.float32)
    labels = digits.target.astype(numpy.int64)
    train_images, test_images, train_labels, test_labels = split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    return Digits(train_images, train_labels, test_images, test_labels)


@dataclass(frozen=True)
class TrainedDigits:
    """Hold what `train_digits` made: the model on its device, everything else on the host.

    Attributes
    ----------
    model : Sequential
    history : History
    test_images, test_labels : numpy.ndarray
        The held-out part, (450, 8, 8, 1) and (450,).
    predictions : numpy.ndarray of shape (450,)
    accuracy : float
        Part of the held-out digits that was read right.
    seconds : float
        Time the training took.

    Examples
    --------
    >>> sorted(TrainedDigits.__annotations__)
    ['accuracy', 'history', 'model', 'predictions', 'seconds', 'test_images', 'test_labels']
    """

    model: Sequential
    history: History
    test_images: numpy.ndarray
    test_labels: numpy.ndarray
    predictions: numpy.ndarray
    accuracy: float
    seconds: float


def train_digits(
    *, xp: Any = numpy, device: Any = None, seed: int = 0, epochs: int = 30, progress: bool = True
) -> TrainedDigits:
    """Train a LeNet on scikit-learn's handwritten digits and read the held-out quarter.

    The held-out digits are measured after every epoch, to be looked at; nothing is chosen by them, and the model is
    the one after the last epoch.

    Parameters
    ----------
    xp, device : namespace and device to train on
        What `xpconv.backend` returns.
    seed : int
        Of the split, the weights, the order and the shifts.
    epochs : int
    progress : bool
        Show a progress bar.

    Returns
    -------
    TrainedDigits

    Examples
    --------
    >>> result = train_digits(epochs=2, progress=False)
    >>> result.predictions.shape, result.accuracy > 0.8
    ((450,), True)
    """
    data = load_digit_data(seed)
    model = lenet(rng=seed).to(xp, device=device)
    images, labels, test_images, test_labels = (
        from_host(part, xp, device=device)
        for part in (data.train_images, data.train_labels, data.test_images, data.test_labels)
    )
    threadpool_limits = require("threadpoolctl", extra="cli").threadpool_limits  # scikit-learn brings it
    start = perf_counter()
    # The products are so small that several BLAS threads wait for one another longer than they compute.
    with threadpool_limits(1, user_api="blas"):
        history = fit(
            model,
            images,
            labels,
            epochs=epochs,
            batch_size=32,
            optimizer=Adam(0.002),
            validation=(test_images, test_labels),
            augment=shifted_by_a_pixel,
            schedule=cosine,
            seed=seed,
            progress=progress,
        )
    seconds = perf_counter() - start
    logits = predict(model, test_images)
    predictions = to_host(array_namespace(logits).argmax(logits, axis=-1))
    score = accuracy(logits, test_labels)
    return TrainedDigits(model, history, data.test_images, data.test_labels, predictions, score, seconds)


def cosine(done: float) -> float:
    """Return the factor on the learning rate, from 1 down to 0 along half a cosine. https://arxiv.org/abs/1608.03983

    Examples
    --------
    >>> cosine(0.0), cosine(1.0)
    (1.0, 0.0)
    """
    return 0.5 * (1 + cos(pi * done))


def shifted_by_a_pixel(images: Array, generator: numpy.random.Generator) -> Array:
    """Return each image shifted by a pixel, one in five down or up, one in five to a side; zeros come in.

    Parameters
    ----------
    images : array of shape (N, height, width, C)
    generator : numpy.random.Generator

    Examples
    --------
    >>> import numpy
    >>> shifted_by_a_pixel(numpy.ones((2, 4, 4, 1)), numpy.random.default_rng(0)).shape
    (2, 4, 4, 1)
    """
    xp = array_namespace(images)
    for axis in (1, 2):
        shift = like(generator.choice((-1, 0, 1), p=(0.1, 0.8, 0.1), size=images.shape[0]), images)
        images = _shifted(xp, images, shift, axis)
    return images


def _shifted(xp: Any, images: Array, shift: Array, axis: int) -> Array:
    """Shift image n by shift[n] pixels, each -1, 0 or 1, along one axis."""
    images = xp.moveaxis(images, axis, 1)
    edge = xp.zeros_like(images[:, :1, ...])
    later = xp.concat([edge, images[:, :-1, ...]], axis=1)
    earlier = xp.concat([images[:, 1:, ...], edge], axis=1)
    shift = xp.reshape(shift, (-1, 1, 1, 1))
    shifted = xp.where(shift > 0, later, xp.where(shift < 0, earlier, images))
    return xp.moveaxis(shifted, 1, axis)
