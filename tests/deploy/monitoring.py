"""Prometheus over pods: its configuration is what the operator makes of the chart's monitors, its rules are the chart's."""

import json
import socket
import subprocess
import urllib.parse
from pathlib import Path

import yaml
from pages import page

# Shorter than the monitors' interval, so that a test does not wait for it.
INTERVAL = "1s"
# By how much sooner than in the chart alerts fire.
HASTE = 20


def configuration(objects: dict, addresses: dict[str, str], labels: dict[str, dict], files: dict[tuple[str, str], Path]) -> dict:
    """The scrape jobs of all monitors among `objects`. `labels` are the pods', `files` hold the values of Secrets by name and key.

    A ServiceMonitor finds Services by label, their pods by selector, and names its job after the Service; a PodMonitor
    finds pods, and its job has its own name.
    """
    jobs = []
    for (kind, name), monitor in objects.items():
        if kind == "PodMonitor":
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                found = targets(monitor["spec"]["selector"]["matchLabels"], labels, addresses, objects, endpoint["port"])
                jobs.append(job(f"foil/{name}", endpoint, found, files))
        elif kind == "ServiceMonitor":
            wanted = monitor["spec"]["selector"]["matchLabels"].items()
            for (other, service), document in objects.items():
                if other == "Service" and wanted <= document["metadata"]["labels"].items():
                    for endpoint in monitor["spec"]["endpoints"]:
                        found = targets(document["spec"]["selector"], labels, addresses, objects, endpoint["port"])
                        jobs.append(job(service, endpoint, found, files))
    return {"global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}, "scrape_configs": jobs}


def targets(selector: dict, labels: dict[str, dict], addresses: dict[str, str], objects: dict, port: str) -> list[dict]:
    """Address and pod of each pod that the selector fits and that has the port."""
    found = []
    for pod, own in labels.items():
        if selector.items() <= own.items():
            stateful_set = objects["StatefulSet", pod.rpartition("-")[0]]
            (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
            numbers = [entry["containerPort"] for entry in container["ports"] if entry["name"] == port]
            found += [{"targets": [f"{addresses[pod]}:{number}"], "labels": {"pod": pod}} for number in numbers]
    return found


def job(name: str, endpoint: dict, found: list[dict], files: dict) -> dict:
    made = {"job_name": name, "metrics_path": endpoint["path"], "scheme": endpoint.get("scheme", "http"), "static_configs": found}
    if "authorization" in endpoint:
        secret = endpoint["authorization"]["credentials"]
        made["authorization"] = {"credentials_file": str(files[secret["name"], secret["key"]])}
    if "tlsConfig" in endpoint:
        authority = endpoint["tlsConfig"]["ca"]["secret"]
        made["tls_config"] = {
            "ca_file": str(files[authority["name"], authority["key"]]),
            "server_name": endpoint["tlsConfig"]["serverName"],
        }
    return made


def hasten(rules: dict) -> dict:
    """Rules whose alerts are pending for a fraction of the time."""
    hasty = json.loads(json.dumps(rules))
    for rule in (rule for group in hasty["groups"] for rule in group["rules"] if "for" in rule):
        number, unit = int(rule["for"][:-1]), {"s": 1, "m": 60, "h": 3600}[rule["for"][-1]]
        rule["for"] = f"{number * unit // HASTE}s"
    return hasty


class Prometheus:
    def __init__(self, directory: Path, config: dict, rules: dict):
        directory.mkdir()
        (directory / "rules.yaml").write_text(yaml.safe_dump(hasten(rules)))
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config | {"rule_files": ["rules.yaml"]}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        log = (directory / "prometheus.log").open("w")
        options = [f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/tsdb"]
        options.append(f"--web.listen-address={self.url.removeprefix('http://')}")
        self._process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)

    def get(self, path: str) -> dict | None:
        status, text = page(f"{self.url}/api/v1/{path}")
        return json.loads(text)["data"] if status == 200 else None

    def query(self, expression: str) -> list[dict]:
        answer = self.get(f"query?query={urllib.parse.quote(expression)}")
        return answer["result"] if answer else []

    def query_range(self, expression: str, began: float, ended: float, step: int) -> list[dict]:
        """Series of an expression between two times, in seconds since 1970."""
        asked = {"query": expression, "start": began, "end": ended, "step": step}
        answer = self.get(f"query_range?{urllib.parse.urlencode(asked)}")
        assert answer is not None, f"Prometheus refuses `{expression}`"
        return answer["result"]

    def alerts(self) -> dict[str, str]:
        """State of each alert that is pending or fires."""
        answer = self.get("alerts") or {"alerts": []}
        return {alert["labels"]["alertname"]: alert["state"] for alert in answer["alerts"]}

    def unhealthy(self) -> list[str]:
        """Targets that are down, and what is wrong with each; also if there is none at all."""
        answer = self.get("targets")
        if not answer or not answer["activeTargets"]:
            return ["no target yet"]
        return [f"{each['scrapeUrl']}: {each['lastError']}" for each in answer["activeTargets"] if each["health"] != "up"]

    def broken_rules(self) -> list[str]:
        """Rules that have not been evaluated yet, or not without an error."""
        answer = self.get("rules") or {"groups": []}
        rules = [rule for group in answer["groups"] for rule in group["rules"]]
        return [f"{rule['name']}: {rule.get('lastError', '')}" for rule in rules if rule["health"] != "ok"] or (
            [] if rules else ["no rule yet"]
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
