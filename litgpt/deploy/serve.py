"""`litgpt serve`: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

SHUTDOWN_SECONDS = 30
"""What running requests get to finish in after SIGTERM or Ctrl-C."""


def run_server(
    checkpoint_dir: Path,
    quantize: Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"] | None = None,
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
    slots: int = 8,
) -> None:
    """Serve a model over HTTP.

    `POST {api_path}` with `{"prompt": text}` answers `{"output": text}`. The body may also have max_new_tokens,
    temperature, top_k, top_p, seed and stop (a text or a list of texts). `GET /health` answers `ok`.

    Args:
        checkpoint_dir: The checkpoint folder, LitGPT's or Hugging Face's; a name on the hub (ORG/NAME) is downloaded.
        quantize: Keep the weights in 4 or 8 bits (bitsandbytes).
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
        temperature: Higher is more random; 0 always takes the most likely token.
        top_k: Choose among this many most likely tokens.
        top_p: Choose among the most likely tokens that have this much probability together.
        max_new_tokens: The most tokens an answer may have.
        devices: 1; several are not built yet.
        accelerator: auto, cpu, cuda, gpu or mps.
        port: TCP port; 0 takes a free one.
        stream: Answer in JSON lines as the text comes.
        openai_spec: OpenAI's routes; not built yet.
        access_token: For repositories on the hub that ask for one.
        api_path: Where to post prompts; null: /predict.
        timeout: The most seconds a request waits for its turn; 0 or less: as long as it takes.
        generate_strategy: For several devices; not built yet.
        host: Address to listen on; 0.0.0.0 is reachable from other machines.
        api_key: What requests must carry as `Authorization: Bearer KEY`; null: nothing.
        slots: Requests that are worked on at the same time.
    """
    import sys

    from litgpt.checkpoint.hub import auto_download
    from litgpt.deploy.app import Service, make_app
    from litgpt.errors import LitGPTError
    from litgpt.generate.sampling import Sampling
    from litgpt.generate.speaker import Speaker

    if openai_spec:
        raise LitGPTError("--openai_spec true is not built yet; leave it out and use the plain route.")
    if devices != 1 or generate_strategy is not None:
        raise LitGPTError("Serving from several devices is not built yet; leave out --devices and --generate_strategy.")
    for name, value in {"max_new_tokens": max_new_tokens, "slots": slots}.items():
        if value < 1:
            raise LitGPTError(f"{name} is {value}; it must be 1 or more.")
    path = "/predict" if api_path is None else api_path
    if not path.startswith("/") or path == "/health" or "{" in path:
        raise LitGPTError(f"--api_path {path} is no path to serve; it begins with / and is not /health.")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    with bind(host, port) as listener:  # before the model is loaded: a port that is taken is told at once
        speaker = Speaker.load(auto_download(checkpoint_dir, access_token), accelerator, precision, quantize)
        engine = speaker.engine(slots)
        size = engine.cache_nbytes / 1e9
        print(f"{slots} requests at a time, {engine.length} tokens each (KV cache: {size:.2f} GB).", file=sys.stderr)
        service = Service(
            speaker=speaker,
            engine=engine,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            api_path=path,
            stream=stream,
            timeout=timeout if timeout > 0 else None,
            api_key=api_key,
        )
        serve(make_app(service), listener)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; connections are refused until a server listens on it.

    Raises:
        LitGPTError: The address is taken, not this machine's, or none at all.
    """
    import os
    import socket

    from litgpt.errors import LitGPTError

    bound = None
    try:
        if not 0 <= port < 2**16:
            raise OSError("a port is a number from 0 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        if os.name == "posix":  # a server that was just stopped leaves its port in a waiting state
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        if bound is not None:
            bound.close()
        reason = error.strerror or str(error)
        raise LitGPTError(f"Can't listen on {host} port {port} ({reason}); choose another --host or --port.") from None


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Runs an application until SIGTERM or Ctrl-C, then finishes the requests that are running."""
    import signal
    import sys

    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            host, port = listener.getsockname()[:2]
            print(f"Ready at http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)

    # uvicorn raises the signal that ended it once more afterwards; asked to end, and having ended, this is no failure.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        Server(uvicorn.Config(app, timeout_graceful_shutdown=SHUTDOWN_SECONDS)).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
