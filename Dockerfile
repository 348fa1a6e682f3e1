# ddk with the PyTorch and torchrun that it needs, for Docker and for the manifests in deploy/kubernetes.
#
#   docker build --tag ddk .                      PyTorch from PyPI, for CPUs and NVIDIA GPUs (CUDA 13)
#   docker build --tag ddk --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .     for CPUs only, smaller
#   docker run --rm --volume "$PWD:/work" ddk train my.toml
#
# GPUs also need `--gpus all` and the NVIDIA Container Toolkit on the host. The image has no CUDA of its own: PyTorch
# brings its libraries.
ARG RUST=1.95
ARG PYTHON=3.12

FROM rust:${RUST}-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /ddk
COPY . .
# The commit that `ddk --version` prints; .dockerignore leaves out .git.
ARG DDK_COMMIT=
# Kept between builds: libtorch, its compiled bindings, and the crates.
RUN --mount=type=cache,target=/root/.cache --mount=type=cache,target=/usr/local/cargo/registry \
    make wheel DDK_COMMIT="${DDK_COMMIT}"

FROM python:${PYTHON}-slim-bookworm
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" 'torch==2.11.*'
RUN --mount=from=build,source=/ddk/dist,target=/dist \
    pip install --no-cache-dir --no-index --no-deps /dist/*.whl \
    && ddk --version
WORKDIR /work
ENTRYPOINT ["ddk"]
