"""What clients were told, as the hash that a plan carries."""

import hashlib
from collections.abc import Sequence


def context_of(cohort: Sequence[bytes], *told: bytes) -> bytes:
    """Hashes what all clients of a round have to agree on, to 32 bytes.

    The server puts it into the plan, and each client computes it from what it was told
    itself, for its `Demands`: who was told anything else takes no part. No two lists of
    arguments have one hash.

    Args:
        cohort: what clients are known by, public keys say, in the plan's order.
        *told: all that a client's vector depends on and that the server sends: the
            model, what the aggregator broadcasts, options of the training. As bytes,
            which `Wire.encode_shared` makes of arrays, with their shapes and dtypes.

    Raises:
        TypeError: for what is not of bytes.

    Reference: National Institute of Standards and Technology, "Secure Hash Standard",
        FIPS 180-4, 2015, section 6.2.
    """
    digest = hashlib.sha256(b"fedagg secagg context")
    for parts in (cohort, told):
        digest.update(len(parts).to_bytes(8))
        for part in parts:
            if not isinstance(part, bytes):  # an array has no shape or dtype in a hash
                raise TypeError(f"Expected bytes, got a {type(part).__name__}.")
            digest.update(len(part).to_bytes(8))
            digest.update(part)
    return digest.digest()
