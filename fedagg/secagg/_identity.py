"""Who a client is, from round to round."""

import secrets

from fedagg.secagg._crypto import verifying_key


def generate_identity() -> tuple[bytes, bytes]:
    """Makes an Ed25519 key pair for signed plans: private and public, 32 bytes each.

    Reference: Josefsson and Liusvaara, RFC 8032, 2017, section 5.1.5.
    """
    private = secrets.token_bytes(32)
    return private, verifying_key(private)
