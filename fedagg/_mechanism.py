"""Noise on sums over rounds, as an accountant sees it.

All that private stages release is noised draws of `C @ sums`, for a matrix `C` of the
mechanism and a row of `sums` a round: the identity for noise that is drawn anew in each
round, ones along paths of a binary tree, a band. How far one client moves all of that
follows from the rounds in which it may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# (order, distance) -> Rényi divergence between sums so many clips apart.
RenyiCurve = Callable[[int, float], float]


def _of_single_rounds(rounds: int, separation: int, participations: int) -> float:
    del rounds, separation
    return math.sqrt(participations)


class Mechanism(NamedTuple):
    """What `guarantee` and `epsilon` know of a stage's noise.

    A stage that makes a sum private declares it, in `Traits(mechanisms=...)`, so that
    what is accounted is what runs. Those of fedagg do.

    Attributes:
        noise_multiplier: of the noise on each row of `C @ sums`, in clips. Infinite
            where all that there is to say is the curve.
        sensitivity: `(rounds, separation, participations) -> float`: how far a client
            moves `C @ sums`, in clips, that is in so many rounds, and between any two
            of them so many rounds on.
        bands: rounds that are as far apart have columns of `C` at right angles: one
            where noise is independent, infinite where that is not known.
        curve: `(template) -> (order, distance) -> divergence`, the Rényi divergence of
            a round with integers for noise, or None.
        sentence: how it prints.
        draw_error: `(template) -> float`: how far the draws of a round are from the law
            that is accounted, in total variation, at most, on average over rounds. None
            where nobody knows, as of noise in floats.
    """

    noise_multiplier: float
    sensitivity: Callable[[int, int, int], float] = _of_single_rounds
    bands: float = 1
    curve: Callable[[Any], RenyiCurve] | None = None
    sentence: str = "Mechanism()"
    draw_error: Callable[[Any], float] | None = None

    @classmethod
    def gaussian(cls, noise_multiplier: float) -> Mechanism:
        """Noise that is drawn anew in each round: that of `gaussian_noise`."""
        _check(noise_multiplier)
        sentence = f"gaussian({noise_multiplier:.4g})"
        return cls(noise_multiplier, sentence=sentence)

    @classmethod
    def tree(cls, noise_multiplier: float, restart_every: int) -> Mechanism:
        """Noise of the nodes of binary trees: that of `tree_noise`.

        In a node over `m` rounds a client is `m / separation` times, rounded up, and in
        the nodes of a level as often as it takes part.

        Reference: Kairouz et al., "Practical and Private (Deep) Learning without
            Sampling or Shuffling", 2021, theorem 4.1 and appendix D.
        """
        _check(noise_multiplier)
        if isinstance(restart_every, bool) or restart_every < 1:
            raise ValueError(
                f"restart_every must be one round or more, got {restart_every=}."
            )

        def sensitivity(rounds: int, separation: int, participations: int) -> float:
            levels = min(rounds, restart_every).bit_length()
            in_node = [-(-(2**level) // separation) for level in range(levels)]
            squares = sum(min(x, participations) for x in in_node)
            return math.sqrt(participations * squares)

        sentence = f"tree({noise_multiplier:.4g}, {restart_every})"
        return cls(noise_multiplier, sensitivity, math.inf, sentence=sentence)

    @classmethod
    def matrix(cls, noise_multiplier: float, strategy: Any) -> Mechanism:
        """Noise `inverse(C) @ draws` on the sums, which are noised draws of `C @ sums`.

        Args:
            noise_multiplier: of each draw, in clips: the privatizer's `stddev`.
            strategy: `C`, lower triangular `[rounds, rounds]`; or `[bands]`, the first
                column of a banded Toeplitz matrix, for any number of rounds.

        Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A
            Unified Approach to Private Training", 2023, theorems 2 and 4, algorithm 4.
        """
        _check(noise_multiplier)
        given = np.asarray(strategy, np.float64)
        if given.ndim not in (1, 2) or given.ndim == 2 and np.any(np.triu(given, 1)):
            raise ValueError(
                "strategy must be lower triangular [rounds, rounds], or the first "
                f"column of a Toeplitz matrix, [bands]; got shape {given.shape}."
            )

        def sensitivity(rounds: int, separation: int, participations: int) -> float:
            return _sensitivity(_matrix_of(given, rounds), separation, participations)

        bands = given.size if given.ndim == 1 else _bands_of(given)
        sentence = f"matrix({noise_multiplier:.4g}, {list(given.shape)})"
        return cls(noise_multiplier, sensitivity, bands, sentence=sentence)

    def of_changed(self, change: Callable[[Any], Any]) -> Mechanism:
        """The same, of a template that is changed before this noise is added."""
        curve, error = self.curve, self.draw_error
        return self._replace(
            curve=None if curve is None else lambda x: curve(change(x)),
            draw_error=None if error is None else lambda x: error(change(x)),
        )

    def __repr__(self) -> str:
        return self.sentence


def _check(noise_multiplier: float) -> None:
    if isinstance(noise_multiplier, bool):
        raise TypeError(f"noise_multiplier must be a number, got {noise_multiplier=}.")
    if not noise_multiplier >= 0.0:
        raise ValueError(
            f"noise_multiplier must not be negative, got {noise_multiplier=}."
        )


def _bands_of(matrix: np.ndarray) -> int:
    row, column = np.nonzero(matrix)
    return int(np.max(row - column, initial=0)) + 1


def _matrix_of(strategy: np.ndarray, rounds: int) -> np.ndarray:
    if strategy.ndim == 2:
        if rounds > len(strategy):
            raise ValueError(
                f"rounds: the strategy is a matrix of {len(strategy)} rounds, which "
                f"says nothing of {rounds}."
            )
        # What is released up to a round depends on the rows up to it alone.
        return strategy[:rounds, :rounds]
    first = np.zeros(rounds)
    first[: len(strategy)] = strategy[:rounds]
    behind = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    return np.where(behind >= 0, first[np.maximum(behind, 0)], 0.0)


def _sensitivity(matrix: np.ndarray, separation: int, participations: int) -> float:
    """The most that a client moves it, or a bound on that where columns overlap.

    Of each row of `C.T @ C` the largest part that a client can choose, and of these the
    largest part again: exact where rounds that far apart have orthogonal columns.
    """
    gram = np.abs(matrix.T @ matrix)
    of_rows = [_largest(row, separation, participations) for row in gram]
    return math.sqrt(_largest(np.array(of_rows), separation, participations))


def _largest(x: np.ndarray, separation: int, participations: int) -> float:
    """The largest sum of so many entries that are so far apart."""
    best = np.zeros(len(x) + separation)
    for _ in range(min(participations, -(-len(x) // separation))):
        taken = np.append(x + best[separation:], np.zeros(separation))
        best = np.maximum.accumulate(taken[::-1])[::-1]
    return float(best[0])
