"""How two clients agree on a secret: by X25519, in a hybrid plan by ML-KEM-768 as well.

A hybrid secret is closed to whoever lacks one of the two. X25519 needs both parties'
keys and nothing else; ML-KEM needs a ciphertext from one of them to the other.

Reference: National Institute of Standards and Technology, "Module-Lattice-Based Key-
    Encapsulation Mechanism Standard", FIPS 203, 2024; on combining, Giacon, Heuer and
    Poettering, "KEM Combiners", 2018, section 3.
"""

from fedagg.secagg import _crypto, _kem  # the first names the extra if it is missing
from fedagg.secagg._plan import Plan

_CURVE = 32  # bytes of an X25519 key


def key_size(plan: Plan) -> int:
    """Bytes of a public key."""
    return _CURVE + (_kem.PUBLIC if plan.hybrid else 0)


def ciphertext_size(plan: Plan) -> int:
    """Bytes that a party sends so that another agrees with it."""
    return _kem.CIPHERTEXT if plan.hybrid else 0


def public_key(plan: Plan, private: bytes) -> bytes:
    """The public key of a private one of 32 bytes."""
    if not plan.hybrid:
        return _crypto.public_key(private)
    curve, lattice = _parted(private)
    return _crypto.public_key(curve) + _kem.public_key(lattice)


def check_form(plan: Plan, public: bytes) -> None:
    """Passes for a public key in the one form that `public_key` gives.

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


def decapsulated(plan: Plan, private: bytes, ciphertext: bytes) -> bytes:
    """The secret that a ciphertext tells the owner of the private key."""
    if not plan.hybrid:
        return b""
    return _kem.decapsulate(_parted(private)[1], ciphertext)


def agree(
    plan: Plan, private: bytes, public: bytes, told: bytes, bound: bytes = b""
) -> bytes:
    """The secret of two parties, of whom one told the other a secret by ML-KEM.

    Args:
        plan: the round's.
        private: a party's own key.
        public: the other's.
        told: the secret, empty in a plan that is not hybrid.
        bound: all that was sent for it, which the outcome depends on.

    Raises:
        NotAuthenticError: if the other's key is of small order.
    """
    if not plan.hybrid:
        return _crypto.agree(private, public)
    curve = _crypto.agree(_parted(private)[0], public[:_CURVE])
    about = _crypto.context("hybrid", plan.identifier) + _crypto.commit(bound)
    return _crypto.derive(told + curve, about)


def _parted(private: bytes) -> tuple[bytes, bytes]:
    """The X25519 key and the seed of the ML-KEM key that 32 bytes stand for."""
    both = _crypto.derive(private, b"fedagg secagg hybrid key", size=32 + _kem.SEED)
    return both[:32], both[32:]
