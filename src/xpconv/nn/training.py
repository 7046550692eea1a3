"""Training: batches, shuffled from a seed, through a model, a loss and an optimiser."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy
from array_api_compat import array_namespace

from xpconv.nn.base import Layer
from xpconv.nn.extras import require
from xpconv.nn.losses import softmax_cross_entropy
from xpconv.nn.optimizers import Optimizer
from xpconv.nn.transfer import like
from xpconv.spec import Array

Loss = Callable[[Array, Array], tuple[Array, Array]]
Augment = Callable[[Array, numpy.random.Generator], Array]
Schedule = Callable[[float], float]


@dataclass
class History:
    """Hold what `fit` measured, one entry per epoch.

    Attributes
    ----------
    loss : list of float
        Mean over the training items, each measured in its batch, so before the epoch was over.
    validation_loss, validation_accuracy : list of float
        After the epoch; empty without validation data, and accuracy also where the labels are not integers.

    Examples
    --------
    >>> History(loss=[0.7, 0.2]).loss[-1]
    0.2
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)


def fit(
    model: Layer,
    x: Array,
    y: Array,
    *,
    epochs: int,
    optimizer: Optimizer,
    loss: Loss = softmax_cross_entropy,
    batch_size: int = 32,
    validation: tuple[Array, Array] | None = None,
    augment: Augment | None = None,
    schedule: Schedule | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train the model in place, and return what was measured on the way.

    The arrays may be of any library and device, as long as model, data and validation are all of the same. The same
    model, data and seed give the same bits on the same device; a `Dropout` draws from its own seed.

    Parameters
    ----------
    model : Layer
    x, y : arrays whose first axes are the items
    epochs : int
        How often every item is shown.
    optimizer : Optimizer
    loss : function of (prediction, y), returning its value and its gradient
    batch_size : int
        Items per step; the last step of an epoch takes what is left.
    validation : pair of arrays, or None
        Measured after every epoch. It is shown and recorded; nothing is chosen by it.
    augment : function of (batch of x, numpy.random.Generator), or None
        Returns the batch to train on.
    schedule : function of the part of the training that is done, 0 to 1, or None
        Returns the factor on the learning rate.
    seed : int
        Of the shuffling and of `augment`.
    progress : bool
        Show a progress bar; needs rich, ``pip install "xpconv[nn]"``.

    Returns
    -------
    History

    Examples
    --------
    >>> import numpy
    >>> from xpconv.nn import Dense, SGD
    >>> x = numpy.array([[-1.0], [1.0]])
    >>> y = numpy.array([0, 1])
    >>> history = fit(Dense(1, 2, rng=0), x, y, epochs=20, optimizer=SGD(1.0), progress=False)
    >>> history.loss[-1] < 0.1
    True
    """
    _check(x, y, epochs=epochs, batch_size=batch_size)
    generator = numpy.random.default_rng(seed)
    count, full_rate = x.shape[0], optimizer.learning_rate
    steps, step = epochs * -(-count // batch_size), 0
    history = History()
    try:
        with _progress_bar(steps, progress) as show:
            for _ in range(epochs):
                total = 0.0  # an array on x's device after the first step, read once an epoch
                for items, wanted in _batches(x, y, batch_size, augment, generator):
                    if schedule is not None:
                        optimizer.learning_rate = full_rate * schedule(step / steps)
                    total = total + _train_step(model, optimizer, loss, items, wanted) * items.shape[0]
                    step += 1
                    show(1)
                history.loss.append(float(total) / count)
                if validation is not None:
                    _validate(history, model, loss, *validation, batch_size=batch_size)
                show(0, _summary(history, epochs))
    finally:
        optimizer.learning_rate = full_rate
    return history


def _batches(
    x: Array, y: Array, batch_size: int, augment: Augment | None, generator: numpy.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Every item once, in an order drawn on the host, so that every library and device sees the same one."""
    xp = array_namespace(x, y)
    order = generator.permutation(x.shape[0])
    for first in range(0, x.shape[0], batch_size):
        indices = like(order[first : first + batch_size], x)
        items, wanted = xp.take(x, indices, axis=0), xp.take(y, indices, axis=0)
        yield items if augment is None else augment(items, generator), wanted


def _train_step(model: Layer, optimizer: Optimizer, loss: Loss, items: Array, wanted: Array) -> Array:
    prediction, backward = model.forward(items, training=True)
    value, gradient = loss(prediction, wanted)
    backward(gradient)
    optimizer.step(model.parameters())
    return value


def predict(model: Layer, x: Array, *, batch_size: int = 256) -> Array:
    """Return ``model(x)``, computed in batches so that memory does not grow with the number of items.

    Parameters
    ----------
    model : Layer
    x : array whose first axis is the items
    batch_size : int

    Examples
    --------
    >>> import numpy
    >>> from xpconv.nn import Relu
    >>> predict(Relu(), numpy.array([[-1.0], [2.0]]), batch_size=1)
    array([[0.],
           [2.]])
    """
    count = x.shape[0]
    starts = range(0, max(count, 1), batch_size)  # an empty x is one empty batch
    batches = [model(x[first : min(first + batch_size, count), ...]) for first in starts]
    return array_namespace(x).concat(batches, axis=0)


def accuracy(logits: Array, labels: Array) -> float:
    """Return the part of the rows whose largest logit is that of the label.

    Parameters
    ----------
    logits : array of shape (..., K)
    labels : array of shape (...), integers from 0 to K - 1

    Examples
    --------
    >>> import numpy
    >>> accuracy(numpy.array([[0.0, 1.0], [2.0, 1.0]]), numpy.array([1, 1]))
    0.5
    """
    xp = array_namespace(logits, labels)
    if tuple(labels.shape) != tuple(logits.shape[:-1]) or labels.size == 0:
        raise ValueError(
            "labels must have one entry per row of logits, and at least one; "
            f"shapes: logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        )
    right = xp.argmax(logits, axis=-1) == labels
    return int(xp.count_nonzero(right)) / labels.size


def _check(x: Array, y: Array, *, epochs: int, batch_size: int) -> None:
    if x.shape[0] != y.shape[0] or x.shape[0] == 0:
        raise ValueError(
            "x and y must have the same number of items, and at least one; "
            f"shapes: x {tuple(x.shape)}, y {tuple(y.shape)}"
        )
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def _validate(history: History, model: Layer, loss: Loss, x: Array, y: Array, *, batch_size: int) -> None:
    prediction = predict(model, x, batch_size=max(batch_size, 256))
    history.validation_loss.append(float(loss(prediction, y)[0]))
    if array_namespace(y).isdtype(y.dtype, "integral"):
        history.validation_accuracy.append(accuracy(prediction, y))


def _summary(history: History, epochs: int) -> str:
    text = f"epoch {len(history.loss)}/{epochs}  loss {history.loss[-1]:.4f}"
    if history.validation_accuracy:
        return f"{text}  validation {history.validation_accuracy[-1]:.2%}"
    if history.validation_loss:
        return f"{text}  validation loss {history.validation_loss[-1]:.4f}"
    return text


@contextmanager
def _progress_bar(steps: int, wanted: bool) -> Iterator[Callable[..., None]]:
    """Give a function that advances the bar by a number of steps, and may set its text."""
    if not wanted:
        yield lambda _advance, _text=None: None
        return
    rich = require("rich.progress", extra="nn")
    with rich.Progress(
        rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeElapsedColumn()
    ) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda advance, text=None: bar.update(task, advance=advance, description=text)
