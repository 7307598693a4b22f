"""Products of arrays: whoever makes them, they are those of NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import speedup

NUMBERS = np.random.default_rng(0)


@pytest.mark.parametrize("inner", [0, 3, 200])  # the last of them is torch's
@pytest.mark.parametrize("rows, columns", [((), 40), ((2,), 40), ((), 1), ((2, 3), 60)])
def test_the_same_as_of_numpy(rows: tuple[int, ...], columns: int, inner: int) -> None:
    a, b = NUMBERS.normal(size=(*rows, 50, inner)), NUMBERS.normal(size=(inner, columns))
    made = speedup.matmul(a, b)
    assert isinstance(made, np.ndarray) and made.shape == (*rows, 50, columns)
    np.testing.assert_allclose(made, a @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[::-1],
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a.T,
        lambda a: a.astype(np.float32),
        lambda a: a > 0,
        lambda a: a[:, :0],
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_of_other_kinds(change: object) -> None:
    a, b = change(NUMBERS.normal(size=(200, 200))), NUMBERS.normal(size=(200, 200))  # type: ignore[operator]
    b = b[: a.shape[1]]
    kept = a.copy(), b.copy()
    np.testing.assert_allclose(speedup.matmul(a, b), kept[0] @ kept[1], rtol=1e-5, atol=1e-12)
    assert (a == kept[0]).all() and (b == kept[1]).all()
