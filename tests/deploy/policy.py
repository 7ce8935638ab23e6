"""Rules that every pod of the manifests keeps, beyond what a schema can say."""

import re

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def problems(objects: dict, flags: dict[str, set[str] | None]) -> list[str]:
    found = []
    for (kind, name), document in objects.items():
        if "template" in document.get("spec", {}):
            found += [f"{kind} {name}: {problem}" for problem in of_pod(document["spec"]["template"]["spec"], flags)]
    return found + of_selectors(objects)


def of_pod(pod: dict, flags: dict) -> list[str]:
    security = pod.get("securityContext", {})
    rules = {
        "it mounts a token of the API server": pod.get("automountServiceAccountToken") is False,
        "it may run as root": security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0,
        "it has no seccomp profile": security.get("seccompProfile") == {"type": "RuntimeDefault"},
        "it shares a namespace of its host": not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "it mounts a path of its host": not any("hostPath" in volume for volume in pod["volumes"]),
        "it may go to one node with its like": "topologySpreadConstraints" in pod,
        "it is killed before it can end": pod.get("terminationGracePeriodSeconds", 0) >= 30,
    }
    found = [problem for problem, kept in rules.items() if not kept]
    for container in pod["containers"]:
        found += [f"{container['name']}: {problem}" for problem in of_container(container, pod)]
        known = flags.get(container["name"])
        given = {argument.split("=")[0] for argument in container["args"] if argument.startswith("--")}
        if known is not None and given - known:
            found.append(f"{container['name']}: the program has no option {', '.join(sorted(given - known))}")
    return found


def of_container(container: dict, pod: dict) -> list[str]:
    security, resources = container.get("securityContext", {}), container.get("resources", {})
    volumes = {volume["name"] for volume in pod["volumes"]} | {"store"}
    grace = [argument for argument in container["args"] if argument.startswith("--grace-seconds=")]
    rules = {
        "its root file system can be written": security.get("readOnlyRootFilesystem") is True,
        "it keeps capabilities": security.get("capabilities") == {"drop": ["ALL"]},
        "it may gain privileges": security.get("allowPrivilegeEscalation") is False,
        "it has no limit on memory": "memory" in resources.get("limits", {}),
        "it asks for no CPU or memory": {"cpu", "memory"} <= set(resources.get("requests", {})),
        "it lacks a probe": all(probe in container for probe in PROBES),
        "its liveness probe touches more than the process": path_of(container, "livenessProbe") == "/healthz",
        "its readiness probe is not /readyz": path_of(container, "readinessProbe") == "/readyz",
        "its image has no version": not re.search(r"(:latest|^[^:@]+)$", container["image"]),
        "it mounts a volume that is not there": {mount["name"] for mount in container["volumeMounts"]} <= volumes,
        "a secret is in its arguments or its environment": no_secret(container),
        "its ranks are killed before they can save": all(
            pod["terminationGracePeriodSeconds"] >= int(argument.split("=")[1]) + 30 for argument in grace
        ),
    }
    return [problem for problem, kept in rules.items() if not kept]


def path_of(container: dict, probe: str) -> str | None:
    return container.get(probe, {}).get("httpGet", {}).get("path")


def no_secret(container: dict) -> bool:
    texts = [*container["args"], *(str(entry.get("value", "")) for entry in container.get("env", []))]
    return not any(re.search(r"(?i)secret|password|sig=|AKIA", text) for text in texts)


def of_selectors(objects: dict) -> list[str]:
    """Services, policies and disruption budgets whose selector fits no pod."""
    pods = [document["spec"]["template"]["metadata"]["labels"] for document in objects.values() if "template" in document.get("spec", {})]
    found = []
    for (kind, name), document in objects.items():
        spec = document.get("spec", {})
        match kind:
            case "Service":
                wanted = spec["selector"]
            case "PodDisruptionBudget":
                wanted = spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                wanted = spec["podSelector"]["matchLabels"]
            case _:
                continue
        if not any(wanted.items() <= labels.items() for labels in pods):
            found.append(f"{kind} {name}: its selector {wanted} fits no pod")
    return found
