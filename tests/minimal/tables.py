"""Tables of which rows are read at indices that are data."""

from __future__ import annotations

from tests.minimal.case import VECTOR, Minimal

TABLES = (
    Minimal(
        "embedding",
        "self.e, self.b = nn.Embedding(4, 8), nn.Linear(8, 5)",
        "return self.b(torch.sigmoid(self.e(x.argmax(-1))))",
        {"e.weight": (3,)},
        {"e": (4, 5), "b": (5, 5)},
        "any row may be read; columns 0 and 1 are 0 in all of them, and 7 is not read",
        columns={"e.weight": (0, 1), "b.weight": (7,)},
        **VECTOR,
    ),
    Minimal(
        "tokens and positions, LayerNorm",
        "self.e, self.p = nn.Embedding(4, 8), nn.Embedding(9, 8)\nself.n, self.b = nn.LayerNorm(8), nn.Linear(8, 5)",
        "return self.b(self.n(self.e(x.argmax(-1)) + self.p(torch.arange(len(x)))))",
        {},
        {"e": (4, 6), "p": (9, 6), "n": 6, "b": (5, 6)},
        "what both tables have masked goes, but for one carrier of - mean / deviation",
        columns={"e.weight": (0, 1, 2, 4), "p.weight": (0, 1, 2, 5)},
        **VECTOR,
    ),
    Minimal(
        "a table that is the head as well",
        "self.e, self.m, self.o = nn.Embedding(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)\nself.o.weight = self.e.weight",
        "x = self.e(x.argmax(-1))\nreturn self.o(x + self.m(F.relu(x)))",
        {"m": (3,)},
        {"e": (4, 5), "m": (5, 5), "o": (4, 5)},
        "a masked column is 0 where x begins and not read where it ends, so what m adds to it goes; 3 is still read",
        columns={"e.weight": (0, 1, 2)},
        **VECTOR,
    ),
    Minimal(
        "a bag",
        "self.e, self.b = nn.EmbeddingBag(4, 8, mode='mean'), nn.Linear(8, 5)",
        "return self.b(torch.sigmoid(self.e((x > 0).long())))",
        {},
        {"e": (4, 6), "b": (5, 6)},
        "the mean of zeros is 0, of which the sigmoid makes 0.5, which b takes up",
        columns={"e.weight": (0, 1)},
        **VECTOR,
    ),
    Minimal(
        "an index that is data",
        "self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)",
        "return self.b(self.a(x)[x.argmax(0) % len(x)])",
        {"a": (0,), "a.weight": (1, 2)},
        {"a": (5, 4), "b": (5, 5)},
        "whichever rows come, the constants of their columns come with them",
        **VECTOR,
    ),
)
