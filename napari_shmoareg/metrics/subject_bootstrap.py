"""A bootstrap over subjects, where pairs share them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST_DRAWN = 5  # subjects; with fewer the percentiles of a resampling mean little
DRAWS = 10_000


def subject_draws(
    pairs: Sequence[tuple[str, str]], *, draws: int = DRAWS, seed: int = 1
) -> NDArray[np.float64] | None:
    """How much each pair counts in each draw of a bootstrap over subjects.

    Subjects are drawn with replacement, as many as there are, and a pair counts as often as its
    moving times as often as its fixed one was drawn (Owen 2007, "The pigeonhole bootstrap", of the
    two ways in which pairs are alike). Draws in which no pair is left are not counted.  Intervals
    of this are rather too wide than too narrow.  Where no subject is in two pairs, the pairs are
    what is independent, and they are drawn.

    Parameters
    ----------
    pairs : sequence of (moving, fixed)
        Whose image each is; an image of which nothing else is known is a subject.
    draws : int
    seed : int

    Returns
    -------
    (draws or fewer, P) array, or None
        None with fewer than 5 subjects (where no subject is in two pairs: than 5 pairs).
    """
    names = sorted({name for pair in pairs for name in pair})
    lot = np.random.default_rng(seed)
    if len(names) == 2 * len(pairs):
        if len(pairs) < FEWEST_DRAWN:
            return None
        return lot.multinomial(len(pairs), [1 / len(pairs)] * len(pairs), draws).astype(np.float64)
    if len(names) < FEWEST_DRAWN:
        return None
    times = lot.multinomial(len(names), [1 / len(names)] * len(names), draws).astype(np.float64)
    moving, fixed = ([names.index(pair[side]) for pair in pairs] for side in (0, 1))
    counted = times[:, moving] * times[:, fixed]
    return np.asarray(counted[counted.sum(axis=1) > 0])
