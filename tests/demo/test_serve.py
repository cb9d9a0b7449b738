"""How the server is started: where it listens, what a busy port says, and the tools of its MCP server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from demo.server.settings import check_port
from tests.demo.conftest import ROOT, free_port, serving
from vae_runtime import InputError


def start(folder, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo", str(folder), "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_a_port_in_use_gets_a_sentence_that_names_it(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}"):
            check_port("127.0.0.1", port)
        done = start(folder, "--port", str(port))
    assert done.returncode != 0
    assert f"--port {port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "GRADIO" not in done.stderr


@pytest.mark.parametrize("port", ["x", "0", "99999"])
def test_a_bad_port_of_the_environment_is_refused_like_one_of_the_command_line(folder, port):
    done = start(folder, GRADIO_SERVER_PORT=port)
    assert done.returncode == 2
    assert "--port" in done.stderr


@pytest.mark.slow
def test_the_environment_says_where_to_listen(folder):
    port = free_port()
    command = [sys.executable, "-m", "demo", str(folder), "--device", "cpu"]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    with (
        serving(command, port, cwd=ROOT, env=environment) as (address, _),
        urllib.request.urlopen(address + "config", timeout=20) as answer,
    ):
        assert json.load(answer)["title"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mcp") is not None, reason="the package mcp is there")
def test_mcp_without_its_package_says_what_to_install(folder):
    done = start(folder, "--mcp", "--port", str(free_port()))
    assert done.returncode != 0
    assert "gradio[mcp]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_endpoints_are_tools_of_an_mcp_server(folder):
    pytest.importorskip("mcp", reason="needs the package mcp")
    port = free_port()
    command = [sys.executable, "-m", "demo", str(folder), "--device", "cpu", "--mcp", "--port", str(port)]

    async def ask(address: str):
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        async with (
            streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            name = next(tool.name for tool in tools if tool.name.endswith("face_of"))
            return tools, await session.call_tool(name, {"model": "tiny", "text": "Ada"})

    with serving(command, port, cwd=ROOT) as (address, _), ThreadPoolExecutor(1) as thread:
        tools, answer = thread.submit(asyncio.run, ask(address)).result(60)
    names = {tool.name for tool in tools}
    for wanted in ("sample", "reconstruct", "edit", "evolve", "face_of"):
        assert any(name.endswith(wanted) for name in names)
    assert all(tool.description for tool in tools)
    assert not answer.isError
    assert "data:image/png" in str(answer.content)
