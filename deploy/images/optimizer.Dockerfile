# optimizer: quantizes and prunes. The context is the root of the tree: scripts/build_images.py --only optimizer
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS build
COPY deploy/images/install.sh deploy/images/sbom.py requirements-build.txt requirements-tools.lock deploy/images/locks/optimizer.lock /build/
RUN --mount=type=cache,target=/build/cache sh /build/install.sh lock /build/optimizer.lock
COPY packages/contracts /build/packages/contracts
COPY packages/servicekit /build/packages/servicekit
COPY packages/pluginkit /build/packages/pluginkit
COPY packages/modelkit /build/packages/modelkit
COPY services/optimizer /build/services/optimizer
RUN sh /build/install.sh parts packages/contracts packages/servicekit packages/pluginkit packages/modelkit services/optimizer \
 && sh /build/install.sh compile \
 && sh /build/install.sh sbom tinymlaas-optimizer

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tinymlaas-optimizer" \
      org.opencontainers.image.description="quantizes and prunes" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.tinymlaas.sbom="/opt/tinymlaas/sbom.cdx.json"
COPY --from=build /opt/tinymlaas /opt/tinymlaas
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
ENTRYPOINT ["/opt/tinymlaas/bin/python", "-m", "tinymlaas_optimizer"]
