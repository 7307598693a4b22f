"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from speedup.testing import Case, RuleTests, around

MAP = (2, 8, 6, 6)


class TestConformance(RuleTests):
    plugins = ("reduction",)

    def cases(self) -> list[Case]:
        return [
            around(
                lambda m, x: (
                    x.sum(1),
                    x.mean((2, 3)),
                    x.amax(1),
                    x.max(1).values,
                    x.min(2).indices,
                    x.std(1),
                    x.prod(2),
                ),
                MAP,
            ),
            around(
                lambda m, x: (x.topk(2, 1).values, x.quantile(0.5, 1), x.aminmax(dim=1), x.logsumexp(1), x.cumsum(1)),
                MAP,
            ),
            around(lambda m, x: (torch.linalg.vector_norm(x, dim=1), torch.linalg.norm(x, dim=1), x.norm(dim=1)), MAP),
            around(
                lambda m, x: (
                    torch.fft.irfft(torch.fft.rfft(x)),
                    torch.fft.fftn(torch.fft.fft2(x), dim=(2, 3)).real,
                    torch.fft.fftshift(x, dim=(2, 3)),
                    torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)))),
                ),
                MAP,
            ),
            around(
                lambda m, x: (torch.cdist(x.mT, 2 * x.mT), F.cosine_similarity(x, 2 - x), torch.cdist(x, x + 1)), MAP
            ),
            around(lambda m, x: x.count_nonzero(1).to(x.dtype), MAP),
            around(
                lambda m, x: (
                    x.sort(1).values,
                    x.var(1),
                    x.kthvalue(2, 1).values,
                    x.median(1).values,
                    F.normalize(x, dim=1),
                ),
                MAP,
            ),
        ]
