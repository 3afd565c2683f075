"""The primitives, against published vectors through our wrappers."""

import itertools
import pathlib
import re

import cryptography_vectors
import pytest

from fedagg.secagg import NotAuthenticError, _crypto

VECTORS = pathlib.Path(cryptography_vectors.__file__).parent


def rows(path: str, *names: str) -> list[dict[str, bytes]]:
    """Values of lines `name = hex`; a row ends with the last of the names."""
    found, row = [], {}
    for line in (VECTORS / path).read_text().splitlines():
        match = re.fullmatch(r"(\w+)\s*=\s*(?:0x)?([0-9a-fA-F]*)", line.strip())
        if match and match[1] in names and len(match[2]) % 2 == 0:
            row[match[1]] = bytes.fromhex(match[2])
            if match[1] == names[-1]:
                found.append(row)
                row = {}
    return found


def test_agreement_is_that_of_rfc_7748():
    one, two, nines = rows(
        "asymmetric/X25519/rfc7748.txt", "INPUT_SCALAR", "INPUT_U", "OUTPUT_U"
    )

    for row in (one, two):  # section 5.2
        key = _crypto.private_key(row["INPUT_SCALAR"])
        assert _crypto.agree(key, row["INPUT_U"]) == row["OUTPUT_U"]
    key = _crypto.private_key(nines["INPUT_SCALAR"])
    assert _crypto.public_key(key) == nines["OUTPUT_U"]  # u = 9


def test_two_parties_agree():
    a, b = map(_crypto.private_key, (bytes(range(32)), bytes(range(32, 64))))

    assert _crypto.agree(a, _crypto.public_key(b)) == _crypto.agree(
        b, _crypto.public_key(a)
    )


@pytest.mark.parametrize("point", [0, 1, 2**255 - 19, 2**255 - 18])
def test_a_point_of_small_order_is_refused(point):
    with pytest.raises(NotAuthenticError, match="small order"):
        key = _crypto.private_key(bytes(range(32)))
        _crypto.agree(key, point.to_bytes(32, "little"))


def test_one_public_key_has_one_form():
    _crypto.check_form((2**255 - 20).to_bytes(32, "little"))
    for number in (2**255 - 19, 2**255 - 10, 2**255 + 9, 2**256 - 1):
        with pytest.raises(NotAuthenticError, match="one form"):
            _crypto.check_public(number.to_bytes(32, "little"))
    assert not _crypto.is_verifying_key((2**255 - 19).to_bytes(32, "little"))
    assert not _crypto.is_verifying_key(bytes(31))
    assert _crypto.is_verifying_key(_crypto.verifying_key(bytes(32)))


def test_keys_are_derived_as_in_rfc_5869():
    vectors = rows("KDF/rfc-5869-HKDF-SHA256.txt", "IKM", "salt", "info", "OKM")

    assert len(vectors) == 3  # appendices A.1 to A.3
    for row in vectors:
        salt, okm = row.get("salt") or None, row["OKM"]
        info = row.get("info", b"")
        assert _crypto.derive(row["IKM"], info, salt, len(okm)) == okm


def test_signatures_are_those_of_ed25519_in_rfc_8032():
    lines = (VECTORS / "asymmetric/Ed25519/sign.input").read_text().splitlines()

    for line in lines[:200]:
        private, public, message, signed = map(bytes.fromhex, line.split(":")[:4])
        assert _crypto.verifying_key(private[:32]) == public
        assert _crypto.sign(private[:32], message) == signed[:64]
        _crypto.verify(public, signed[:64], message)
        with pytest.raises(NotAuthenticError, match="signature"):
            _crypto.verify(public, signed[:64], message + b"!")


def test_a_signature_by_a_key_that_is_none_does_not_hold():
    with pytest.raises(NotAuthenticError, match="signature"):
        _crypto.verify(b"\xff" * 32, bytes(64), b"")


def test_the_keystream_is_that_of_nist_sp_800_38a():
    # Appendix F.5.5, CTR-AES256.Encrypt.
    key = bytes.fromhex(
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
    )
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    encrypted = bytearray(64 + 15)

    _crypto.keystream(key, bytes(range(0xF0, 0x100)))(plain, encrypted)

    assert bytes(encrypted[:64]) == bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )


def test_the_keystream_is_that_of_rfc_3686_and_goes_on_from_call_to_call():
    vectors = rows(
        "ciphers/AES/CTR/aes-256-ctr.txt", "KEY", "IV", "PLAINTEXT", "CIPHERTEXT"
    )

    assert len(vectors) >= 3
    for row in vectors:
        fill = _crypto.keystream(row["KEY"], row["IV"])
        got = b""
        for part in (row["PLAINTEXT"][:16], row["PLAINTEXT"][16:]):
            buffer = bytearray(len(part) + 15)
            fill(part, buffer)
            got += buffer[: len(part)]
        assert got == row["CIPHERTEXT"]


def test_a_mask_begins_at_block_zero():
    # FIPS 197 with a key and a block of zeros (NIST AESAVS, appendix B of GFSbox).
    buffer = bytearray(16 + 15)

    _crypto.keystream(bytes(32))(bytes(16), buffer)

    assert buffer[:16].hex() == "dc95c078a2408989ad48a21492842087"


def test_envelopes_are_those_of_gcm_in_nist_sp_800_38d():
    names = "Key", "IV", "PT", "AAD", "CT", "Tag"
    vectors = rows("ciphers/AES/GCM/gcmEncryptExtIV256.rsp", *names)
    fitting = [x for x in vectors if len(x["IV"]) == 12 and len(x["Tag"]) == 16]

    assert len(fitting) > 100
    for row in itertools.islice(fitting, 0, None, 5):
        key, nonce, about = row["Key"], row["IV"], row["AAD"]
        envelope = nonce + row["CT"] + row["Tag"]
        assert _crypto.seal(key, row["PT"], about, lambda _, x=nonce: x) == envelope
        assert _crypto.unseal(key, envelope, about) == row["PT"]


def test_an_envelope_opens_with_its_key_for_its_purpose_only():
    key, about = bytes(32), b"from 1 to 2"
    envelope = _crypto.seal(key, b"content", about, bytes)

    assert len(envelope) == len(b"content") + _crypto.SEALED
    for i in range(len(envelope)):
        spoilt = bytearray(envelope)
        spoilt[i] ^= 1
        with pytest.raises(NotAuthenticError, match="envelope"):
            _crypto.unseal(key, bytes(spoilt), about)
    for other, said in ((b"\1" * 32, about), (key, b"from 2 to 1")):
        with pytest.raises(NotAuthenticError, match="envelope"):
            _crypto.unseal(other, envelope, said)


def test_no_two_purposes_share_a_context():
    contexts = {
        _crypto.context(purpose, identifier, *numbers)
        for purpose in ("self mask", "pairwise mask", "envelope")
        for identifier in (bytes(32), bytes(31) + b"\1")
        for numbers in ((), (0,), (1,), (0, 1), (1, 0), (0, 0))
    }

    assert len(contexts) == 3 * 2 * 6
