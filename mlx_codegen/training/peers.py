"""The processes of one job: who they are, small values exchanged between them, and the end of all when one dies.

MLX's collectives carry gradients; each of its backends has its own way with a peer that dies: an exception, or waiting (JACCL,
and the ring before 0.32), at full speed of a core. So the processes keep plain TCP connections beside them. A connection that
closes without a farewell means that somebody died; small values go over them too, because waiting there costs no processor time.

The connections are a tree: each process passes on what it hears to all its other neighbours. For MLX's ring the tree is the
ring without its last link, since only neighbours need to reach each other there; otherwise all are connected to rank 0.
"""

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_codegen.errors import UserError

Address = tuple[str, int]

PORTS_BELOW = 1000
"""Our connections use the ports of MLX's backend minus this: known to all, and outside of what systems give out at random."""
SECONDS_TO_MEET = 60.0
SECONDS_TO_CLOSE = 5.0
# Of a machine that is gone (switched off, asleep, cable out) the kernel answers no more, which is noticed within so many
# seconds. A process that only pauses does not end the job: its kernel answers for it.
SECONDS_UNANSWERED = 15
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 6, 3, 3
MACOS_RXT_CONNDROPTIME = 0x80  # netinet/tcp.h
NO_FAREWELL = "its connection closed without a farewell: killed, crashed, or its machine is gone"


@dataclass(frozen=True)
class Place:
    """This process's place in a job. It connects to `connect_to` and lets `accept` others in at `listen`."""

    backend: str
    rank: int
    size: int
    listen: Address
    connect_to: tuple[Address, ...]
    accept: int


def place_from_environment(environment: Mapping[str, str]) -> Place | None:
    """What `mlx.launch` told this process; None where it was not started by it, or alone (`-n 1`)."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        raise UserError("training over MPI is not supported; start it with mlx.launch --backend ring (or jaccl, nccl)")
    if "MLX_RANK" not in environment:
        return None
    rank = int(environment["MLX_RANK"])
    if "NCCL_HOST_IP" in environment:
        port = int(environment["NCCL_PORT"])
        return _star("nccl", rank, int(environment["MLX_WORLD_SIZE"]), (environment["NCCL_HOST_IP"], port))
    if "MLX_JACCL_COORDINATOR" in environment:
        devices = json.loads(Path(environment["MLX_IBV_DEVICES"]).read_text(encoding="utf-8"))
        return _star("jaccl", rank, len(devices), _address(environment["MLX_JACCL_COORDINATOR"]))
    if "MLX_HOSTFILE" in environment:
        text = Path(environment["MLX_HOSTFILE"]).read_text(encoding="utf-8").strip()
        return _chain(rank, [_address(addresses[0]) for addresses in json.loads(text or "[]")])
    return None


def _chain(rank: int, nodes: list[Address]) -> Place | None:
    if len(nodes) < 2:
        return None
    following = tuple(_ours(node) for node in nodes[rank + 1 : rank + 2])
    return Place("ring", rank, len(nodes), _ours(nodes[rank]), following, accept=min(rank, 1))


def _star(backend: str, rank: int, size: int, first: Address) -> Place | None:
    if size < 2:
        return None
    return Place(backend, rank, size, _ours(first), () if rank == 0 else (_ours(first),), accept=size - 1 if rank == 0 else 0)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _ours(address: Address) -> Address:
    return address[0], address[1] - PORTS_BELOW


class Peers:
    """The connections of this process. Made by all ranks at once; everything but `end` must be called by all of them.

    `on_lost(rank, host, why)` is called from another thread when a rank is gone, which may be in the middle of a
    collective that never returns: it should end the process. `orphaned` becomes true when the launcher is gone.
    """

    def __init__(self, place: Place, on_lost: Callable[[int, str, str], None]) -> None:
        """Waits for all ranks. Raises UserError when one does not come within a minute."""
        self.rank, self.size = place.rank, place.size
        self.orphaned = False
        self._on_lost = on_lost
        self._rank_behind: dict[socket.socket, int] = {}
        self._unread: dict[socket.socket, bytes] = {}
        self._gone: set[int] = set()
        self._leaving = False
        self._values: dict[int, dict[int, Any]] = defaultdict(dict)
        self._exchanges = 0
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._hosts = [""] * place.size
        links = _open_links(place)
        for link in links:
            link.sendall(_line(place.rank))
        for link in links:
            self._rank_behind[link], self._unread[link] = _read_rank(link), b""
            _keep_alive(link)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        # The name alone is no proof: machines fresh from their box share it.
        self._machines = self.gather([socket.gethostname(), uuid.getnode()])
        self._hosts = [host for host, _ in self._machines]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that JSON knows), in order of ranks: all get the same list, and wait for it."""
        number = self._exchanges
        self._exchanges += 1
        message = _line("value", self.rank, number, value)
        self._heard(*json.loads(message))  # as the others get it: a tuple becomes a list
        self._send(message)
        with self._changed:
            self._changed.wait_for(lambda: len(self._values[number]) == self.size)
            values = self._values.pop(number)
        return [values[rank] for rank in range(self.size)]

    def on_this_machine(self) -> list[int]:
        """The ranks that share this machine, this one among them."""
        return [rank for rank, machine in enumerate(self._machines) if machine == self._machines[self.rank]]

    def leave(self) -> None:
        """The work is done: wait for all, say farewell."""
        self.gather(None)
        self._close(_line("farewell", self.rank))

    def end(self, why: str) -> None:
        """This rank cannot go on: tell the others, which end too."""
        self._close(_line("gone", self.rank, why))

    def _close(self, last_words: bytes) -> None:
        self._leaving = True
        self._send(last_words)
        for link in list(self._rank_behind):
            # Only our half: closing a connection on which something is still unread would take our last words back.
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)
        self._thread.join(timeout=SECONDS_TO_CLOSE)

    def _send(self, message: bytes, not_to: socket.socket | None = None) -> None:
        with self._sending:
            for link in list(self._rank_behind):
                if link is not not_to:
                    with contextlib.suppress(OSError):  # the thread that reads from it notices
                        link.sendall(message)

    def _listen(self) -> None:
        """The other thread: reads until all neighbours have closed their ends."""
        launcher = os.getppid()
        while self._rank_behind:
            ready, _, _ = select.select(list(self._rank_behind), [], [], 0.5)
            for link in ready:
                self._receive(link)
            self.orphaned = os.getppid() != launcher

    def _receive(self, link: socket.socket) -> None:
        try:
            data = link.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._closed(link)
            return
        *lines, self._unread[link] = (self._unread[link] + data).split(b"\n")
        for line in lines:
            self._send(line + b"\n", not_to=link)
            self._heard(*json.loads(line))

    def _closed(self, link: socket.socket) -> None:
        with self._sending:
            rank = self._rank_behind.pop(link)
        link.close()
        if rank not in self._gone:
            self._send(_line("gone", rank, NO_FAREWELL))
            self._heard("gone", rank, NO_FAREWELL)

    def _heard(self, kind: str, rank: int, *rest: Any) -> None:
        if kind == "value":
            number, value = rest
            with self._changed:
                self._values[number][rank] = value
                self._changed.notify_all()
            return
        self._gone.add(rank)
        if kind == "gone" and not self._leaving:
            self._on_lost(rank, self._hosts[rank], *rest)


def _line(*message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _open_links(place: Place) -> list[socket.socket]:
    """All connections of this rank. Whoever comes first waits for the others."""
    deadline = time.monotonic() + SECONDS_TO_MEET
    if not place.accept:
        return [_connect(address, deadline) for address in place.connect_to]
    try:
        listener = socket.create_server(place.listen, backlog=place.accept)
    except OSError as error:
        host, port = place.listen
        raise UserError(
            f"rank {place.rank} cannot listen at {host} port {port} ({os.strerror(error.errno or 0)}); "
            "is another job running? choose other ports: mlx.launch --starting-port"
        ) from None
    with listener:
        links = [_connect(address, deadline) for address in place.connect_to]
        while len(links) < len(place.connect_to) + place.accept:
            listener.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                links.append(listener.accept()[0])
            except TimeoutError:
                raise UserError(
                    f"rank {place.rank} waited {SECONDS_TO_MEET:.0f} seconds for the other processes; "
                    "look at their output, and whether a firewall is between the machines"
                ) from None
    return links


def _connect(address: Address, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(address, timeout=5.0)
        except OSError as error:
            if time.monotonic() > deadline:
                host, port = address
                raise UserError(
                    f"no process of this job at {host} port {port} ({error.strerror or error}); "
                    "look at its output, and whether a firewall is between the machines"
                ) from None
            time.sleep(0.1)


def _read_rank(link: socket.socket) -> int:
    """The neighbour's first line, byte by byte: what follows is for the other thread."""
    line = b""
    link.settimeout(SECONDS_TO_MEET)
    while not line.endswith(b"\n"):
        byte = link.recv(1)
        if not byte:
            raise UserError("another process of this job left at once; look at its output")
        line += byte
    link.settimeout(None)
    return int(json.loads(line)[0])


def _keep_alive(link: socket.socket) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": KEEPALIVE_IDLE,
        "TCP_KEEPALIVE": KEEPALIVE_IDLE,  # macOS's name for it
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": 1000 * SECONDS_UNANSWERED,  # the same for what was sent and is not acknowledged
    }
    for name, value in options.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if sys.platform == "darwin":
        link.setsockopt(socket.IPPROTO_TCP, MACOS_RXT_CONNDROPTIME, SECONDS_UNANSWERED)
