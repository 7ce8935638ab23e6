"""The Secrets of the chart: a certificate with the names that the chart asks cert-manager for, and tokens by `foil token`."""

from pathlib import Path

import engine


def secrets(directory: Path, foil: Path, certificate: dict) -> dict[str, dict[str, str]]:
    authority, server = directory / "ca", directory / "server"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    engine.run(
        "openssl", "req", "-x509", *new_key, "-keyout", f"{authority}.key", "-out", f"{authority}.crt", "-days", "1", "-subj", "/CN=ca"
    )
    engine.run("openssl", "req", *new_key, "-keyout", f"{server}.key", "-out", f"{server}.csr", "-subj", "/CN=foil")
    names = ",".join(f"DNS:{name}" for name in certificate["spec"]["dnsNames"])
    extensions = directory / "server.ext"
    extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nkeyUsage=digitalSignature\n")
    signer = ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "1"]
    engine.run("openssl", "x509", "-req", "-in", f"{server}.csr", *signer, "-extfile", extensions, "-out", f"{server}.crt")

    tokens, lines = {}, []
    for name, role in {"agents": "agent", "ada": "submitter", "prometheus": "viewer"}.items():
        told = engine.run(foil, "token", "create", "--name", name, "--role", role).splitlines()
        tokens[name] = told[1]
        lines.append(told[-1])
        file = directory / f"{name}.token"
        file.touch(mode=0o600)
        file.write_text(tokens[name])
    read = lambda path: Path(path).read_text()
    return {
        "foil-tls": {"tls.crt": read(f"{server}.crt"), "tls.key": read(f"{server}.key"), "ca.crt": read(f"{authority}.crt")},
        "foil-tokens": {"tokens": "\n".join(lines) + "\n"},
        "foil-agent-token": {"token": tokens["agents"]},
        "foil-metrics-token": {"token": tokens["prometheus"]},
    }
