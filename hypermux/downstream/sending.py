"""Sending a stretch of a file to a peer: by the kernel where it can, else by carrying the bytes."""

from __future__ import annotations

import errno
import os

import trio

from hypermux.downstream.peer import Peer, PeerGone
from hypermux.downstream.stretches import Plain, Stretch
from hypermux.downstream.walk import RunSync
from hypermux.model.errors import DamagedData

# What says that this file and this socket cannot be connected: then the bytes are carried.
_NOT_HERE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
# What is the file's fault; all else is the peer's.
_DISK = frozenset({errno.EIO, errno.ENODATA, errno.ESTALE, errno.EBADF, errno.ENOMEM})
# So much is carried at once.
_CARRIED = 64 * 1024


async def send_stretch(
    peer: Peer, stretch: Stretch, stall_timeout_s: float, run_sync: RunSync
) -> None:
    """Send a stretch. Raises what `Peer.send` does, and OSError or DamagedData of the file.

    After these the peer has the beginning of a line: there is nothing more to say to it.
    """
    file, offset, end = stretch.file, stretch.offset, stretch.offset + stretch.size
    while offset < end:
        sent = None
        if isinstance(file, Plain):
            try:
                # In a thread: the file may have to come from the disk first.
                sent = await run_sync(
                    os.sendfile, peer.sock.fileno(), file.plain_fd, offset, end - offset
                )
            except (BlockingIOError, InterruptedError):
                await peer.wait_for_room(stall_timeout_s)
                continue
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    if exc.errno in _DISK:
                        raise
                    raise PeerGone from exc
        if sent is None:
            data = await run_sync(file.read_at, offset, min(_CARRIED, end - offset))
            await peer.send(data, stall_timeout_s)
            sent = len(data)
        if sent == 0:
            raise DamagedData(
                f"the segment's file ends at byte {offset}, before record {stretch.seq}"
            )
        offset += sent
    await trio.lowlevel.checkpoint()
