# make test is what CI runs. It installs what the tests need where it can (root
# and apt-get), and otherwise names what they will skip.

# The linters of .golangci.yml, staticcheck among them. To build it for the first time takes two
# minutes.
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# Packages, and the program that shows that they are there.
NEEDS := git:git iproute2:ip iputils-ping:ping tcpdump:tcpdump socat:socat ethtool:ethtool \
	nftables:nft iptables:iptables-legacy user-mode-linux:linux.uml util-linux:setpriv libcap2-bin:setcap curl:curl gcc,libc6-dev:gcc \
	clang,libbpf-dev,linux-libc-dev:clang prometheus:promtool tshark:tshark dnsmasq-base:dnsmasq systemd:systemd-analyze \
	lintian:lintian rpm:rpm zsh:zsh fish:fish

# So many executions of each fuzz target, or a time such as 10m. A time may end, once in
# many runs, with "context deadline exceeded", which is not a finding.
FUZZTIME ?= 20000x

# Fewer rounds are not enough for benchstat's confidence intervals.
ROUNDS ?= 6
# Rounds of the benchmarks with up to 1000 tunnels.
SCALE_ROUNDS ?= 3
RESULTS := bench/results

# What make builds: one static file, which needs no C library where it runs. The same commit gives
# the same bytes, wherever it is built.
OUT ?= goipip
LDFLAGS ?=
# The commit goes into the program where git tells it.
VCS := $(if $(shell git rev-parse HEAD 2>/dev/null),auto,false)

# Later versions of nfpm need modules that not every Go module proxy has.
NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
DIST ?= dist
ARCHS ?= amd64 arm64
FORMATS ?= deb rpm
# Of the tag, in the order of dpkg and rpm: 1.2.0~rc1 comes before 1.2.0, and 1.2.0+5.gabcdef1 after it.
VERSION ?= $(or $(shell git describe --tags 2>/dev/null | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/; s/-/~/g'),0.0.0)

# Lists the modules in a program.
CYCLONEDX := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

.PHONY: all packages nfpm release test quick interop readme needs check lint fmt vet fuzz bench

all: goipip

goipip: FORCE
	CGO_ENABLED=0 go build -trimpath -buildvcs=$(VCS) -ldflags '$(LDFLAGS)' -o $(OUT) ./cmd/goipip
FORCE:

# A package for each of ARCHS in each of FORMATS, in DIST.
packages:
	@VERSION='$(VERSION)' ARCHS='$(ARCHS)' FORMATS='$(FORMATS)' DIST='$(abspath $(DIST))' NFPM=$(NFPM) deploy/package/build

# What is released: packages, programs that need none, for each the list of its modules (CycloneDX), and
# checksums.
release: packages
	@rm -rf $(DIST)/release && mkdir -p $(DIST)/release
	@cp $(DIST)/goipip[_-]$(VERSION)[_-]* $(DIST)/release/
	@for arch in $(ARCHS); do \
		cp $(DIST)/stage/$$arch/goipip $(DIST)/release/goipip-linux-$$arch && \
		go run $(CYCLONEDX) bin -json -noserial -notimestamp -std -version '$(VERSION)' \
			-output $(DIST)/release/goipip-linux-$$arch.cdx.json $(DIST)/release/goipip-linux-$$arch || exit 1; \
	done
	@cd $(DIST)/release && sha256sum * >SHA256SUMS

# Compiles it, which takes a minute the first time.
nfpm:
	@go run $(NFPM) --version >/dev/null

test: needs check interop

# What needs neither apt nor a guest, and ends soon: see labtest.Need and labtest.Long.
quick: fmt vet
	go test -short ./...

# All tests, and then the rules of docs/rules.md, each with the result of its tests.
# One package after the other: several measure how long something takes. Never a cached
# result: go test does not know that tests build goipip and start it. The tunnels are tested
# three times: each alone in its process, and, as far as rules go, each beside another one,
# and each without a local address.
FIXED_LOCAL = 'TestO10_Hazard22_Mark|TestT14_NestedTunnels|TestT3_O4_PolicyRouting'
interop: needs
	@{ go test -race -count=1 -p 1 -timeout 20m -json ./...; \
		go test -race -count=1 -json -run '^Test[EGORT][0-9]*_' ./internal/tunnel -crowd; \
		go test -race -count=1 -json -run '^Test[EGORT][0-9]*_' -skip $(FIXED_LOCAL) ./internal/tunnel -any; } | go run ./internal/rules $(INTO) docs/rules.md

# The same, and README.md shows that table.
readme:
	$(MAKE) interop INTO='-into README.md'

check: fmt vet lint

lint:
	go run $(GOLANGCI) run ./...

fmt:
	@test -z "$$(gofmt -l .)" || { echo "not gofmt-clean:"; gofmt -l .; exit 1; }

vet:
	go vet ./...

needs:
	@missing=; for need in $(NEEDS); do \
		command -v $${need#*:} >/dev/null || missing="$$missing $${need%:*}"; \
	done; \
	if [ -z "$$missing" ]; then \
		exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
			--no-install-recommends $$(echo $$missing | tr , ' ') >/dev/null; \
	else \
		echo "not installed, so that the tests that need it skip:$$missing"; \
	fi

# Each fuzz target for FUZZTIME.
fuzz:
	@for dir in internal/packet encap rawsock internal/daemon/config internal/daemon/control internal/iproute internal/doctor; do \
		for target in $$(grep -ho 'func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$dir || exit 1; \
		done; \
	done

# Rounds, in each of which the peers take turns, so that what disturbs the machine
# disturbs all of them.
bench: needs
	@mkdir -p $(RESULTS)
	@{ echo "date: $$(date -u +%F)"; echo "kernel: $$(uname -sr)"; echo "cores: $$(nproc)"; \
		echo "commit: $$(git rev-parse --short HEAD)"; } >$(RESULTS)/rounds.txt
	@for round in $$(seq $(ROUNDS)); do \
		echo "round $$round of $(ROUNDS)"; \
		go test -run '^$$' -bench . -skip 'Scale|Busy|Reload|Routes|Words|Scrape' ./bench >>$(RESULTS)/rounds.txt || { cat $(RESULTS)/rounds.txt; exit 1; }; \
	done
	@for round in $$(seq $(SCALE_ROUNDS)); do \
		echo "many tunnels, round $$round of $(SCALE_ROUNDS)"; \
		go test -run '^$$' -bench 'Scale|Busy|Reload|Routes|Words|Scrape' -benchtime 1x ./bench >>$(RESULTS)/rounds.txt || { cat $(RESULTS)/rounds.txt; exit 1; }; \
	done
	go run ./bench/report $(RESULTS)
