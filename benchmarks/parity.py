"""The same answer everywhere: both graphs in every installed runtime, beside their exact values, as a table.

The exact values are those of `benchmarks.reference`, in float64. The inputs follow from the model and a seed: faces
that its prior gives, in turns with noise, and the codes of these faces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference import Parsed, evaluate, parse
from benchmarks.runtimes import FLOAT32, Answer, GraphFile, Peer, first_line
from vae_runtime.config import DECODER_FILE, ENCODER_FILE
from vae_runtime.images import to_pixels, to_unit
from vae_runtime.model import VAE

BATCHES = (1, 2, 5, 33)
SEED = 2026
PIXELS = 1
"""Largest difference of a pixel, of 255."""


Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One runtime at one batch of one graph."""

    runtime: str
    version: str
    graph: str
    """"encoder" or "decoder"."""
    batch: int
    difference: float | None
    """Largest one of its outputs to the reference, see `difference`; None where it gave no answer."""
    pixels: int | None
    """Largest difference of a pixel, of 255; None for the encoder."""
    milliseconds: float | None
    """For an image, in the fastest of a few runs."""
    tolerance: float | None
    """Of `difference`; None where it is not judged."""
    passed: bool | None
    """None where it is not judged."""
    reason: str
    """Why it gave no answer."""


def difference(found: Array, wanted: Array) -> float:
    """Largest |found - wanted| / max(1, |wanted|): absolute for pixels in [0, 1], relative for the large of the codes.

    Infinity for another shape, and where `found` is no number.
    """
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float((np.abs(found - wanted) / np.maximum(1, np.abs(wanted))).max(initial=0.0))


def golden_inputs(vae: VAE, decoder: Parsed) -> tuple[list[Array], list[Array]]:
    """Images float32 (n, 3, S, S) and codes float32 (n, latent_dim) for each n of `BATCHES`; always the same."""
    rng = np.random.default_rng(SEED)
    images, codes = [], []
    for batch in BATCHES:
        z = np.asarray(vae.prior.sample(batch, rng), np.float32)
        faces = to_pixels(evaluate(decoder, z)[0].astype(np.float32))
        faces[1::2] = rng.integers(0, 256, faces[1::2].shape, np.uint8)
        images.append(to_unit(faces))
        codes.append(z)
    return images, codes


def measure(vae: VAE, folder: Path, peers: Iterable[Peer], threads: int) -> tuple[list[Row], dict[str, str]]:
    """A row for each runtime, graph and batch size; and by its name, why a runtime could not be tried.

    folder: the model's. threads: CPU cores for each runtime. RuntimeMissingError without the package onnx.
    """
    parts = {"encoder": (vae.encoder, ENCODER_FILE), "decoder": (vae.decoder, DECODER_FILE)}
    files = {
        name: GraphFile((folder / file).read_bytes(), part.inputs, part.outputs) for name, (part, file) in parts.items()
    }
    parsed = {name: parse(file.data) for name, file in files.items()}
    inputs = dict(zip(parts, golden_inputs(vae, parsed["decoder"]), strict=True))
    wanted = {name: [evaluate(parsed[name], values) for values in inputs[name]] for name in parts}
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for peer in peers:
        try:
            version = peer.version()
        except Exception as error:  # not installed, or broken: both are an answer
            missing[peer.name] = first_line(error)
            continue
        for name, file in files.items():
            batches = [values for values in inputs[name] if len(values) <= (peer.largest or len(values))]
            answers = peer.answers(file, batches, threads)
            for values, answer, exact in zip(batches, answers, wanted[name], strict=False):
                rows.append(_row(peer, version, name, len(values), answer, exact))
    return rows, missing


def _row(peer: Peer, version: str, graph: str, batch: int, answer: Answer | str, exact: list[Array]) -> Row:
    far = pixels = milliseconds = None
    reason = answer if isinstance(answer, str) else ""
    if not isinstance(answer, str):
        milliseconds = 1000 * answer.seconds / batch
        far = max(difference(found, wanted) for found, wanted in zip(answer.outputs, exact, strict=True))
        if not np.isfinite(far):
            far, reason = None, "its answer has another shape, or is no number"
        elif graph == "decoder":
            here, there = (to_pixels(part[0].astype(np.float32)).astype(int) for part in (exact, answer.outputs))
            pixels = int(np.abs(here - there).max())
    passed = None
    if peer.tolerance is not None:
        passed = far is not None and far <= peer.tolerance and (pixels or 0) <= PIXELS
    return Row(peer.name, version, graph, batch, far, pixels, milliseconds, peer.tolerance, passed, reason)


def failures(rows: Iterable[Row]) -> list[Row]:
    """The rows that are judged and do not pass."""
    return [row for row in rows if row.passed is False]


HEAD = (
    "runtime",
    "version",
    "encoder differs by",
    "decoder differs by",
    "of 255",
    "encode, ms an image, batch 1 / largest",
    "decode, ms an image, batch 1 / largest",
    "verdict",
)


def lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A line of texts, as `HEAD` names them, for each runtime: the worst of its batches."""
    for name in dict.fromkeys(row.runtime for row in rows):
        mine = [row for row in rows if row.runtime == name]
        encoder, decoder = ([row for row in mine if row.graph == graph] for graph in ("encoder", "decoder"))
        far = [pixels for row in decoder if (pixels := row.pixels) is not None]
        yield (
            name,
            mine[0].version,
            _worst(encoder),
            _worst(decoder),
            str(max(far)) if far else "-",
            _times(encoder),
            _times(decoder),
            _verdict(mine),
        )


def _worst(rows: Sequence[Row]) -> str:
    found = [row.difference for row in rows if row.difference is not None]
    return f"{max(found):.1e}" if found else "-"


def _times(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.milliseconds is not None]
    return f"{found[0].milliseconds:.3g} / {found[-1].milliseconds:.3g}" if found else "-"


def _verdict(rows: Sequence[Row]) -> str:
    if rows[0].tolerance is None:
        return "not judged"
    failed = failures(rows)
    if not failed:
        largest = max(row.batch for row in rows)
        return f"pass at {rows[0].tolerance:g}" + (f", batches to {largest}" if largest < BATCHES[-1] else "")
    where = ", ".join(f"{row.graph} {row.batch}" for row in failed)
    return f"FAIL: {where}" + (f" ({failed[0].reason})" if failed[0].reason else "")


def as_text(rows: Sequence[Row]) -> str:
    """The lines in columns, for a terminal."""
    table = [HEAD, *lines(rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """The lines as a Markdown table."""
    table = [HEAD, ("---",) * len(HEAD), *lines(rows)]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in table)


def as_json(rows: Sequence[Row], missing: dict[str, str], vae: VAE, folder: Path) -> dict[str, Any]:
    """Everything that was found."""
    graph = parse((folder / DECODER_FILE).read_bytes())
    return {
        "model": vae.config.name,
        "model_id": vae.config.model_id,
        "opset": graph.opset,
        "ir_version": graph.ir_version,
        "batches": BATCHES,
        "seed": SEED,
        "pixels": PIXELS,
        "rows": [asdict(row) for row in rows],
        "not_tried": missing,
    }


def chapter(rows: Sequence[Row], conditions: str) -> str:
    """The part of a model card that holds the table. conditions: where the times were taken."""
    return f"""## Every runtime

Both graphs in batches of {", ".join(map(str, BATCHES))}, beside their exact values in float64. A difference is the
largest of |found - exact| / max(1, |exact|): of mu and logvar for the encoder, of pixels in [0, 1] for the decoder. In
float32 it may be {FLOAT32:g}, and 8-bit pixels may be off by {PIXELS}. Times are the fastest of a few runs on
{conditions}. By `python -m vae_runtime parity --card`.

{as_markdown(rows)}"""
