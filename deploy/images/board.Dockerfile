# board: virtual boards, for trials and tests. The context is the root of the tree: scripts/build_images.py --only board
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS build
COPY deploy/images/install.sh deploy/images/trim-zig.sh deploy/images/sbom.py requirements-build.txt requirements-tools.lock deploy/images/locks/board.lock /build/
RUN --mount=type=cache,target=/build/cache sh /build/install.sh lock /build/board.lock
COPY packages/contracts /build/packages/contracts
COPY packages/lwm2m /build/packages/lwm2m
COPY packages/module /build/packages/module
COPY packages/simulator /build/packages/simulator
COPY device/reference /build/device/reference
COPY device/firmware /opt/tinymlaas/device/firmware
COPY device/loader /opt/tinymlaas/device/loader
RUN sh /build/install.sh parts packages/contracts packages/lwm2m packages/module packages/simulator device/reference \
 && sh /build/trim-zig.sh boards \
 && sh /build/install.sh compile \
 && sh /build/install.sh sbom tinymlaas-board

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tinymlaas-board" \
      org.opencontainers.image.description="virtual boards, for trials and tests" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.tinymlaas.sbom="/opt/tinymlaas/sbom.cdx.json"
COPY --from=build /opt/tinymlaas /opt/tinymlaas
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    TINYMLAAS_CACHE_DIR=/opt/tinymlaas/cache TINYMLAAS_DEVICE_SOURCES=/opt/tinymlaas/device
USER 10001:10001
ENTRYPOINT ["/opt/tinymlaas/bin/python", "-m", "tinymlaas_device"]
