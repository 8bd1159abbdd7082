# Adit: the two commands are `make demo` and `make test`. `make help` lists the others.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 600
CI_FUZZ_SECONDS ?= 15
FUZZ_TARGETS := parse tunnel_roundtrip director icmp_quotes config_text import
# The targets are safe Rust, so they run without a sanitizer: on stable, and several times as fast.
# (The public CI has a longer job with CARGO="cargo +nightly" FUZZ_SANITIZER=address.)
FUZZ_SANITIZER ?= none
FUZZ = $(CARGO) fuzz run -s $(FUZZ_SANITIZER)
# What is found on the way stays out of the committed corpus: `cargo fuzz cmin` takes it there.
FUZZ_FOUND := target/fuzz-corpus
fuzz_dictionary = $(if $(wildcard fuzz/dictionaries/$(1).dict),-dict=fuzz/dictionaries/$(1).dict)

# $(call fuzz_target,name,seconds,options)
define fuzz_target
@mkdir -p $(FUZZ_FOUND)/$(1)
$(FUZZ) $(1) $(FUZZ_FOUND)/$(1) fuzz/corpus/$(1) -- -max_total_time=$(2) -timeout=10 \
	-max_len=4096 $(call fuzz_dictionary,$(1)) -print_final_stats=1 $(3)

endef

SOAK_SECONDS ?= 600
# Such as --seed 7 or --json.
SOAK_OPTIONS ?=

.PHONY: help deps deps-bench deps-fuzz deps-deny deps-promtool build demo soak test unit lint rules deny bench fuzz fuzz-ci install install-built \
	deps-deb deb deb-built lint-deb test-deb deps-ansible lint-ansible test-rollout

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

deps: ## Install the Debian/Ubuntu packages that demo and tests need
	@tests/lab/install.sh

build: ## Build the release binaries
	$(CARGO) build --release --locked --workspace --bins

demo: deps build ## Show the main job on this machine: real packets, real PostgreSQL, then clean up
	@target/release/adit-lab prepare
	@target/release/adit-demo

soak: deps build ## Load a director with everything at once for SOAK_SECONDS (default 600), and see that nothing breaks or grows
	@target/release/adit-lab prepare
	@target/release/adit-soak --seconds $(SOAK_SECONDS) $(SOAK_OPTIONS)

test: deps lint lint-ansible unit rules demo fuzz-ci ## Run everything: lints, unit, property and real-kernel tests, the demo, short fuzzing

# Hosts of the lab run the workspace's binaries.
unit: deps deps-promtool deps-ansible
	$(CARGO) build --locked --workspace --bins
	@target/debug/adit-lab prepare
	$(CARGO) test --locked --workspace --no-fail-fast

lint: ## Check format and clippy
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml --all-targets -- -D warnings

deps-ansible:
	@tests/lab/ansible.sh >/dev/null

lint-ansible: deps-ansible ## Check the playbooks: yamllint, and ansible-lint's production profile, offline
	cd ansible; PATH=$$(../tests/lab/ansible.sh):$$PATH; yamllint --strict .; ansible-lint --offline -q

test-rollout: deps deps-ansible ## Play all playbooks on machines with systemd and kernels of their own
	$(CARGO) build --locked --workspace --bins
	@target/debug/adit-lab prepare
	$(CARGO) test --locked -p adit-lab --test rollout --test one_segment --test realserver_setup -- --include-ignored --test-threads 1

deps-promtool:
	@tests/lab/promtool.sh >/dev/null

rules: deps-promtool ## Check the alert rules for Prometheus, and run their tests
	promtool=$$(tests/lab/promtool.sh); \
	$$promtool check rules packaging/adit.rules.yml; \
	$$promtool test rules packaging/adit.rules.test.yml

deps-deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny

deny: deps-deny ## Check licences, bans and sources of dependencies
	$(CARGO) deny --locked check bans licenses sources

deps-bench:
	@tests/lab/install.sh bench

bench: deps-bench build ## Measure: in process, and whole paths beside plain loops, in namespaces
	$(CARGO) bench --locked --bench conntrack
	$(CARGO) bench --locked --bench dataplane
	$(CARGO) bench --locked --bench path
	$(CARGO) bench --locked --bench latency
	@target/release/adit-lab prepare
	$(CARGO) test --locked --release -p adit-lab --test decap_throughput -- --ignored --nocapture

deps-fuzz:
	@tests/lab/install.sh build
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz

fuzz: deps-fuzz ## Fuzz every target for FUZZ_SECONDS (default 600) each
	$(foreach target,$(FUZZ_TARGETS),$(call fuzz_target,$(target),$(FUZZ_SECONDS),))

# The same inputs each time, so that a change is blamed for what it broke; `make fuzz` and the public
# CI look for what nobody knows yet.
fuzz-ci: deps-fuzz
	$(foreach target,$(FUZZ_TARGETS),$(call fuzz_target,$(target),$(CI_FUZZ_SECONDS),-seed=1))

install: build ## Install binaries, man pages, completions and systemd units, dashboard, rules and examples below PREFIX (default /usr/local)
	@$(MAKE) --no-print-directory install-built

deps-deb:
	@tests/lab/install.sh deb

deb: deps-deb build ## Make Debian packages of both programs: target/debian/*.deb
	@$(MAKE) --no-print-directory deb-built

deb-built:
	@packaging/build-deb.sh $(BINARIES) target/debian

lint-deb: deb ## Check the Debian packages with lintian
	lintian --allow-root --profile debian --fail-on error,warning target/debian/*.changes

# Packages of debug binaries, which the lab's tests run anyway.
test-deb: deps deps-deb ## Install, use and purge the Debian packages on guests with systemd
	$(CARGO) build --locked --workspace --bins
	@target/debug/adit-lab prepare
	$(CARGO) test --locked -p adit-lab --test packages -- --ignored

# Without building, so that packages and a test of the installation can bring their own BINARIES.
BINARIES ?= target/release
SHARE = $(DESTDIR)$(PREFIX)/share
UNITS = adit.service adit-realserver.service adit-decap.service
define install_program
install -D -m 755 $(BINARIES)/$(1) $(DESTDIR)$(PREFIX)/sbin/$(1)
$(BINARIES)/$(1) man $(SHARE)/man/man8
$(BINARIES)/$(1) completions bash > $(SHARE)/bash-completion/completions/$(1)
$(BINARIES)/$(1) completions zsh > $(SHARE)/zsh/site-functions/_$(1)
$(BINARIES)/$(1) completions fish > $(SHARE)/fish/vendor_completions.d/$(1).fish

endef

install-built:
	install -d $(SHARE)/man/man8 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions \
		$(SHARE)/fish/vendor_completions.d
	$(foreach program,adit adit-realserver,$(call install_program,$(program)))
	install -D -m 644 packaging/adit.example.toml $(DESTDIR)/etc/adit/adit.example.toml
	install -D -m 644 packaging/realserver.example.toml $(DESTDIR)/etc/adit/realserver.example.toml
	install -D -m 644 packaging/adit.bird.conf $(SHARE)/adit/adit.bird.conf
	install -D -m 644 packaging/adit.frr.conf $(SHARE)/adit/adit.frr.conf
	install -D -m 644 packaging/adit.grafana.json $(SHARE)/adit/adit.grafana.json
	install -D -m 644 packaging/adit.rules.yml $(SHARE)/adit/adit.rules.yml
	install -D -m 644 packaging/adit.rules.test.yml $(SHARE)/adit/adit.rules.test.yml
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	$(foreach unit,$(UNITS),sed 's|@SBIN@|$(PREFIX)/sbin|' packaging/$(unit) > $(DESTDIR)$(PREFIX)/lib/systemd/system/$(unit);)
	for database in mariadb postgresql redis-server valkey-server; do \
		install -D -m 644 packaging/after-adit-realserver.conf \
			$(DESTDIR)$(PREFIX)/lib/systemd/system/$$database@.service.d/adit-realserver.conf; \
	done
