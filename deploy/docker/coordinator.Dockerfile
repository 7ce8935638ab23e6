# The coordinator and the command line, without libtorch.
#
#   scripts/images                                                   packages built outside, SBOM, tags, one check
#   docker build -f deploy/docker/coordinator.Dockerfile .           compiles in the builder image
#
# Give images by digest (name@sha256:…) to pin their bytes.
ARG BASE=docker.io/library/debian:trixie-slim
ARG BUILDER=docker.io/library/rust:1.95.0-slim-trixie

# What scripts/package makes, unpacked. `--build-context package=DIR` takes the place of this stage, and nothing is compiled.
FROM ${BUILDER} AS package
ARG REVISION=""
WORKDIR /source
RUN apt-get update && apt-get install --yes --no-install-recommends binutils g++ gzip
COPY . .
RUN FOIL_BUILD_ID="${REVISION}" scripts/package --only foil --output /packages \
    && mkdir /package && tar --extract --file /packages/foil-[0-9]*.tar.gz --directory /package --strip-components=1

# CA certificates, by which object stores are known. A base that has them is not changed.
FROM ${BASE} AS certificates
RUN [ -f /etc/ssl/certs/ca-certificates.crt ] \
    || { apt-get update && apt-get install --yes --no-install-recommends ca-certificates; }

FROM ${BASE}
ARG VERSION="" REVISION=""
LABEL org.opencontainers.image.title="foil" \
      org.opencontainers.image.description="Coordinator and command line of Foil, training by Adversarial Preference Optimization" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=certificates --chown=0:0 /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=package --chown=0:0 LICENSE THIRD_PARTY.md /opt/foil/
COPY --from=package --chown=0:0 bin/foil /opt/foil/bin/foil
ENV PATH=/opt/foil/bin:/usr/local/bin:/usr/bin:/bin
# The user of the chart's pods.
USER 65532:65532
EXPOSE 7070
# Beyond loopback a coordinator has TLS. Kubernetes takes no notice of this and has probes of its own.
HEALTHCHECK --interval=10s --timeout=10s --start-period=5m --retries=6 \
    CMD ["/opt/foil/bin/foil", "probe", "https://127.0.0.1:7070/healthz"]
# It ends within 20 seconds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/foil/bin/foil"]
