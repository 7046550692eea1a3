"""The demonstration: photographs through the named kernels, and a network that learns to read digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.datasets import load_sample_image

from xpconv import figures
from xpconv.device import backend, to_device
from xpconv.files import check_writable
from xpconv.filters import apply_filter, named_filter
from xpconv.nn import predict
from xpconv.nn.lenet import train_digits

PHOTOGRAPHS = ("china", "flower")  # scikit-learn ships these two
DRAWN = ("training", "learned-kernels", "feature-maps", "hardest-digits")
KERNELS = {"gaussian": 15, "sharpen": None, "sobel": None, "laplacian": None, "emboss": None}  # name and size


@dataclass(frozen=True, slots=True, eq=False)
class DigitsRead:
    """What `read_digits` found out.

    Parameters
    ----------
    accuracy : float
        part of the held-out digits that was read right, 0 to 1
    confusion : array of shape (10, 10) and int
        how often the digit of the row was read as the digit of the column
    seconds : float
        how long the training took
    pictures : list of Path
        what was saved
    """

    accuracy: float
    confusion: np.ndarray
    seconds: float
    pictures: list[Path]


def filter_photographs(folder: Path, *, device: str = "auto") -> list[Path]:
    """Filter two photographs with the named kernels, and save each beside its results.

    Parameters
    ----------
    folder : Path
        made if missing
    device : str
        as in `xpconv.backend`

    Returns
    -------
    list of Path
        the pictures saved
    """
    _prepare(folder)
    saved = []
    for name in PHOTOGRAPHS:
        photograph = load_sample_image(f"{name}.jpg")
        panels = {"the photograph": photograph}
        for kernel, size in KERNELS.items():
            title = f"{kernel}, {size} x {size}" if size else kernel
            panels[title] = apply_filter(photograph, named_filter(kernel, size), device=device)
        saved.append(figures.save(figures.side_by_side(panels), _photograph(folder, name)))
    return saved


def read_digits(folder: Path, *, device: str = "auto", seed: int = 0, progress: bool = True) -> DigitsRead:
    """Train a network to read digits, and save what it learned, how it sees one digit, and which it finds hard.

    Parameters
    ----------
    folder : Path
        made if missing
    device : str
        as in `xpconv.backend`
    seed : int
        of the split into training and held-out digits, the weights, and the order
    progress : bool
        whether to show a progress bar

    Returns
    -------
    DigitsRead
    """
    _prepare(folder)
    xp, where = backend(device)
    trained = train_digits(xp=xp, device=where, seed=seed, progress=progress)
    logits = predict(trained.model, xp.asarray(trained.test_images, device=where))
    probabilities = softmax(to_device(logits, "cpu"), axis=-1)
    digit = trained.test_images[:1]
    activations = trained.model.activations_of(xp.asarray(digit, device=where))
    layers = [
        (type(layer).__name__, to_device(activation, "cpu")[0])
        for layer, activation in zip(trained.model.layers, activations, strict=True)
    ]
    drawn = (
        figures.training_curves(trained.history),
        figures.learned_kernels(_kernels_of(trained.model)),
        figures.feature_maps(digit[0, :, :, 0], layers, probabilities[0]),
        figures.hardest_digits(trained.test_images[..., 0], trained.test_labels, probabilities),
    )
    return DigitsRead(
        accuracy=trained.accuracy,
        confusion=confusion_matrix(trained.test_labels, trained.predictions),
        seconds=trained.seconds,
        pictures=[figures.save(figure, path) for figure, path in zip(drawn, _drawn(folder), strict=True)],
    )


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Count how often each digit was read as each.

    Parameters
    ----------
    labels, predictions : arrays of shape (N,) and int, 0 to 9

    Returns
    -------
    array of shape (10, 10)
        row: what it is; column: what it was read as

    Examples
    --------
    >>> import numpy as np
    >>> counts = confusion_matrix(np.array([3, 3, 8]), np.array([3, 8, 8]))
    >>> counts[3, 3], counts[3, 8], counts.sum()
    (np.int64(1), np.int64(1), np.int64(3))
    """
    counts = np.zeros((10, 10), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def _prepare(folder: Path) -> None:
    """Make the folder, and raise before the training what the saving would raise after it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(_photograph(folder, name) for name in PHOTOGRAPHS), *_drawn(folder)]:
        check_writable(path)


def _photograph(folder: Path, name: str) -> Path:
    return folder / f"photograph-{name}.png"


def _drawn(folder: Path) -> list[Path]:
    return [folder / f"{name}.png" for name in DRAWN]


def _kernels_of(model: Any) -> list[np.ndarray]:
    """The weights (kh, kw, channels, filters) of each convolution, on the host."""
    weights = [layer.weight.value for layer in model.layers if type(layer).__name__ == "Conv2D"]
    return [to_device(weight, "cpu") for weight in weights]
