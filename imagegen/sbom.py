"""What an image is made of, as an SPDX document (SPDX specification 2.3, JSON): the system's
packages of which something is left, and the language's own.
"""

import datetime
import re
import urllib.parse
import uuid
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from mayfly.images.manifest import Manifest, Package

NONE = "NOASSERTION"
IMAGE = "SPDXRef-Image"


def spdx(manifest: Manifest, created: datetime.datetime) -> dict[str, Any]:
    """The document for an image that was made at `created` (UTC)."""
    name = f"{manifest.language}-{manifest.version}-{manifest.arch}"
    image = {
        **_package(IMAGE, name, manifest.version, manifest.source.reference),
        "checksums": [_checksum(manifest.initramfs_digest)],
        "primaryPackagePurpose": "CONTAINER",
    }
    system = manifest.distribution or "debian"
    contents = [_system(name, version, system) for name, version in manifest.system.items()]
    contents += {found["SPDXID"]: found for found in map(_own, manifest.packages)}.values()  # npm may have one at several places
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": uuid.uuid5(uuid.NAMESPACE_URL, manifest.to_json()).urn,
        "creationInfo": {"created": created.strftime("%Y-%m-%dT%H:%M:%SZ"), "creators": [f"Tool: {manifest.generator.replace(' ', '-')}"]},
        "packages": [image, *contents],
        "relationships": [
            {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": IMAGE},
            *({"spdxElementId": IMAGE, "relationshipType": "CONTAINS", "relatedSpdxElement": found["SPDXID"]} for found in contents),
        ],
    }


def _package(ref: str, name: str, version: str, source: str, license_: str = "") -> dict[str, Any]:
    try:
        declared = str(canonicalize_license_expression(license_)) if license_ else NONE
    except InvalidLicenseExpression:
        declared = NONE
    return {
        "SPDXID": ref,
        "name": name,
        "versionInfo": version,
        "downloadLocation": source if re.match(r"https?://", source) else NONE,
        "filesAnalyzed": False,
        "licenseConcluded": NONE,
        "licenseDeclared": declared,
        "copyrightText": NONE,
    }


def _system(name: str, version: str, system: str) -> dict[str, Any]:
    url = f"pkg:deb/{system}/{_quoted(name)}@{_quoted(version)}"
    return {**_package(_ref("deb", name, version), name, version, ""), "externalRefs": [_external(url)]}


def _own(package: Package) -> dict[str, Any]:
    path = "/".join(_quoted(part) for part in package.name.split("/"))
    found = _package(_ref(package.kind, package.name, package.version), package.name, package.version, package.source, package.license)
    found["externalRefs"] = [_external(f"pkg:{package.kind}/{path}@{_quoted(package.version)}")]
    if package.digest:
        found["checksums"] = [_checksum(package.digest)]
    return found


def _external(url: str) -> dict[str, str]:
    return {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}


def _checksum(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {"algorithm": algorithm.upper(), "checksumValue": value}


def _ref(kind: str, name: str, version: str) -> str:
    """An identifier: letters, digits, dots and dashes (SPDX, Package SPDX identifier field)."""
    return f"SPDXRef-{re.sub('[^A-Za-z0-9.-]', '-', f'{kind}-{name}-{version}')}"


def _quoted(text: str) -> str:
    """A part of a package URL."""
    return urllib.parse.quote(text, safe="")
