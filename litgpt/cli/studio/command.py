"""`litgpt studio`: a page that shows runs as they go, starts and stops them."""

from __future__ import annotations

from pathlib import Path

from litgpt.errors import LitGPTError


def studio(
    runs: Path = Path("out"),
    port: int = 8100,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    api_key_file: Path | None = None,
    allowed_hosts: list[str] | str | None = None,
) -> None:
    """Show runs in a browser as they go, compare them, start one from a recipe and stop it.

    The page reads what training writes, so runs that were started elsewhere are there too, and none is disturbed. Runs
    that it starts are processes of their own, which go on when it ends.

    Args:
        runs: The folder that the folders of runs are in, at any depth.
        port: TCP port; 0 takes a free one.
        host: Address to listen on; any but this machine's own needs a key.
        api_key: What requests must carry, several with commas between; the page asks for it. null: what the environment
            variable LITGPT_API_KEY says, or nothing.
        api_key_file: A file with one key a line, so that none stands on the command line.
        allowed_hosts: Names, with commas between, that requests may call the server by; `*`: any. null: as in serve.

    Raises:
        LitGPTError: There is no such folder, the address is taken, or others could reach it without a key.

    Example:
        litgpt studio --runs out
    """
    import uvicorn

    from litgpt.cli.studio.app import make_app
    from litgpt.cli.studio.runs import RunFolders
    from litgpt.deploy.access import is_loopback, listed, names_of_server, read_keys
    from litgpt.deploy.connections import OPTIONS
    from litgpt.deploy.uvicorn_server import Server, bind, run

    keys = read_keys(api_key, api_key_file)
    if not keys and not is_loopback(host):
        raise LitGPTError(f"--host {host} can be reached from other machines; give a key by --api_key KEY.")
    if runs.exists() and not runs.is_dir():
        raise LitGPTError(f"--runs {runs} is a file; give the folder that the folders of runs are in.")
    app = make_app(RunFolders(runs.resolve()), keys, names_of_server(host, listed(allowed_hosts), bool(keys)))
    with bind(host, port) as listener:
        run(Server(uvicorn.Config(app, timeout_graceful_shutdown=2, **OPTIONS), None, listener), listener)
