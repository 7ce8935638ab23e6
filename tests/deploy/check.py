"""scripts/check-deploy: what can be known of the manifests without a cluster.

The chart is linted and rendered with each file of values; every object is validated against the schemas of each supported
version of Kubernetes and held against the rules of `policy`; each kustomization gives the same objects as the chart with the
values of its name; alerts have their cases; alerts and dashboards ask for series that exist.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import policy
import yaml

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "foil"
CHART = ROOT / "deploy" / "helm" / "foil"
KUSTOMIZE = ROOT / "deploy" / "kubernetes"
VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
# Everything optional at once, which no file of values asks for.
EVERYTHING = [
    "monitoring.serviceMonitor=true",
    "monitoring.prometheusRule=true",
    "monitoring.dashboards=true",
    "tls.certManager.enabled=true",
    "tls.certManager.issuerName=ca",
    "worker.kueueQueue=training",
    "worker.metricsTlsSecret=foil-worker-tls",
    "nameOverride=other",
    "workerPools.cpu.priorityClassName=batch",
    "otlp.endpoint=http://collector.monitoring:4317",
    "otlp.protocol=http/protobuf",
    "otlp.secret=foil-otlp",
    "trackers.mlflow=https://mlflow.example",
    "trackers.secret=foil-mlflow",
]
# Values that the schema refuses, and what it must name.
REFUSED = {
    "store.url=ftp://x": "/store/url",
    "store.url=s3://bucket/x?sig=secret": "/store/url",
    "workerPools.cpu.replica=3": "replica",
    "image.worker.tag=latest": "/image/worker/tag",
    "workerPools.cpu.device=tpu": "/workerPools/cpu/device",
    "otlp.endpoint=http://user:secret@collector:4317": "/otlp/endpoint",
    "otlp.protocol=http/json": "/otlp/protocol",
    "trackers.mlflow=https://user:secret@mlflow": "/trackers/mlflow",
}
# Labels that Prometheus adds to all series of a pod.
TARGET_LABELS = {"pod", "instance", "job", "namespace"}
# Kinds of operators, of which there is no schema here.
FOREIGN = ("Certificate", "ServiceMonitor", "PodMonitor", "PrometheusRule")


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"check-deploy: `{' '.join(map(str, command))}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def objects(text: str) -> dict[tuple[str, str], dict]:
    """The objects of a stream of documents by kind and name, without the namespace that only kustomize writes."""
    found = {}
    for document in yaml.safe_load_all(text):
        if document:
            document["metadata"].pop("namespace", None)
            key = document["kind"], document["metadata"]["name"]
            assert key not in found, f"{key} is there twice"
            found[key] = document
    return found


def template(*arguments: str | Path) -> str:
    return run("helm", "template", "foil", CHART, "--namespace", NAMESPACE, *arguments)


def differences(left, right, path: str = ""):
    if type(left) is not type(right):
        yield f"{path}: {left!r} and {right!r}"
    elif isinstance(left, dict):
        for key in sorted({*left, *right}, key=str):
            yield from differences(left.get(key), right.get(key), f"{path}/{key}")
    elif isinstance(left, list) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from differences(one, other, f"{path}/{index}")
    elif left != right:
        yield f"{path}: {left!r} and {right!r}"


def check_objects(name: str, found: dict, flags: dict[str, set[str]]) -> list[str]:
    problems = []
    for (kind, title), document in found.items():
        if kind in FOREIGN:
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{kind} {title} against {version}: {error.message} at {list(error.path)}")
                break
    problems += policy.problems(found, flags)
    return [f"{name}: {problem}" for problem in problems]


def check_refusals() -> list[str]:
    problems = []
    for value, named in REFUSED.items():
        done = subprocess.run(["helm", "template", "foil", CHART, "--set", value], capture_output=True, text=True)
        if done.returncode == 0 or named not in done.stderr:
            problems.append(f"--set {value} should be refused with a message that names {named}: {done.stderr}")
    return problems


def known_metrics() -> dict[str, set[str]]:
    """The series of deploy/README.md with their labels; a test holds its table against the sources."""
    row = re.compile(r"^\| `(foil_\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)
    known = {}
    for name, kind, labels in row.findall((ROOT / "deploy" / "README.md").read_text()):
        own = set(re.findall(r"`(\w+)`", labels)) | TARGET_LABELS
        known[name] = own
        if kind == "histogram":
            known |= {name + "_bucket": own | {"le"}, name + "_sum": own, name + "_count": own}
    assert len(known) > 20, "the table of metrics in deploy/README.md is not where it is expected"
    return known


def wrong_labels(expression: str, known: dict[str, set[str]]) -> list[str]:
    """Labels in a query that none of its series has: in matchers of a series, and after `by`."""
    named = re.findall(r"\b(foil_\w+)(?:\{([^}]*)\})?", expression)
    wrong = []
    for name, matchers in named:
        wrong += [f"{name} has no label {label}" for label in re.findall(r"(\w+)\s*[=!]", matchers) if label not in known[name]]
    all_labels = set().union(*(known[name] for name, _ in named))
    for group in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        wrong += [f"nothing in it has the label {label}" for label in re.findall(r"\w+", group) if label not in all_labels]
    return wrong


def queries() -> list[tuple[str, str]]:
    """All expressions of dashboards and alerts, with the panel or alert that asks."""
    found = []
    for path in sorted((CHART / "monitoring").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.name}, {panel['title']}", target["expr"]) for target in panel.get("targets", [])]
    rules = yaml.safe_load((CHART / "monitoring" / "rules.yaml").read_text())
    found += [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    assert len(found) > 40, f"only {len(found)} queries were found"
    return found


def check_monitoring() -> list[str]:
    known, problems = known_metrics(), []
    for path in sorted([*(CHART / "monitoring").iterdir(), *(KUSTOMIZE / "examples").iterdir()]):
        unknown = sorted(set(re.findall(r"\bfoil_\w+", path.read_text())) - set(known))
        problems += [f"{path.name} asks for {name}, which nothing records" for name in unknown]
    if problems:
        return problems
    for where, expression in queries():
        problems += [f"{where}: `{expression}`: {wrong}" for wrong in wrong_labels(expression, known)]
    rules = yaml.safe_load((CHART / "monitoring" / "rules.yaml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    operations = (ROOT / "deploy" / "README.md").read_text()
    cases = (ROOT / "tests" / "deploy" / "alerts.test.yaml").read_text()
    for alert in alerts:
        if f"### {alert}\n" not in operations:
            problems.append(f"deploy/README.md has no section on {alert}")
        if f"alertname: {alert}\n" not in cases:
            problems.append(f"alerts.test.yaml has no case in which {alert} fires")
    return problems


def flags_of(program: str, *arguments: str) -> set[str] | None:
    """The long options of a built program; none if it is not built."""
    for profile in ("debug", "release"):
        path = ROOT / "target" / profile / program
        if path.exists():
            return set(re.findall(r"--[a-z][-a-z]+", run(path, *arguments, "--help")))
    print(f"skipped: the arguments of {program} in the manifests (it is not built)")
    return None


def main() -> None:
    flags = {"coordinator": flags_of("foil", "serve"), "agent": flags_of("foil-worker")}
    run("helm", "lint", "--strict", CHART)
    base = re.sub(r"^# Source: .*\n", "", template(), flags=re.MULTILINE)
    if "--render" in sys.argv:
        (KUSTOMIZE / "base" / "foil.yaml").write_text(base)
    problems = check_refusals() + check_monitoring()
    if (KUSTOMIZE / "base" / "foil.yaml").read_text() != base:
        problems.append("deploy/kubernetes/base/foil.yaml is not what the chart renders: scripts/check-deploy --render")
    everything = [argument for value in EVERYTHING for argument in ("--set", value)]
    problems += check_objects("everything", objects(template(*everything)), flags)
    problems += check_objects("default", objects(base), flags)
    for values in sorted((CHART / "values").glob("*.yaml")):
        rendered = objects(template("--values", values))
        problems += check_objects(values.stem, rendered, flags)
        kustomized = objects(run("kubectl", "kustomize", KUSTOMIZE / "overlays" / values.stem))
        problems += [f"overlay and values {values.stem} differ: {where}" for where in differences(kustomized, rendered)]
    if shutil.which("promtool"):
        run("promtool", "check", "rules", CHART / "monitoring" / "rules.yaml")
        run("promtool", "test", "rules", ROOT / "tests" / "deploy" / "alerts.test.yaml")
    else:
        print("skipped: the cases of the alerts (promtool is not installed: apt install prometheus)")
    for problem in problems:
        print(f"check-deploy: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"the chart, its values and the kustomizations hold for Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}")


if __name__ == "__main__":
    main()
