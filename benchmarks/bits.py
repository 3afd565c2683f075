"""What compressors lose for the bits they send: `-m benchmarks.bits`."""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedagg
from benchmarks import options
from benchmarks.report import Report, markdown, markdown_row

ENTRIES, CLIENTS, TRIALS = 2**14, 16, 20
# Of a normal with the nearest of 2**bits centres, after an unbiased scale.
EDEN = {1: math.pi / 2 - 1, 2: 0.133121, 3: 0.035784, 4: 0.009592}

_LEGEND = f"""
Vectors of {ENTRIES:,} entries, {TRIALS} draws. *Bits* are those of a whole message over
the entries. *Error* is the squared error of what one client sent over the square of its
vector, *of a mean* that of the mean of {CLIENTS} clients, times as many: both are the
same where there is no bias, and clients draw apart. *Published* is what its paper
proves or reports of one client, for a normal vector or any.
"""


class Way(NamedTuple):
    name: str
    stages: tuple[fedagg.Stage, ...]
    published: dict[str, float]  # per kind of vector


def _ways() -> list[Way]:
    def quantization(bits: int) -> fedagg.Stage:
        return fedagg.quantization(bits, 0)

    both = ("normal", "lognormal")
    return [
        *(
            Way(f"eden({b})", (fedagg.eden(b),), dict.fromkeys(both, EDEN[b]))
            for b in EDEN
        ),
        Way("drive()", (fedagg.drive(),), dict.fromkeys(both, 1 - 2 / math.pi)),
        *(Way(f"quantization({b})", (quantization(b),), {}) for b in (1, 2, 4, 8)),
        *(
            Way(
                f'rotation("hadamard"), quantization({b})',
                (fedagg.rotation("hadamard"), quantization(b)),
                {},
            )
            for b in (1, 2, 4, 8)
        ),
        Way("qsgd(16)", (fedagg.qsgd(16),), {}),
        Way("terngrad()", (fedagg.terngrad(),), {}),
        Way("top_k(0.1)", (fedagg.top_k(0.1),), {}),
        Way("random_k(0.1)", (fedagg.random_k(0.1),), dict.fromkeys(both, 9.0)),
    ]


DRAWS: dict[str, Callable[..., jax.Array]] = {
    "normal": jax.random.normal,
    "lognormal": lambda key, shape: jnp.exp(jax.random.normal(key, shape)),
}


def errors_of(way: Way, draw: Callable[..., jax.Array]) -> tuple[float, float]:
    """The squared error of one client, and of a mean of many times their number."""
    mean = fedagg.aggregator(fedagg.mean(weighted=False), *way.stages)
    state = mean.init(jnp.zeros(ENTRIES))

    @jax.jit
    def trial(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawing, alone, together = jax.random.split(key, 3)
        rows = draw(drawing, (CLIENTS, ENTRIES))
        one = mean.next(state, rows[:1], None, alone).value
        many = mean.next(state, rows, None, together).value
        squares = jnp.mean(jnp.sum(rows**2, axis=1))
        error = jnp.sum((one - rows[0]) ** 2) / jnp.sum(rows[0] ** 2)
        error_of_many = jnp.sum((many - jnp.mean(rows, axis=0)) ** 2) / squares
        return error, CLIENTS * error_of_many

    keys = jax.random.split(jax.random.key(0), TRIALS)
    errors = np.array([trial(key) for key in keys], np.float64)
    return float(errors[:, 0].mean()), float(errors[:, 1].mean())


def rows(vector: str, ways: list[Way]):
    for way in ways:
        error, of_a_mean = errors_of(way, DRAWS[vector])
        stages = fedagg.chain(fedagg.mean(weighted=False), *way.stages)
        yield {
            "vector": vector,
            "compressor": way.name,
            "bits": fedagg.message_bits(stages, jnp.zeros(ENTRIES)) / ENTRIES,
            "error": error,
            "error_of_a_mean": of_a_mean,
            "published": way.published.get(vector),
        }


def cells(row: dict) -> list[str]:
    numbers = (row["error"], row["error_of_a_mean"], row["published"])
    shown = ["-" if x is None else f"{x:.3g}" for x in numbers]
    return [f"`{row['compressor']}`", f"{row['bits']:.2f}", *shown]


HEADER = ["compressor", "bits", "error", "of a mean", "published"]


def main() -> None:
    chosen = _options()
    path = None if chosen.out is None else chosen.out / "bits.md"
    with Report("Bits and errors of compressors", path) as report:
        report.say(_LEGEND)
        for vector in DRAWS:
            report.say(f"\n## {vector.capitalize()} entries\n\n{markdown([HEADER])}")
            for row in rows(vector, _ways()[: 2 if chosen.quick else None]):
                report.say(markdown_row(cells(row)))
                report.keep(**row)
        report.compare("bits", chosen.compare)


def _options() -> argparse.Namespace:
    parser = options.parser("bits")
    parser.add_argument("--quick", action="store_true", help="two compressors alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
