"""How plans travel from rank 0 to the other ranks: over Unix sockets on one node, over gloo between nodes.

Owns the sockets: how ranks find each other, and what ends a wait. Not here: the messages (runner/broadcast.py), the
groups of torch.distributed (process_group.py).
Sockets have abstract names (man 7 unix), which end with the process: nothing is left behind, however it dies. A killed
rank closes its ends, so the others notice at once; one that hangs is noticed by the deadline of a step.
"""

import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from medusa_dist.errors import GroupError
from medusa_dist.ops.arrays import Ints

_KEY = "control"
_HELLO = struct.Struct("<q")  # the rank that connects
_CREDENTIALS = struct.Struct("3i")  # pid, uid and gid of the other end: struct ucred


class GlooControl:
    """Broadcasts over gloo, whose group has the deadline of a step."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def broadcast(self, words: Ints) -> None:
        """Rank 0 sends the words, the others receive them in place. Raises RuntimeError if a rank is lost or late."""
        dist.broadcast(torch.from_numpy(words), src=0, group=self._group)


class SocketControl:
    """Broadcasts over stream sockets. peers: on rank 0 one for each other rank, on the others the one to rank 0."""

    def __init__(self, rank: int, peers: Sequence[socket.socket], timeout_s: float) -> None:
        self._sends, self._peers = rank == 0, list(peers)
        for peer in self._peers:
            peer.settimeout(timeout_s)

    def broadcast(self, words: Ints) -> None:
        """Rank 0 sends the words, the others receive them in place. Raises OSError if a rank is lost or late."""
        data = words.data.cast("B")
        if self._sends:
            for peer in self._peers:
                peer.sendall(data)
        else:
            _receive(self._peers[0], data)

    def close(self) -> None:
        """The other ends notice it as they would notice the end of this process."""
        for peer in self._peers:
            peer.close()


def connect_on_node(
    rank: int, world: int, store: Store, agree: Callable[[int], int], timeout_s: float
) -> SocketControl | None:
    """Sockets between all ranks, if all of them reach rank 0's; None on all ranks otherwise. Called by all together.

    They do not on another node, in another network namespace, or as another user. store: of this group alone. agree:
    the minimum of all ranks' values. timeout_s: of a message, and of a rank that said it had connected. Raises
    GroupError if that one is lost.
    """
    found = _listen(store, world) if rank == 0 else _reach_rank_0(store, rank)
    if not agree(int(found is not None)):
        if found is not None:
            found.close()
        return None
    assert found is not None, "no rank is without a socket"
    if rank:
        return SocketControl(rank, [found], timeout_s)
    with found:
        return SocketControl(rank, _accept(found, world, timeout_s), timeout_s)


def _listen(store: Store, world: int) -> socket.socket | None:
    """Rank 0: a listening socket, whose name is in the store; None, and no name, where there are none of this kind."""
    name = secrets.token_hex(16)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"\0{name}")
        listener.listen(world)
    except OSError:
        listener.close()
        store.set(_KEY, "")
        return None
    store.set(_KEY, name)
    return listener


def _reach_rank_0(store: Store, rank: int) -> socket.socket | None:
    """Other ranks: a socket to rank 0's; None if there is none here, or it is not this user's."""
    name = store.get(_KEY).decode()  # waits for rank 0
    if not name:
        return None
    reached = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        reached.connect(f"\0{name}")
        if not _is_ours(reached):
            raise PermissionError("another user's process listens there")
        reached.sendall(_HELLO.pack(rank))
    except OSError:
        reached.close()
        return None
    return reached


def _accept(listener: socket.socket, world: int, timeout_s: float) -> list[socket.socket]:
    """A socket for each rank above 0, in their order. Names are public on a node, so other users' are turned away."""
    end = time.monotonic() + timeout_s
    peers: dict[int, socket.socket] = {}
    while len(peers) < world - 1:
        try:
            listener.settimeout(max(1e-3, end - time.monotonic()))
            peer, _ = listener.accept()
            if not _is_ours(peer):
                peer.close()
                continue
            peer.settimeout(max(1e-3, end - time.monotonic()))
            hello = bytearray(_HELLO.size)
            _receive(peer, memoryview(hello))
            (rank,) = _HELLO.unpack(hello)
        except OSError as error:
            missing = sorted(set(range(1, world)) - set(peers))
            for accepted in peers.values():
                accepted.close()
            raise GroupError(f"ranks {missing} did not connect to rank 0 for plans: {error}") from error
        peers[rank] = peer
    return [peers[rank] for rank in range(1, world)]


def _is_ours(peer: socket.socket) -> bool:
    """Whether the other end is a process of the same user."""
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(found)[1] == os.geteuid())


def _receive(peer: socket.socket, data: memoryview) -> None:
    """Fill all of `data` (bytes)."""
    filled = 0
    while filled < len(data):
        count = peer.recv_into(data[filled:])
        if not count:
            raise ConnectionError("the other rank closed the connection")
        filled += count
