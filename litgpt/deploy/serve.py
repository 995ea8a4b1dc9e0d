"""`litgpt serve`: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from litgpt.args import Quantization
from litgpt.errors import LitGPTError, progress

if TYPE_CHECKING:
    from litgpt.deploy.settings import Settings

OWN_PATHS = ("/health", "/metrics", "/tokenize", "/detokenize", "/openapi.json", "/v1", "/")
"""What `--api_path` can't be."""


def run_server(
    checkpoint_dir: Path,
    quantize: Quantization | None = None,
    precision: str | None = None,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    max_new_tokens: int = 50,
    devices: int = 1,
    accelerator: str = "auto",
    port: int = 8000,
    stream: bool = False,
    openai_spec: bool = False,
    access_token: str | None = None,
    api_path: str | None = "/predict",
    timeout: int = 30,
    generate_strategy: Literal["sequential", "tensor_parallel"] | None = None,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    api_key_file: Path | None = None,
    slots: int = 8,
    max_length: int | None = None,
    model_name: str | None = None,
    adapters: list[str] | str | None = None,
    pooling: Literal["mean", "last"] = "mean",
    request_timeout: float | None = None,
    shutdown_timeout: int = 30,
    max_queue: int = 64,
    max_body: int = 8_000_000,
    max_prompt: int | None = None,
    max_n: int = 16,
    max_stops: int = 16,
    cors: list[str] | str | None = None,
    request_log: str | None = None,
    server: Literal["uvicorn", "litserve"] = "uvicorn",
    replicas: int = 1,
    allowed_hosts: list[str] | str | None = None,
    deterministic: bool | None = None,
    parse_special_tokens: bool = False,
) -> None:
    """Serve a model over HTTP.

    `POST {api_path}` with `{"prompt": text}` answers `{"output": text}`. The body may also have max_new_tokens,
    temperature, top_k, top_p, seed and stop (a text or a list of texts). OpenAI's and Anthropic's routes are always
    there: `/v1/chat/completions`, `/v1/responses`, `/v1/completions`, `/v1/embeddings`, `/v1/models`, `/v1/messages`;
    besides, `/tokenize`, `/detokenize`, `/health` and `/metrics`.

    Args:
        checkpoint_dir: The checkpoint folder, LitGPT's or Hugging Face's; a name on the hub (ORG/NAME) is downloaded.
        quantize: Keep the weights in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
        temperature: Higher is more random; 0 always takes the most likely token. Requests may say otherwise.
        top_k: Choose among this many most likely tokens.
        top_p: Choose among the most likely tokens that have this much probability together.
        max_new_tokens: The most tokens an answer at api_path may have; OpenAI's routes have the room left.
        devices: How many; several need --server litserve, which puts a replica on each.
        accelerator: auto, cpu, cuda, gpu or mps.
        port: TCP port; 0 takes a free one.
        stream: Answer at api_path in JSON lines as the text comes.
        openai_spec: For LitGPT's users; OpenAI's routes are always on.
        access_token: For repositories on the hub that ask for one.
        api_path: Where to post prompts; null: /predict.
        timeout: The most seconds a request waits for its turn; 0 or less: as long as it takes.
        generate_strategy: For a model that no single device holds; the server does not take it.
        host: Address to listen on; 0.0.0.0 is reachable from other machines.
        api_key: What requests must carry as `Authorization: Bearer KEY`, several with commas between; null: what the
            environment variable LITGPT_API_KEY says, or nothing.
        api_key_file: A file with one key a line, so that none stands on the command line.
        slots: Answers that are worked on at the same time.
        max_length: Tokens that a prompt and its answer may have together; null: the context, or what fits into memory.
        model_name: What requests call the model; null: the folder's name.
        adapters: LoRA adapters beside the model, LitGPT's folders or PEFT's, NAME=FOLDER,NAME=FOLDER; requests choose
            one by `model`.
        pooling: What an embedding is made of: the mean of a text's hidden states, or the last one.
        request_timeout: The most seconds a request takes altogether; null: as long as it takes.
        shutdown_timeout: Seconds that running requests get to finish in after SIGTERM or Ctrl-C.
        max_queue: Answers that may wait while all slots are taken; what comes then gets a 429.
        max_body: Bytes that a request may have.
        max_prompt: Tokens that a prompt may have; null: the context.
        max_n: Answers to one prompt that a request may ask for.
        max_stops: Stop strings that a request may have.
        cors: Origins (https://example.org), with commas between, whose pages may ask from a browser; `*`: all.
        request_log: A file that gets a line of JSON for each request, without texts and keys; `-`: standard output.
        server: uvicorn: one process. litserve: LitServe's processes, for several devices or replicas.
        replicas: Copies of the model on each device; several need --server litserve.
        allowed_hosts: Names, with commas between, that requests may call the server by; `*`: any. null: any, but a
            server without keys that listens for this machine alone answers to localhost, 127.0.0.1, [::1] and --host.
        deterministic: Give a request with a seed, or temperature 0, the same answer whatever else is running and was
            asked before; slower among others. null: with --precision 32-true.
        parse_special_tokens: Take special tokens that a message writes out (<|im_end|>) for tokens; else they are text.

    Example:
        litgpt serve HuggingFaceTB/SmolLM2-135M-Instruct
        curl http://127.0.0.1:8000/v1/models
    """
    import sys

    from litgpt.deploy.access import Limits, listed, names_of_server, read_keys
    from litgpt.deploy.request_log import RequestLog
    from litgpt.deploy.settings import Loading, Settings, parse_adapters
    from litgpt.engine.sampling import Sampling

    if openai_spec:
        print("OpenAI's routes are always on; --openai_spec changes nothing.", file=sys.stderr)
    _refuse(devices, replicas, generate_strategy, server)
    counts = {"max_new_tokens": max_new_tokens, "slots": slots, "max_length": max_length}
    for name, value in {**counts, "shutdown_timeout": shutdown_timeout}.items():
        if value is not None and value < 1:
            raise LitGPTError(f"{name} is {value}; it must be 1 or more.")
    limits = Limits(
        queue=max_queue,
        body=max_body,
        prompt=max_prompt,
        choices=max_n,
        stops=max_stops,
        wait=timeout if timeout > 0 else None,
        seconds=request_timeout,
    )
    keys = read_keys(api_key, api_key_file)
    settings = Settings(
        checkpoint_dir=checkpoint_dir,
        loading=Loading(
            accelerator, precision, quantize, access_token, slots, max_length, deterministic, parse_special_tokens
        ),
        name=model_name,
        adapters=parse_adapters(listed(adapters)),
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        max_new_tokens=max_new_tokens,
        api_path=_path("/predict" if api_path is None else api_path),
        stream=stream,
        pooling=pooling,
        limits=limits,
        keys=keys,
        hosts=names_of_server(host, listed(allowed_hosts), bool(keys)),
        origins=_origins(cors),
        log=RequestLog(request_log) if request_log else None,
        shutdown_timeout=shutdown_timeout,
    )
    if server == "litserve":
        from litgpt.deploy.backends.litserve import run_litserve

        run_litserve(settings, host, port, devices, replicas)
    else:
        run_uvicorn(settings, host, port)


def _refuse(devices: int, replicas: int, strategy: str | None, server: str) -> None:
    """Refuses what the chosen server can't do."""
    if devices < 1 or replicas < 1:
        raise LitGPTError(f"--devices {devices} --replicas {replicas} makes no sense; each is 1 or more.")
    if strategy is not None:
        raise LitGPTError(
            f"--generate_strategy {strategy} is for `litgpt generate`; the server takes models that fit on a device."
        )
    if server == "uvicorn" and (devices > 1 or replicas > 1):
        raise LitGPTError("Several devices or replicas need --server litserve; add it, or leave out --devices.")


def _origins(given: list[str] | str | None) -> tuple[str, ...]:
    from litgpt.deploy.access import listed

    origins = listed(given)
    for origin in origins:
        scheme, _, host = origin.partition("://")
        if origin != "*" and (not scheme.isalpha() or not host or set(host) & set("/?#@* ")):
            raise LitGPTError(f"--cors {origin} is no origin; write it as https://example.org, without a path, or `*`.")
    return origins


def _path(path: str) -> str:
    taken = path in OWN_PATHS or path.startswith("/v1/")
    if not path.startswith("/") or taken or "{" in path:
        raise LitGPTError(
            f"--api_path {path} is no path to serve; it begins with / and is not one of the server's own."
        )
    return path


def run_uvicorn(settings: Settings, host: str, port: int) -> None:
    """Serves from this process, until it is asked to end.

    Raises:
        LitGPTError: The address, the model or an adapter can't be used.
    """

    from litgpt.checkpoint.hub import auto_download
    from litgpt.deploy.backends.local import LocalBackend
    from litgpt.deploy.served_models import load_served_models
    from litgpt.deploy.service import Service
    from litgpt.deploy.uvicorn_server import bind, serve

    loading = settings.loading
    with bind(host, port) as listener:  # before the model is loaded: a port that is taken is an error at once
        folder = auto_download(settings.checkpoint_dir, loading.access_token)
        name = settings.model_name
        served_models = load_served_models(folder, name, settings.adapters, loading, loading.accelerator)
        engine = served_models[name].engine
        size = engine.cache_nbytes / 1e9
        progress(f"{engine.slots} answers at a time, {engine.length} tokens each (KV cache: {size:.2f} GB).")
        serve(Service(served_models, LocalBackend(served_models), settings), listener)
