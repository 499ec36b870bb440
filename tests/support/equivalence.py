"""Situations and trees in which speculation on must equal off, and the comparison."""

from tests.support.tiny_engine import Run, Setting


def ids(run: Run) -> dict[str, tuple[int, ...]]:
    return {name: output.token_ids for name, output in run.outputs.items()}


def same(run: Run, reference: Run) -> None:
    assert ids(run) == ids(reference)
    for name, output in run.outputs.items():
        expected = reference.outputs[name]
        assert output.finish_reason == expected.finish_reason
        assert output.logprobs == expected.logprobs  # every bit of them
        assert output.prompt_logprobs == expected.prompt_logprobs


def speculated(run: Run) -> None:
    """Drafts of both kinds were seen, and all that was drafted was counted."""
    assert 0 < run.accepted < run.drafted
    for output in run.outputs.values():
        assert output.stats.num_accepted == sum(head > 0 for head in output.heads)


SITUATIONS: dict[str, tuple[Setting, list[int] | None]] = {
    "joins and leaves": (Setting(), [0, 0, 2, 3, 3, 7, 12, 13]),
    "tiny pool": (Setting(num_blocks=8), None),
    "chunked prefill": (Setting(max_batched_tokens=16), [0, 1, 1, 2, 4, 4, 4, 9]),
}


TREES: dict[str, dict] = {"3": {"nodes": 3}, "15": {"nodes": 15}, "static": {"nodes": None}}
