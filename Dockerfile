# docker build -t kvd .
# docker run -p 12380:12380 -v kvd:/var/lib/kvd kvd
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o /out/kvd ./cmd/kvd && mkdir -m 0700 /out/data

FROM scratch
COPY --from=build /out/kvd /usr/local/bin/kvd
COPY --from=build --chown=65532:65532 /out/data /var/lib/kvd
USER 65532:65532
ENV KVD_DATA_DIR=/var/lib/kvd KVD_LISTEN_CLIENT=http://0.0.0.0:12380
VOLUME /var/lib/kvd
EXPOSE 12380 12379
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/local/bin/kvd", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/kvd"]
