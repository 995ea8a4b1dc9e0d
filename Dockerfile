# One image to train, chat and serve in.
#   docker build -t litgpt .
#   docker run --rm -v "$PWD:/work" litgpt finetune_lora --config smollm2-135m/lora --data.json_path my_data.jsonl
#   docker run --rm -v "$PWD:/work" -p 8000:8000 -e LITGPT_API_KEY=secret litgpt serve out/mine/final --host 0.0.0.0
# With an NVIDIA GPU: docker build --build-arg TORCH_INDEX=https://pypi.org/simple -t litgpt:cuda .
# and docker run --gpus all …
FROM python:3.12-slim-bookworm

# Wheels of torch for machines without a GPU; those of pypi.org bring CUDA along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=quant,data,gguf,structured

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /src
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch
COPY pyproject.toml README.md LICENSE ./
COPY config_hub ./config_hub
COPY litgpt ./litgpt
RUN pip install --constraint constraints.txt ".[$EXTRAS]" && useradd --create-home --uid 1000 litgpt

# Checkpoints, data and results lie in what is mounted here.
USER 1000
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["litgpt"]
CMD ["--help"]
