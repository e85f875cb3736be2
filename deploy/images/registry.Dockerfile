# registry: catalogue and artifacts. The context is the root of the tree: scripts/build_images.py --only registry
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS build
COPY deploy/images/install.sh deploy/images/sbom.py requirements-build.txt requirements-tools.lock deploy/images/locks/registry.lock /build/
RUN --mount=type=cache,target=/build/cache sh /build/install.sh lock /build/registry.lock
COPY deploy/images/trim.py deploy/images/root.py /build/
COPY packages/contracts /build/packages/contracts
COPY packages/servicekit /build/packages/servicekit
COPY packages/modelkit /build/packages/modelkit
COPY services/registry /build/services/registry
RUN sh /build/install.sh parts packages/contracts packages/servicekit packages/modelkit services/registry \
 && /opt/tinymlaas/bin/python -B /build/trim.py tinymlaas_registry \
 && /opt/tinymlaas/bin/python -B /build/root.py tinymlaas_registry /runtime \
 && sh /build/install.sh sbom tinymlaas-registry /runtime

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tinymlaas-registry" \
      org.opencontainers.image.description="catalogue and artifacts" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.tinymlaas.sbom="/opt/tinymlaas/sbom.cdx.json"
COPY --from=build /runtime /
COPY --from=build /opt/tinymlaas /opt/tinymlaas
ENV PATH=/opt/tinymlaas/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
ENTRYPOINT ["/opt/tinymlaas/bin/python", "-m", "tinymlaas_registry"]
