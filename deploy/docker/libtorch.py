"""Takes out of installed wheels what foil-worker loads: `libtorch.py SITE_PACKAGES DIR`.

DIR gets `lib` (libtorch), `nvidia` (CUDA's libraries, where the wheel of torch is one for CUDA; else empty) and `licenses`, and
nothing of Python. Files are hard links where that is possible. If DIR has bin/foil-worker, all that it and its
libraries name must be there or in the system's own library.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Parts of torch that serve its Python side.
UNUSED = re.compile(r"libtorch_python|libshm")
# The driver's, which its host brings, and those of every base image.
OF_THE_SYSTEM = re.compile(r"libcuda\.so|libnvidia-ml\.so|lib(c|m|dl|rt|pthread|util|gcc_s|stdc\+\+)\.so|ld-linux")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: libtorch.py SITE_PACKAGES DIR")
    site, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    if not (site / "torch" / "lib" / "libtorch_cpu.so").is_file():
        sys.exit(f"libtorch.py: {site} holds no torch; scripts/setup installs it into .venv")
    for name in ("lib", "nvidia", "licenses"):
        shutil.rmtree(target / name, ignore_errors=True)
        (target / name).mkdir(parents=True)
    for library in sorted((site / "torch" / "lib").glob("*.so*")):
        if not UNUSED.match(library.name):
            link(library, target / "lib" / library.name)
    for library in sorted((site / "nvidia").glob("*/lib/*.so*")):
        link(library, target / library.relative_to(site))
    for wheel in wheels(site):
        for path in wheel.files or []:
            if ".dist-info/" in str(path) and re.search(r"(?i)licen[cs]e|notice|eula", path.name):
                link(site / path, target / "licenses" / wheel.name / path.name)
    missing = missing_libraries(target)
    if missing:
        sys.exit(
            f"libtorch.py: foil-worker needs {', '.join(sorted(missing))}, of which {site} has nothing: was it built with another torch?"
        )


def wheels(site: Path) -> list[importlib.metadata.Distribution]:
    """The wheels of torch and of NVIDIA that hold libraries; some hold headers only."""
    found = importlib.metadata.distributions(path=[str(site)])
    chosen = [
        wheel for wheel in found if re.match(r"torch$|nvidia[-_]", wheel.name) and any(".so" in path.name for path in wheel.files or [])
    ]
    return sorted(chosen, key=lambda wheel: wheel.name)


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def missing_libraries(target: Path) -> set[str]:
    """Names of libraries that foil-worker or a library that it needs asks for, and that are not in DIR."""
    libraries = {path.name: path for path in [*(target / "lib").iterdir(), *target.glob("nvidia/*/lib/*")]}
    needed, seen, missing = list(target.glob("bin/foil-worker")), set(), set()
    while needed:
        listed = subprocess.run(["readelf", "--dynamic", "--wide", needed.pop()], check=True, capture_output=True, text=True).stdout
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", listed):
            if name in seen or OF_THE_SYSTEM.match(name):
                continue
            seen.add(name)
            if name in libraries:
                needed.append(libraries[name])
            else:
                missing.add(name)
    return missing


if __name__ == "__main__":
    main()
