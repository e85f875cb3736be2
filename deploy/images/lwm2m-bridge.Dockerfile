# lwm2m-bridge: registrations, capabilities and installs of devices. The context is the root of the tree: scripts/build_images.py --only lwm2m-bridge
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS build
COPY deploy/images/install.sh deploy/images/sbom.py requirements-build.txt requirements-tools.lock deploy/images/locks/lwm2m-bridge.lock /build/
RUN --mount=type=cache,target=/build/cache sh /build/install.sh lock /build/lwm2m-bridge.lock
COPY deploy/images/trim.py deploy/images/root.py /build/
COPY packages/contracts /build/packages/contracts
COPY packages/servicekit /build/packages/servicekit
COPY packages/lwm2m /build/packages/lwm2m
COPY packages/module /build/packages/module
COPY services/lwm2m-bridge /build/services/lwm2m-bridge
RUN sh /build/install.sh parts packages/contracts packages/servicekit packages/lwm2m packages/module services/lwm2m-bridge \
 && /opt/tinymlaas/bin/python -B /build/trim.py tinymlaas_lwm2m_bridge \
 && /opt/tinymlaas/bin/python -B /build/root.py tinymlaas_lwm2m_bridge /runtime \
 && sh /build/install.sh sbom tinymlaas-lwm2m-bridge /runtime

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tinymlaas-lwm2m-bridge" \
      org.opencontainers.image.description="registrations, capabilities and installs of devices" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.tinymlaas.sbom="/opt/tinymlaas/sbom.cdx.json"
COPY --from=build /runtime /
COPY --from=build /opt/tinymlaas /opt/tinymlaas
ENV PATH=/opt/tinymlaas/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
ENTRYPOINT ["/opt/tinymlaas/bin/python", "-m", "tinymlaas_lwm2m_bridge"]
