"""Sample ratio mismatch: the test of whether the users are split as planned."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from stats.numerics import np, special
from stats.results import Arm, Number, SampleRatioMismatch

if TYPE_CHECKING:
    from stats.numerics import Floats

#: A p-value below the first detects a mismatch, one below the second suspects it.
DETECTED, SUSPECTED = 0.001, 0.01

#: Concentrations of the Dirichlet alternatives; each suits another sample size.
CONCENTRATIONS = (10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)


def shares(splits: Sequence[Number]) -> list[float]:
    """Return the splits as parts of 1; raise ValueError unless all are above 0."""
    exact = [Fraction(split) for split in splits]
    if not exact or min(exact) <= 0:
        raise ValueError(f"Every split must be above 0: {[str(s) for s in splits]}")
    return [float(split / sum(exact)) for split in exact]


def pair_share(control: Arm, treatment: Arm) -> float:
    """Return the treatment's planned share of a pair; the realised one if it broke.

    It is remembered, because the metrics of an experiment have the same users.
    """
    return _pair_share(
        (control.sample_size, treatment.sample_size),
        (control.split_percentage, treatment.split_percentage),
    )


@lru_cache(maxsize=64)
def _pair_share(sizes: tuple[int, int], splits: tuple[Number, Number]) -> float:
    if sample_ratio_mismatch(sizes, splits).detected and all(sizes):
        return sizes[1] / sum(sizes)
    return float(Fraction(splits[1]) / sum(map(Fraction, splits)))


def sample_ratio_mismatch(
    counts: Sequence[int], splits: Sequence[Number]
) -> SampleRatioMismatch:
    """Return the sequential p-value of the split, and the chi-square test.

    The first is valid at every look: it is the mean of five exact Bayes factors
    against the planned split, each of one Dirichlet alternative. The chi-square test
    is valid for one look.

    Lindon & Malek (2022), NeurIPS 35 (arXiv 2011.03567); Pearson (1900).
    """
    return _mismatch(tuple(counts), tuple(splits))


@lru_cache(maxsize=64)  # two variants are a pair too
def _mismatch(
    counts: tuple[int, ...], splits: tuple[Number, ...]
) -> SampleRatioMismatch:
    planned = np.array(shares(splits))
    observed = np.array([float(count) for count in counts])
    total = float(observed.sum())
    expected = planned * total
    chi_square = 0.0
    if total:
        chi_square = float(((observed - expected) ** 2 / expected).sum())
    p_value = min(1.0, float(np.exp(-_log_bayes_factor(observed, planned))))
    return SampleRatioMismatch(
        p_value=p_value,
        chi_square=chi_square,
        chi_square_p_value=float(special.chdtrc(len(planned) - 1, chi_square)),
        expected=[float(count) for count in expected],
        detected=p_value < DETECTED,
    )


def mismatch_e_value(counts: Sequence[int], splits: Sequence[Number]) -> float | None:
    """Return the e-value against the planned split; None if no float can hold it."""
    planned = np.array(shares(splits))
    log_e = _log_bayes_factor(np.array([float(n) for n in counts]), planned)
    return float(np.exp(log_e)) if log_e < 700 else None


def _log_bayes_factor(counts: Floats, parts: Floats) -> float:
    """Return the log of the mean Bayes factor over the concentrations."""
    concentration = np.array(CONCENTRATIONS)
    prior = concentration[:, None] * parts
    logs = special.gammaln(concentration) - special.gammaln(
        concentration + counts.sum()
    )
    logs = logs + (special.gammaln(prior + counts) - special.gammaln(prior)).sum(axis=1)
    logs = logs - special.xlogy(counts, parts).sum()
    return float(special.logsumexp(logs) - np.log(len(CONCENTRATIONS)))
