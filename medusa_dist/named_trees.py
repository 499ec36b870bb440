"""Named trees: those published with Medusa, and a chain.

Owns their shapes as plain data, so that config.py can resolve a name. Not here: validating and building trees
(medusa/trees/tree.py).
Source: FasterDecoding/Medusa, medusa/model/medusa_choices.py at e2a5d20c048a9b0a4092e6933c34313687422518 (Apache-2.0),
where each is a list of paths of top-k indices, made for the model in its name; other models may need other trees.
Each entry is "parent:children": below the root (-), this many best guesses of head 1; below the path 01 (best guess of
head 1, second-best of head 2), this many of head 3.
"""

_CHILDREN = {
    "chain4": "-:1 0:1 00:1 000:1",
    "mc_sim_7b_63": (
        "-:10 0:10 1:7 2:3 3:2 4:1 5:1 6:1 7:1 8:1 9:1 00:10 01:3 02:2 03:1 04:1 05:1 06:1 07:1 10:2 20:1 000:2"
    ),
    "vicuna_7b_stage2": (
        "-:10 0:10 1:5 2:2 3:2 4:1 5:1 6:1 7:1 00:9 01:4 02:2 03:1 04:1 05:1 10:3 11:1 20:1 000:4 001:1 002:1 010:1"
    ),
    "vicuna_7b_stage1": "-:10 0:10 1:7 2:4 3:3 4:2 5:2 6:1 7:1 8:1 9:1 00:9 01:3 02:2 03:1 04:1 05:1 10:2 20:1 000:1",
    "vicuna_13b_stage2": (
        "-:10 0:10 1:4 2:2 3:1 4:1 5:1 00:10 01:4 02:2 03:1 04:1 05:1 10:3 11:1 20:1 30:1 000:4 001:2 002:1 010:1 100:1"
    ),
    "vicuna_13b_stage1": (
        "-:10 0:10 1:7 2:4 3:2 4:2 5:1 6:1 7:1 8:1 00:10 01:4 02:2 03:1 04:1 05:1 10:2 11:1 20:1 000:1"
    ),
    "vicuna_33b_stage2": (
        "-:10 0:10 1:5 2:3 3:2 4:1 5:1 6:1 7:1 00:10 01:4 02:2 03:1 04:1 05:1 10:3 11:1 20:1 000:3 001:1 010:1"
    ),
    "vicuna_33b_stage1": "-:10 0:10 1:8 2:5 3:3 4:2 5:2 6:1 7:1 8:1 9:1 00:9 01:3 02:2 03:1 04:1 10:2 20:1",
    "zephyr_stage2": "-:10 0:10 1:6 2:4 3:2 4:2 5:1 6:1 7:1 00:10 01:4 02:2 03:1 04:1 05:1 10:2 11:1 20:1 000:2 001:1",
}


def _paths(children: str) -> tuple[tuple[int, ...], ...]:
    """The paths of all nodes, parents before children."""
    paths: list[tuple[int, ...]] = []
    for entry in children.split():
        parent, count = entry.split(":")
        ranks = () if parent == "-" else tuple(int(digit) for digit in parent)
        paths += [(*ranks, rank) for rank in range(int(count))]
    return tuple(paths)


NAMED_TREES = {name: _paths(children) for name, children in _CHILDREN.items()}
