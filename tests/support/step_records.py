"""Records of steps made up by hand."""

from medusa_dist.engine.steps.record import LoggedStep, VerifiedTree
from medusa_dist.medusa.trees.tree import Tree


def tree(accepted: tuple[int, ...] = (), *, ranked: int = 5, worthwhile: int = 4, name: str = "a") -> VerifiedTree:
    """Three nodes: two at depth 1, one below the first of them."""
    return VerifiedTree(
        request_id=name,
        position=0,
        root=9,
        tree=Tree((2, 3, 4), (-1, -1, 0)),
        values=(0.5, 0.25, 0.125),
        drafters=(("heads",), ("lookup",), ("heads", "lookup")),
        num_ranked=ranked,
        num_worthwhile=worthwhile,
        accepted=accepted,
        tokens=(*[(2, 3, 4)[node] for node in accepted], 7),
    )


def step(*trees: VerifiedTree, rows: int = 4, ms: float = 20.0, prompt_rows: int = 0, drafted: int = 1) -> LoggedStep:
    seconds = {"forward": ms / 1000, "draft": 0.005}
    return LoggedStep(1, 100.0, seconds, rows, prompt_rows, 1, 0, 0.5, trees, {"heads": drafted, "lookup": 1})
