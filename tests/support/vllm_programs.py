"""Programs written for vLLM: calls, names and results as its documentation uses them. Each leaves `shown`, a list."""

BASIC = """
from vllm import LLM, SamplingParams

prompts = ["Hello, my name is", "The capital of France is"]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)

llm = LLM(model="facebook/opt-125m")
outputs = llm.generate(prompts, sampling_params)
shown = []
for output in outputs:
    shown.append((output.prompt, output.outputs[0].text))
"""

ARGUMENTS = """
from vllm import LLM, SamplingParams

llm = LLM(
    model="facebook/opt-125m",
    tokenizer="facebook/opt-125m",
    tokenizer_mode="auto",
    trust_remote_code=False,
    tensor_parallel_size=1,
    dtype="auto",
    quantization=None,
    seed=0,
    gpu_memory_utilization=0.9,
    enforce_eager=True,
    max_model_len=100,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    enable_prefix_caching=True,
    enable_chunked_prefill=True,
    disable_log_stats=True,
)
sampling_params = llm.get_default_sampling_params()
sampling_params.max_tokens = 4
sampling_params.temperature = 0.7
tokenizer = llm.get_tokenizer()
ids = tokenizer.encode("Hello")
shown = [
    (output.prompt_token_ids, tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True))
    for output in llm.generate([{"prompt_token_ids": ids}], sampling_params=sampling_params, use_tqdm=False)
]
"""

SEVERAL = """
from vllm import LLM, SamplingParams

llm = LLM("facebook/opt-125m", max_model_len=100)
params = SamplingParams(
    n=3, temperature=1.0, top_k=-1, seed=-1, max_tokens=6, logprobs=2, prompt_logprobs=1, stop=["\\n\\n"]
)
shown = []
for output in llm.generate("Once upon a time", params):
    assert output.finished and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    for completion in output.outputs:
        chosen = [
            position[token_id].logprob
            for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
        first = [min(position.values(), key=lambda entry: entry.rank or 9) for position in completion.logprobs]
        best = [entry.decoded_token for entry in first]
        shown.append((completion.index, completion.cumulative_logprob - sum(chosen), best, completion.finish_reason))
"""

CHAT = """
from vllm import LLM, SamplingParams

llm = LLM(model="facebook/opt-125m")
sampling_params = SamplingParams(temperature=0.5, max_tokens=8)
conversation = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I help?"},
    {"role": "user", "content": [{"type": "text", "text": "Write."}]},
]
outputs = llm.chat(conversation, sampling_params, use_tqdm=False)
outputs += llm.chat([conversation for _ in range(3)], sampling_params=sampling_params, use_tqdm=True)
shown = [output.outputs[0].text for output in outputs]
"""

STRUCTURED = """
from enum import Enum

from pydantic import BaseModel

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams


class Kind(str, Enum):
    sedan = "sedan"
    truck = "truck"


class Car(BaseModel):
    doors: int
    kind: Kind


sql = '''
root ::= select_statement
select_statement ::= "SELECT " column " from " table
column ::= "col_1" | "col_2"
table ::= "table_1" | "table_2"
'''
asked = {
    "choice": StructuredOutputsParams(choice=["Positive", "Negative"]),
    "regex": StructuredOutputsParams(regex="[a-z]{2}@[a-z]{2}\\\\.com"),
    "json": StructuredOutputsParams(json=Car.model_json_schema()),
    "grammar": StructuredOutputsParams(grammar=sql),
}
llm = LLM(model="facebook/opt-125m")
shown = []
for name, structured_outputs in asked.items():
    params = SamplingParams(structured_outputs=structured_outputs, max_tokens=100, seed=1)
    shown.append((name, llm.generate(prompts="Answer", sampling_params=params)[0].outputs[0].text))
"""
