"""Reads rewards with LangChain: they stand in a message's `response_metadata`, streamed or not.

    pip install langchain-openai
    vllm serve FOLDER
    python examples/client_langchain.py FOLDER

`ChatOpenAI` drops the fields of choices that it does not know. Two of its methods are overridden, as LangChain's
packages for other servers do.
"""

import argparse
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI

FIELDS = ("otter", "stop_reason")


def copy_fields(choice: dict[str, Any], message: Any) -> None:
    """Copies the fields of a choice into its message."""
    message.response_metadata |= {name: choice[name] for name in FIELDS if choice.get(name) is not None}


class OtterChat(ChatOpenAI):
    """Is a chat model whose messages have the numbers of Otter."""

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        answer = response if isinstance(response, dict) else response.model_dump()
        for choice, generation in zip(answer["choices"], result.generations, strict=True):
            copy_fields(choice, generation.message)
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], *rest: Any, **named: Any
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(chunk, *rest, **named)
        if made and chunk.get("choices"):
            copy_fields(chunk["choices"][0], made.message)
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the name of what the server serves")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    arguments = parser.parse_args()
    wanted = {"vllm_xargs": {"otter_rewards": 1}}
    chat = OtterChat(model=arguments.model, base_url=arguments.url, api_key="-", extra_body=wanted)
    whole = None
    for chunk in chat.stream("Hello"):
        print("piece", repr(chunk.content), chunk.response_metadata.get("otter"))
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    print("joined", repr(whole.content), whole.response_metadata["otter"])
    several = OtterChat(model=arguments.model, base_url=arguments.url, api_key="-", extra_body=wanted, n=2)
    (generations,) = several.generate([[HumanMessage("Hello")]]).generations
    for generation in generations:
        metadata = generation.message.response_metadata
        print("whole", repr(generation.text), metadata["otter"], metadata.get("stop_reason"))


if __name__ == "__main__":
    main()
