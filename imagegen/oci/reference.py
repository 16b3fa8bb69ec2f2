"""What names an image: `registry/repository:tag@digest` as docker reads it, or `oci:FOLDER[:NAME]`
for a layout on this disk.
"""

import dataclasses
import ipaddress
import re
from pathlib import Path

from mayfly.errors import ConfigError
from mayfly.imagegen.digests import is_digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_LAYOUT_NAME = 512
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_FORM = "write it as registry/repository:tag, repository@sha256:DIGEST or oci:FOLDER[:NAME]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegistryReference:
    """An image in a registry. `tag` is None only where a digest was given without one; the digest
    wins.
    """

    registry: str
    repository: str
    tag: str | None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def endpoint(self) -> str:
        """The host[:port] that serves the API; Docker Hub's differs from the name in its
        references.
        """
        return "registry-1.docker.io" if self.registry == DEFAULT_REGISTRY else self.registry

    @property
    def target(self) -> str:
        """What to ask the manifests endpoint for."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this host, where plain http shows nothing to anyone."""
        return is_loopback(re.sub(r":[0-9]+$", "", self.registry).strip("[]"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutReference:
    """An OCI image layout in a folder. `tag` is the name of an image in its index: a tag or a whole
    reference (OCI image-spec, annotations.md, org.opencontainers.image.ref.name), None for the only
    one.
    """

    path: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"oci:{self.path}{f':{self.tag}' if self.tag else ''}"


Reference = RegistryReference | LayoutReference


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address without port or brackets, is this one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_reference(text: str) -> Reference:
    """Parse what the user wrote after `--image`.

    A first component with a dot, a colon or a capital letter, or `localhost`, is a registry;
    otherwise it is docker.io, where a lone component is in `library/`.

    Raises:
        ConfigError: it has none of these forms.
    """
    if text.startswith("oci:"):
        return _parse_layout(text)
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise ConfigError(f"image reference {text!r}: {digest!r} is not a digest (sha256:64 or sha512:128 hex digits)", hint=_FORM)
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, path = first, remainder
    else:
        registry, path = DEFAULT_REGISTRY, rest
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    repository, colon, tag = path.partition(":")
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    if not _HOST.fullmatch(registry):
        raise ConfigError(f"image reference {text!r}: {registry!r} is not a host name", hint=_FORM)
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise ConfigError(f"image reference {text!r}: {repository!r} is not a repository name", hint=_FORM)
    if colon and not _TAG.fullmatch(tag):
        raise ConfigError(f"image reference {text!r}: {tag!r} is not a tag", hint=_FORM)
    return RegistryReference(registry=registry, repository=repository, tag=tag or (None if at else DEFAULT_TAG), digest=digest or None)


def _parse_layout(text: str) -> LayoutReference:
    """As skopeo reads it: the folder ends at the first colon, and all behind that is the name."""
    path, _, name = text.removeprefix("oci:").partition(":")
    if not path:
        raise ConfigError(f"image reference {text!r} names no folder", hint=_FORM)
    if len(name) > MAX_LAYOUT_NAME or not name.isprintable() or " " in name:
        raise ConfigError(f"image reference {text!r}: {name!r} is not the name of an image in a layout", hint=_FORM)
    return LayoutReference(path=Path(path), tag=name or None)
