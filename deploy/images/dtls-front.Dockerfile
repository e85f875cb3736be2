# dtls-front: coaps:// for a bridge in the same pod. The context is the root of the tree: scripts/build_images.py --only dtls-front
ARG BUILDER=docker.io/library/golang:1.26-bookworm
FROM ${BUILDER} AS build
COPY services/dtls-front /build/dtls-front
WORKDIR /build/dtls-front
ENV CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false" GOPATH=/go GOCACHE=/tmp/go-cache PATH=/usr/local/go/bin:/usr/bin:/bin
RUN go build -ldflags="-s -w" -o /out/dtls-front ./cmd/dtls-front \
 && go version -m /out/dtls-front >/out/modules.txt

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tinymlaas-dtls-front" \
      org.opencontainers.image.description="coaps:// for a bridge in the same pod" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.tinymlaas.sbom="/modules.txt; the binary carries the same (go version -m)"
COPY --from=build /out/ /
USER 10001:10001
ENTRYPOINT ["/dtls-front"]
