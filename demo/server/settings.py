"""How the page is served: its look, and the settings of a server that strangers use."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from demo.components.widget import FOLDER as COMPONENTS
from demo.server.body_limit import BodyLimit
from demo.server.rate_limit import RateLimit
from vae_runtime import InputError, RuntimeMissingError

CSS_FILE = Path(__file__).with_name("style.css")
ENLARGE_FILE = Path(__file__).parents[1] / "web" / "enlarge.js"


def theme() -> gr.themes.Base:
    """Quiet grays, one warm color, and the fonts that the visitor's device has: nothing is fetched."""
    fonts = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
    look: gr.themes.Base = gr.themes.Base(
        primary_hue="rose",
        secondary_hue="rose",
        neutral_hue="stone",
        radius_size="md",
        spacing_size="md",
        font=fonts,
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )
    return look.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
    )


def head() -> str:
    """The script that the components share."""
    enlarge = ENLARGE_FILE.read_text(encoding="utf-8").replace("export function", "function")
    page = (COMPONENTS / "page.js").read_text(encoding="utf-8")
    return f"<script>\n{enlarge}\n{page}\n</script>"


def check_port(host: str, port: int) -> None:
    """InputError if something else listens there, or this process may not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, port))
        except OSError as error:
            raise InputError(
                f"--port {port}: cannot listen on {host}:{port} ({error.strerror or error}); choose another port"
            ) from error


def serve(
    demo: gr.Blocks,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    rate: float = 10.0,
    mcp: bool = False,
    wait: bool = True,
) -> str:
    """Start the server and return its address; with `wait`, only when it has ended.

    What strangers may do is bounded: `rate` requests a second from one address (0: any number), 8 MB an upload and
    16 MB a request, a queue, files deleted within two hours, no traceback and no path in an answer, no file of the
    machine served, nothing fetched, no share link. Behind proxies, $FORWARDED_ALLOW_IPS names those whose
    X-Forwarded-For is believed. mcp: offer the endpoints as tools of the Model Context Protocol, too.

    Raises InputError for a port that cannot be listened on, RuntimeMissingError for `mcp` without its package.
    """
    check_port(host, port)
    if mcp and find_spec("mcp") is None:
        raise RuntimeMissingError('--mcp needs the package mcp; pip install "gradio[mcp]"')
    middleware = [Middleware(BodyLimit)] + ([Middleware(RateLimit, rate=rate)] if rate else [])
    _, address, _ = demo.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        theme=theme(),
        css_paths=CSS_FILE,
        head=head(),
        footer_links=["api"],
        max_file_size="8mb",
        max_threads=16,
        state_session_capacity=100,
        show_error=False,
        share=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=mcp,
        run_history=False,
        pwa=False,
        app_kwargs={"middleware": middleware},
    )
    if wait:
        tools = f" (MCP: {address}gradio_api/mcp/)" if mcp else ""
        print(f"The page is at {address}{tools}; Ctrl-C ends it", flush=True)
        demo.block_thread()
    return str(address)
