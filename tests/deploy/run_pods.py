"""scripts/check-deploy --run: the rendered pods of the overlay s3 run a job, on podman instead of a cluster.

Two coordinators with TLS and tokens, two agents of one rank each, and a store that speaks S3. `foil submit` from outside
submits a small letters job; while it runs, the leader's pod is killed and made again, and then an agent's pod is drained and made
again. The job's models are bit for bit those of an undisturbed `foil run` of the same file. Where Prometheus is installed, it
scrapes the pods by the chart's monitors: every panel of the dashboards has data of the job, and each alert about a pod that is
gone fires alone. The agents serve their metrics without TLS during the job, and with it after that.

Not shown by podman: scheduling, admission, rollouts, restarts by probes, and NetworkPolicies.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import check
import engine
import monitoring
import panels
import pods
from credentials import new_certificate, secrets
from pages import page

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "deploy" / "jobs" / "letters.yaml"
# As tests/src/run.rs shrinks it, but long enough to be disturbed.
SMALL = [
    "rounds=2",
    "data.generator={name: letters, sft: 2000, golden: 192, prompts: 192, evaluation: 64}",
    "data.gold_preferences={pairs: 256, evaluation_pairs: 64, beta: 2}",
    "sft_step.epochs=4",
    "reward_step.epochs=2",
    "policy_step.epochs=16",
    "policy_step.batch_sequences=8",
    "evaluation.kl_prompts=16",
    "resources.ranks=2",
]
DEADLINE = 900


def say(text: str) -> None:
    print(f"\033[1m==>\033[0m {text}", flush=True)


def wait_for(what: str, condition, deadline: float = DEADLINE):
    """The first value of `condition` that is not false."""
    began = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - began < deadline, f"{what}: not within {deadline} seconds"
        time.sleep(0.2)
    return value


class Service:
    """The pods of the overlay, a store for them, and a client outside of them."""

    def __init__(self, directory: Path, foil: Path, images: dict[str, str], running: contextlib.ExitStack):
        self.directory, self.foil = directory, foil
        self.network = engine.Network(f"foil-check-{os.getpid()}", running)
        self.pods: dict[str, engine.Pod] = {}
        self.known_leader = ""
        self.objects = check.objects(check.run("kubectl", "kustomize", check.KUSTOMIZE / "overlays" / "s3"))
        self.sets = pods.names(self.objects)
        # What the overlay leaves to the operators of cert-manager and Prometheus, as the chart has it.
        self.optional = self.chart(without=("nameOverride", "metricsTlsSecret"))
        self.cluster = pods.Cluster(check.NAMESPACE, {}, {}, images, directory / "volumes")
        for name, stateful_set in self.sets.items():
            self.cluster.addresses[name] = stateful_set["spec"]["serviceName"], self.network.address()
        certificate = self.optional["Certificate", "foil"]
        self.cluster.secrets = secrets(directory, foil, certificate) | {"foil-store": self.start_store(running)}
        self.token = directory / "ada.token"
        running.push(self.stop)

    def chart(self, without: tuple[str, ...]) -> dict:
        """The chart's objects with the values s3 and everything optional but some."""
        chosen = [value for value in check.EVERYTHING if not any(name in value for name in without)]
        optional = [part for value in chosen for part in ("--set", value)]
        return check.objects(check.template("--values", check.CHART / "values" / "s3.yaml", *optional))

    def protect_metrics(self) -> None:
        """Makes the agents' pods again, as `worker.metricsTlsSecret` has them."""
        self.optional = self.chart(without=("nameOverride",))
        certificate = self.optional["Certificate", "foil-worker"]["spec"]
        made = new_certificate(self.directory, certificate["secretName"], certificate["dnsNames"])
        self.cluster.secrets[certificate["secretName"]] = made
        protected = pods.names(self.optional)
        for name in self.of("worker"):
            # OpenTelemetry has no collector here.
            self.sets[name] = without_otlp(protected[name])
            self.start(name)
            status, said = page(f"http://{self.pods[name].ip}:9100/metrics")
            assert status != 200, f"{name} serves its metrics without TLS too: {said[:200]}"

    def start_store(self, running: contextlib.ExitStack) -> dict[str, str]:
        """Starts moto on the network's gateway; gives the Secret by which coordinators reach it."""
        with socket.socket() as free:
            free.bind((self.network.gateway, 0))
            port = free.getsockname()[1]
        moto = ROOT / ".venv-stores" / "bin" / "moto_server"
        log = (self.directory / "store.log").open("w")
        store = subprocess.Popen([moto, "--host", self.network.gateway, "--port", str(port)], stdout=log, stderr=log)
        running.callback(store.kill)
        endpoint = f"http://{self.network.gateway}:{port}"
        wait_for("the store", lambda: page(f"{endpoint}/moto-api/")[0] == 200)
        engine.run("curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--request", "PUT", f"{endpoint}/foil")
        return {
            "AWS_ENDPOINT": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def start(self, name: str) -> None:
        """Makes a pod, as its StatefulSet does, and waits for its probes."""
        if name in self.pods:
            self.pods[name].kill()
        document = pods.pod(name, self.sets[name], self.cluster)
        self.pods[name] = engine.Pod(document, self.network, self.cluster.addresses[name][1], self.directory)
        for probe in pods.PROBES:
            wait_for(f"{probe} of {name}", lambda probe=probe: self.probe(name, probe) == 200)

    def probe(self, name: str, probe: str) -> int:
        scheme, port, path = pods.probes(self.sets[name])[probe]
        return page(f"{scheme}://{self.pods[name].ip}:{port}{path}")[0]

    def of(self, component: str) -> list[str]:
        label = "app.kubernetes.io/component"
        return [name for name, document in self.sets.items() if document["metadata"]["labels"][label] == component]

    def leader(self) -> str:
        """The coordinator that leads, by its metrics."""
        leads = lambda: [name for name in self.of("coordinator") if "\nfoil_leader 1\n" in self.metrics(name)]
        (found,) = wait_for("one leader", leads)
        return found

    def metrics(self, name: str) -> str:
        return page(f"https://{self.pods[name].ip}:7070/metrics", self.cluster.secrets["foil-metrics-token"]["token"])[1]

    def client(self, *arguments: str | Path, url: str | None = None) -> str:
        """A command of `foil` on this machine, for which the pods' names are in a /etc/hosts of its own."""
        hosts = self.directory / "hosts"
        names = pods.host_names(self.cluster)
        # The Service for clients: here a standby, so that it has to send them to the leader.
        standby = next((name for name in self.of("coordinator") if name != self.known_leader), self.known_leader)
        lines = [f"{ip} {name}" for name, ip in names.items()] + [f"{self.pods[standby].ip} foil.{check.NAMESPACE}.svc"]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        urls = ",".join(f"https://{name}:7070" for name in names if "coordinator" in name)
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "FOIL_COORDINATOR": url or urls}
        environment |= {"FOIL_TLS_CA": str(self.directory / "ca.crt"), "FOIL_TOKEN_FILE": str(self.token)}
        inside = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return engine.run("unshare", "--mount", "sh", "-c", inside, hosts, self.foil, *arguments, env=environment)

    def job(self, job: str) -> dict:
        return json.loads(self.client("get", job, "-o", "json"))

    def stop(self, kind: type | None, *_rest) -> None:
        for pod in self.pods.values():
            if kind is not None:
                print(f"--- {pod.name}\n{pod.log()[-4000:]}")
            pod.kill()
        for mounted in (self.directory / "volumes").glob("*/*"):
            if mounted.is_mount():
                engine.run("umount", mounted)


def without_otlp(stateful_set: dict) -> dict:
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    container["env"] = [entry for entry in container["env"] if not entry["name"].startswith("OTEL_")]
    container.pop("envFrom", None)
    return stateful_set


def has_reached(job: dict, phase: str) -> bool:
    ids = [each["id"] for each in job["plan"]["phases"]]
    assert job["state"] != "succeeded", f"the job ended before {phase} was seen"
    assert job["state"] not in ("failed", "cancelled"), job
    return job.get("phase") in ids[ids.index(phase) :]


def is_training(job: dict, phase: str) -> bool:
    """Whether a job has taken some steps of a phase."""
    has_reached(job, phase)
    progress = job.get("progress") or {}
    return progress.get("phase") == phase and progress["unit"] == "steps" and int(progress.get("done", 0)) > 3


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.rglob("*.safetensors"))
    }


def undisturbed(directory: Path, foil: Path) -> dict[str, str]:
    """The models that `foil run` makes of the job on this machine."""
    out = directory / "undisturbed"
    engine.run(foil, "run", JOB, *settings(), "--json", "--out", out, cwd=directory)
    return hashes(out)


def settings() -> list[str]:
    return [part for value in SMALL for part in ("--set", value)]


def start_pods(service: Service) -> None:
    for name in service.sets:
        service.start(name)
        state = service.pods[name].inspect()
        limit = service.sets[name]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        host = state["HostConfig"]
        assert host["ReadonlyRootfs"] and state["Config"]["User"].startswith("65532"), f"{name}: {host}"
        assert host["Memory"] == int(limit.removesuffix("Gi")) << 30, f"{name}: memory limit {host['Memory']}"
        service.pods[name].check_health()
    service.known_leader = service.leader()
    connected = f'foil_agents{{state="connected"}} {len(service.of("worker"))}\n'
    wait_for("all agents", lambda: connected in service.metrics(service.known_leader))
    say(f"{service.known_leader} leads, and the agents are connected")


def disturb(service: Service, job: str) -> None:
    wait_for("training of a reward model", lambda: has_reached(service.job(job), "r01.reward.train"))
    killed, began = service.known_leader, time.monotonic()
    service.pods[killed].kill()
    service.known_leader = next(name for name in service.of("coordinator") if name != killed)
    assert service.leader() == service.known_leader
    say(f"killed {killed}; {service.known_leader} leads after {time.monotonic() - began:.1f} s")
    service.start(killed)
    assert service.job(job)["attempt"] == 1, "the ranks were to continue with the next leader"

    wait_for("training of the policy", lambda: is_training(service.job(job), "r01.policy.train"))
    drained, began = service.of("worker")[-1], time.monotonic()
    status = service.pods[drained].drain()
    assert status == 143, f"a drained agent exits with 143, not {status}: {service.pods[drained].log()[-2000:]}"
    say(f"drained {drained} in {time.monotonic() - began:.1f} s, exit status {status}")
    assert "its checkpoint is written" in service.pods[service.known_leader].log(), "the drained rank kept no checkpoint"
    service.start(drained)


def play(service: Service) -> dict[str, str]:
    """The models of a job that is disturbed."""
    job = service.client("submit", JOB, *settings(), url=f"https://foil.{check.NAMESPACE}.svc:7070").strip()
    disturb(service, job)
    ended = wait_for("the job's end", lambda: (found := service.job(job))["state"] in ("succeeded", "failed") and found)
    assert ended["state"] == "succeeded", ended
    assert ended["attempt"] == 2, f"one attempt was to be interrupted, and not {ended['attempt'] - 1}"
    resumed = [name for name in service.of("worker") if "training resumes from a checkpoint" in service.pods[name].log()]
    assert resumed == service.of("worker"), f"only {resumed} resumed from the checkpoint"
    say("the job has succeeded in its second attempt, from the checkpoint")
    results = service.directory / "disturbed"
    service.client("pull", job, results)
    return hashes(results)


def start_prometheus(service: Service, name: str, running: contextlib.ExitStack) -> monitoring.Prometheus:
    files = {("foil-metrics-token", "token"): service.directory / "prometheus.token", ("foil-tls", "ca.crt"): service.directory / "ca.crt"}
    labels = {name: document["spec"]["template"]["metadata"]["labels"] for name, document in service.sets.items()}
    addresses = {name: ip for name, (_, ip) in service.cluster.addresses.items()}
    config = monitoring.configuration(service.objects | service.optional, addresses, labels, files)
    prometheus = monitoring.Prometheus(service.directory / name, config, service.optional["PrometheusRule", "foil"]["spec"])
    running.callback(prometheus.stop)
    wait_for("scrapes of all pods", lambda: not prometheus.unhealthy(), 30)
    scraped = sorted(each["metric"]["pod"] for each in prometheus.query("up == 1"))
    assert scraped == sorted(service.sets), f"each pod is to be scraped once, but scraped are {scraped}"
    wait_for("all rules", lambda: not prometheus.broken_rules(), 30)
    wait_for("a time without alerts", lambda: not prometheus.alerts(), 30)
    say(f"Prometheus scrapes {len(scraped)} pods, and no alert is pending")
    return prometheus


def check_panels(prometheus: monitoring.Prometheus, began: float, picture: Path | None) -> None:
    """Every panel of the dashboards has data of the job's time."""
    wait_for("a scrape of the job's end", lambda: prometheus.query('max(foil_jobs{state="succeeded"}) == 1'), 30)
    ended = time.time()
    gathered, problems = panels.gather(prometheus, began, ended)
    if picture:
        panels.draw(gathered, ended - began, picture)
        say(f"the dashboards are drawn in {picture}")
    assert not problems, "panels without data:\n" + "\n".join(problems)
    say(f"all {sum(len(shown) for _, shown in gathered)} panels of {len(gathered)} dashboards have data")


def alarm(service: Service, prometheus: monitoring.Prometheus) -> None:
    """Each kind of pod dies and stays away: the alert that is about it fires, and no other; with the pod back, it ends."""
    firing = lambda: sorted(name for name, state in prometheus.alerts().items() if state == "firing")
    for component, alert in {"worker": "FoilAgentDown", "coordinator": "FoilCoordinatorDown"}.items():
        name = service.of(component)[0]
        service.pods[name].kill()
        wait_for(f"{alert} for {name}", lambda alert=alert: alert in firing(), 60)
        assert firing() == [alert], f"without {name} fire {firing()}"
        say(f"without {name} fires {alert} alone")
        service.start(name)
        wait_for(f"the end of {alert}", lambda: not firing(), 60)


def prepare(directory: Path, package: Path | None) -> tuple[Path, dict[str, str]]:
    """The images, and `foil` of the same build with all that `foil run` needs."""
    if package is None:
        package = directory / "packages"
        profile = "dev" if (ROOT / "target" / "debug" / "foil").exists() else "release"
        say(f"making packages ({profile})")
        engine.run(ROOT / "scripts" / "package", "--profile", profile, "--output", package, timeout=3600)
    unpacked = directory / "package"
    unpacked.mkdir()
    for archive in package.glob("*.tar.gz"):
        engine.run("tar", "--extract", "--file", archive, "--directory", unpacked, "--strip-components=1")
    if not (unpacked / "bin").is_dir():
        shutil.copytree(package / "bin", unpacked / "bin")
    (unpacked / "lib").symlink_to((ROOT / ".venv" / "site-packages" / "torch" / "lib").resolve())
    contents = directory / "images"
    base = "debootstrap" if shutil.which("debootstrap") else "docker.io/library/debian:trixie-slim"
    say("building the images")
    builder = [ROOT / "scripts" / "images", "--engine", "podman", "--package", package, "--output", contents, "--base", base]
    engine.run(*builder, timeout=1800, env={**os.environ, "BUILDAH_ISOLATION": "chroot"})
    built = [json.loads(path.read_text())["metadata"]["component"] for path in contents.glob("*.cdx.json")]
    engine.make_pause("docker.io/library/debian:trixie-slim")
    return unpacked / "bin" / "foil", {image["name"]: f"localhost/{image['name']}:{image['version']}" for image in built}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--package", type=Path, help="binaries that scripts/package has made")
    arguments.add_argument("--panels", type=Path, metavar="FILE.png", help="draw the dashboards' panels")
    given = arguments.parse_args()
    if reason := engine.missing():
        print(f"skipped: the rendered pods are not run ({reason})")
        return
    with tempfile.TemporaryDirectory(prefix="foil-check-") as scratch:
        directory = Path(scratch)
        engine.configure(directory)
        foil, images = prepare(directory, given.package)
        say("running the job undisturbed")
        expected = undisturbed(directory, foil)
        with contextlib.ExitStack() as running:
            service = Service(directory, foil, images, running)
            start_pods(service)
            has_prometheus, began = shutil.which("prometheus") is not None, time.time()
            watching = start_prometheus(service, "job", running) if has_prometheus else None
            found = play(service)
            assert expected and found == expected, f"the models differ: {found} and, undisturbed, {expected}"
            say(f"its {len(found)} models are those of an undisturbed run, bit for bit")
            if watching:
                check_panels(watching, began, given.panels)
                watching.stop()
            service.protect_metrics()
            say("the agents serve their metrics by TLS alone")
            if has_prometheus:
                alarm(service, start_prometheus(service, "alarm", running))
            else:
                print("skipped: the panels and alerts (Prometheus is not installed: apt install prometheus)")


if __name__ == "__main__":
    main()
