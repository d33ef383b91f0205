"""What the members of a request's body may ask of whoever answers it.

The job chooses model and price, its walls the target. A member that chooses another of these, or has the request kept,
is never sent; nor is one that nobody here knows, unless the task's own `params` name it: a line may come from anyone,
the job file from who pays. Facts about providers: their API references, as of 2026.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from penstock.engine.errors import BadRecord

PLAIN = frozenset(
    {
        # OpenAI chat completions
        "messages", "metadata", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed",
        "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format",
        "tool_choice", "parallel_tool_calls", "functions", "function_call", "reasoning_effort", "verbosity", "user",
        "safety_identifier", "prompt_cache_key",
        # vLLM, SGLang, llama.cpp and hosts that run them
        "top_k", "min_p", "top_a", "typical_p", "repetition_penalty", "length_penalty", "min_tokens", "ignore_eos",
        "stop_token_ids", "stop_regex", "include_stop_str_in_output", "no_stop_trim", "skip_special_tokens",
        "spaces_between_special_tokens", "allowed_token_ids", "bad_words", "add_generation_prompt",
        "continue_final_message", "add_special_tokens", "chat_template_kwargs", "structured_outputs", "guided_json",
        "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern",
        "structural_tag", "regex", "ebnf", "grammar", "json_schema", "return_tokens_as_token_ids", "return_token_ids",
        "priority", "request_id", "session_id", "cache_salt", "separate_reasoning", "thinking_token_budget",
        "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta", "dynatemp_range",
        "dynatemp_exponent", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length",
        "dry_penalty_last_n", "samplers", "cache_prompt",
        # reasoning and sampling elsewhere: Anthropic, OpenRouter, Groq, Mistral, Qwen, Zhipu
        "thinking", "output_config", "cache_control", "reasoning", "include_reasoning", "reasoning_format",
        "enable_thinking", "thinking_budget", "random_seed", "safe_prompt", "prompt_mode", "do_sample", "usage",
    }
)  # fmt: skip
"""Members that change an answer, and its price by nothing but its tokens, which are counted and bounded."""

_PRICE = "it changes what a call costs"
_TARGET = "it chooses who answers, past the job's models and walls"
_KEPT = "it has the provider keep the request"
_MORE = "it adds tokens that can't be reckoned beforehand"

REFUSED = {
    "web_search_options": _PRICE,
    "web_search": _PRICE,
    "search_parameters": _PRICE,
    "search_settings": _PRICE,
    "search_options": _PRICE,
    "enable_search": _PRICE,
    "plugins": _PRICE,
    "speed": _PRICE,
    "inference_geo": _PRICE,
    "mcp_servers": _PRICE,
    "container": _PRICE,
    "audio": _PRICE,
    "compound_custom": _TARGET,
    "models": _TARGET,
    "provider": _TARGET,
    "route": _TARGET,
    "preset": _TARGET,
    "fallbacks": _TARGET,
    "base_url": _TARGET,
    "api_base": _TARGET,
    "api_key": _TARGET,
    "deployment_id": _TARGET,
    "custom_llm_provider": _TARGET,
    "lora_path": _TARGET,
    "safety_model": _TARGET,
    "extra_body": _TARGET,
    "extra_headers": _TARGET,
    "store": _KEPT,
    "background": _KEPT,
    "deferred": _KEPT,
    "data_sources": _MORE,
    "prediction": _MORE,
    "chat_template": _MORE,
    "best_of": _MORE,
    "use_beam_search": _MORE,
    "transforms": "the provider would leave out parts of the prompt",
}
"""Never sent, whoever asks, unless null or false."""

_VALUES: dict[str, tuple[Collection[object], str]] = {
    # `auto` is what an account does where nothing is said; the others name the plain price.
    "service_tier": (("auto", "default", "standard_only", "on_demand"), _PRICE),
    "modalities": ((["text"],), _PRICE),
    "prompt_cache_retention": (("in_memory", "in-memory"), _KEPT),
}
"""Sent with these values only."""
_KNOWN = frozenset({"tools", *_VALUES})
_CLIENT_TOOLS = ("function", "custom")
"""Kinds of tools that the caller runs. All others run at the provider, which bills them, or what they bring in."""


def refusal(name: str, value: object) -> str | None:
    """Why this member is never sent; None: it may be, as far as its name and value tell."""
    if value is None or value is False:
        return None
    if (why := REFUSED.get(name)) is not None:
        return why
    if name == "tools":
        return None if _client_tools(value) else "a tool that the provider runs costs what can't be reckoned beforehand"
    allowed = _VALUES.get(name)
    return allowed[1] if allowed is not None and value not in allowed[0] else None


def _client_tools(tools: object) -> bool:
    return isinstance(tools, list) and all(isinstance(tool, dict) and _client_tool(tool) for tool in tools)


def _client_tool(tool: Mapping[str, object]) -> bool:
    """OpenAI's form has a type; Anthropic's may leave it out."""
    kind = tool.get("type")
    return kind in _CLIENT_TOOLS if kind is not None else "input_schema" in tool


def check(names: Collection[str], body: Mapping[str, object], vouched: Collection[str]) -> None:
    """`names`: members of `body` that aren't plain. `vouched`: those that the task's own `params` name. Raises
    `BadRecord`."""
    for name in sorted(names):
        value = body.get(name)
        if value is None or value is False:
            continue
        if (why := refusal(name, value)) is not None:
            raise BadRecord("unsupported", f"{name} ({str(value)[:60]!r}) is not sent: {why}")
        if name not in _KNOWN and name not in vouched:
            raise BadRecord(
                "unsupported",
                f"{name[:100]} is not sent: Penstock doesn't know what it does. If it changes neither price nor "
                "target, name it in the task's params",
            )
