"""A seeded world around the real service: all but sockets, disk, clock and threads is its own code.

    timeline   what happens when outside hypermux: one heap, one task
    network    wires with delays, stalls and deaths; the dialer; what limits saw
    disk       a disk that keeps what was synced, and what a crash makes of the rest
    truth      what was sent and received, connected and lost: noted by the world alone
    hyper      an upstream of signed WebSockets, as callbacks
    plan       from a seed to sources, settings and everything that will go wrong
    world      lives of the service in that plan, one after another
    judge      the journal against the truth, without code of hypermux
    run        one seed, from the outside

A seed gives the same journal in every process: nothing here asks a real clock, a thread, a hash's
order or the system's chance.
"""
