"""Public functions that differ in a name, a flip or a number of axes, made from one body.

A body describes the call, as a `Request`; the public function runs it, and `explain` reads it without running it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from string import Template
from typing import Any, Concatenate, ParamSpec

from xpconv.repeats import repeating
from xpconv.request import Request

P = ParamSpec("P")


@dataclass(frozen=True)
class Variant:
    """What tells one public function from its siblings."""

    name: str
    axes: int | None = None  # None: read off the arguments
    flip: bool = False  # of the kernel in convolution, of the order in pooling


def public(body: Callable[Concatenate[Variant, P], Request], variant: Variant, **words: str) -> Callable[P, Any]:
    """The public function of one variant; `words` fill the `$placeholders` of the body's docstring."""

    signature = inspect.signature(body)
    parameters = list(signature.parameters.values())[1:]
    signature = signature.replace(parameters=parameters, return_annotation="Array")

    def request(*args: P.args, **kwargs: P.kwargs) -> Request:
        try:
            return body(variant, *args, **kwargs)
        except TypeError:
            _check_call(variant.name, signature, args, kwargs)
            raise

    arrays = frozenset(parameter.name for parameter in parameters if str(parameter.annotation).startswith("Array"))
    function = wraps(body)(repeating(request, arrays))
    function.__name__ = function.__qualname__ = variant.name
    function.__doc__ = Template(inspect.cleandoc(body.__doc__ or "")).substitute(name=variant.name, **words)
    function.__dict__.update(__signature__=signature, request=request)
    return function


def _check_call(name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise for arguments that the public function does not have, in its name and not in its body's."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
