"""A chat-completions body said as an Anthropic Messages request."""

from __future__ import annotations

from typing import Any

import msgspec

Body = dict[str, msgspec.Raw]
Block = dict[str, Any]

_decode = msgspec.json.decode
_encode = msgspec.json.encode


def messages_request(body: Body, upstream: str, max_tokens: int) -> dict[str, Any]:
    """The request as a dictionary ready to encode. Raises `ValueError` for what Messages can't say."""
    if bytes(body.get("n", b"1")) not in (b"1", b"null"):
        raise ValueError("a Messages API gives one answer, not `n` of them")
    if bytes(body.get("functions", b"[]")) not in (b"[]", b"null"):
        raise ValueError("a Messages API knows no `functions`: name them as `tools`")
    system, turns = _conversation(_decode(body["messages"], type=list[dict[str, Any]]))
    request: dict[str, Any] = {"model": upstream, "max_tokens": _ceiling(body, max_tokens), "messages": turns}
    if system:
        request["system"] = system
    for key in ("temperature", "top_p", "top_k", "thinking", "service_tier", "cache_control", "output_config"):
        if key in body and bytes(body[key]) != b"null":
            request[key] = body[key]
    _sampling(request)
    if "stop" in body and (stop := _decode(body["stop"])) is not None:
        request["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    _tools(body, request)
    return request


def _ceiling(body: Body, max_tokens: int) -> int:
    asked = [bytes(body[k]) for k in ("max_tokens", "max_completion_tokens") if k in body]
    return min([max_tokens, *(int(raw) for raw in asked if raw.isdigit())])


def _sampling(request: dict[str, Any]) -> None:
    """OpenAI's temperature goes to 2, Anthropic's to 1. What that does unsaid is not said: Claude 4.5 refuses
    temperature and `top_p` together, and from Opus 4.7 on either. Its tier names mean something else."""
    for name in ("temperature", "top_p"):
        if (raw := request.get(name)) is not None and float(_decode(raw)) >= 1.0:
            del request[name]
    if (raw := request.get("service_tier")) is not None and _decode(raw) not in ("auto", "standard_only"):
        del request["service_tier"]


def _conversation(messages: list[dict[str, Any]]) -> tuple[list[Block], list[Block]]:
    """System and developer messages apart; tool results as user turns; neighbours of one role joined."""
    system: list[Block] = []
    turns: list[Block] = []
    for message in messages:
        role = message.get("role")
        match role:
            case "system" | "developer":
                system.extend(_blocks(message.get("content")))
            case "tool" | "function":
                _turn(turns, "user", [_tool_result(message)])
            case "assistant":
                _turn(turns, "assistant", _assistant(message))
            case "user":
                _turn(turns, "user", _blocks(message.get("content")))
            case _:
                raise ValueError(f"a message of role {str(role)[:40]!r} can't be sent to a Messages API")
    if not turns:
        raise ValueError("a Messages API wants at least one user message")
    return system, turns


def _turn(turns: list[Block], role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"].extend(blocks)
    else:
        turns.append({"role": role, "content": blocks})


def _assistant(message: dict[str, Any]) -> list[Block]:
    blocks = _blocks(message.get("content"))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = function.get("arguments") or "{}"
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": function["name"], "input": msgspec.Raw(arguments.encode())}
        )
        _decode(arguments, type=dict[str, msgspec.Raw])  # raises where it is no object: better here than there
    return blocks


def _tool_result(message: dict[str, Any]) -> Block:
    content = message.get("content")
    return {
        "type": "tool_result",
        "tool_use_id": message.get("tool_call_id", ""),
        "content": content if isinstance(content, str) else _blocks(content),
    }


def _blocks(content: object) -> list[Block]:
    """Content as blocks; empty text is left out, since Messages refuses it."""
    match content:
        case None | "":
            return []
        case str():
            return [{"type": "text", "text": content}]
        case list():
            parts: list[Any] = content
            return [block for part in parts if (block := _part(part)) is not None]
        case _:
            raise ValueError("a message's content is neither text nor a list of parts")


def _part(part: object) -> Block | None:
    match part:
        case str():
            return {"type": "text", "text": part} if part else None
        case {"type": "text", "text": str(text), **rest}:
            return _text(text, rest.get("cache_control")) if text else None
        case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "image_url", "image_url": str(url)}:
            return {"type": "image", "source": _image(url)}
        case {"type": "image" | "document" as kind, **rest}:
            return {"type": kind, **rest}
        case {"type": "refusal", "refusal": str(said)}:
            return {"type": "text", "text": said} if said else None
        case _:
            raise ValueError("a part of a message is of a kind that a Messages API does not know")


def _text(text: str, cache_control: object) -> Block:
    block: Block = {"type": "text", "text": text}
    return block if cache_control is None else {**block, "cache_control": cache_control}


def _image(url: str) -> Block:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, _, data = url[5:].partition(",")
    media, _, coding = head.partition(";")
    if coding != "base64":
        raise ValueError("an image in a data: URL must be base64")
    return {"type": "base64", "media_type": media or "image/jpeg", "data": data}


def _tools(body: Body, request: dict[str, Any]) -> None:
    if "tools" not in body:
        return
    choice = _decode(body["tool_choice"]) if "tool_choice" in body else None
    request["tools"] = [_tool(tool) for tool in _decode(body["tools"], type=list[dict[str, Any]])]
    said: Block | None = None
    match choice:
        case "auto" | "none":
            said = {"type": choice}
        case "required":
            said = {"type": "any"}
        case {"function": {"name": str(name)}}:
            said = {"type": "tool", "name": name}
        case _:
            pass
    if "parallel_tool_calls" in body and bytes(body["parallel_tool_calls"]) == b"false":
        said = {**(said or {"type": "auto"}), "disable_parallel_tool_use": True}
    if said is not None:
        request["tool_choice"] = said


def _tool(tool: dict[str, Any]) -> Block:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        return tool  # already in Anthropic's form
    schema: Any = function.get("parameters") or {"type": "object", "properties": {}}
    out: Block = {"name": function["name"], "input_schema": schema}
    if function.get("description"):
        out["description"] = function["description"]
    return out
