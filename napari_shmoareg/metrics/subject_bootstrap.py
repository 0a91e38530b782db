"""Bootstrap over subjects for pairs with common subjects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST_DRAWN = 5  # subjects; with fewer, bootstrap percentiles are meaningless
DRAWS = 10_000


def subject_draws(
    pairs: Sequence[tuple[str, str]], *, draws: int = DRAWS, seed: int = 1
) -> NDArray[np.float64] | None:
    """Draw the weights of the pairs in a bootstrap over subjects.

    Subjects are drawn with replacement, as many as there are; the weight of a pair is the product
    of the counts of its moving and its fixed subject (Owen 2007, "The pigeonhole bootstrap", for
    pairs that are similar in two ways).  Draws without any pair are discarded.  The resulting
    intervals are conservative.  If no subject is in two pairs, the pairs are independent, and pairs
    are drawn instead.

    Parameters
    ----------
    pairs : sequence of (moving, fixed)
        Subjects of the images; an image without a known subject counts as its own subject.
    draws : int
    seed : int

    Returns
    -------
    (draws or fewer, P) array, or None
        None with fewer than 5 subjects (if no subject is in two pairs: fewer than 5 pairs).
    """
    names = sorted({name for pair in pairs for name in pair})
    rng = np.random.default_rng(seed)
    if len(names) == 2 * len(pairs):
        if len(pairs) < FEWEST_DRAWN:
            return None
        return rng.multinomial(len(pairs), [1 / len(pairs)] * len(pairs), draws).astype(np.float64)
    if len(names) < FEWEST_DRAWN:
        return None
    times = rng.multinomial(len(names), [1 / len(names)] * len(names), draws).astype(np.float64)
    moving, fixed = ([names.index(pair[side]) for pair in pairs] for side in (0, 1))
    counted = times[:, moving] * times[:, fixed]
    return np.asarray(counted[counted.sum(axis=1) > 0])
