"""Signed manifests, read back by the library, with certificates made here."""

import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.provenance import DRAWN_BY_MODEL, EDITED_BY_MODEL, Provenance
from imagen_jax.safety.signing import ManifestSigner
from imagen_jax.sampling.images import as_png

c2pa = pytest.importorskip("c2pa")
PROVENANCE = Provenance(generator="imagen_jax 1.2", bundle="ab" * 32)


def name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def certificate(common: str, key: Any, issuer: str, issuer_key: Any, authority: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    usages = [not authority, *[False] * 4, authority, authority, False, False]
    built = (
        x509.CertificateBuilder()
        .subject_name(name(common))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(9))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(x509.KeyUsage(*usages), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    if not authority:
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return built.sign(issuer_key, hashes.SHA256())


def written(folder: Path, key: Any) -> tuple[Path, Path]:
    """PEM files of a chain and a key."""
    root = ec.generate_private_key(ec.SECP256R1())
    chain = [certificate("signer", key, "root", root, False), certificate("root", root, "root", root, True)]
    pem, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "chain.pem").write_bytes(b"".join(one.public_bytes(pem) for one in chain))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()))
    return folder / "chain.pem", folder / "key.pem"


def read(file: bytes) -> dict[str, Any]:
    return json.loads(c2pa.Reader("image/png", io.BytesIO(file)).json())


@pytest.mark.parametrize("edited", [False, True])
def test_a_manifest_is_read_back_and_binds_the_file(tmp_path, edited):
    key = ed25519.Ed25519PrivateKey.generate() if edited else ec.generate_private_key(ec.SECP256R1())
    guard = Guard(provenance=PROVENANCE, signer=ManifestSigner(*written(tmp_path, key), PROVENANCE))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    file = guard.sign(as_png(image, {"seed": 7, **guard.info(edited)}), edited)
    found = read(file)
    assert found["validation_state"] == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    assertions = {one["label"]: one["data"] for one in manifest["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert action["digitalSourceType"] == (EDITED_BY_MODEL if edited else DRAWN_BY_MODEL)
    assert assertions["imagen_jax.bundle"] == {"sha256": "ab" * 32}
    assert manifest["signature_info"]["common_name"] == "signer"
    opened = Image.open(io.BytesIO(file))
    assert np.array_equal(np.asarray(opened), image) and opened.text["seed"] == "7"
    changed = bytearray(file)
    changed[file.index(b"IDAT") + 20] ^= 1
    assert read(bytes(changed))["validation_state"] == "Invalid"


def test_a_key_of_another_certificate_is_refused_before_anything_is_drawn(tmp_path):
    chain, key = written(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "other").mkdir()
    _, other = written(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(UserError, match="cannot sign"):
        ManifestSigner(chain, other, PROVENANCE)
    with pytest.raises(UserError, match="no private key"):
        ManifestSigner(chain, chain, PROVENANCE)
    with pytest.raises(UserError, match="cannot be read"):
        ManifestSigner(tmp_path / "none.pem", key, PROVENANCE)
