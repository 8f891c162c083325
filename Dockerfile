# The kvd image: one static binary, on a base without a shell or package manager,
# run by a non-root user.
#
#   docker build -t kvd --build-arg VERSION=1.2.3 --build-arg COMMIT="$(git rev-parse HEAD)" .
#   docker run -p 127.0.0.1:12380:12380 -v kvd:/var/lib/kvd kvd
#
# To build for another platform, use docker buildx build --platform linux/arm64 …,
# which cross-compiles. The builder of older Docker engines does not set the
# target; also pass --build-arg TARGETARCH=arm64.
#
# Both base images are arguments, for mirrors and digests. Tags can move, so
# build a release with a digest: BASE_IMAGE=…/static-debian12@sha256:….
ARG BUILD_IMAGE=golang:1.26
ARG BASE_IMAGE=gcr.io/distroless/static-debian12:nonroot

FROM --platform=${BUILDPLATFORM:-linux} ${BUILD_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
ARG COMMIT
RUN CGO_ENABLED=0 GOOS="$TARGETOS" GOARCH="$TARGETARCH" go build -trimpath -buildvcs=false \
      -ldflags "-s -w -X main.commit=$COMMIT ${VERSION:+-X main.version=$VERSION}" -o /out/kvd ./cmd/kvd \
 && mkdir -m 0700 /out/data

FROM ${BASE_IMAGE}
ARG VERSION
ARG COMMIT
LABEL org.opencontainers.image.title="kvd" \
      org.opencontainers.image.description="A replicated, linearizable key-value daemon" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT"
COPY --from=build /out/kvd /usr/local/bin/kvd
COPY --from=build --chown=65532:65532 /out/data /var/lib/kvd
USER 65532:65532
ENV KVD_DATA_DIR=/var/lib/kvd KVD_LISTEN_CLIENT=http://0.0.0.0:12380
# Without a volume, the data would disappear with the container.
VOLUME /var/lib/kvd
# Ports for clients and for members.
EXPOSE 12380 12379
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/local/bin/kvd", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/kvd"]
