"""python -m demo: the page, on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vae_runtime.cli.arguments import Parser, add_device, integer, number, run
from vae_runtime.config import CONFIG_FILE
from vae_runtime.hub import bundled_model
from vae_runtime.model import VAE

HOST, PORT = "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"


def shipped() -> list[str]:
    """The folders of the bundled model, which comes first, and of those beside it."""
    first = bundled_model()
    others = sorted(config.parent for config in first.parent.glob(f"*/{CONFIG_FILE}") if config.parent != first)
    return [str(first), *map(str, others)]


def main(arguments: Sequence[str]) -> int:
    """Load the models and serve the page until Ctrl-C; the exit status."""
    parser = Parser(prog="python -m demo", description="The demo, in the browser")
    parser.add_argument("models", nargs="*", help="folders or hf:owner/name (default: all shipped models)")
    # A text as the default is parsed like one of the command line, so a bad environment variable is refused, too.
    host = os.environ.get(HOST) or "127.0.0.1"
    parser.add_argument("--host", default=host, help=f"address to listen on (default: ${HOST} or 127.0.0.1)")
    port = os.environ.get(PORT) or "7860"
    help = f"port to listen on (default: ${PORT} or 7860)"
    parser.add_argument("--port", type=integer(1, 65535), default=port, help=help)
    help = "requests a second that one address may send; 0 for no limit"
    parser.add_argument("--rate", type=number(0, 1000), default=10.0, help=help)
    parser.add_argument("--mcp", action="store_true", help="offer the endpoints as tools of an MCP server, too")
    add_device(parser)
    options = parser.parse_args(arguments)
    # A server gets more done with a core for each visitor than with all cores for each.
    models = [VAE.load(model, device=options.device, threads=1) for model in options.models or shipped()]
    from demo.app import build_demo  # gradio takes seconds to import: not for --help, nor for a wrong folder
    from demo.server.settings import serve

    serve(build_demo(models), options.host, options.port, rate=options.rate, mcp=options.mcp)
    return 0


if __name__ == "__main__":
    run(main)
