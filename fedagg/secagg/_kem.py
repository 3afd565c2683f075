"""ML-KEM-768, in the one form in which the protocol uses it.

Reference: National Institute of Standards and Technology, "Module-Lattice-Based Key-
    Encapsulation Mechanism Standard", FIPS 203, 2024.
"""

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)

from fedagg.secagg._errors import NotAuthenticError

SEED, PUBLIC, CIPHERTEXT = 64, 1184, 1088  # bytes


def public_key(seed: bytes) -> bytes:
    """The encapsulation key of a seed."""
    return _private(seed).public_key().public_bytes_raw()


def check_form(public: bytes) -> None:
    """Passes for an encapsulation key.

    Raises:
        NotAuthenticError: if its numbers are not reduced, as in its one form.
    """
    try:
        MLKEM768PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise NotAuthenticError("An ML-KEM key is not in its one form.") from error


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A secret of 32 bytes, and the ciphertext for the owner of the key.

    Raises:
        NotAuthenticError: if the key is none.
    """
    check_form(public)
    return MLKEM768PublicKey.from_public_bytes(public).encapsulate()


def decapsulate(seed: bytes, ciphertext: bytes) -> bytes:
    """The secret in a ciphertext; another one, which nobody has, if it is no such."""
    return _private(seed).decapsulate(ciphertext)


def _private(seed: bytes) -> MLKEM768PrivateKey:
    return MLKEM768PrivateKey.from_seed_bytes(seed)
