"""Losses: each returns its value, an array without axes, and the gradient with respect to its first argument."""

from typing import Any

from array_api_compat import array_namespace, device

from xpconv.spec import Array


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the mean of ``-log softmax(logits)[label]``, and its gradient.

    ``loss = mean over n of  log(sum over j of exp(z[n, j])) - z[n, labels[n]]``,
    ``gradient[n, k] = (softmax(z[n])[k] - (k == labels[n])) / N``, where ``z`` is logits less its largest, so that
    no exponential overflows.

    Parameters
    ----------
    logits : array of shape (..., K), floating
    labels : array of shape (...), integers from 0 to K - 1

    Returns
    -------
    loss : array of shape ()
    gradient : array of logits' shape and dtype

    Examples
    --------
    >>> import numpy
    >>> loss, gradient = softmax_cross_entropy(numpy.zeros((1, 2)), numpy.array([1]))
    >>> float(loss.round(4)), gradient
    (0.6931, array([[ 0.5, -0.5]]))
    """
    xp = array_namespace(logits, labels)
    _check_labels(xp, logits, labels)
    classes = xp.arange(logits.shape[-1], dtype=labels.dtype, device=device(logits))
    chosen = xp.astype(xp.expand_dims(labels, axis=-1) == classes, logits.dtype)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    powers = xp.exp(shifted)
    total = xp.sum(powers, axis=-1, keepdims=True)
    loss = xp.mean(xp.log(total[..., 0]) - xp.sum(shifted * chosen, axis=-1))
    return loss, (powers / total - chosen) / labels.size


def _check_labels(xp: Any, logits: Array, labels: Array) -> None:
    shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
    if tuple(labels.shape) != tuple(logits.shape[:-1]) or labels.size == 0:
        raise ValueError(f"labels must have one entry per row of logits, and at least one; shapes: {shapes}")
    if not xp.isdtype(labels.dtype, "integral"):
        raise TypeError(f"labels must be integers, the number of each row's class, got {labels.dtype}")
    classes = logits.shape[-1]
    if bool(xp.any((labels < 0) | (labels >= classes))):
        low, high = int(xp.min(labels)), int(xp.max(labels))
        raise ValueError(f"labels run from {low} to {high} but logits has {classes} classes; shapes: {shapes}")


def mse(prediction: Array, target: Array) -> tuple[Array, Array]:
    """Return the mean squared error, and its gradient.

    ``loss = mean((prediction - target)**2)``, ``gradient = 2 * (prediction - target) / size``.

    Parameters
    ----------
    prediction, target : arrays of one shape

    Returns
    -------
    loss : array of shape ()
    gradient : array of prediction's shape

    Examples
    --------
    >>> import numpy
    >>> loss, gradient = mse(numpy.array([1.0, 4.0]), numpy.array([1.0, 2.0]))
    >>> float(loss), gradient
    (2.0, array([0., 2.]))
    """
    if tuple(prediction.shape) != tuple(target.shape) or prediction.size == 0:
        raise ValueError(
            "prediction and target must have one shape, not an empty one; "
            f"shapes: prediction {tuple(prediction.shape)}, target {tuple(target.shape)}"
        )
    difference = prediction - target
    return array_namespace(difference).mean(difference * difference), difference * (2 / difference.size)
