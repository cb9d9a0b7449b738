"""python -m demo: the page, on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from vae_runtime.cli.arguments import Parser, add_device, integer, number, run
from vae_runtime.config import CONFIG_FILE
from vae_runtime.hub import bundled_model
from vae_runtime.model import VAE


def shipped() -> list[str]:
    """The folders of the models beside the bundled one, which comes first."""
    first = bundled_model()
    others = sorted(config.parent for config in first.parent.glob(f"*/{CONFIG_FILE}") if config.parent != first)
    return [str(first), *map(str, others)]


def main(arguments: Sequence[str]) -> int:
    """Load the models and serve the page until Ctrl-C; the exit status."""
    parser = Parser(prog="python -m demo", description="The demo, in the browser")
    parser.add_argument("models", nargs="*", help="folders or hf:owner/name; all shipped models if none is given")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 for every network")
    parser.add_argument("--port", type=integer(1, 65535), default=7860, help="the port to listen on")
    rate = "requests a second that one address may send for long; 0 for no limit"
    parser.add_argument("--rate", type=number(0, 1000), default=10.0, help=rate)
    add_device(parser)
    options = parser.parse_args(arguments)
    # A server gets more done with a core a visitor than with all cores for each.
    models = [VAE.load(model, device=options.device, threads=1) for model in options.models or shipped()]
    from demo.app import build_demo, serve  # gradio takes seconds to import: not for --help, nor for a wrong folder

    serve(build_demo(models), options.host, options.port, rate=options.rate)
    return 0


if __name__ == "__main__":
    run(main)
