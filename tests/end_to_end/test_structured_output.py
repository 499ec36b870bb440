"""Grammars through the whole engine: the promise holds (drafts change no token), and every finished text fits.

Not here: single matchers (tests/unit/engine/state/test_matcher.py), HTTP
(tests/unit/api/schema/test_structured_outputs.py).
"""

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from medusa_dist import LLM, Grammar, SamplingParams
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.state.matcher import GrammarCompiler
from medusa_dist.errors import RequestError
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from tests.support.equivalence import SITUATIONS, TREES, ids, same, speculated
from tests.support.structured_cases import CHOICES, GRAMMARS, TOKENIZER, text_of
from tests.support.tiny_engine import EOS, VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


KINDS: dict[str, list[dict]] = {
    "greedy": [{"temperature": 0.0}],
    "sampled": [{"temperature": 0.9}],
    "mixed": [
        {"temperature": 0.0, "min_tokens": 6, "logprobs": 2},
        {"top_p": 0.9, "logprobs": 0},
        {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.3},
        {"logit_bias": ((EOS, 5.0), (20, -100.0)), "top_k": 4},
        {"ignore_eos": True, "min_p": 0.05},
        {"stop_token_ids": (10, 11), "temperature": 1.2, "min_tokens": 2},
    ],
}
COUNT = 14


def requests(kind: str) -> list[Request]:
    """Fourteen: each grammar with two ways of sampling, some of which no grammar binds."""
    rng = random.Random(2)
    made = []
    for i in range(COUNT):
        params = KINDS[kind][(i + i // len(GRAMMARS)) % len(KINDS[kind])]
        fields = {"max_tokens": 20 + i, "grammar": GRAMMARS[i % len(GRAMMARS)][0]} | params
        prompt = [rng.randrange(VOCAB) for _ in range(1 + 5 * i)]
        made.append(request(f"r{i}", prompt, seed=rng.getrandbits(60), **fields))
    return made


class Model:
    """A tiny model with the tokenizer beside it, and what each request gets alone without drafts."""

    def __init__(self, folder: Path) -> None:
        save_model("llama", folder)
        TOKENIZER.save_pretrained(folder)
        self.rank = EngineRank(tiny_config(folder), folder)
        self.references: dict[str, Run] = {}

    def reference(self, kind: str) -> Run:
        if kind not in self.references:
            whole = self.references[kind] = Run()
            for one in requests(kind):
                whole.outputs |= decode(self.engine(Setting()), [one]).outputs
        return self.references[kind]

    def engine(self, setting: Setting, kind: str | None = None) -> Engine:
        truth = None if kind is None else ids(self.reference(kind))
        engine = engine_over(self.rank, setting, truth)
        plant = engine.policy.trees

        def trees(*given: object) -> list:
            """Nothing is verified that the grammar forbids."""
            planted = plant(*given)
            for sequence, tree, *_ in planted:
                if sequence.matcher is None:
                    continue
                output = tuple(sequence.tokens[sequence.num_prompt_tokens :])
                fresh = self.rank.engine.grammars.start(sequence.request.params.grammar, output)
                paths: dict[int, tuple[int, ...]] = {-1: ()}
                for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
                    paths[node] = (*paths[parent], token)
                    assert fresh.fits(paths[node]) and token != EOS
            return planted

        engine.policy.trees = trees
        return engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_finished_text_fits_its_grammar(model: Model, kind: str) -> None:
    num_complete = 0
    for i, one in enumerate(requests(kind)):
        output = model.reference(kind).outputs[one.request_id]
        grammar, is_right = GRAMMARS[i % len(GRAMMARS)]
        if grammar is None or output.finish_reason is FinishReason.LENGTH:
            continue
        if not output.is_complete and output.token_ids[-1] in one.params.stop_token_ids:
            continue  # ended by its own wish
        assert output.is_complete or output.token_ids[-1] == EOS
        assert is_right(text_of(output)), text_of(output)
        num_complete += 1
    assert num_complete >= 5


CELLS = list(itertools.product(TREES, SITUATIONS, KINDS))
LEAN = {("15", "joins and leaves", "mixed"), ("static", "joins and leaves", "sampled"), ("15", "tiny pool", "greedy")}


@pytest.mark.parametrize(
    ("tree", "situation", "kind"), [pytest.param(*c, marks=() if c in LEAN else pytest.mark.slow) for c in CELLS]
)
def test_speculation_on_equals_off_with_grammars(model: Model, tree: str, situation: str, kind: str) -> None:
    setting, arrivals = SITUATIONS[situation]
    setting = Setting(**(vars(setting) | TREES[tree] | {"skill": 0.6}))
    arrivals = None if arrivals is None else [*arrivals, *(arrivals[-1] + i for i in range(COUNT - len(arrivals)))]
    run = decode(model.engine(setting, kind), requests(kind), arrivals=arrivals)
    same(run, model.reference(kind))
    speculated(run)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_real_heads_change_no_token_with_grammars(model: Model, kind: str) -> None:
    for nodes in (15, None):
        run = decode(model.engine(Setting(nodes=nodes)), requests(kind))
        same(run, model.reference(kind))
        assert run.drafted > 0


def test_forced_tokens_are_drafted_and_accepted(model: Model) -> None:
    """The heads of a random model guess nothing of it; the grammar knows all but the choice."""
    choices = Grammar.choice(["ab-ab-ab-true", "-1.1.1.1.1.1."])
    one = request("r", (5, 6), temperature=0.0, max_tokens=30, grammar=choices)
    run = decode(model.engine(Setting(nodes=15)), [one])
    (output,) = run.outputs.values()
    assert text_of(output) in ("ab-ab-ab-true", "-1.1.1.1.1.1.") and output.is_complete
    assert run.num_steps < len(output.token_ids) - 2 and max(output.heads) > 3
    assert ids(decode(model.engine(Setting()), [one])) == ids(run)


def test_resumed_request_continues_its_grammar_and_tokens(model: Model) -> None:
    for kind, cut in (("greedy", 1), ("mixed", 3)):
        whole = model.reference(kind)
        each = [r for r in requests(kind) if len(whole.outputs[r.request_id].token_ids) > cut]
        known = {r.request_id: whole.outputs[r.request_id].token_ids[:cut] for r in each}
        run = decode(model.engine(Setting(nodes=15)), each, known=known)
        for name, output in run.outputs.items():
            assert known[name] + output.token_ids == whole.outputs[name].token_ids
            assert output.finish_reason == whole.outputs[name].finish_reason


def test_grammar_overrules_bans_and_bias(model: Model) -> None:
    """min_tokens and ignore_eos do not hold up a complete text; a ban that leaves nothing does not apply."""
    a = TOKENIZER.get_vocab()["a"]
    for fields in (
        {"min_tokens": 10, "max_tokens": 20},
        {"ignore_eos": True, "max_tokens": 20},
        {"logit_bias": ((a, float("-inf")),)},
        {"stop_token_ids": (5,), "min_tokens": 3},
    ):
        one = request("r", (5, 6), seed=4, grammar=Grammar.choice(["aa"]), **fields)
        for nodes in (0, 15):
            (output,) = decode(model.engine(Setting(nodes=nodes)), [one]).outputs.values()
            assert text_of(output) == "aa" and output.finish_reason is FinishReason.STOP and output.is_complete
    one = request("r", (5, 6), grammar=Grammar.choice(["aa"]), stop_token_ids=(a,), min_tokens=5)
    (output,) = decode(model.engine(Setting(nodes=15)), [one]).outputs.values()
    assert output.token_ids == (a,) and output.finish_reason is FinishReason.STOP and not output.is_complete
    one = request("r", (5, 6), grammar=Grammar.regex("a*"), ignore_eos=True, max_tokens=7)
    (output,) = decode(model.engine(Setting(nodes=15)), [one]).outputs.values()
    assert text_of(output) == "a" * 7 and output.finish_reason is FinishReason.LENGTH


def test_logprobs_with_a_grammar_are_those_of_the_models_logits(model: Model) -> None:
    one = request("r", (5, 6, 7), temperature=0.0, logprobs=5, max_tokens=8, grammar=Grammar.regex("[ab]+"))
    run = decode(model.engine(Setting()), [one])
    for i, entry in enumerate(run.outputs["r"].logprobs):
        expected = run.logits["r", 3 + i].log_softmax(-1)
        assert entry.logprob == pytest.approx(float(expected[entry.token_id]), abs=1e-6)
        assert entry.top_logprobs[0] == pytest.approx(float(expected.max()), abs=1e-6)


def test_text_that_cannot_continue_ends_its_request_alone(model: Model) -> None:
    """ "x" cannot be spelt by this vocabulary, which shows after the 0; the others never notice."""
    others = requests("greedy")
    for nodes in (0, 15):
        lost = request("lost", (5, 6), temperature=0.0, max_tokens=9, grammar=Grammar.choice(["0x", "0xx"], "mine"))
        run = decode(model.engine(Setting(nodes=nodes)), [lost, *others])
        output = run.outputs.pop("lost")
        assert output.finish_reason is FinishReason.ABORT
        assert output.error.param == "mine" and "no token of the model" in output.error.message
        same(run, model.reference("greedy"))


def test_invalid_grammar_is_refused_at_submit(model: Model) -> None:
    engine = model.engine(Setting())
    for grammar in (Grammar.regex("(a", "mine"), Grammar.choice(["x"], "mine"), Grammar.regex("$", "mine")):
        with pytest.raises(RequestError) as caught:
            engine.submit(request("r", (5, 6), grammar=grammar))
        assert caught.value.param == "mine" and not engine.has_work
    engine.grammars = None
    with pytest.raises(RequestError, match="mine: this json_object cannot be used: this engine has no tokenizer"):
        engine.submit(request("r", (5, 6), grammar=Grammar.json("mine")))
    bare = GrammarCompiler(lambda: (_ for _ in ()).throw(OSError("no such file")), VOCAB, (EOS,))
    engine.grammars = bare
    engine.prepare(request("r", (5, 6), grammar=Grammar.json()))
    with pytest.raises(RequestError, match="no such file"):
        engine.submit(request("r", (5, 6), grammar=Grammar.json()))


def test_llm_outputs_fit_their_grammars(model: Model, tmp_path: Path) -> None:
    folder = Path(model.rank.config.model)
    with LLM(str(folder), heads=str(folder / "heads"), device="cpu", kv_cache_tokens=1024, max_running=4) as llm:
        params = [SamplingParams(grammar=g, max_tokens=40, seed=i) for i, (g, _) in enumerate(GRAMMARS)]
        outputs = llm.generate([[5, 6, 7]] * len(params), params)
        for output, (grammar, is_right) in zip(outputs, GRAMMARS, strict=True):
            assert grammar is None or output.finish_reason is FinishReason.LENGTH or is_right(output.text)
        assert any(o.finish_reason is FinishReason.STOP and o.text in CHOICES for o in outputs)
        with pytest.raises(RequestError, match="no token of the model"):
            llm.generate([[5, 6]], SamplingParams(grammar=Grammar.choice(["0x", "0xx"])))
        with pytest.raises(RequestError, match="unclosed group"):
            llm.generate([[5, 6]], SamplingParams(grammar=Grammar.regex("(a")))
        assert llm.generate([[5, 6]], SamplingParams(max_tokens=2))[0].finish_reason is FinishReason.LENGTH


REAL: list[tuple[Grammar, Callable[[str], object], str]] = [
    (Grammar.json_schema(s), lambda text, s=s: jsonschema.validate(json.loads(text), s) is None, "Make it up as JSON.")
    for s in (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "grid": {"type": "array", "items": {"type": "array", "items": {"type": "number"}, "maxItems": 2}},
                "colour": {"enum": ["rouge", "jaune é", "日本"]},
                "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
                "n": {"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 95},
            },
            "required": ["name", "grid", "colour", "code", "n"],
            "additionalProperties": False,
        },
        {"type": "array", "items": {"anyOf": [{"type": "boolean"}, {"const": "ünï😀"}]}, "minItems": 2, "maxItems": 4},
    )
]
REAL += [
    (Grammar.regex(r"\d{4}-\d\d-\d\d"), re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch, "When did it end?"),
    (Grammar.choice(["positive", "日本語", "日本"]), ["positive", "日本語", "日本"].__contains__, "Pick one."),
    (Grammar.ebnf('root ::= [a-z]{1,5} "=" [0-9]+ ("," root)?'), re.compile("[a-z0-9=,]+").fullmatch, "Assign."),
]


@pytest.mark.slow
@pytest.mark.real
def test_demo_model_fits_its_grammars_and_drafts_change_no_token() -> None:
    with LLM("demo:smollm2-135m", max_model_len=512, max_running=8) as llm:
        cases = [(case, i) for case in REAL for i in range(2)]
        prompts = [llm.chat_ids([{"role": "user", "content": question}]) for (_, _, question), _ in cases]
        outputs = {}
        for speculation in (True, False):
            params = [
                SamplingParams(grammar=g, max_tokens=90, temperature=0.7 * i, seed=i, speculation=speculation)
                for (g, _, _), i in cases
            ]
            outputs[speculation] = llm.generate(prompts, params)
        finished = 0
        for ((_, is_right, _), _), on, off in zip(cases, outputs[True], outputs[False], strict=True):
            assert (on.token_ids, on.finish_reason, on.text) == (off.token_ids, off.finish_reason, off.text)
            if on.finish_reason is FinishReason.STOP:
                assert is_right(on.text), on.text
                finished += 1
        assert finished >= 6
        assert sum(on.stats.num_accepted for on in outputs[True]) > 0
