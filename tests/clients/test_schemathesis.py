"""schemathesis: requests that /openapi.json allows are answered, those that it forbids are refused, none breaks."""

import json
import re
import urllib.request

import pytest

from tests.clients.conftest import KEY

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
pytestmark = pytest.mark.clients

CASES = 220  # for each operation with a body, of which there are nine; chat is run in two parts
OFF = "/script|/seen|/v1/files|/v1/batches"  # not of the API, or 501 in a service that has no place for files
CHAT_CONDITIONS = (  # what is said to a request that breaks them, in the order of the schema's allOf
    r"stream_options requires stream|not available with stream",
    r"truncation_side requires",
    r"requires acceptance",
    r"top_logprobs requires logprobs",
    r"continue_final_message and add_generation_prompt",
)
# What depends on values, on the vocabulary or on the chat template, so that no JSON schema can say it.
BY_VALUE = (
    r"outside the vocabulary|context length|the prompt is empty|prompt is empty|does not exist here",
    r"^(response_format|structured_outputs|guided_\w+|tools|text|output_config)\b",  # schemas and grammars
    r"both constrain the output|two tools have the same name|tool_choice: ",
    r"chat template|chat_template|documents|^acceptance: ",
    r"two names of one limit|beam|min_tokens|the same token id twice|thinking.budget_tokens",
    r"is not JSON|must be a JSON object",  # arguments of calls, which are JSON in a text
    r"lone surrogate|whose results must follow",
    r"^seed: Input should be (greater|less) than or equal to -?9223372036854775",  # the validator compares floats
    r"^input: List should have at least 1 item",  # the schema has minItems; it is sent nevertheless
)


def document_of(url, kept):
    """/openapi.json with these conditions of a chat request: schemathesis gives up on a model that has all of them."""
    request = urllib.request.Request(f"{url}/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        document = json.load(reply)
    chat = document["components"]["schemas"]["ChatRequest"]
    assert len(chat["allOf"]) == len(CHAT_CONDITIONS)
    chat["allOf"] = [chat["allOf"][i] for i in kept]
    return document


@pytest.mark.parametrize("kept, paths", [((0, 1, 2), "."), ((3, 4), "/v1/chat/completions")])
def test_schema_and_service_agree(urls, kept, paths):
    url = urls["scripted"].removesuffix("/v1")
    api = schemathesis.openapi.from_dict(document_of(url, kept))
    api.config.update(base_url=url)
    by_value = [*BY_VALUE, *(text for i, text in enumerate(CHAT_CONDITIONS) if i not in kept)]
    for found in api.include(path_regex=paths).exclude(path_regex=OFF).get_all_operations():
        operation = found.ok()
        has_body = bool(operation.body)

        @hypothesis.settings(
            max_examples=CASES if has_body else 5,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            response = case.call(headers={"authorization": f"Bearer {KEY}"}, timeout=30)
            assert response.status_code < 500, response.text
            if response.status_code == 400:
                message = response.json()["error"]["message"]
                if any(re.search(pattern, message) for pattern in by_value):
                    return
            case.validate_response(response)

        check()
