"""Ties: tensors whose channels go together."""

from __future__ import annotations

from tests.minimal.case import ABC, VECTOR, Minimal

TIES = (
    Minimal(
        "residual, aligned",
        ABC.format(8, 8),
        "x = self.a(x)\nreturn self.c(x + self.b(F.relu(x)))",
        {"a": (0, 1, 2), "b": (0, 1, 2)},
        {"a": (5, 3), "b": (5, 5), "c": (5, 5)},
        "the same channels are 0 in both",
    ),
    Minimal(
        "residual, unaligned",
        ABC.format(8, 8),
        "x = self.a(x)\nreturn self.c(x + self.b(F.relu(x)))",
        {"a": (0, 1, 2), "b": (2, 3)},
        {"a": (7, 3), "b": (7, 7), "c": (5, 7)},
        "a sum goes where both go: channel 2; and b reads all that is left of a",
    ),
    Minimal(
        "product, unaligned",
        ABC.format(3, 8),
        "return self.c(self.a(x) * self.b(x))",
        {"a": (0, 1), "b": (2,)},
        {"a": (5, 3), "b": (5, 3), "c": (5, 5)},
        "a product is 0 where either is",
    ),
    Minimal(
        "cat",
        ABC.format(3, 16),
        "return self.c(torch.cat([self.a(x), self.b(x)], 1))",
        {"a": (0, 1), "b": (3,)},
        {"a": (6, 3), "b": (7, 3), "c": (5, 13)},
        "each part loses what it can",
    ),
    Minimal(
        "cat of one tensor twice",
        "self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 5, 1)",
        "x = torch.sigmoid(self.a(x))\nreturn self.c(torch.cat([x, x], 1))",
        {"a": (0, 1)},
        {"a": (6, 3), "c": (5, 12)},
        "both copies go",
    ),
    Minimal(
        "cat of one tensor twice, read by halves",
        "self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 5, 1)",
        "x = torch.sigmoid(self.a(x))\nreturn self.c(torch.cat([x, x], 1))",
        {},
        {"a": (7, 3), "c": (5, 14)},
        "channel 0 is read by neither half, 1 by the second",
        columns={"c.weight": (0, 8, 1)},
    ),
    Minimal(
        "chunk, equal counts",
        "self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)",
        "x, y = self.a(x).chunk(2, 1)\nreturn self.b(x), self.c(F.relu(y))",
        {"a": (0, 6)},
        {"a": (6, 3), "b": (5, 3), "c": (5, 3)},
        "one goes from either half, at different places",
    ),
    Minimal(
        "chunk, unequal counts",
        "self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)",
        "x, y = self.a(x).chunk(2, 1)\nreturn self.b(x), self.c(F.relu(y))",
        {"a": (0, 1, 2, 6)},
        {"a": (6, 3), "b": (5, 3), "c": (5, 3)},
        "chunk(2) gives equal halves: both keep three",
    ),
    Minimal(
        "split into literal sizes",
        "self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 5, 1), nn.Conv2d(6, 5, 1)",
        "x, y = torch.split(self.a(x), [2, 6], 1)\nreturn self.b(x), self.c(F.relu(y))",
        {"a": (0, 3, 4)},
        {"a": (5, 3), "b": (5, 1), "c": (5, 4)},
        "parts of any size can be given to split",
    ),
    Minimal(
        "gated linear unit",
        "self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1)",
        "return self.c(F.glu(self.a(x), 1))",
        {"a": (0, 1, 4)},
        {"a": (4, 3), "c": (5, 2)},
        "where the first half is 0 its gate is not read",
    ),
    Minimal(
        "squeeze and excitation",
        "self.a, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)\n"
        "self.one, self.two = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)",
        "x = F.relu(self.a(x))\n"
        "s = torch.sigmoid(self.two(F.relu(self.one(F.adaptive_avg_pool2d(x, 1)))))\nreturn self.c(x * s)",
        {"a": (0, 1, 2), "one": (3,)},
        {"a": (5, 3), "one": (3, 5), "two": (5, 3), "c": (5, 5)},
        "where x is 0 its gate is not read",
    ),
    Minimal(
        "a conv called twice",
        "self.a, self.m, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 1)",
        "return self.c(F.relu(self.m(F.relu(self.m(F.relu(self.a(x)))))))",
        {"a": (0, 1, 5), "m": (0, 1)},
        {"a": (4, 3), "m": (4, 4), "c": (5, 4)},
        "what goes must go in both calls: 5 is 0 in the first input only",
    ),
    Minimal(
        "two layers, one weight",
        "self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)\n"
        "self.b.weight = self.a.weight\nself.e = nn.Linear(4, 6)",
        "return self.c(F.relu(self.b(F.relu(self.a(F.relu(self.e(x)))))))",
        {"e": (0, 1), "a": (0, 1), "b": (0, 1)},
        {"e": (4, 4), "a": (4, 4), "b": (4, 4), "c": (5, 4)},
        "as if it were called twice",
        **VECTOR,
    ),
)
