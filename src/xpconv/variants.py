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

from xpconv.dispatch import Request, run

P = ParamSpec("P")


@dataclass(frozen=True)
class Variant:
    """What tells one public function from its siblings."""

    name: str
    axes: int | None = None  # None: read off the arguments
    flip: bool = False  # of the kernel in convolution, of the order in pooling


def public(body: Callable[Concatenate[Variant, P], Request], variant: Variant, **words: str) -> Callable[P, Any]:
    """The public function of one variant; `words` fill the `$placeholders` of the body's docstring."""

    @wraps(body)
    def function(*args: P.args, **kwargs: P.kwargs) -> Any:
        return run(body(variant, *args, **kwargs))

    def request(*args: P.args, **kwargs: P.kwargs) -> Request:
        return body(variant, *args, **kwargs)

    signature = inspect.signature(body)
    parameters = list(signature.parameters.values())[1:]
    function.__name__ = function.__qualname__ = variant.name
    function.__doc__ = Template(inspect.cleandoc(body.__doc__ or "")).substitute(name=variant.name, **words)
    function.__dict__.update(
        __signature__=signature.replace(parameters=parameters, return_annotation="Array"), request=request
    )
    return function
