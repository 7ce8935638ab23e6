# The agent and its ranks, with libtorch for CPUs or for CUDA.
#
#   scripts/images                                                   packages built outside, SBOM, tags, one check
#   docker build -f deploy/docker/worker.Dockerfile .                compiles in the builder image, for CPUs
#   docker build -f deploy/docker/worker.Dockerfile --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# Give images by digest (name@sha256:…) to pin their bytes.
ARG BASE=docker.io/library/debian:trixie-slim
ARG BUILDER=docker.io/library/rust:1.95.0-slim-trixie

# What scripts/package makes, unpacked, with libtorch. `--build-context package=DIR` takes the place of this stage, and
# nothing is compiled.
FROM ${BUILDER} AS package
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG REVISION=""
WORKDIR /source
RUN apt-get update && apt-get install --yes --no-install-recommends binutils g++ gzip python3-venv
COPY . .
# Of two wheels of one version pip takes the one with a label (+cpu, +cu130), which is this index's.
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" FOIL_BUILD_ID="${REVISION}" scripts/package --output /packages \
    && mkdir /package \
    && for archive in /packages/*.tar.gz; do tar --extract --file "$archive" --directory /package --strip-components=1; done \
    && python3 deploy/docker/libtorch.py .venv/site-packages /package

FROM ${BASE} AS certificates
RUN [ -f /etc/ssl/certs/ca-certificates.crt ] \
    || { apt-get update && apt-get install --yes --no-install-recommends ca-certificates; }

FROM ${BASE}
# The libraries come first: they are the same from version to version, and are pulled once. Those of the wheels look for
# NVIDIA's in ../../nvidia; a CPU build has an empty folder there.
COPY --from=package --chown=0:0 nvidia /opt/nvidia
COPY --from=package --chown=0:0 lib /opt/foil/lib
COPY --from=certificates --chown=0:0 /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=package --chown=0:0 LICENSE THIRD_PARTY.md /opt/foil/
COPY --from=package --chown=0:0 licenses /opt/foil/licenses
# foil too: `foil doctor` checks the host, `foil probe` the agent.
COPY --from=package --chown=0:0 bin/foil bin/foil-worker /opt/foil/bin/
ARG VERSION="" REVISION=""
LABEL org.opencontainers.image.title="foil-worker" \
      org.opencontainers.image.description="Agent and ranks of Foil, training by Adversarial Preference Optimization" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# What the NVIDIA container toolkit mounts of the driver, where there is one.
ENV PATH=/opt/foil/bin:/usr/local/bin:/usr/bin:/bin \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    FOIL_METRICS_LISTEN=127.0.0.1:9100
# The user of the chart's pods.
USER 65532:65532
EXPOSE 9100
# Kubernetes takes no notice of this and has probes of its own. With --metrics-tls-cert the page is https://: --health-cmd.
HEALTHCHECK --interval=10s --timeout=10s --start-period=2m --retries=6 \
    CMD ["/opt/foil/bin/foil", "probe", "http://127.0.0.1:9100/healthz"]
# Ranks finish their step and save a checkpoint, within --grace-seconds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/foil/bin/foil-worker"]
