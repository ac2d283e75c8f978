# `make help` lists what there is.
.PHONY: help demo test test-tools bench bench-tools lint deny clean

help:
	@echo "make demo          build, mount a sample from a registry, read it, clean up (KEEP=1 leaves it mounted)"
	@echo "make test          install what the tests need and run all of them"
	@echo "make bench         run it beside its peers and write docs/benchmarks.md (ONLY=tile, RUNS=5, SECONDS=600, KEEP=1)"
	@echo "make lint          rustfmt, clippy and shellcheck, as the tests run them"
	@echo "make deny          licences and advisories of the dependencies"

demo:
	@scripts/demo.sh

test: test-tools
	@scripts/test.sh

test-tools:
	@scripts/test-tools.sh

bench: bench-tools
	@scripts/bench.sh

bench-tools: test-tools
	@scripts/bench-tools.sh

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	shellcheck scripts/*.sh

deny:
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny check

clean:
	cargo clean
