"""Data-parallel training: several processes, each with its rows of every batch, started by `mlx.launch`.

Every process holds the whole model. After the backward pass the gradients are summed over all processes, in one collective of one
buffer, and each makes the same update; so the weights stay the same everywhere, bit for bit. Rank 0 writes, shows and logs.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from mlx_codegen.errors import UserError
from mlx_codegen.training.optimizer import Tree
from mlx_codegen.training.peers import Peers, Place, place_from_environment

SECONDS_FOR_A_VERDICT = 5.0


class Group:
    """The processes of a job, as training sees them. All methods must be called by all ranks in the same order."""

    def __init__(self, peers: Peers, collective: mx.distributed.Group) -> None:
        self.rank, self.size = peers.rank, peers.size
        self.gather = peers.gather
        """Every rank's value (anything that JSON knows), in order of ranks: all get the same list."""
        self.ranks_on_this_machine = peers.on_this_machine()
        self._peers, self._collective = peers, collective

    def stops(self, wanted_here: bool) -> bool:
        """True on all ranks if one of them is to stop, or has lost the launcher (that was killed: nobody hears us any more)."""
        return any(self.gather(wanted_here or self._peers.orphaned))

    def barrier(self) -> None:
        """Wait until all are here. It costs no processor time: somebody else may be working."""
        self.gather(None)

    def sum(self, tree: Tree) -> Tree:
        """The sum over all ranks of a tree of arrays, all of one type: one buffer, one all-reduce.

        It is a graph of its own: the GPU's work before it is done, and none that waits for it is handed out. On a Mac a GPU
        that waits longer than five seconds (for a slow link, or a rank that saves) ends the program with an error.
        """
        buffer = _flat(tree)
        mx.eval(buffer)
        self.barrier()  # MLX's ring waits at full speed of two cores, which a slower rank on this machine may need
        buffer = mx.distributed.all_sum(buffer, group=self._collective)
        mx.eval(buffer)
        return _unflat(buffer, tree)

    def share(self, tree: Tree) -> Tree:
        """Rank 0's arrays on all ranks, bit for bit. The others give arrays of the same shapes; all of types of 4 bytes."""
        bits = tree_map(lambda leaf: leaf.reshape(-1).view(mx.uint32), tree)
        bits = bits if self.rank == 0 else tree_map(mx.zeros_like, bits)  # a sum with zeros copies; floats would lose -0
        shared = tree_map(lambda leaf, part: part.view(leaf.dtype).reshape(leaf.shape), tree, self.sum(bits))
        mx.eval(shared)
        return shared

    def check_same(self, facts: dict[str, str], advice: str) -> None:
        """Raises UserError, on all ranks, naming the first rank and fact that differ from rank 0's."""
        answers = self.gather([socket.gethostname(), facts])
        (_, expected), *others = answers
        for rank, (host, found) in enumerate(others, start=1):
            for name, value in expected.items():
                if found[name] != value:
                    raise UserError(f"rank {rank} ({host}) has another {name} ({found[name]}) than rank 0 ({value}); {advice}")

    def leads(self, folder: Path) -> bool:
        """Whether this rank prepares `folder` for the others: rank 0, and one on each machine that does not see its disk."""
        marker = folder.parent / f".{self.gather(uuid.uuid4().hex)[0]}"
        if self.rank == 0:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        self.barrier()
        sees_it = self.gather(marker.exists())
        if self.rank == 0:
            marker.unlink()
        alone = [rank for rank in self.ranks_on_this_machine if not sees_it[rank]]
        return self.rank == 0 or self.rank in alone[:1]


def _flat(tree: Tree) -> mx.array:
    return mx.concatenate([leaf.reshape(-1) for _, leaf in tree_flatten(tree)])


def _unflat(buffer: mx.array, tree: Tree) -> Tree:
    ends, total = [], 0
    for _, leaf in tree_flatten(tree):
        total += leaf.size
        ends.append(total)
    parts = iter(mx.split(buffer, ends[:-1]))
    return tree_map(lambda leaf: next(parts).reshape(leaf.shape), tree)


@contextmanager
def joined_group(on_lost: Callable[[int, str, str], None]) -> Iterator[Group | None]:
    """The group that `mlx.launch` started this process for; None where it did not.

    `on_lost` as for `Peers`: it should end the process. An exception inside ends the job on all ranks, with its text.
    """
    place = place_from_environment(os.environ)
    if place is None:
        yield None
        return
    peers = Peers(place, on_lost)
    try:
        yield Group(peers, _connect(place))
    except BaseException as error:
        if isinstance(error, RuntimeError):
            time.sleep(SECONDS_FOR_A_VERDICT)  # a collective failed: the other thread is about to learn who died
        peers.end(" ".join(str(error).split()) or "interrupted")
        raise
    peers.leave()


def _connect(place: Place) -> mx.distributed.Group:
    try:
        return mx.distributed.init(strict=True, backend=place.backend)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"MLX's {place.backend} backend did not start: {error}") from None
