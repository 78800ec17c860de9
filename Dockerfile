# Everything but data. On a CPU:
#   docker build -t deit3 . && docker run --rm -v "$PWD/runs:/deit3/runs" deit3 python train_imagenet.py --cfg recipes/demo.yaml
# On GPUs (the CUDA libraries come with torch; the base tells NVIDIA's container toolkit to bring the driver's):
#   docker build -t deit3 --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#   docker run --rm --gpus all --ipc=host -v "$PWD/data:/deit3/data" -v "$PWD/runs:/deit3/runs" deit3 python -m tools.doctor
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PATH=/deit3/.venv/bin:$PATH
WORKDIR /deit3
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates make python3 && rm -rf /var/lib/apt/lists/*
# The packages depend on these files alone, so that other changes do not install them again.
COPY setup.sh pyproject.toml constraints.txt ./
RUN ./setup.sh && rm -rf /var/lib/apt/lists/* build
COPY . .
RUN python write_datasets.py && python -m ffcv_ops.warm_up
CMD ["python", "-m", "tools.doctor"]
