"""What lying clients may send, to try rules with: in tests and benchmarks.

An attack is a function `(honest, liars, key) -> malicious`: of honest clients' stacked
values, how many lie, and a key, which only those that draw need. It knows all honest
values, as the strongest adversary does. `optimized` makes one worst for a given rule.
"""

from fedagg.attacks._attacks import (
    Attack,
    a_little_is_enough,
    flipped_labels,
    gaussian,
    infinity,
    inner_product_manipulation,
    mimic,
    not_a_number,
    sign_flipping,
)
from fedagg.attacks._optimized import optimized

__all__ = [
    "Attack",
    "a_little_is_enough",
    "flipped_labels",
    "gaussian",
    "infinity",
    "inner_product_manipulation",
    "mimic",
    "not_a_number",
    "optimized",
    "sign_flipping",
]
