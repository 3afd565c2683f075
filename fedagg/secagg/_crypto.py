"""The primitives, each in the one form in which the protocol uses it."""

import hashlib
import struct
from collections.abc import Callable

try:
    from cryptography.exceptions import InvalidSignature, InvalidTag
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.x25519 import (
        X25519PrivateKey,
        X25519PublicKey,
    )
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as error:
    raise ImportError(
        "fedagg.secagg needs cryptography: pip install 'fedagg[secagg]'."
    ) from error

from fedagg.secagg._errors import NotAuthenticError

_NONCE = 12  # bytes
SEALED = _NONCE + 16  # bytes by which an envelope is longer than what is in it
_PRIME = 2**255 - 19  # of the field of both curves
_ANY = X25519PrivateKey.from_private_bytes(b"any key will do for this purpose")


def context(purpose: str, identifier: bytes, *numbers: int) -> bytes:
    """What a key, a signature or an envelope is for, so that it is for nothing else.

    No two different lists of arguments give the same bytes.
    """
    label = f"fedagg secagg 2 {purpose}".encode()
    parts = struct.pack(f">{len(numbers)}I", *numbers)
    return struct.pack(">B", len(label)) + label + identifier + parts


def private_key(private: bytes) -> X25519PrivateKey:
    """An X25519 key of 32 bytes, parsed, which takes as long as an agreement."""
    return X25519PrivateKey.from_private_bytes(private)


def public_key(private: X25519PrivateKey) -> bytes:
    """The public key of a private one, 32 bytes."""
    return private.public_key().public_bytes_raw()


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The secret of 32 bytes that X25519 gives two parties.

    Raises:
        NotAuthenticError: if the other's key is a point that makes the secret zero.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise NotAuthenticError("A public key is of small order.") from error


def check_public(public: bytes) -> None:
    """Passes for a key with which others can agree.

    Raises:
        NotAuthenticError: if it is a point of small order, or not in its one form.
    """
    check_form(public)
    agree(_ANY, public)


def check_form(public: bytes) -> None:
    """Passes for an X25519 public key in the one form that `public_key` gives.

    X25519 takes numbers modulo 2**255 - 19 and leaves out the highest bit, so that keys
    of different bytes would be one.

    Raises:
        NotAuthenticError: for all others.
    """
    if int.from_bytes(public, "little") >= _PRIME:
        raise NotAuthenticError("A public key is not in its one form.")


def derive(
    secret: bytes, info: bytes, salt: bytes | None = None, size: int = 32
) -> bytes:
    """A key from a secret, by HKDF with SHA-256, for what `info` says only."""
    return HKDF(SHA256(), length=size, salt=salt, info=info).derive(secret)


def seal(
    key: bytes, content: bytes, about: bytes, random: Callable[[int], bytes]
) -> bytes:
    """An envelope by AES-256-GCM: nonce, encrypted content, tag. It binds `about`."""
    nonce = random(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, content, about)


def unseal(key: bytes, envelope: bytes, about: bytes) -> bytes:
    """What `seal` put in.

    Raises:
        NotAuthenticError: if the envelope was made otherwise.
    """
    try:
        return AESGCM(key).decrypt(envelope[:_NONCE], envelope[_NONCE:], about)
    except InvalidTag as error:
        raise NotAuthenticError("An envelope does not open.") from error


def keystream(
    key: bytes, start: bytes = bytes(16)
) -> Callable[[bytes, bytearray], int]:
    """AES-256-CTR from block zero on, for a key that makes one stream only.

    Gives a function that encrypts the first argument into the second, which must be 15
    bytes longer, and goes on in the stream from call to call.
    """
    return Cipher(algorithms.AES(key), modes.CTR(start)).encryptor().update_into


def commit(content: bytes) -> bytes:
    """SHA-256. Hides content with as much entropy as a key has."""
    return hashlib.sha256(content).digest()


def verifying_key(identity: bytes) -> bytes:
    """The Ed25519 public key of a private one; both are 32 bytes."""
    private = Ed25519PrivateKey.from_private_bytes(identity)
    return private.public_key().public_bytes_raw()


def is_verifying_key(key: bytes) -> bool:
    """Whether these are 32 bytes as an Ed25519 public key is written."""
    return len(key) == 32 and int.from_bytes(key, "little") % 2**255 < _PRIME


def sign(identity: bytes, content: bytes) -> bytes:
    """An Ed25519 signature, 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(identity).sign(content)


def verify(public: bytes, signature: bytes, content: bytes) -> None:
    """Passes if the signature is that of the key's owner under the content.

    Raises:
        NotAuthenticError: if it isn't.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError) as error:
        raise NotAuthenticError("A signature does not hold.") from error
