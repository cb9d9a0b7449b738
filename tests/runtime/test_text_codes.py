"""A code for any text, the same to the last bit everywhere."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tiny_model import DIM, SIZE

from vae_runtime import VAE, InputError, InputTypeError, Prior
from vae_runtime.prior import Flow, text_code
from vae_runtime.prior.flow import ARRAYS
from vae_runtime.prior.text_codes import _flow, exact_exp, fold

MODULE = Path(__file__).parents[2] / "demo" / "web" / "face_of.js"
TEXTS = ["", "Ada", "Ren\u00e9e", "\u6771\u4eac", "\U0001f600 x", "a" * 1000]


def random_flow(rng, dim, layers=3, hidden=5):
    changed = 2 * (dim - dim // 2)
    return Flow(
        orders=np.stack([rng.permutation(dim) for _ in range(layers)]).astype(np.int32),
        inner=rng.normal(size=(layers, hidden, dim // 2)),
        inner_bias=rng.normal(size=(layers, hidden)),
        outer=rng.normal(size=(layers, changed, hidden)),
        outer_bias=rng.normal(size=(layers, changed)),
        basis=rng.normal(size=(dim, dim)),
        shift=rng.normal(size=dim),
    )


def priors(dim=7):
    rng = np.random.default_rng(3)
    weights, means = np.array([0.2, 0.3, 0.5]), rng.normal(size=(3, dim))
    scales, spreads = rng.normal(size=(3, dim, dim)), rng.uniform(0.5, 2, (3, dim))
    return {
        "unit": Prior.standard(dim),
        "Gaussians": Prior(weights, means, scales),
        "shared axes": Prior(weights, means, scales[:1], spreads),
        "flow": Prior(weights, means, None, spreads, random_flow(rng, dim)),
        "flow over scales": Prior(weights, means, scales, None, random_flow(rng, dim)),
    }


def scalar_exp(x):
    cut = min(700.0, max(-700.0, x))
    power = math.floor(cut * 1.4426950408889634 + 0.5)
    rest = (cut - power * 0.6931471803691238) - power * 1.9082149292705877e-10
    result = 1 / math.factorial(13)
    for n in range(12, -1, -1):
        result = result * rest + 1 / math.factorial(n)
    return math.ldexp(result, power)


def scalar_code(text, prior):
    """The algorithm number by number, in Python's own floats."""
    dim = prior.latent_dim
    data = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).upper().lower()).encode()
    seed = hashlib.sha256(b"anime-vae face 1\0" + data).digest()
    stream = b"".join(hashlib.sha256(seed + struct.pack(">I", i)).digest() for i in range(dim + 1))
    share, component, edge = struct.unpack(">I", stream[:4])[0] / 2**32, 0, float(prior.weights[0])
    while component < len(prior.weights) - 1 and share >= edge:
        component += 1
        edge += float(prior.weights[component])
    words = struct.unpack(f">{12 * dim}H", stream[4 : 4 + 24 * dim])
    eps = [(sum(words[12 * i : 12 * i + 12]) - 393210) / 65536 for i in range(dim)]
    if prior.spreads is not None:
        eps = [e * float(s) for e, s in zip(eps, prior.spreads[component], strict=True)]

    def product(matrix, vector):
        sums = []
        for row in matrix.tolist():
            total = 0.0
            for number, value in zip(row, vector, strict=True):
                total += number * value
            sums.append(total)
        return sums

    if prior.scales is not None:
        eps = product(prior.scales[component % len(prior.scales)], eps)
    y = [float(m) + 0.8 * e for m, e in zip(prior.means[component], eps, strict=True)]
    if prior.flow is not None:
        flow, half = prior.flow, dim // 2
        for layer, order in enumerate(flow.orders.tolist()):
            sums = product(flow.inner[layer], [y[i] for i in order[:half]])
            before = [a + b for a, b in zip(sums, flow.inner_bias[layer].tolist(), strict=True)]
            units = [b * (1 / (1 + scalar_exp(-b))) for b in before]
            sums = product(flow.outer[layer], units)
            said = [a + b for a, b in zip(sums, flow.outer_bias[layer].tolist(), strict=True)]
            for place, move, log in zip(order[half:], said[: dim - half], said[dim - half :], strict=True):
                y[place] = y[place] * scalar_exp(1 - 2 / (1 + scalar_exp(2 * log))) + move
        y = [s + p for s, p in zip(flow.shift.tolist(), product(flow.basis, y), strict=True)]
    return np.array(y, np.float32)


@pytest.mark.parametrize("name", list(priors()))
def test_the_code_of_a_text_is_that_of_the_definition(name):
    prior = priors()[name]
    for text in TEXTS:
        np.testing.assert_array_equal(text_code(text, prior), scalar_code(text, prior))


def test_the_code_of_a_text_never_changes():
    """A change of the algorithm gives everybody another face: it needs a new version in its seed."""
    assert text_code("Ada Lovelace", Prior.standard(3)).astype("<f4").tobytes().hex() == "338bf53e9a0186be9ac11d3f"


def test_a_flow_is_that_of_the_prior_but_for_its_last_digits():
    prior = priors()["flow"]
    draws = np.stack([text_code(f"face {index}", prior, 1.0) for index in range(1000)])
    expected = prior.sample(4000, rng=0)
    assert (np.abs(draws.mean(0) - expected.mean(0)) < 0.15 * expected.std(0)).all()
    np.testing.assert_allclose(draws.std(0), expected.std(0), rtol=0.15)
    x = np.random.default_rng(0).normal(size=(1, 7))
    np.testing.assert_allclose(_flow(prior.flow, x[0]), prior.flow.forward(x)[0], rtol=1e-12)


def test_exact_exp():
    x = np.concatenate([np.linspace(-700, 700, 9999), np.linspace(-1, 1, 999), [0.0, -0.0, 1e-300]])
    np.testing.assert_allclose(exact_exp(x), np.exp(x), rtol=1e-14)
    assert exact_exp(np.array([0.0]))[0] == 1


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Ada", "ADA"),
        ("Ren\u00e9e", "rene\u0301e"),
        ("Stra\u00dfe", "STRASSE"),
        ("a  b", " A\tb\n"),
        ("\u039f\u03a3", "\u03bf\u03c2"),
    ],
)
def test_spellings_of_a_text_have_one_face(text, other):
    assert fold(text) == fold(other)
    np.testing.assert_array_equal(*(text_code(each, Prior.standard(4)) for each in (text, other)))


@pytest.mark.parametrize("text", [None, 3, b"Ada", ["Ada"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(InputTypeError, match="text"):
        text_code(text, Prior.standard(4))


def test_invalid_unicode_is_refused():
    with pytest.raises(InputError, match="text"):
        text_code("a\ud800", Prior.standard(4))


def test_the_verb(tiny):
    vae = VAE.load(tiny.folder, device="cpu")
    face = vae.face_of("Ada")
    assert face.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(face, vae.face_of(" ada "))
    np.testing.assert_array_equal(face, vae.decode(text_code("Ada", vae.prior))[0])
    assert (face != vae.face_of("Eve")).any()
    np.testing.assert_array_equal(vae.face_of("Ada", temperature=0), vae.face_of("Eve", temperature=0))
    with pytest.raises(InputError, match="temperature"):
        vae.face_of("Ada", temperature=-1)
    assert vae.latent_dim == DIM


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_javascript_gives_the_same_bits(tmp_path):
    texts = [
        *TEXTS,
        " Stra\u00dfe\t1",
        "\u039f\u0394\u039f\u03a3 x",
        "\u0130stanbul",
        "\u1e9e",
        "\ufb03",
        "rene\u0301e",
    ]
    found = priors(8)
    given = {
        name: {
            **{key: None if (part := getattr(prior, key)) is None else part.ravel().tolist() for key in FIELDS},
            "flow": prior.flow
            and {k: getattr(prior.flow, k).ravel().tolist() for k in ARRAYS} | {"orders": prior.flow.orders.tolist()},
        }
        for name, prior in found.items()
    }
    (tmp_path / "given.json").write_text(json.dumps([texts, given]))
    (tmp_path / "run.mjs").write_text(
        f"import {{ textCode }} from {json.dumps(MODULE.as_uri())};\n"
        "import fs from 'node:fs';\n"
        "import { webcrypto } from 'node:crypto';\n"
        "globalThis.crypto ??= webcrypto;\n"
        f"const [texts, priors] = JSON.parse(fs.readFileSync({json.dumps(str(tmp_path / 'given.json'))}));\n"
        "const result = {};\n"
        "for (const [name, prior] of Object.entries(priors)) {\n"
        "  result[name] = [];\n"
        "  for (const text of texts) result[name].push(Array.from(await textCode(text, prior, 8)));\n"
        "}\n"
        "console.log(JSON.stringify(result));\n"
    )
    done = subprocess.run(["node", str(tmp_path / "run.mjs")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for name, prior in found.items():
        expected = np.stack([text_code(text, prior) for text in texts])
        np.testing.assert_array_equal(np.array(answers[name], np.float32), expected, err_msg=name)


FIELDS = ("weights", "means", "scales", "spreads")
