"""Draw the pictures of the documents: ``python docs/pictures/draw.py`` writes the SVG files beside this one.

Each picture is a function; the test of the documents compares the files with what it draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
INK, SOFT, LINE, CARD = "#1c2430", "#5d6878", "#c6ced9", "#ffffff"
KEPT, GONE, ZERO, FOLDED, UNUSED, CARRIER, BARRIER = (
    "#3d6be0", "#dfe4eb", "#b9e6d6", "#0b9e72", "#cfe0f5", "#a21caf", "#c2410c",
)  # fmt: skip
CELL = 22


class Picture:
    """An SVG on a white card, so that it can be read on a dark page too."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = width, height
        self.title = title
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, size: int = 13, color: str = INK, anchor: str = "start", bold: bool = False
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"{weight}'
        self.parts.append(f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>')

    def box(
        self, x: float, y: float, w: float, h: float, fill: str = CARD, stroke: str = LINE, radius: int = 6
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>'
        )

    def arrow(self, points: Sequence[tuple[float, float]], color: str = SOFT, dashed: bool = False) -> None:
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        style = f'stroke="{color}" stroke-width="1.6"' + (' stroke-dasharray="5 4"' if dashed else "")
        self.parts.append(f'<path d="{path}" fill="none" {style} marker-end="url(#head-{color[1:]})"/>')

    def cells(self, x: float, y: float, fills: Sequence[str], labels: Sequence[str] = (), down: bool = False) -> None:
        """Channels of a tensor, side by side or below each other."""
        for i, fill in enumerate(fills):
            at = (x, y + i * CELL) if down else (x + i * CELL, y)
            self.box(*at, CELL - 2, CELL - 2, fill, "none", 3)
            if i < len(labels) and labels[i]:
                dark = fill in (KEPT, FOLDED, CARRIER)
                self.text(at[0] + CELL / 2 - 1, at[1] + 14, labels[i], 10, "#ffffff" if dark else INK, "middle")

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
        for fill, text in entries:
            self.box(x, y - 10, 12, 12, fill, "none", 2)
            self.text(x + 17, y, text, 12, SOFT)
            x += 32 + 6.6 * len(text)

    def __str__(self) -> str:
        width, height = self.size
        heads = "".join(
            f'<marker id="head-{c[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{c}"/></marker>'
            for c in (SOFT, FOLDED, KEPT, CARRIER)
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, sans-serif"><title>{escape(self.title)}</title><defs>{heads}</defs>\n'
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>\n{body}\n</svg>\n'
        )


def facts() -> Picture:
    """The network of how-it-works.md, with both facts at every tensor."""
    p = Picture(760, 400, "Constants flow forward, unused entries flow backward")
    rows: list[tuple[str, list[str], list[str]]] = [
        ("conv1", [KEPT, ZERO, ZERO, ZERO, KEPT, KEPT], ["", "0", "0", "0", "", ""]),
        ("bn", [KEPT, FOLDED, FOLDED, FOLDED, KEPT, KEPT], ["", ".5", ".3", "-.2", "", ""]),
        ("relu", [KEPT, FOLDED, FOLDED, ZERO, KEPT, KEPT], ["", ".5", ".3", "0", "", ""]),
        ("conv2", [FOLDED, KEPT, KEPT, UNUSED, FOLDED], [".25", "", "", "", "-1"]),
        ("relu, mean", [FOLDED, KEPT, KEPT, UNUSED, ZERO], [".25", "", "", "", "0"]),
        ("fc", [KEPT, KEPT], []),
    ]
    for i, (name, fills, labels) in enumerate(rows):
        y = 62 + i * 50
        p.box(120, y - 6, 110, 32)
        p.text(175, y + 14, name, 13, INK, "middle", True)
        p.cells(262, y, fills, labels)
        if i:
            p.arrow([(175, y - 24), (175, y - 8)])
    p.arrow([(60, 62), (60, 330)], FOLDED)
    p.text(20, 40, "constant: flows forward", 13, FOLDED, bold=True)
    p.arrow([(700, 330), (700, 62)], KEPT)
    p.text(740, 40, "unused: flows backward", 13, KEPT, "end", True)
    notes = (
        "masked filters give 0",
        "the shift makes other constants",
        "a negative one becomes 0",
        "masked filters give their bias",
        "fc does not read channel 3",
    )
    for i, note in enumerate(notes):
        p.text(412, 76 + i * 50, note, 12, SOFT)
    p.legend(120, 376, [(KEPT, "depends on the input"), (FOLDED, "constant"), (ZERO, "constant 0"), (UNUSED, "unused")])
    return p


def fixpoint() -> Picture:
    """Keep sets grow until every call is well-formed."""
    p = Picture(760, 270, "Keep sets grow to a fixpoint")
    a, b, both, none = "kggkk", "ggkkk", "kgkkk", "ggggg"
    columns = (
        ("1. what must stay", (a, b, none)),
        ("2. the sum needs either", (a, b, both)),
        ("3. both need the sum", ("kgckk", "cgkkk", both)),
    )
    colors = {"k": KEPT, "g": GONE, "c": CARRIER}
    for i, (title, sets) in enumerate(columns):
        x = 112 + i * 215
        p.text(x, 36, title, 13, INK, bold=True)
        for name, y, fills in zip(("a(x)", "b(x)", "a(x) + b(x)"), (66, 110, 166), sets, strict=True):
            if i == 0:
                p.text(102, y + 14, name, 12, SOFT, "end")
            p.cells(x, y, [colors[letter] for letter in fills])
        if i:
            p.arrow([(x - 62, 124), (x - 22, 124)])
    p.text(
        112,
        216,
        "Nothing changes any more. Channel 1, masked in both, goes; why others stay is noted.",
        13,
    )
    p.legend(112, 248, [(KEPT, "kept"), (CARRIER, "kept against its mask, with a reason"), (GONE, "goes")])
    return p


def folding() -> Picture:
    """A removed constant goes into the bias of its reader."""
    p = Picture(760, 250, "A constant that goes is folded into the bias")
    for x, title, fills, labels in (
        (60, "before", [FOLDED, KEPT, KEPT, ZERO], ["c", "x", "y", "0"]),
        (450, "after", [KEPT, KEPT], ["x", "y"]),
    ):
        p.text(x, 36, title, 13, INK, bold=True)
        p.cells(x, 60, fills, labels)
        p.arrow([(x + len(fills) * CELL / 2, 86), (x + len(fills) * CELL / 2, 112)])
        p.box(x - 14, 116, 300, 40)
    p.text(60, 141, "W[:,0]·c + W[:,1]·x + W[:,2]·y + W[:,3]·0 + b", 12)
    p.text(450, 141, "W[:,1]·x + W[:,2]·y + (b + W[:,0]·c)", 12)
    p.arrow([(350, 136), (432, 136)], FOLDED)
    p.text(390, 126, "exact", 12, FOLDED, "middle")
    p.text(60, 192, "The product with a constant is the same for every input: it is a bias.", 13)
    p.text(60, 212, "Dropping it instead, as earlier tools do, changes every answer.", 13, SOFT)
    return p


def carrier() -> Picture:
    """Under zero padding one constant channel carries the others."""
    p = Picture(760, 300, "Under zero padding one channel carries the constants")
    p.text(40, 36, "A constant channel under a padded conv", 13, INK, bold=True)
    for row in range(5):
        fills = [GONE if row in (0, 4) or column in (0, 6) else FOLDED for column in range(7)]
        p.cells(40, 52 + row * CELL, fills, ["0" if fill == GONE else "c" for fill in fills])
    p.parts.append(f'<rect x="38" y="50" width="66" height="66" fill="none" stroke="{BARRIER}" stroke-width="2.5"/>')
    p.text(40, 184, "At the border the window sees padding:", 13)
    p.text(40, 202, "less of c arrives than in the middle,", 13)
    p.text(40, 220, "so no bias is right everywhere.", 13)
    p.text(400, 36, "So one stays and carries the others", 13, INK, bold=True)
    p.cells(400, 60, [CARRIER, FOLDED, FOLDED, KEPT, KEPT], ["c", "d", "e", "x", "y"])
    p.arrow([(465, 86), (465, 108)])
    p.cells(400, 114, [CARRIER, KEPT, KEPT], ["c", "x", "y"])
    p.text(400, 160, "W[:,c] + W[:,d]·d/c + W[:,e]·e/c", 12)
    p.text(400, 190, "All constants fade alike at the border,", 13)
    p.text(400, 208, "in proportion: exact at every position and", 13)
    p.text(400, 226, "size, for one channel.", 13)
    p.legend(40, 272, [(FOLDED, "constant"), (GONE, "padding"), (CARRIER, "carrier"), (KEPT, "depends on the input")])
    return p


def architecture() -> Picture:
    """The core and the plugins, and the way of one mask."""
    p = Picture(760, 330, "The core knows no op: it records, asks rules, and puts the answers in")
    steps = (
        ("masks", "check"),
        ("trace", "record"),
        ("infer", "two facts"),
        ("keep", "keep sets"),
        ("build", "fold, cut"),
        ("check", "compare"),
        ("commit", "put in"),
    )
    p.box(20, 24, 720, 150, "#f6f7f9")
    p.text(36, 48, "core: distribution speedup-core, import speedup", 13, INK, bold=True)
    for i, (name, what) in enumerate(steps):
        x = 36 + i * 100
        p.box(x, 64, 84, 48)
        p.text(x + 42, 84, name, 13, INK, "middle", True)
        p.text(x + 42, 101, what, 11, SOFT, "middle")
        if i:
            p.arrow([(x - 16, 88), (x - 1, 88)])
    p.arrow([(579, 114), (579, 140), (379, 140), (379, 115)], CARRIER, dashed=True)
    p.text(479, 158, "settle: until nothing is left to repair or to lock", 11, CARRIER, "middle")
    p.box(196, 196, 368, 34, "#f6f7f9")
    p.text(380, 217, "registry of rules, by op: one hook, speedup_rules()", 12, INK, "middle")
    for x in (279, 379, 479):
        p.arrow([(x, 195), (x, 176)], KEPT)
    for i, name in enumerate(["conv", "linear", "norm", "attention", "reshape", "…", "yours"]):
        x = 36 + i * 100
        p.box(x, 262, 84, 42, "#eef3ff" if name == "yours" else CARD, KEPT if name == "yours" else LINE)
        p.text(x + 42, 287, name, 13, INK, "middle", name == "yours")
        p.arrow([(x + 42, 261), (380 + (x + 42 - 380) * 0.35, 232)])
    p.text(
        36,
        322,
        "plugins: distributions of their own, found by entry point; they import the public names of speedup only",
        12,
        SOFT,
    )
    return p


PICTURES: tuple[Callable[[], Picture], ...] = (facts, fixpoint, folding, carrier, architecture)


if __name__ == "__main__":
    for make in PICTURES:
        (HERE / f"{make.__name__}.svg").write_text(str(make()))
