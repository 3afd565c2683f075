"""Rules of trees with several leaves, as programs."""

import jax
import jax.numpy as jnp
import pytest

import fedagg

RULES = {
    "median": fedagg.median(),
    "trimmed_mean": fedagg.trimmed_mean(2),
    "mean_around_median": fedagg.mean_around_median(2),
}


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="its XLA takes barriers out before it fuses"
)
@pytest.mark.parametrize("name", RULES)
def test_a_program_compares_as_often_for_six_leaves_as_for_one(name):
    def selections(leaves: int) -> int:
        values = [jnp.ones((9, 60 // leaves)) for _ in range(leaves)]
        aggregator = fedagg.combining(RULES[name])
        state = aggregator.init(jax.tree.map(lambda x: x[0], values))
        program = jax.jit(aggregator.next).lower(state, values).compile().as_text()
        assert program is not None
        return program.count(" select(")

    one = selections(1)

    assert one > 20
    assert selections(6) == one
