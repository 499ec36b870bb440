"""schemathesis: requests that /openapi.json allows are answered, those that it forbids are refused, none breaks."""

import re

import pytest

from tests.clients.conftest import KEY

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
pytestmark = pytest.mark.clients

CASES = 150  # of each of the operations that take a body: 2,000 in all and more
# What depends on values, on the vocabulary or on the chat template, so that no JSON schema can say it.
BY_VALUE = (
    r"outside the vocabulary|context length|the prompt is empty|prompt is empty|does not exist here",
    r"^(response_format|structured_outputs|guided_\w+|tools|text|output_config)\b",  # schemas and grammars
    r"both constrain the output|two tools have the same name|tool_choice: ",
    r"chat template|chat_template|documents|at temperature 0",
    r"two names of one limit|beam|min_tokens|the same token id twice|thinking.budget_tokens",
    r"is not JSON|must be a JSON object",  # arguments of calls, which are JSON in a text
    r"lone surrogate|whose results must follow",
    # The schema has no more conditions between fields: schemathesis gives up on one more.
    r"continue_final_message and add_generation_prompt",
    r"^input: List should have at least 1 item",  # the schema has minItems; it is sent nevertheless
)


@pytest.fixture(scope="module")
def api(urls):
    url = urls["scripted"].removesuffix("/v1")
    found = schemathesis.openapi.from_url(f"{url}/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    return found.exclude(path_regex="/script|/seen")


def test_schema_and_service_agree(api):
    for found in api.get_all_operations():
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
                if any(re.search(pattern, message) for pattern in BY_VALUE):
                    return
            case.validate_response(response)

        check()
