"""Certificates for TLS: they, and not what a peer says, tell who it is.

Here an authority is made on the spot, and signs for a server and for clients by number.
A deployment has one of its own, whose key never leaves it; of this module it needs the
two contexts and `number_of`.
"""

import datetime
import ipaddress
import pathlib
import re
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER = "127.0.0.1"  # its address, which clients compare with its certificate
_LIFE = datetime.timedelta(days=1)


class Authority:
    """Signs certificates, and writes each with its key into a file of a folder."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority")
        whole = x509.BasicConstraints(ca=True, path_length=0)
        own = self._certificate(
            self._name, self._key.public_key(), whole, _usage("key_cert_sign")
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "authority.pem").write_bytes(_pem(own))

    def sign_server(self) -> None:
        """A certificate for a server at `SERVER`."""
        address = x509.IPAddress(ipaddress.ip_address(SERVER))
        names = x509.SubjectAlternativeName([address])
        self._sign("server", ExtendedKeyUsageOID.SERVER_AUTH, names)

    def sign_client(self, number: int) -> None:
        """A certificate for a client of this number."""
        self._sign(f"client-{number}", ExtendedKeyUsageOID.CLIENT_AUTH)

    def _sign(
        self, name: str, use: x509.ObjectIdentifier, *more: x509.ExtensionType
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        # What a client has is no server's, or it could be the server to the others.
        uses = x509.BasicConstraints(False, None), x509.ExtendedKeyUsage([use])
        signing = _usage("digital_signature")
        signed = self._certificate(_name(name), key.public_key(), *uses, signing, *more)
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        private = key.private_bytes(*pem, serialization.NoEncryption())
        path = self._folder / f"{name}.pem"
        path.touch(0o600)
        path.write_bytes(private + _pem(signed))

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *extensions: x509.ExtensionType,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self._name, subject, key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - _LIFE).not_valid_after(now + _LIFE)
        own = self._key.public_key()
        for x in (
            x509.SubjectKeyIdentifier.from_public_key(key),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(own),
        ):
            builder = builder.add_extension(x, critical=False)
        for x in extensions:
            is_critical = isinstance(x, (x509.BasicConstraints, x509.KeyUsage))
            builder = builder.add_extension(x, is_critical)
        return builder.sign(self._key, hashes.SHA256())


def server_context(folder: pathlib.Path) -> ssl.SSLContext:
    """The server's end of TLS, which takes no peer without a client's certificate."""
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=folder / "authority.pem"
    )
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "server.pem")
    return context


def client_context(folder: pathlib.Path, number: int) -> ssl.SSLContext:
    """A client's end of TLS, which talks to the server at `SERVER` alone."""
    context = ssl.create_default_context(cafile=folder / "authority.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / f"client-{number}.pem")
    return context


def number_of(certificate: dict) -> int | None:
    """The number of a client, from what `getpeercert` gave; None of anybody else."""
    names = [
        value
        for part in certificate["subject"]
        for kind, value in part
        if kind == "commonName"
    ]
    found = (
        re.fullmatch("client-(0|[1-9][0-9]*)", names[0]) if len(names) == 1 else None
    )
    return int(found[1]) if found else None


def _usage(what: str) -> x509.KeyUsage:
    """What a key is for, which Python 3.13 asks of an authority."""
    uses = (
        *("digital_signature", "content_commitment", "key_encipherment"),
        *("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        *("encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{use: use == what for use in uses})


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
