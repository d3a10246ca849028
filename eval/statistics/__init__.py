"""Estimates with intervals, and the decisions taken from them. Everything here is seeded and repeats bit for
bit.

The unit of an evaluation is the *pair*: one prompt and seed, baseline against candidate. Several seeds of one
prompt form a cluster and are resampled together.
"""

from hasten.eval.statistics.decisions import (
    Verdict,
    holm,
    minimal_detectable_effect,
    non_inferiority,
    pairs_needed,
)
from hasten.eval.statistics.estimate import Estimate
from hasten.eval.statistics.jackknife import Grouping, assign_groups, group_samples, jackknife_estimate
from hasten.eval.statistics.paired import (
    PairedTests,
    mean_estimate,
    paired_difference,
    paired_tests,
)
from hasten.eval.statistics.proportions import (
    NO_DISCORDANT,
    paired_ratio_difference,
    proportion,
    ratio_of_sums,
    wilson,
)

__all__ = [
    "NO_DISCORDANT",
    "Estimate",
    "Grouping",
    "PairedTests",
    "Verdict",
    "assign_groups",
    "group_samples",
    "holm",
    "jackknife_estimate",
    "mean_estimate",
    "minimal_detectable_effect",
    "non_inferiority",
    "paired_difference",
    "paired_ratio_difference",
    "paired_tests",
    "pairs_needed",
    "proportion",
    "ratio_of_sums",
    "wilson",
]
