"""Many clients on one page: python -m tests.demo.load [--clients 20] [--seconds 300 | --requests 10000]

Each client, in a loop without pause, uploads a picture and has it reconstructed, draws faces, or edits a face; after
that ten times as many come for ten seconds, and then one alone. With --requests, so many are answered after 200 for
warming, and the memory is watched. Printed: outcomes, times, memory, files.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.demo.conftest import ROOT, free_port, serving
from vae_runtime.hub import bundled_model

MODEL = bundled_model().name


@dataclass
class Tally:
    """What the clients met: (seconds since the start, seconds it took) of each answer, and what went wrong."""

    answers: list[tuple[float, float]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    start: float = field(default_factory=time.monotonic)

    def percentile(self, share: float) -> float:
        return float(np.percentile([took for _, took in self.answers], share)) if self.answers else float("nan")

    def rate(self, since: float, until: float) -> float:
        return sum(since <= at < until for at, _ in self.answers) / (until - since)


class Visitor:
    """One client by the raw protocol; each has a picture of its own."""

    def __init__(self, port: int, number: int) -> None:
        self.port, self.number = port, number
        file = io.BytesIO()
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
        self.picture = file.getvalue()

    def ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, f"/gradio_api/{path}", body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self) -> str:
        head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        body = head + self.picture + b"\r\n--edge--\r\n"
        return str(json.loads(self.ask("POST", "upload", body, "multipart/form-data; boundary=edge")[1])[0])

    def call(self, turn: int) -> str:
        """One request of three kinds in turn; "ok", "busy" or what went wrong."""
        kind = ("reconstruct", "sample", "edit")[turn % 3]
        data: list[object] = [MODEL]
        if kind == "sample":
            data += [8, turn, 1, "model", []]
        else:
            data += [{"path": self.upload(), "meta": {"_type": "gradio.FileData"}}]
            data += [{"brightness": 0.5}] if kind == "edit" else []
        status, said = self.ask("POST", f"call/{kind}", json.dumps({"data": data}).encode())
        if status == 503:
            return "busy"
        if status != 200:
            return f"{kind} {status}"
        said = self.ask("GET", f"call/{kind}/{json.loads(said)['event_id']}")[1]
        return "ok" if b"event: complete" in said and b"data:image/png" in said else f"{kind}: {said[:80]!r}"


def crowd(port: int, clients: int, seconds: float, most: float = float("inf")) -> Tally:
    """`clients` visitors at once for so many seconds, or until about `most` requests were made."""
    tally = Tally()
    end = time.monotonic() + seconds

    def visit(number: int) -> None:
        visitor, turn = Visitor(port, number), number
        while time.monotonic() < end and tally.outcomes.total() < most:
            begun = time.monotonic()
            try:
                outcome = visitor.call(turn)
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = type(error).__name__
            now = time.monotonic()
            tally.outcomes[outcome] += 1
            if outcome == "ok":
                tally.answers.append((now - tally.start, now - begun))
            turn += 1

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def endure(port: int, pid: int, clients: int, requests: int) -> None:
    """`requests` answers after 200 for warming; the memory every tenth of the way."""
    done = Counter(crowd(port, clients, 1e9, most=200).outcomes)
    print(f"after {done.total()} for warming: {resident(pid):.0f} MB, {dict(done)}", flush=True)
    first, done, begun = resident(pid), Counter[str](), time.monotonic()
    while done.total() < requests:
        done += crowd(port, clients, 1e9, most=max(1, requests // 10)).outcomes
        grown, seconds = resident(pid) - first, time.monotonic() - begun
        print(f"{done.total()} more in {seconds:.0f} s: {grown:+.0f} MB, {dict(done)}", flush=True)


def resident(pid: int) -> float:
    """MB of memory that a process holds (Linux)."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def storm(port: int, pid: int, clients: int, seconds: float, files: Path) -> None:
    """`clients` for so many seconds, ten times as many for ten, then one."""
    tally = crowd(port, clients, seconds)
    minute = min(60.0, seconds / 3)
    print(f"{clients} clients, {seconds:.0f} s: {dict(tally.outcomes)}")
    print(f"p50 {tally.percentile(50):.2f} s, p95 {tally.percentile(95):.2f} s")
    first, last = tally.rate(0, minute), tally.rate(seconds - minute, seconds)
    print(f"requests/s in the first {minute:.0f} s {first:.1f}, in the last {last:.1f}")
    size = sum(file.stat().st_size for file in files.rglob("*") if file.is_file()) / 2**20
    print(f"memory {resident(pid):.0f} MB, files {size:.1f} MiB", flush=True)
    over = crowd(port, 10 * clients, 10)
    print(f"{10 * clients} clients, 10 s: {dict(over.outcomes)}, p95 {over.percentile(95):.2f} s")
    begun = time.monotonic()
    alone = crowd(port, 1, 5)
    print(f"then one alone: first answer after {alone.answers[0][0]:.2f} s, p50 {alone.percentile(50) * 1000:.0f} ms")
    print(f"memory {resident(pid):.0f} MB, {time.monotonic() - begun:.0f} s later", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--requests", type=int, help="count requests instead of seconds")
    options = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "demo", str(bundled_model()), "--port", str(port), "--device", "cpu"]
    command += ["--rate", "0"]  # all clients are of one address
    with (
        tempfile.TemporaryDirectory() as files,
        serving(command, port, cwd=ROOT, env=os.environ | {"GRADIO_TEMP_DIR": files}) as (_, pid),
    ):
        crowd(port, 2, 3)
        print(f"memory before: {resident(pid):.0f} MB", flush=True)
        if options.requests:
            endure(port, pid, options.clients, options.requests)
        else:
            storm(port, pid, options.clients, options.seconds, Path(files))


if __name__ == "__main__":
    main()
