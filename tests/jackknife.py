"""The jackknife by its definition: the figure is computed anew without each group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hasten.eval.statistics import Estimate, jackknife_estimate


def grouped_jackknife(statistic: Callable[[NDArray[np.bool_]], float], groups: NDArray[np.intp]) -> Estimate:
    """``statistic`` of a mask of the samples to use, with its interval."""
    whole = statistic(np.ones(len(groups), dtype=bool))
    left_out = [statistic(groups != group) for group in np.unique(groups)]
    return jackknife_estimate(whole, left_out, n=len(groups))
