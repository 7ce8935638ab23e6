"""Writes what is in an image beyond its base, as a CycloneDX document: crates that a program links, and wheels.

usage: sbom.py IMAGE VERSION --crate NAME [--crate NAME …] [--site-packages DIR]     (run in the checkout)

Crates are those of `cargo tree` for this platform without build scripts and procedural macros, with the checksums of
Cargo.lock. The document depends on its inputs and SOURCE_DATE_EPOCH alone.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import uuid
from email.message import Message
from pathlib import Path

import tomllib

sys.path.insert(0, str(Path(__file__).parent))
from libtorch import wheels

TREE = ["cargo", "tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}\t{l}"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("image")
    arguments.add_argument("version")
    arguments.add_argument("--crate", action="append", required=True)
    arguments.add_argument("--site-packages", type=Path)
    given = arguments.parse_args()
    components = crates(given.crate)
    if given.site_packages:
        components += [wheel_component(wheel.metadata) for wheel in wheels(given.site_packages)]
    json.dump(document(given.image, given.version, components), sys.stdout, indent=1, ensure_ascii=False)
    print()


def document(image: str, version: str, components: list[dict]) -> dict:
    digest = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([image, version, components], sort_keys=True))
    made = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{digest}",
        "version": 1,
        "metadata": {
            "timestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "container", "name": image, "version": version},
        },
        "components": components,
    }


def crates(names: list[str]) -> list[dict]:
    listed = subprocess.run(TREE + [part for name in names for part in ("--package", name)], check=True, stdout=subprocess.PIPE, text=True)
    checksums = {}
    for package in tomllib.loads(Path("Cargo.lock").read_text())["package"]:
        checksums[package["name"], package["version"]] = package.get("checksum")
    found = {}
    for line in listed.stdout.splitlines():
        if not (match := re.match(r"(\S+) v(\S+).*\t(.*?)(?: \(\*\))?$", line)):
            continue
        name, version, license_ = match.groups()
        found[name, version] = crate_component(name, version, license_, checksums[name, version])
    return [found[key] for key in sorted(found)]


def crate_component(name: str, version: str, license_: str, checksum: str | None) -> dict:
    component = {"type": "library", "bom-ref": f"crate:{name}@{version}", "name": name, "version": version}
    # Crates of this checkout have no checksum and are in no registry.
    if checksum:
        component["purl"] = f"pkg:cargo/{name}@{version}"
        component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if license_:
        # Some old crates write MIT/Apache-2.0.
        component["licenses"] = [{"expression": license_.replace("/", " OR ")}]
    return component


def wheel_component(metadata: Message) -> dict:
    name, version = metadata["Name"], metadata["Version"]
    component = {"type": "library", "bom-ref": f"wheel:{name}@{version}", "name": name, "version": version}
    component["purl"] = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
    if metadata["License-Expression"]:
        component["licenses"] = [{"expression": metadata["License-Expression"]}]
    elif metadata["License"]:
        component["licenses"] = [{"license": {"name": metadata["License"].splitlines()[0]}}]
    return component


if __name__ == "__main__":
    main()
