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


def private_key(seed: bytes) -> MLKEM768PrivateKey:
    """The decapsulation key of a seed, which takes twice a decapsulation to make."""
    return MLKEM768PrivateKey.from_seed_bytes(seed)


def public_key(private: MLKEM768PrivateKey) -> bytes:
    """The encapsulation key of a decapsulation key."""
    return private.public_key().public_bytes_raw()


def check_form(public: bytes) -> None:
    """Passes for an encapsulation key.

    Raises:
        NotAuthenticError: if its numbers are not reduced, as in its one form.
    """
    _parsed(public)


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A secret of 32 bytes, and the ciphertext for the owner of the key.

    Raises:
        NotAuthenticError: if the key is none.
    """
    return _parsed(public).encapsulate()


def decapsulate(private: MLKEM768PrivateKey, ciphertext: bytes) -> bytes:
    """The secret in a ciphertext; another one, which nobody has, if it is no such."""
    return private.decapsulate(ciphertext)


def _parsed(public: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise NotAuthenticError("An ML-KEM key is not in its one form.") from error
