"""The Secrets of the chart: a certificate with the names that the chart asks cert-manager for, and tokens by `foil token`."""

from pathlib import Path

import engine


def secrets(directory: Path, foil: Path, certificate: dict) -> dict[str, dict[str, str]]:
    new_authority(directory)
    tokens, lines = {}, []
    for name, role in {"agents": "agent", "ada": "submitter", "prometheus": "viewer"}.items():
        told = engine.run(foil, "token", "create", "--name", name, "--role", role).splitlines()
        tokens[name] = told[1]
        lines.append(told[-1])
        file = directory / f"{name}.token"
        file.touch(mode=0o600)
        file.write_text(tokens[name])
    return {
        "foil-tls": new_certificate(directory, "foil", certificate["spec"]["dnsNames"]),
        "foil-tokens": {"tokens": "\n".join(lines) + "\n"},
        "foil-agent-token": {"token": tokens["agents"]},
        "foil-metrics-token": {"token": tokens["prometheus"]},
    }


_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def new_authority(directory: Path) -> None:
    """Makes ca.crt and ca.key."""
    authority = directory / "ca"
    options = ["-keyout", f"{authority}.key", "-out", f"{authority}.crt", "-days", "1", "-subj", "/CN=ca"]
    engine.run("openssl", "req", "-x509", *_NEW_KEY, *options)


def new_certificate(directory: Path, name: str, hosts: list[str]) -> dict[str, str]:
    """A Secret of type kubernetes.io/tls, as cert-manager fills it, with a certificate of the authority for some host names."""
    authority, server = directory / "ca", directory / name
    engine.run("openssl", "req", *_NEW_KEY, "-keyout", f"{server}.key", "-out", f"{server}.csr", "-subj", f"/CN={name}")
    names = ",".join(f"DNS:{host}" for host in hosts)
    extensions = directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nkeyUsage=digitalSignature\n")
    signer = ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "1"]
    engine.run("openssl", "x509", "-req", "-in", f"{server}.csr", *signer, "-extfile", extensions, "-out", f"{server}.crt")
    read = lambda path: Path(path).read_text()
    return {"tls.crt": read(f"{server}.crt"), "tls.key": read(f"{server}.key"), "ca.crt": read(f"{authority}.crt")}
