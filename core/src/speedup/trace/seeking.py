"""Where a run looks for places in its data (see ``Rule.seek``): what is found there, and what is made of it.

Up to the first look every run on the same input does the same: what stands then is kept for other ones, or taken up
from one that has kept it (``speedup.trace.standing``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from speedup.graph import Branch
from speedup.node import Node, Value
from speedup.rule import Rule
from speedup.trace.reading import Reading
from speedup.trace.standing import Standing
from speedup.trace.tensors import Tensors
from speedup.trace.told import Asked, Telling

_WHY = "which layers are called hangs on what is found here, so with other data it may be another one"


class Seeking:
    """The calls of one run that look for places in data of the input.

    Attributes:
        standing: what is kept for other runs; None where nothing is.
        resumed: what another run has kept, as long as this one has not looked for places.
        has_begun: whether any call looks for places.
        looks: whether the call that is made does.
        first: the first call on which hangs what else is called.
        masks: whether Python asks how many entries a mask has chosen.
        least: the fewest entries that a call looks through.
        fewest: the fewest places that a call has found in the data as they are; -1 where they were not looked through.

    Args:
        nodes: the calls of the run, as far as it has come.
        from_input: what depends on the input, as far as it has come.
    """

    def __init__(
        self,
        tensors: Tensors,
        nodes: Sequence[Node],
        from_input: Collection[Value],
        reading: Reading,
        telling: Telling,
    ) -> None:
        self.standing: Standing | None = None
        self.resumed: Standing | None = None
        self.has_begun = False
        self.looks = False
        self.first: Branch | None = None
        self.masks = False
        self.least = 0
        self.fewest = -1
        self._tensors, self._nodes, self._from_input = tensors, nodes, from_input
        self._reading, self._telling = reading, telling
        self._asked: dict[Value, Asked] = {}  # where what is looked through was so first
        self._sized: dict[Value, Branch] = {}  # how many entries they have is for masks to say
        self._from_places: set[Value] = set()  # what is made of places, and of nothing else of the input

    def found(self, rule: Rule, through: torch.Tensor) -> torch.Tensor:
        """What a call is given to look through, as it is told where places are: the same wherever the same is looked
        through."""
        value = self._tensors.value_of(through)
        if value not in self._from_input:
            return through
        self.has_begun = self.looks = True
        self._stand()
        self.least = min(self.least or through.numel(), through.numel())
        if value not in self._asked:
            self._asked[value] = self._telling.asks("call")
        asked, count = self._asked[value], int(through.count_nonzero())
        told = self._telling.told
        if told is not None and (rule.seeks or told.masks):
            if count or told.everything or (told.least and through.numel()):
                self._telling.said[asked] = told.leaves_out(asked)
            return told.found(asked, through)
        self.fewest = count if self.fewest < 0 else min(self.fewest, count)
        return through

    def _stand(self) -> None:
        """Keep what stands at the first look for other runs, or take up from what another one has kept."""
        standing = self.standing
        if standing is not None and standing.is_open:
            decides = self._reading.count or self._tensors.are_sources_changed  # more than what the next call is given
            if decides or not standing.close(self._nodes, self._tensors.alive(), self._from_input):
                self.standing = None
        if self.resumed is not None:
            resumed, self.resumed = self.resumed, None
            resumed.take_up(self._nodes, self._tensors.alive(), self._from_input)

    def note(self, node: Node, seeks: bool, read: Sequence[Value]) -> bool:
        """Note a call, its outputs included, that was made when places were looked for already, or that ``seeks``;
        whether it gives what is made of places, and of nothing else of the input.

        Args:
            read: what it reads that may depend on the input.
        """
        self.has_begun = True
        if seeks and self.first is None:
            self.first = Branch(node, self._tensors.existing(), _WHY)
        if not node.writes:
            sized = next((self._sized[v] for v in node.tensors if v in self._sized), None)
            if self.looks and not seeks:
                sized = Branch(node, self._tensors.existing(), _WHY)
            if sized is not None:
                self._sized.update(dict.fromkeys(node.outputs, sized))
        self.looks = False
        of_places = seeks or self._from_places.issuperset(read)
        if of_places:
            self._from_places.update(node.outputs)
        return of_places

    def note_count(self, node: Node) -> None:
        """Note that Python asks how many entries a tensor has, which masks may say."""
        for value in node.tensors:
            if value in self._sized:
                self.masks = True
                chosen = self._sized[value]
                if self.first is None or self.first.node.index > chosen.node.index:
                    self.first = chosen
