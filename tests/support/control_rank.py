"""A process that is one rank of a SocketControl: `python -m tests.support.control_rank RANK WORLD PORT`.

Rank 0 sends a message for each line of its input; the others print the first word of each message that they receive,
and the name of the error that ends it.
"""

import sys

import numpy as np

from medusa_dist.engine.startup.control import connect_on_node
from medusa_dist.engine.startup.process_group import join_store

DEADLINE_S = 600  # what ends a wait in these tests is not the deadline
WORDS = 1024


def main(rank: int, world: int, port: int) -> None:
    store = join_store("127.0.0.1", port, world, 60)
    control = connect_on_node(rank, world, store, lambda value: value, DEADLINE_S)
    assert control is not None
    print("connected", flush=True)
    words = np.zeros(WORDS, dtype=np.int64)
    try:
        while rank:
            control.broadcast(words)
            print(int(words[0]), flush=True)
        for line in sys.stdin:
            words[:] = int(line)
            control.broadcast(words)
    except OSError as error:
        print(type(error).__name__, flush=True)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
