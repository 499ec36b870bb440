from medusa_dist.api.response_builder import speculation_metrics
from medusa_dist.outputs import SpeculationStats


def test_speculation_metrics_have_vllms_names_and_values():
    # 10 steps: 4 accepted nothing, 3 one token, 2 two, 1 three.
    by = {"drafted_by": {"heads": 40, "lookup": 20}, "accepted_by": {"lookup": 10}}
    metrics = speculation_metrics(SpeculationStats(num_steps=10, num_drafted=50, accepted_per_head=(6, 3, 1), **by))
    assert metrics == {
        "mean_acceptance_length": 2.0,
        "draft_acceptance_rate": 0.2,
        "acceptance_histogram": [4, 3, 2, 1],
        "num_spec_steps": 10,
        "num_accepted_draft_tokens": 10,
        "num_draft_tokens": 50,
        "num_spec_tokens": 3,
        "drafters": {
            "heads": {"num_draft_tokens": 40, "num_accepted_draft_tokens": 0},
            "lookup": {"num_draft_tokens": 20, "num_accepted_draft_tokens": 10},
        },
    }


def test_speculation_metrics_without_drafts_are_one_token_per_step():
    metrics = speculation_metrics(SpeculationStats(num_steps=4))
    assert metrics["acceptance_histogram"] == [4] and metrics["num_spec_tokens"] == 0
    assert (metrics["mean_acceptance_length"], metrics["draft_acceptance_rate"]) == (1.0, 0.0)
    assert speculation_metrics(SpeculationStats())["acceptance_histogram"] == [0]
