"""podman: a network, the pods on it, and a base for a network's services. For root, also in a container without systemd."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

PAUSE = "localhost/foil-check-pause:1"


def missing() -> str | None:
    """Why pods cannot be run here."""
    if shutil.which("podman") is None:
        return "podman is not installed: apt install podman"
    if os.geteuid() != 0:
        return "it needs root, for networks and owners of volumes"
    return None


def run(*command: str | Path, timeout: float = 600, **more) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, **more)
    if done.returncode != 0:
        raise SystemExit(f"check-deploy: `{' '.join(map(str, command))}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def configure(directory: Path) -> None:
    """Settings for all of podman's later calls: the pods' own image of the sandbox, and no systemd where there is none."""
    settings = ["[engine]", f'infra_image = "{PAUSE}"']
    if not Path("/run/systemd/system").is_dir():
        settings.append('cgroup_manager = "cgroupfs"')
        settings.append('events_logger = "file"')
        if shutil.which("runc"):
            settings.append('runtime = "runc"')
        # A container may not raise its own limits.
        settings += ["[containers]", 'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]']
    (directory / "containers.conf").write_text("\n".join(settings) + "\n")
    os.environ.setdefault("CONTAINERS_CONF", str(directory / "containers.conf"))


def has_image(name: str) -> bool:
    return subprocess.run(["podman", "image", "exists", name]).returncode == 0


def make_pause(base: str) -> None:
    """The image of the process that holds a pod's network."""
    with tempfile.TemporaryDirectory() as context:
        (Path(context) / "Containerfile").write_text(f'FROM {base}\nSTOPSIGNAL SIGKILL\nCMD ["sleep", "infinity"]\n')
        run("podman", "build", "--quiet", "--tag", PAUSE, context, env={**os.environ, "BUILDAH_ISOLATION": "chroot"})


class Network:
    """A bridge network, and fixed addresses for pods on it."""

    def __init__(self, name: str, running: contextlib.ExitStack):
        self.name = name
        run("podman", "network", "create", name)
        running.callback(run, "podman", "network", "rm", "--force", "--time", "0", name)
        (subnet,) = json.loads(run("podman", "network", "inspect", name))[0]["subnets"]
        self.gateway = subnet["gateway"]
        self._next = 10
        # The bridge is there as long as a container is on it.
        run("podman", "run", "--detach", "--network", name, "--entrypoint", "sleep", PAUSE, "infinity")

    def address(self) -> str:
        self._next += 1
        return f"{self.gateway.rpartition('.')[0]}.{self._next}"


class Pod:
    """A pod of one container, which is made, killed, drained and made again as its StatefulSet would do."""

    def __init__(self, document: dict, network: Network, ip: str, directory: Path):
        self.name, self.ip = document["metadata"]["name"], ip
        (container,) = document["spec"]["containers"]
        self.container = f"{self.name}-{container['name']}"
        self._grace = document["spec"]["terminationGracePeriodSeconds"]
        self._network = network.name
        self._file = directory / f"{self.name}.yaml"
        self._file.write_text(yaml.safe_dump(document))
        self.start()

    def start(self) -> None:
        run("podman", "kube", "play", "--quiet", "--network", self._network, "--ip", self.ip, self._file)

    def kill(self) -> None:
        """Ends it without notice."""
        run("podman", "pod", "rm", "--force", "--time", "0", "--ignore", self.name)

    def drain(self) -> int:
        """Asks it to end, as an eviction does; gives its exit status."""
        run("podman", "stop", "--time", str(self._grace), self.container, timeout=self._grace + 60)
        return self.state()["ExitCode"]

    def state(self) -> dict:
        return self.inspect()["State"]

    def inspect(self) -> dict:
        return json.loads(run("podman", "container", "inspect", self.container))[0]

    def check_health(self) -> None:
        """Makes the check of the image's HEALTHCHECK, of which Kubernetes takes no notice."""
        (image,) = json.loads(run("podman", "image", "inspect", self.inspect()["Image"]))
        run("podman", "exec", self.container, *image["Healthcheck"]["Test"][1:])

    def log(self) -> str:
        done = subprocess.run(["podman", "logs", self.container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout
