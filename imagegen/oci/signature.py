"""Signatures of artifacts, in minisign's format: of an artifact's manifest, which has the digests
of all the rest.

A signature is an artifact of its own, under a tag that has the digest of what it is for; in a
folder it is a file. Who trusts no key asks for none. minisign's documentation: Signature format,
Public key format, Secret key format; keys without a password alone (`minisign -G -W`).
"""

import base64
import binascii
import hashlib
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nacl.exceptions
import nacl.signing

from mayfly.errors import ConfigError, RegistryError
from mayfly.imagegen.digests import digest_of, short
from mayfly.imagegen.oci.documents import MANIFEST_TYPE, Source, descriptor_of, fetch_document, read_artifact, write_artifact
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.registry import RegistrySource

ARTIFACT_TYPE = "application/vnd.mayfly.signature.v1"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
SIGNATURE_TYPE = "application/vnd.mayfly.signature.minisign.v1"
FILE = "signature.minisig"
"""Beside a layout's index."""
MAX_KEY = 4 << 10
_ALGORITHM = b"Ed"
_PREHASHED = b"ED"
_PUBLIC = struct.Struct("2s8s32s")
"""Algorithm, key id, Ed25519 public key."""
_SECRET = struct.Struct("<2s2s2s32sQQ8s64s32s")
"""Algorithm, that of the password, that of the checksum, salt, two limits, key id, Ed25519 secret
and public key, checksum.
"""
_SIGNATURE = struct.Struct("2s8s64s")
_TRUSTED = "trusted comment: "


class Signer(NamedTuple):
    """A secret key with its id."""

    key_id: bytes
    key: nacl.signing.SigningKey

    def sign(self, data: bytes, comment: str) -> bytes:
        """The signature file of `data`."""
        signature = self.key.sign(hashlib.blake2b(data).digest()).signature
        whole = self.key.sign(signature + comment.encode()).signature
        first = base64.b64encode(_SIGNATURE.pack(_PREHASHED, self.key_id, signature)).decode()
        return f"untrusted comment: of an image of Mayfly\n{first}\n{_TRUSTED}{comment}\n{base64.b64encode(whole).decode()}\n".encode()


def read_signer(path: Path) -> Signer:
    """The secret key in a file of minisign's.

    Raises:
        ConfigError: it is not one, or has a password.
    """
    hint = "make one for machines: minisign -G -W -p FILE.pub -s FILE"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_KEY).decode()
        fields = _SECRET.unpack(base64.b64decode(text.splitlines()[1], validate=True))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise ConfigError(f"{path} is not a secret key of minisign's", hint=hint) from error
    _, kdf, _, _, _, _, key_id, secret, _ = fields
    if kdf != bytes(2):
        raise ConfigError(f"the secret key {path} has a password", hint=hint)
    key = nacl.signing.SigningKey(secret[:32])
    if key.verify_key.encode() != secret[32:]:  # without a password there is no checksum
        raise ConfigError(f"the secret key {path} is damaged", hint=hint)
    return Signer(key_id, key)


def verify(data: bytes, signature: bytes, keys: Sequence[str]) -> str:
    """Check that one of the public `keys` (as minisign prints them, `RW…`) signed `data`; the
    comment that was signed too.

    Raises:
        ConfigError: a key is not one.
        RegistryError: none did.
    """
    refused = "do not use it, or add the key of its maker to image_keys"
    try:
        _, first, comment, last = signature.decode().splitlines()
        algorithm, key_id, signed = _SIGNATURE.unpack(base64.b64decode(first, validate=True))
        whole = base64.b64decode(last, validate=True)
    except (ValueError, struct.error) as error:
        raise RegistryError("the artifact's signature is not one of minisign's", hint=refused) from error
    known = dict(_parse_public(key) for key in keys)
    if algorithm != _PREHASHED or key_id not in known or not comment.startswith(_TRUSTED):
        raise RegistryError(f"the artifact is signed with the key {key_id[::-1].hex().upper()}, which is not in image_keys", hint=refused)
    try:
        known[key_id].verify(hashlib.blake2b(data).digest(), signed)
        known[key_id].verify(signed + comment.removeprefix(_TRUSTED).encode(), whole)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError) as error:
        raise RegistryError("the artifact's signature is not of this artifact", hint="it was changed: do not use it") from error
    return comment.removeprefix(_TRUSTED)


def _parse_public(text: str) -> tuple[bytes, nacl.signing.VerifyKey]:
    try:
        algorithm, key_id, key = _PUBLIC.unpack(base64.b64decode(text, validate=True))
        if algorithm != _ALGORITHM:
            raise ValueError("of another algorithm")
        return key_id, nacl.signing.VerifyKey(key)
    except (binascii.Error, ValueError, struct.error) as error:
        raise ConfigError(f"image_keys: {text[:80]!r} is not a public key of minisign's", hint="it begins with RW; see FILE.pub") from error


def push_signature(target: RegistrySource, document: bytes, signature: bytes) -> None:
    """Put the signature of the artifact whose manifest is `document` beside it."""
    empty = b"{}"
    subject = descriptor_of(MANIFEST_TYPE, document)
    manifest = write_artifact(ARTIFACT_TYPE, descriptor_of(EMPTY_TYPE, empty), [descriptor_of(SIGNATURE_TYPE, signature)], subject)
    beside = target.under(_tag(document))
    for data in (empty, signature):
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            beside.push(Path(file.name), digest_of(data))
    beside.push_manifest(manifest, MANIFEST_TYPE)


def fetch_signature(source: Source, document: bytes) -> bytes:
    """The signature of the artifact whose manifest is `document`.

    Raises:
        RegistryError: there is none, or it cannot be had.
    """
    hint = "have it signed: imagegen push --sign-with FILE; or take image_keys out of the configuration"
    if isinstance(source, LayoutSource):
        try:
            with (source.reference.path / FILE).open("rb") as file:
                return file.read(MAX_KEY)
        except OSError as error:
            raise RegistryError(f"{source.reference} has no signature", hint=hint) from error
    if not isinstance(source, RegistrySource):
        raise RegistryError("there is no signature", hint=hint)
    beside = source.under(_tag(document))
    try:
        layers = read_artifact(beside).layers
        if [layer.media_type for layer in layers] != [SIGNATURE_TYPE] or layers[0].size > MAX_KEY:
            raise RegistryError(f"what is under {_tag(document)} is not a signature")
        return fetch_document(beside, layers[0])
    except RegistryError as error:
        raise RegistryError(f"no signature of {short(digest_of(document))}…: {error.message}", hint=hint) from error


def _tag(document: bytes) -> str:
    return f"{digest_of(document).replace(':', '-')}.minisig"
