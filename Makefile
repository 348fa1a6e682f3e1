# What a user and a developer type. Each target does all the set-up it needs (tools/setup).
.PHONY: help setup build demo test test-full gpu-check check deny bench bench-telemetry

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## fetch libtorch into the cache folder and write .cargo/config.toml
	@tools/setup

build: setup ## build ddk
	cargo build --locked

demo: build ## run the main job on real text: about five minutes after the build
	@cargo run --locked --quiet -- demo

test: setup ## every test, at scale 1 (some need Debian's prometheus: tools/prometheus)
	DDK_TEST_SCALE=$${DDK_TEST_SCALE:-1} cargo test --locked --workspace

test-full: ## every test, with the full counts
	$(MAKE) test DDK_TEST_SCALE=10

gpu-check: setup ## goldens of the objectives, the models' parity with transformers and whole runs, on cuda:0
	DDK_TEST_DEVICE=cuda:0 cargo test --locked --workspace --test goldens --test reference
	DDK_TEST_DEVICE=cuda:0 cargo test --locked --workspace --test it device::

check: setup ## formatting, clippy and docs, warnings as errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

deny: ## licences, bans and sources of all dependencies; advisories where they can be reached
	@tools/deny

bench-telemetry: setup ## what being watched costs: a scrape, and the records of a step
	cargo bench --locked --profile dev -p ddk-telemetry --bench scrape

bench: setup ## the head's memory by number of positions
	cargo bench --locked --profile dev -p ddk-objective --bench head_memory
