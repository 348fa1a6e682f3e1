# Commands for users and developers. Each target does all the setup that it needs.
.PHONY: help setup demo-text build wheel wheel-check demo test test-full full generate gpu-check gpu-loading \
	gpu-kernels vllm-check two-nodes deploy-check check deny bench bench-telemetry

# The cache folder, as a shell expression.
CACHE = $${DDK_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/ddk}

# The commit that `ddk --version` of a wheel prints.
DDK_COMMIT ?= $(shell git describe --always --dirty --exclude '*' 2>/dev/null)
PROGRAM = $${CARGO_TARGET_DIR:-target}/release/ddk

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## fetch libtorch into the cache folder and write .cargo/config.toml
	@tools/setup

demo-text: setup ## fetch the documents that the demo's text is chosen from into the cache folder
	@tools/demo-text/fetch

build: setup ## build ddk
	cargo build --release --locked

wheel: setup ## build dist/ddk-VERSION-….whl, which pip installs next to PyTorch 2.11
	DDK_COMMIT='$(DDK_COMMIT)' cargo build --release --locked --workspace --bin ddk
	@tools/wheel/build.py "$(PROGRAM)" dist

wheel-check: setup ## install a wheel into a fresh virtual environment, and distill there without clone and cargo
	@tools/python-env "$(CACHE)/python"
	cargo build --release --locked --workspace --bin ddk --example loading # the example: the same features as in tests
	@tools/wheel/check "$(PROGRAM)" "$(CACHE)/python"

demo: build demo-text ## distill on real text: 5 to 13 minutes after the build
	@cargo run --release --locked --quiet -- demo

test: ## run all tests at scale 1; SKIP=browser,prometheus,text skips those that need one of these
	@SKIP='$(SKIP)' tools/test

test-full: ## run all tests with the full counts; SKIP as above
	@DDK_TEST_SCALE=10 SKIP='$(SKIP)' tools/test

full: ## run test-full and the demo from the start, and keep the last lines in docs/full-run.txt
	@tools/full-run

generate: setup ## write the files that are generated from declarations: settings, metrics, dashboard
	UPDATE=1 cargo test --release --locked --workspace --test layers are_current
	UPDATE=1 cargo test --release --locked --workspace --test it are_current

gpu-check: ## check everything that GPUs compute differently, on cuda:0 (and cuda:1 if present); DEVICE=cpu: on the CPU
	@DEVICE='$(DEVICE)' tools/gpu-check

gpu-loading: ## prove without a GPU that the CUDA part of libtorch loads (downloads 530 MB once)
	@tools/gpu-loading

gpu-kernels: ## compile every CUDA kernel for sm_80, sm_90 and sm_100 without a GPU (downloads 90 MB once)
	@tools/gpu-kernels

two-nodes: build ## train on two network namespaces under torchrun and lose one of them (as root, with ip)
	@tools/python-env
	@tools/two-nodes

vllm-check: build ## check served teachers against a real vLLM on the CPU (keeps 3.1 GB in the cache folder)
	@tools/vllm-env "$(CACHE)/vllm"
	@tools/smollm2 "$(CACHE)/vllm" "$(CACHE)/smollm2-135m"
	@tools/vllm-check "$(CACHE)/vllm" --ddk target/release/ddk --smollm2 "$(CACHE)/smollm2-135m"

deploy-check: ## check the job files of deploy/, on a real Slurm if you are root (keeps 1.8 GB in the cache folder)
	@tools/deploy-tools
	@tools/deploy-env "$(CACHE)/deploy"
	@[ "$$(id -u)" != 0 ] || tools/python-env "$(CACHE)/python"
	@"$(CACHE)/deploy/bin/python" tools/deploy-check "$(CACHE)/deploy" "$(CACHE)/python/bin/torchrun"

check: setup ## check formatting, line lengths, prose, clippy and docs; warnings are errors
	cargo fmt --all --check
	tools/line-length
	tools/prose
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps

deny: ## check licenses, bans and sources of all dependencies, and advisories if they can be reached
	@tools/deny

bench-telemetry: setup ## measure what monitoring costs: a scrape, and the records of a step
	cargo bench --locked -p ddk-telemetry --bench scrape

bench: setup ## measure the LM head's memory by number of positions
	cargo bench --locked -p ddk-objective --bench head_memory
