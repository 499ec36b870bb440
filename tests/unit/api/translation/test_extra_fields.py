from medusa_dist.api.schema.requests import ChatRequest
from medusa_dist.api.translation.extra_fields import ExtraFields, given_extras


def test_types_are_those_of_the_chat_request():
    chat = ChatRequest.model_json_schema()["properties"]
    for name, schema in ExtraFields.model_json_schema()["properties"].items():
        assert schema == {key: value for key, value in chat[name].items() if key != "description"}, name


def test_given_fields_pass_as_they_are():
    given = {"seed": 5, "min_p": 0.1, "structured_outputs": {"json": {"type": "object"}}, "ignore_eos": False}
    assert given_extras(ExtraFields.model_validate({**given, "priority": None})) == given
