"""Limits of the daemon's protocol: how much one peer can cost a board, each with its reason.

libzmq bounds frames and queues (`curve.SocketBounds`), but knows no limit per peer and cannot
close a single connection of a ROUTER: `server.py` enforces these.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTROL_BYTES = 1 << 20  # a roster of 1024 entries, the largest message, has 300 KB


@dataclass(frozen=True)
class Limits:
    """All bounds in one value, so that a test can make them small.

    Connections: of clients that have not sent a message yet, and per key after that. Messages: how
    many and how large. Penalties: seconds for which a key is refused.
    """

    # A CURVE handshake takes milliseconds, so 64 at once are more than a LAN's boards need; each
    # open one costs a file descriptor, of which a process has 1024.
    silent_connections: int = 64
    silent_s: float = 10.0  # twice libzmq's own time limit of a handshake (5 s)
    silent_bytes: int = 64 << 10  # a handshake takes less than 1 KB
    # A board's daemon, and one connection for each of its sessions, downloads and commands.
    connections_per_key: int = 32
    # Routes of closed connections whose queued messages are ignored. libzmq numbers routes, so
    # none returns soon, and a key that floods is refused for a while.
    closed_routes: int = 512
    # Attempts included: keys times addresses while searching. Each takes four descriptors, all of
    # them three quarters of 1024; they are enough for 63 boards with three addresses each.
    outgoing_connections: int = 192

    frame_bytes: int = CONTROL_BYTES
    # Values of one message to a daemon, each of which takes 60 bytes and more while it is read: a
    # roster of 1024 entries, the largest message, has 6,200.
    values: int = 1 << 13
    # To one connection: a peer whose queue is full is cut off. What a daemon sends is paced (4
    # heartbeats a second to daemons, 8 relayed chunks, a reply a request; reports wait until the
    # last one was read, see `credit.py`) and the system's buffers come first, so a peer is cut off
    # for seconds without reading, not for a moment.
    queued_messages: int = 64
    # Of one socket, before timers and other sockets get their turn: a flood of large messages is
    # not to keep a daemon from its own heartbeats.
    requests_per_turn: int = 32
    turn_s: float = 0.02
    pending_per_connection: int = 64  # requests without a reply yet; clients have at most a few
    # From a client to a daemon that does not read. It waits for each reply: beside one request
    # these are acknowledgements, below 100 bytes each, and a chunk of a relay.
    client_messages: int = 1024
    # In the queue of a client that computes, or waits for its user: a report, and what a job brings
    # about. A relay's window of chunks is the most. More ends the connection.
    client_bytes: int = 16 << 20
    asks: int = 1024  # our own requests under way: one for each of 1024 boards
    # Of a daemon, kept until the client reads them: at most one for each revoked key of a roster.
    notifications: int = 1024
    # Of one key: honest boards send KB; the largest cluster's address book has 400 KB. What boards
    # send is parsed by the one thread of the daemon.
    bytes_per_s: int = 2 << 20
    burst_bytes: int = 4 << 20
    count_s: float = 0.05  # between two counts while messages come: so many are queued until a cut
    bulk_bytes_per_s: int = 16 << 20  # over a connection that has a relay
    # Since the last heartbeat of a client, which sends 4 a second; libzmq's own limit is a second.
    client_silence_s: float = 1.25

    strikes: int = 8  # malformed messages of a key before it is refused: bugs, not bad luck
    refused_s: float = 10.0  # slows a hostile key to one connection in 10 s
    flood_s: float = 30.0  # for sending more than `bytes_per_s`
    first_retry_s: float = 0.5  # until a failed connection is tried again; doubles each time
    longest_retry_s: float = 16.0  # a board that was switched on is found within this time
    # Connections to a group's port of streams without a ticket yet; the oldest makes room. A group
    # has at most 64 ranks, each of which connects once.
    ticketless_connections: int = 64
    link_messages_per_turn: int = 256  # read at once: a flood must not keep a rank from its work
    probe_s: float = 1.0  # to compare transports: no link for a group is slower
    # TCP repeats a lost SYN after a second: both can reach a listener that is reachable at all.
    stream_open_s: float = 2.5
    stream_only_s: float = 5.0  # likewise, after three: nothing else can carry the messages

    # A relay. In base64 a chunk is far below `frame_bytes`; a window of eight, not acknowledged,
    # costs a daemon 1 MB for each board.
    relay_chunk_bytes: int = 128 << 10
    relay_window: int = 8
    # Half of `bulk_bytes_per_s`, as base64 makes 8 MB of 6 MB; and a burst far below `burst_bytes`.
    relay_bytes_per_s: int = 6 << 20
    relay_burst_bytes: int = 1 << 20

    queued_jobs: int = 32  # more groups than a LAN has people; each costs a small daemon memory
    runs: int = 8  # background runs wait for hours: more of them are a mistake
    runs_per_key: int = 2  # the running one and the next: no board shuts the others out


DEFAULT_LIMITS = Limits()
