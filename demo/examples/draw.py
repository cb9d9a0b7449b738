"""python demo/examples/draw.py: draw the anime examples, which no model has seen. Needs resvg-py."""

from __future__ import annotations

from pathlib import Path

SIDE = 256
FACES = {
    "violet": ("#8f6fd1", "#6a4fb0", "#3f8f7a", "#ffe3d3", "#e9e4f7"),
    "blonde": ("#f2cf73", "#d3a545", "#4a86d8", "#ffe9dc", "#dff0f4"),
    "teal": ("#4fb3b0", "#2f8a8d", "#b4533f", "#ffe6d8", "#fbeee0"),
    "brown": ("#7b5140", "#553428", "#6f9a3f", "#fbdcc8", "#e6efe0"),
}
"""Hair, its shadow, eyes, skin, background."""


def eye(x: float, color: str) -> str:
    """One eye around x."""
    return f"""
<ellipse cx="{x}" cy="150" rx="21" ry="25" fill="#fff"/>
<ellipse cx="{x}" cy="152" rx="16" ry="23" fill="{color}"/>
<ellipse cx="{x}" cy="147" rx="10" ry="14" fill="#2b2233"/>
<ellipse cx="{x}" cy="166" rx="10" ry="6" fill="#fff" opacity=".35"/>
<circle cx="{x - 6}" cy="139" r="6" fill="#fff"/>
<path d="M{x - 25} 142 Q{x} 114 {x + 25} 142 Q{x} 126 {x - 25} 142Z" fill="#3a2a35"/>
<path d="M{x - 22} 112 Q{x} 102 {x + 22} 111" stroke="#5a4048" stroke-width="4" fill="none" stroke-linecap="round"/>"""


def svg(hair: str, shadow: str, eyes: str, skin: str, ground: str) -> str:
    """A face as SVG."""
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" width="{SIDE}" height="{SIDE}">
<rect width="256" height="256" fill="{ground}"/>
<path d="M30 256 Q8 120 60 50 Q128 -8 196 50 Q248 120 226 256Z" fill="{shadow}"/>
<path d="M104 200 H152 V236 Q200 240 214 256 H42 Q56 240 104 236Z" fill="{skin}"/>
<path d="M104 214 Q128 232 152 214 V224 Q128 240 104 224Z" fill="#d99a86" opacity=".6"/>
<path d="M42 256 Q70 236 104 236 Q128 258 152 236 Q186 236 214 256Z" fill="#fbfbfd"/>
<path d="M56 118 Q54 176 84 202 Q112 226 128 226 Q144 226 172 202 Q202 176 200 118 Q196 60 128 58 Q60 60 56 118Z"
 fill="{skin}"/>
<ellipse cx="82" cy="182" rx="15" ry="7" fill="#f39a94" opacity=".5"/>
<ellipse cx="174" cy="182" rx="15" ry="7" fill="#f39a94" opacity=".5"/>
{eye(92, eyes)}{eye(164, eyes)}
<path d="M126 178 q3 4 5 0" stroke="#c98574" stroke-width="3" fill="none" stroke-linecap="round"/>
<path d="M113 199 Q128 211 143 199" stroke="#a3474b" stroke-width="4" fill="none" stroke-linecap="round"/>
<path d="M44 150 Q34 60 128 34 Q222 60 212 150 Q204 128 196 96 Q186 116 176 84 Q164 122 150 80 Q140 126 122 78 Q112 122
 98 82 Q88 118 76 90 Q66 118 58 104 Q52 130 44 150Z" fill="{hair}"/>
<path d="M66 78 Q96 50 140 54 Q104 60 82 84Z" fill="#fff" opacity=".28"/>
<path d="M44 140 Q36 200 50 250 L66 250 Q54 190 58 112Z" fill="{hair}"/>
<path d="M212 140 Q220 200 206 250 L190 250 Q202 190 198 112Z" fill="{hair}"/>
</svg>"""


def main() -> None:
    """Write the pictures beside this file."""
    import resvg_py

    for name, colors in FACES.items():
        path = Path(__file__).with_name(f"anime-{name}.png")
        path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg(*colors))))
        print(path)


if __name__ == "__main__":
    main()
