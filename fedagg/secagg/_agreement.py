"""How two clients agree on a secret: by X25519, in a hybrid plan by ML-KEM-768 as well.

A hybrid secret is closed to whoever lacks one of the two. X25519 needs both parties'
keys and nothing else; ML-KEM needs a ciphertext from one of them to the other.

Reference: National Institute of Standards and Technology, "Module-Lattice-Based Key-
    Encapsulation Mechanism Standard", FIPS 203, 2024; on combining, Giacon, Heuer and
    Poettering, "KEM Combiners", 2018, section 3.
"""

from typing import NamedTuple

from fedagg.secagg import _crypto, _kem  # the first names the extra if it is missing
from fedagg.secagg._plan import Plan

_CURVE = 32  # bytes of an X25519 key


class Key(NamedTuple):
    """A private key, parsed for all that a step does with it, and no longer kept."""

    curve: _crypto.X25519PrivateKey
    lattice: _kem.MLKEM768PrivateKey | None  # if the plan is hybrid
    public: bytes


def key_size(plan: Plan) -> int:
    """Bytes of a public key."""
    return _CURVE + (_kem.PUBLIC if plan.hybrid else 0)


def ciphertext_size(plan: Plan) -> int:
    """Bytes that a party sends so that another agrees with it."""
    return _kem.CIPHERTEXT if plan.hybrid else 0


def key_of(plan: Plan, private: bytes) -> Key:
    """The key that 32 bytes stand for."""
    if not plan.hybrid:
        curve = _crypto.private_key(private)
        return Key(curve, None, _crypto.public_key(curve))
    size = _CURVE + _kem.SEED
    both = _crypto.derive(private, b"fedagg secagg hybrid key", size=size)
    curve = _crypto.private_key(both[:_CURVE])
    lattice = _kem.private_key(both[_CURVE:])
    return Key(curve, lattice, _crypto.public_key(curve) + _kem.public_key(lattice))


def check_form(plan: Plan, public: bytes) -> None:
    """Passes for a public key in the one form that `key_of` gives.

    Raises:
        NotAuthenticError: for all others.
    """
    _crypto.check_form(public[:_CURVE])
    if plan.hybrid:
        _kem.check_form(public[_CURVE:])


def check_public(plan: Plan, public: bytes) -> None:
    """Passes for a key with which others can agree.

    Raises:
        NotAuthenticError: if it is of small order, or not in its one form.
    """
    check_form(plan, public)
    _crypto.check_public(public[:_CURVE])


def curve_key(public: bytes) -> bytes:
    """The part of a public key that no two clients may have in common."""
    return public[:_CURVE]


def encapsulated(plan: Plan, public: bytes) -> tuple[bytes, bytes]:
    """A secret for the owner of a key, and the ciphertext that tells it.

    Both are empty in a plan that is not hybrid.
    """
    return _kem.encapsulate(public[_CURVE:]) if plan.hybrid else (b"", b"")


def decapsulated(key: Key, ciphertext: bytes) -> bytes:
    """The secret that a ciphertext tells the owner of the key; empty as above."""
    return b"" if key.lattice is None else _kem.decapsulate(key.lattice, ciphertext)


def agree(plan: Plan, key: Key, public: bytes, told: bytes, bound: bytes) -> bytes:
    """The secret of two parties, of whom one told the other a secret by ML-KEM.

    Args:
        plan: the round's.
        key: a party's own.
        public: the other's.
        told: the secret, empty in a plan that is not hybrid.
        bound: all that was sent for it, on which a hybrid secret depends.

    Raises:
        NotAuthenticError: if the other's key is of small order.
    """
    curve = _crypto.agree(key.curve, public[:_CURVE])
    if not plan.hybrid:
        return curve
    about = _crypto.context("hybrid", plan.identifier) + _crypto.commit(bound)
    return _crypto.derive(told + curve, about)
