"""The bodies of requests: OpenAI's fields and vLLM's common extras, each with its bounds.

Types are strict (no "1" for 1) and a field that is not here is refused by its name. Fields whose
only effect lies in OpenAI's own service (`user`, `metadata`, ...) are taken and change nothing.
UNSUPPORTED names known fields that ask for what is not there yet.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxinfer import request as bounds

Id = Annotated[int, Field(ge=0, le=bounds.MAX_TOKEN_ID)]
Ids = Annotated[list[Id], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=bounds.MAX_STOP_CHARS)]
BadWord = Annotated[str, Field(min_length=1, max_length=bounds.MAX_BAD_WORD_CHARS)]
Penalty = Annotated[float, Field(ge=-bounds.MAX_ABS_PENALTY, le=bounds.MAX_ABS_PENALTY)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=bounds.MAX_NEW_TOKENS)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Field(ge=-bounds.MAX_ABS_BIAS, le=bounds.MAX_ABS_BIAS)]

TOOLS = "only functions in `tools` are supported"
MEDIA = "this server reads and writes text only"
UNSUPPORTED = {
    "guided_decoding_backend": "there is one: leave it out",
    "functions": TOOLS,
    "function_call": TOOLS,
    "max_tool_calls": TOOLS,
    "web_search_options": TOOLS,
    "best_of": "only best_of = n is supported: every completion is returned",
    "suffix": "text is only continued, not filled in: leave suffix out",
    "use_beam_search": "beam search is not supported",
    "audio": MEDIA,
    "modalities": f"{MEDIA}: leave it out, or give ['text']",
    "prediction": "predicted outputs are not supported",
    "moderation": "moderation is not supported",
    "reasoning": "reasoning effort is not supported: see chat_template_kwargs",
    "reasoning_effort": "reasoning effort is not supported: see chat_template_kwargs",
    "verbosity": "verbosity is not supported",
    "previous_response_id": "responses are not stored: send the conversation as input",
    "conversation": "responses are not stored: send the conversation as input",
    "background": "responses are not stored: leave it out",
    "store": "nothing is stored: leave it out, or give false",
}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="end with a chunk that holds the usage")
    continuous_usage_stats: bool | None = Field(None, description="usage so far in every chunk")
    include_obfuscation: bool | None = Field(None, description="taken, changes nothing")


class PlainText(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema", description="a JSON Schema")
    strict: bool | None = Field(None, description="taken: answers always follow the schema")


class JsonSchema(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class NamedJsonSchema(NamedSchema):
    type: Literal["json_schema"]


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]
TextFormat = Annotated[PlainText | JsonObject | NamedJsonSchema, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's: one of them."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON Schema")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None
    grammar: Text | None = None
    json_object: bool | None = None


class Common(Body):
    """What every generating call may say."""

    model: str | None = Field(None, description="the served model's name; may be left out")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(
        None, ge=0, le=bounds.MAX_TEMPERATURE, description="0 is greedy; without it 1"
    )
    top_p: Fraction | None = None
    user: str | None = Field(None, description="taken, changes nothing")
    metadata: dict[str, str] | None = Field(None, description="taken, changes nothing")
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = Field(None, description="taken, changes nothing")
    prompt_cache_key: str | None = Field(None, description="taken, changes nothing")
    # beyond OpenAI
    top_k: int | None = Field(None, ge=-1, le=bounds.MAX_TOKEN_ID, description="0 or -1 is off")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: Fraction | None = Field(None, description="locally typical sampling; 1 is off")
    repetition_penalty: float | None = Field(
        None, ge=bounds.MIN_REPETITION_PENALTY, le=bounds.MAX_REPETITION_PENALTY
    )
    seed: int | None = Field(None, ge=-(2**63), le=bounds.MAX_SEED)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=bounds.MAX_NEW_TOKENS)
    stop_token_ids: Annotated[list[Id], Field(max_length=bounds.MAX_STOP_IDS)] | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=bounds.MAX_BAD_WORDS // 2)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = Field(
        None, ge=-(2**31), le=2**31 - 1, description="a lower number goes first"
    )


class Sampled(Common):
    """What chat and completions share."""

    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=bounds.MAX_BIAS)] | None = None
    n: int | None = Field(None, ge=1, le=bounds.MAX_N)
    stop: Stop | Annotated[list[Stop], Field(max_length=bounds.MAX_STOP_STRINGS)] | None = Field(
        None, description="a text, or a list of texts, that end the answer"
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=bounds.MAX_LOGPROBS,
        description="of each token of the prompt, without stream",
    )
    return_token_ids: bool | None = Field(None, description="token ids beside the text")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(
        None, description="what the answer must look like"
    )
    guided_json: dict[str, Any] | str | None = Field(None, description="a JSON Schema")
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Field(min_length=1)] | None = None
    guided_grammar: Text | None = Field(None, description="in llguidance's dialect of Lark")


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: str


class FunctionCall(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"]
    function: FunctionCall


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON Schema")
    strict: bool | None = Field(None, description="taken: only a forced call is held to its schema")


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class Message(Body):
    """One message of a chat; what a template makes of it is the model's own affair."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = Field(None, description="text, or parts of text")
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class ChatRequest(Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Count | None = Field(None, description="as max_completion_tokens")
    max_completion_tokens: Count | None = Field(None, description="without it, what fits")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=bounds.MAX_LOGPROBS)
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="more variables for the model's chat template"
    )
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="required and a name force one call"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: only the first call counts")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    store: Literal[False] | None = None


class CompletionRequest(Sampled):
    prompt: Annotated[
        str
        | Ids
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[Ids], Field(min_length=1)],
        Field(description="a text, token ids, or a list of either"),
    ]
    max_tokens: int | None = Field(
        None, ge=0, le=bounds.MAX_NEW_TOKENS, description="without it 16; 0 only with echo"
    )
    logprobs: int | None = Field(None, ge=0, le=bounds.MAX_LOGPROBS)
    echo: bool | None = Field(None, description="begin with the prompt")
    best_of: int | None = Field(None, ge=1, le=bounds.MAX_N, description="the same as n")
    add_special_tokens: bool | None = None


class InputMessage(Body):
    """A turn of the conversation in a response's input."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = Field(description="text, or parts of text")
    type: Literal["message"] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class TextConfig(Body):
    format: TextFormat | None = None


class ResponseRequest(Common):
    input: Annotated[
        str | Annotated[list[InputMessage], Field(min_length=1)],
        Field(description="a text, or messages with text"),
    ]
    instructions: str | None = Field(None, description="a system message before the input")
    max_output_tokens: Count | None = Field(None, description="without it, what fits")
    top_logprobs: int | None = Field(None, ge=0, le=bounds.MAX_LOGPROBS)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    store: Literal[False] | None = None


class EmbeddingRequest(Body):
    model: str | None = None
    input: Annotated[
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Ids], Field(min_length=1)],
        Field(description="a text, token ids, or a list of either"),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(
        None, ge=1, description="so many numbers from the beginning, scaled to length 1 again"
    )
    user: str | None = Field(None, description="taken, changes nothing")


class TokenizeRequest(Body):
    model: str | None = None
    prompt: str | None = Field(None, description="a text; or give messages")
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[Id]
