"""HTML and SVG as text in which nothing from outside can forget to be escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into an element."""

    __slots__ = ()


def element(name: str, *content: str | Iterable[str], **attributes: str | float | bool | None) -> Markup:
    """Make an element; None and False leave an attribute out, True gives it no value.

    Attributes are written as Python can spell them: `class_`, `aria_label`, and `viewBox` as it is.

    Examples
    --------
    >>> element("p", "a < b ", element("b", "& c"), class_="note", hidden=True)
    '<p class="note" hidden>a &lt; b <b>&amp; c</b></p>'
    """
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{name}{opening}>{joined(content)}</{name}>")


def joined(content: Iterable[str | Iterable[str]], between: str = "") -> Markup:
    """All of it one after the other, escaped where it is not Markup.

    Examples
    --------
    >>> joined(["a & b", [element("i", "c")]])
    'a &amp; b<i>c</i>'
    """
    return Markup(between.join(_escaped(part) if isinstance(part, str) else joined(part, between) for part in content))


def _escaped(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
