# "make" without a target lists the targets.
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse --verify HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.commit=$(COMMIT) $(if $(VERSION),-X main.version=$(VERSION))

TIME     ?= 10s
ONLY     ?=
RUNS     ?= 1000
SUITES   ?=
NODES    ?= 1,3

CUTS     ?= 3100

.PHONY: help build test race vet lint fmt fuzz cluster e2e conformance container ui huge contract mixed drills abuse sim proof promises mutation powercuts bench bench-compare bench-micro check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' Makefile

build: ## build bin/kvd
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/kvd ./cmd/kvd

test: ## run all tests
	go test ./...

race: ## run all tests with the race detector
	go test -race ./...

vet: ## run go vet
	go vet ./...

lint: vet ## run go vet, staticcheck and the formatting check
	go tool staticcheck ./...
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; fi

fmt: ## format all Go files
	gofmt -w .

fuzz: ## run each fuzz target for TIME (10s), or those that match ONLY, and add it to docs/fuzz.txt
	record=$(CURDIR)/docs/fuzz.txt FUZZFLAGS=-test.parallel=1 .ci/fuzz $(TIME) 0 '$(ONLY)'
	go run ./test/proof -fuzz docs/testing.md

cluster: build ## run the three nodes of the Procfile until ^C
	go tool goreman start

e2e: ## run the heavy tests against real processes
	KVD_E2E=full go test -count=1 -timeout 30m ./test/e2e
	KVD_E2E=full go test -count=1 -timeout 15m -run Chaos ./client

ui: ## drive the web page in Chromium; screenshots go to bin/ui-shots
	KVD_E2E=full KVD_UI_REQUIRED=1 KVD_UI_SHOTS=$(CURDIR)/bin/ui-shots go test -count=1 -timeout 10m -v ./test/ui

huge: ## run the gigabyte test: catch-up by snapshot, restarts, memory (needs 5 GiB of disk)
	KVD_E2E=huge go test -count=1 -timeout 30m -run Huge -v ./test/e2e

contract: ## compare 20,000 random requests with a plain map, while nodes are killed
	KVD_E2E=huge go test -count=1 -timeout 60m -run 'TestContract$$' -v ./test/e2e

mixed: ## check 100,000 operations of HTTP and etcd clients on the same keys, under faults, on 1, 3, and 5 nodes
	KVD_E2E=huge go test -count=1 -timeout 90m -run 'TestMixedFaces' -v ./test/e2e

drills: ## add members under full load while things go wrong, with a gibibyte stored (needs 20 GiB of disk)
	KVD_E2E=huge go test -count=1 -timeout 60m -run Drills -v ./test/e2e

abuse: ## let clients of all kinds stop in the middle, 10,000 at once on a node with 512 MiB
	KVD_E2E=huge go test -count=1 -timeout 10m -run Abuse -v ./test/e2e

conformance: ## run the suites that others wrote for etcd, about 45 minutes (SUITES="clients kubernetes", NODES=3)
	cd test/conformance && go run . --nodes $(NODES) $(SUITES)

container: ## build the image and run three containers (Docker)
	KVD_E2E=full go test -count=1 -timeout 15m -v ./test/container

sim: ## run the simulation with RUNS (1000) seeds, and a tenth as many with real stores
	KVD_SIM_RUNS=$(RUNS) go test -count=1 -timeout 60m -run '^TestSimulation' -v ./internal/raftnode
	KVD_SIM_RUNS=$$(( ($(RUNS) + 9) / 10 )) go test -count=1 -timeout 60m -run '^TestContractSimulation' -v ./internal/raftnode

proof: ## run the suites that try to prove kvd wrong (half an hour), and print one table
	go run ./test/proof -keep docs/proof.json

promises: ## write the results of the last "make proof" (docs/proof.json) into the README and docs/testing.md
	go run ./test/proof -promises README.md -controls docs/testing.md

powercuts: ## cut the power of nodes CUTS (3100) times, on ext4 and loop devices (root), about an hour
	KVD_E2E=huge KVD_POWER_CUTS=$(CUTS) go test -count=1 -timeout 180m -run 'PowerCut|NthSync' -v ./test/e2e

mutation: ## plant 360 bugs in the store, the log on disk, and the core of raftnode, one at a time
	go run ./test/mutation -mutants 130 -budget 30m -slowest 8s internal/datadir
	go run ./test/mutation -mutants 140 -budget 30m -slowest 8s internal/kvstore
	go run ./test/mutation -mutants 90 -budget 30m -slowest 8s -skip '^Test(Contract|Simulation|Control|Battery)' 'internal/raftnode:core*.go'

bench: ## run the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

bench-compare: ## compare with etcd on this machine and write docs/performance.md (QUICK=1: a quarter of an hour)
	cd bench && QUICK=$(QUICK) go run . all --write ../docs/performance.md

bench-micro: ## run the micro-benchmarks and write bench/micro.txt, for benchstat
	go test -run '^$$' -bench . -benchmem -count 5 -benchtime 100ms ./internal/... | grep -v "^ok\|^?\|^PASS" > bench/micro.txt

check: ## run what CI runs
	.ci/run

clean: ## remove the binary, but no data
	rm -rf bin
