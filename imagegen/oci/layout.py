"""Images in an OCI image layout on this disk (OCI image-spec, image-layout.md)."""

import dataclasses
from pathlib import Path

import msgspec

from mayfly.errors import ImageError, RegistryError
from mayfly.imagegen.digests import blob_path
from mayfly.imagegen.oci.documents import MAX_DOCUMENT, Descriptor, Document, read
from mayfly.imagegen.oci.reference import LayoutReference


@dataclasses.dataclass(frozen=True)
class LayoutSource:
    """Reads the layout that the reference names. Its blobs are used where they lie."""

    reference: LayoutReference

    def root(self) -> tuple[str, bytes]:
        """The layout's index, cut down to the entries of the reference's tag where it has one.

        Raises:
            ImageError: no layout there, no such name, or several and none was given.
        """
        folder = self.reference.path
        if not (folder / "index.json").is_file():
            raise ImageError(f"{folder} is not an OCI image layout", hint="make one with skopeo copy docker://… oci:FOLDER")
        version = _version(folder / "oci-layout")
        if version and not version.startswith("1."):
            raise ImageError(f"{folder} is a layout of version {version[:20]!r}, not of 1", hint="make one with skopeo copy")
        data = _read(folder / "index.json")
        try:
            document = read(Document, data, "index")
        except RegistryError as error:
            raise ImageError(f"{folder}/index.json is not an index") from error
        known = document.entries
        names = ", ".join(sorted({descriptor.tag for _, descriptor in known if descriptor.tag})) or "none"
        tag = self.reference.tag
        if tag is not None:
            known = tuple((entry, descriptor) for entry, descriptor in known if descriptor.tag == tag)
            if not known:
                raise ImageError(f"{folder} has no image with the name {tag!r}", hint=f"names there: {names}")
        elif len({descriptor.digest for _, descriptor in known if descriptor.platform_name is None}) > 1 and "," in names:
            raise ImageError(f"{folder} has several images", hint=f"say which by oci:{folder}:NAME; names there: {names}")
        return "", msgspec.json.encode({"schemaVersion": 2, "manifests": [entry for entry, _ in known]})

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or configuration from the blobs folder."""
        return _read(self.blob(descriptor))

    def blob(self, descriptor: Descriptor) -> Path:
        """The path of a blob; its contents are checked by who reads it."""
        path = blob_path(self.reference.path / "blobs", descriptor.digest)
        if not path.is_file():
            raise ImageError(f"{self.reference.path} lacks the blob {descriptor.digest}", hint="the layout is incomplete; make it again")
        return path


class _Marker(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The file `oci-layout`."""

    image_layout_version: str = ""


def _version(path: Path) -> str:
    """The version that the file `oci-layout` states, or "": skopeo does not ask for one."""
    try:
        return read(_Marker, _read(path), "layout").image_layout_version if path.exists() else ""
    except RegistryError:
        return ""


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ImageError(f"{path} is not a file", hint="the layout is incomplete; make it again")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_DOCUMENT:
        raise RegistryError(f"{path} has more than {MAX_DOCUMENT} bytes")
    return data
