"""Both graphs in every installed runtime, compared with their exact values, as a table.

The exact values are those of `benchmarks.reference`, in float64. The inputs follow from the model and a seed: faces
sampled from its prior, in turns with noise, and the codes of these faces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference import ParsedGraph, evaluate, parse
from benchmarks.runtimes import FLOAT32, Answer, GraphFile, Runtime, first_line
from vae_runtime import VAE
from vae_runtime.config import DECODER_FILE, ENCODER_FILE
from vae_runtime.images import to_pixels, to_unit

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
    """Largest `difference` of its outputs from the reference; None where it failed."""
    pixels: int | None
    """Largest difference of a pixel, of 255; None for the encoder."""
    milliseconds: float | None
    """Time of an image in the fastest of a few runs."""
    tolerance: float | None
    """Largest `difference` that passes; None where it is not judged."""
    passed: bool | None
    """None where it is not judged."""
    reason: str
    """Why it failed."""


def difference(found: Array, wanted: Array) -> float:
    """Largest |found - wanted| / max(1, |wanted|): absolute for pixels in [0, 1], relative for large codes.

    Infinity for another shape and for non-finite values.
    """
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float((np.abs(found - wanted) / np.maximum(1, np.abs(wanted))).max(initial=0.0))


def golden_inputs(vae: VAE, decoder: ParsedGraph) -> tuple[list[Array], list[Array]]:
    """Images float32 (n, 3, S, S) and codes float32 (n, latent_dim) for each n of `BATCHES`, deterministic."""
    rng = np.random.default_rng(SEED)
    images, codes = [], []
    for batch in BATCHES:
        z = np.asarray(vae.prior.sample(batch, rng), np.float32)
        faces = to_pixels(evaluate(decoder, z)[0].astype(np.float32))
        faces[1::2] = rng.integers(0, 256, faces[1::2].shape, np.uint8)
        images.append(to_unit(faces))
        codes.append(z)
    return images, codes


def measure(vae: VAE, folder: Path, runtimes: Iterable[Runtime], threads: int) -> tuple[list[Row], dict[str, str]]:
    """A row for each runtime, graph and batch size, and by its name, why a runtime could not be tried.

    folder: the model's. threads: CPU cores for each runtime.
    """
    parts = {"encoder": (vae.encoder, ENCODER_FILE), "decoder": (vae.decoder, DECODER_FILE)}
    files = {
        name: GraphFile((folder / file).read_bytes(), part.inputs, part.outputs, folder)
        for name, (part, file) in parts.items()
    }
    parsed = {name: parse(file.data) for name, file in files.items()}
    inputs = dict(zip(parts, golden_inputs(vae, parsed["decoder"]), strict=True))
    wanted = {name: [evaluate(parsed[name], values) for values in inputs[name]] for name in parts}
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for runtime in runtimes:
        try:
            version = runtime.version()
        except Exception as error:  # not installed, or broken
            missing[runtime.name] = first_line(error)
            continue
        for name, file in files.items():
            batches = [values for values in inputs[name] if len(values) <= (runtime.max_batch or len(values))]
            answers = runtime.answers(file, batches, threads)
            for values, answer, exact in zip(batches, answers, wanted[name], strict=False):
                rows.append(_row(runtime, version, name, len(values), answer, exact))
    return rows, missing


def _row(runtime: Runtime, version: str, graph: str, batch: int, answer: Answer | str, exact: list[Array]) -> Row:
    far = pixels = milliseconds = None
    reason = answer if isinstance(answer, str) else ""
    if not isinstance(answer, str):
        milliseconds = 1000 * answer.seconds / batch
        far = max(difference(found, wanted) for found, wanted in zip(answer.outputs, exact, strict=True))
        if not np.isfinite(far):
            far, reason = None, "its outputs have another shape or are not finite"
        elif graph == "decoder":
            here, there = (to_pixels(part[0].astype(np.float32)).astype(int) for part in (exact, answer.outputs))
            pixels = int(np.abs(here - there).max())
    passed = None
    if runtime.tolerance is not None:
        passed = far is not None and far <= runtime.tolerance and (pixels or 0) <= PIXELS
    return Row(runtime.name, version, graph, batch, far, pixels, milliseconds, runtime.tolerance, passed, reason)


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
    """All results, as JSON values."""
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


def card_section(rows: Sequence[Row], conditions: str) -> str:
    """The section of a model card that holds the table. conditions: where the times were taken."""
    return f"""## Every runtime

Both graphs in batches of {", ".join(map(str, BATCHES))}, beside their exact values in float64. A difference is the
largest of |found - exact| / max(1, |exact|): of mu and logvar for the encoder, of pixels in [0, 1] for the decoder. In
float32 it may be {FLOAT32:g}, and 8-bit pixels may be off by {PIXELS}. Times are the fastest of a few runs on
{conditions}. By `python -m benchmarks parity --card`.

{as_markdown(rows)}"""
