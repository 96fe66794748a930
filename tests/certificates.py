"""An authority of our own, and what it certifies: for servers on the loopback address, and for the clients that they let in."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_CERTIFIES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Signs. Its own certificate is `<home>/<name>.crt`."""

    def __init__(self, home: Path, name: str = "authority") -> None:
        self._home = home
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} of pymq's tests")])
        made = self._signed(self._name, self._key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.path = self._write(f"{name}.crt", made.add_extension(_CERTIFIES, critical=True))

    def certify(self, name: str) -> tuple[str, str]:
        """The files of a new certificate for 127.0.0.1, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._write(f"{name}.crt", self._signed(subject, key).add_extension(names, critical=False))
        path = self._home / f"{name}.key"
        plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(*plain))
        return certificate, str(path)

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        """With the identifiers of both keys: from 3.13 on Python trusts no other."""
        now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        dated = made.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
        known = dated.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return known.add_extension(signer, critical=False)

    def _write(self, name: str, certificate: x509.CertificateBuilder) -> str:
        path = self._home / name
        path.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return str(path)
