"""Signed provenance: a C2PA manifest in a PNG file, by the library c2pa, with the certificate of who serves.

The manifest holds one action, c2pa.created, with the same digital source type as the XMP packet, the generator, and as
the assertion BUNDLE_LABEL the bundle's digest. It binds the bytes of the whole file.
"""

import contextlib
import importlib.util
import io
import json
import threading
from typing import Any

from PIL import Image

from imagen_jax.errors import UserError, printable
from imagen_jax.files import StrPath, as_path
from imagen_jax.safety.provenance import Provenance

BUNDLE_LABEL = "imagen_jax.bundle"
_CURVES = {256: "es256", 384: "es384", 521: "es512"}
# A thumbnail would be larger than most of what is signed.
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}


class ManifestSigner:
    """Puts signed manifests into PNG files; several threads may ask at once.

    Args:
      certificate: PEM file of the signer's certificate, then those of the authorities up to the root, which may be
        left out. C2PA asks for the key usage digital signature, and for the purpose e-mail protection or documents.
      key: PEM file of its private key (elliptic curve, Ed25519 or RSA), without a password.
      provenance: what is signed.

    Raises:
      UserError: c2pa is not installed, a file cannot be read, or the library refuses to sign with them.
    """

    def __init__(self, certificate: StrPath, key: StrPath, provenance: Provenance):
        if importlib.util.find_spec("c2pa") is None:
            raise UserError("signing needs c2pa-python, which is not installed; pip install 'imagen_jax[c2pa]'")
        import c2pa

        self._provenance, self._lock = provenance, threading.Lock()
        chain, private = _pem(certificate), _pem(key)
        try:
            self._signer: Any = c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(_algorithm(private, key), chain, private, None)
            )
            self._context: Any = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))
            self._made: Any = c2pa.Builder
            # What is wrong with certificate and key shows when they are used.
            pixel = io.BytesIO()
            Image.new("RGB", (1, 1)).save(pixel, "PNG")
            self.sign(pixel.getvalue())
        except c2pa.C2paError as error:
            raise UserError(
                f"{certificate} and {key} cannot sign ({printable(str(error))[:200]}); give a certificate for "
                "C2PA, its chain, and the private key that belongs to it"
            ) from error

    def sign(self, png: bytes, edited: bool = False) -> bytes:
        """A PNG file with a manifest.

        Args:
          png: the file.
          edited: a part of the image is not drawn but given.
        """
        signed = io.BytesIO()
        with self._lock, contextlib.closing(self._made(json.dumps(self._manifest(edited)), self._context)) as builder:
            builder.sign(self._signer, "image/png", io.BytesIO(png), signed)
        return signed.getvalue()

    def _manifest(self, edited: bool) -> dict[str, Any]:
        name, _, version = self._provenance.generator.partition(" ")
        agent = {"name": name, **({"version": version} if version else {})}
        action = {
            "action": "c2pa.created",
            "digitalSourceType": self._provenance.source_type(edited),
            "softwareAgent": agent,
        }
        assertions: list[dict[str, Any]] = [{"label": "c2pa.actions", "data": {"actions": [action]}}]
        if self._provenance.bundle is not None:
            assertions.append({"label": BUNDLE_LABEL, "data": {"sha256": self._provenance.bundle}})
        return {"claim_generator_info": [agent], "format": "image/png", "assertions": assertions}


def _pem(path: StrPath) -> bytes:
    try:
        return as_path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); give a PEM file") from error


def _algorithm(private: bytes, path: StrPath) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private, None)
    except (ValueError, TypeError) as error:
        # The reason may hold parts of the key.
        raise UserError(f"{path} holds no private key in PEM without a password; give one") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size in _CURVES:
        return _CURVES[key.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise UserError(f"{path} holds a key of a kind that C2PA does not know; give one of P-256, Ed25519 or RSA")
