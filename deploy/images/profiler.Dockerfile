# profiler: runs modules on simulated microcontrollers and reference executors. The context is the root of the tree: scripts/build_images.py --only profiler
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS build
COPY deploy/images/install.sh deploy/images/trim-zig.sh deploy/images/sbom.py requirements-build.txt requirements-tools.lock deploy/images/locks/profiler.lock /build/
RUN --mount=type=cache,target=/build/cache sh /build/install.sh lock /build/profiler.lock
COPY packages/contracts /build/packages/contracts
COPY packages/servicekit /build/packages/servicekit
COPY packages/pluginkit /build/packages/pluginkit
COPY packages/modelkit /build/packages/modelkit
COPY packages/simulator /build/packages/simulator
COPY services/profiler /build/services/profiler
RUN sh /build/install.sh parts packages/contracts packages/servicekit packages/pluginkit packages/modelkit packages/simulator services/profiler \
 && sh /build/trim-zig.sh hook \
 && sh /build/install.sh compile \
 && sh /build/install.sh sbom tinymlaas-profiler

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tinymlaas-profiler" \
      org.opencontainers.image.description="runs modules on simulated microcontrollers and reference executors" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.tinymlaas.sbom="/opt/tinymlaas/sbom.cdx.json"
COPY --from=build /opt/tinymlaas /opt/tinymlaas
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp TINYMLAAS_CACHE_DIR=/opt/tinymlaas/cache
USER 10001:10001
ENTRYPOINT ["/opt/tinymlaas/bin/python", "-m", "tinymlaas_profiler"]
