"""Pods of rendered StatefulSets, in the form that `podman kube play` runs.

Does what a control plane and a kubelet do: names and addresses, the downward API, variables in arguments, Secrets as files
and as environment, volumes with their owner and mode. What podman does not know (probes, spreading over nodes,
NetworkPolicies) is left out; `probes` tells the probes, for the test to make them. All else stays as it is rendered.
"""

import copy
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@dataclass
class Cluster:
    """What a cluster knows beside the manifests."""

    namespace: str
    # The headless Service and the address of each pod, by its name.
    addresses: dict[str, tuple[str, str]]
    # Values by key of each Secret.
    secrets: dict[str, dict[str, str]]
    # Image names of the manifests, and the names that they have here.
    images: dict[str, str]
    # Files of volumes.
    directory: Path


def names(objects: dict) -> dict[str, dict]:
    """The StatefulSet of each pod by the pod's name."""
    sets = [document for (kind, _), document in objects.items() if kind == "StatefulSet"]
    return {f"{document['metadata']['name']}-{index}": document for document in sets for index in range(document["spec"]["replicas"])}


def pod(name: str, stateful_set: dict, cluster: Cluster) -> dict:
    """The Pod of this name, with its volumes made."""
    template = copy.deepcopy(stateful_set["spec"]["template"])
    spec = template["spec"]
    spec["hostname"] = name
    spec["hostAliases"] = [{"ip": ip, "hostnames": [host]} for host, ip in host_names(cluster).items()]
    spec["volumes"] = [volume(entry, name, spec["securityContext"]["fsGroup"], cluster) for entry in spec["volumes"]]
    for container in spec["containers"]:
        container["image"] = cluster.images[container["image"].split(":")[0].split("@")[0]]
        container["env"] = [{"name": key, "value": value} for key, value in environment(container, name, cluster).items()]
        container.pop("envFrom", None)
        values = {entry["name"]: entry["value"] for entry in container["env"]}
        container["args"] = [expand(argument, values) for argument in container["args"]]
        # podman would publish the ports on its host.
        for unknown in (*PROBES, "ports"):
            container.pop(unknown, None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": template["metadata"]["labels"]}, "spec": spec}


def host_names(cluster: Cluster) -> dict[str, str]:
    """The names that headless Services give to their pods, POD.SERVICE.NAMESPACE.svc, with their addresses."""
    return {f"{name}.{service}.{cluster.namespace}.svc": ip for name, (service, ip) in cluster.addresses.items()}


def environment(container: dict, name: str, cluster: Cluster) -> dict[str, str]:
    fields = {"metadata.name": name, "metadata.namespace": cluster.namespace, "status.podIP": cluster.addresses[name][1]}
    values = {}
    for source in container.get("envFrom", []):
        values |= cluster.secrets[source["secretRef"]["name"]]
    for entry in container.get("env", []):
        values[entry["name"]] = entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
    return values


def expand(text: str, values: dict[str, str]) -> str:
    """Variables as a kubelet expands them: $(NAME), if there is one of that name."""
    return re.sub(r"\$\((\w+)\)", lambda found: values.get(found.group(1), found.group()), text)


def volume(entry: dict, name: str, group: int, cluster: Cluster) -> dict:
    path = cluster.directory / name / entry["name"]
    path.mkdir(parents=True, exist_ok=True)
    if "secret" in entry:
        write_secret(path, entry["secret"], cluster.secrets[entry["secret"]["secretName"]], group)
    else:
        # An empty folder, or a new claim: the group of fsGroup may write.
        os.chown(path, 0, group)
        path.chmod(0o2775)
    if entry.get("emptyDir", {}).get("medium") == "Memory" and not path.is_mount():
        size = entry["emptyDir"]["sizeLimit"].removesuffix("i")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=2775,gid={group}", "tmpfs", path], check=True)
    return {"name": entry["name"], "hostPath": {"path": str(path), "type": "Directory"}}


def write_secret(path: Path, source: dict, values: dict[str, str], group: int) -> None:
    items = source.get("items") or [{"key": key, "path": key} for key in values]
    for item in items:
        file = path / item["path"]
        file.write_text(values[item["key"]])
        os.chown(file, 0, group)
        file.chmod(source.get("defaultMode", 0o644))


def probes(stateful_set: dict) -> dict[str, tuple[str, int, str]]:
    """Scheme, port and path of each probe of a set's container."""
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    found = {}
    for probe in PROBES:
        get = container[probe]["httpGet"]
        found[probe] = get.get("scheme", "HTTP").lower(), ports[get["port"]], get["path"]
    return found
