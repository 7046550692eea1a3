"""How networks are told apart, in the page and on paper."""

from __future__ import annotations

# Each colour on light and on dark paper: Okabe and Ito's, which the colour-blind tell apart, without the yellow.
PALETTE = (
    ("#0072b2", "#4ba3e3"), ("#c8500a", "#f08a4b"), ("#00855f", "#35c29a"), ("#a8508b", "#e08fc4"),
    ("#b07d00", "#e9b949"), ("#3f4a5a", "#c3cddb"), ("#2f93c9", "#93d3f5"),
)  # fmt: skip
SHAPES = 5  # the product of both is how many networks are told apart; neighbours differ in both


def mark(network: int) -> tuple[int, int]:
    """Which colour of the palette and which shape a network has.

    Examples
    --------
    >>> mark(0), mark(8)
    ((0, 0), (1, 3))
    """
    return network % len(PALETTE), network % SHAPES
