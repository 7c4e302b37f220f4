"""Reads rewards with the `openai` package, of choices that are streamed or not, and scores texts.

pip install openai
vllm serve FOLDER
python examples/client_openai.py FOLDER
"""

import argparse
import asyncio
from typing import Any

from openai import AsyncOpenAI, OpenAI

from otterlm import client

WANTED = {"vllm_xargs": {"otter_rewards": 1}}
"""What the request says beside the fields that the package knows."""


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "n": 2, "extra_body": WANTED}


def streamed(url: str, model: str) -> None:
    """Prints the pieces of two choices as they come, and then each choice as a whole."""
    stream = OpenAI(base_url=url, api_key="-").chat.completions.create(**chat(model), stream=True)
    pieces = []
    for piece in client.read(stream):
        print("piece of", piece.choice, repr(piece.text), piece.rewards)
        pieces.append(piece)
    for choice in client.join(pieces):
        print("choice", choice.choice, repr(choice.text), choice.rewards, choice.stop_reason)


def whole(url: str, model: str) -> None:
    """Prints the choices of a response that is not streamed."""
    server = OpenAI(base_url=url, api_key="-")
    for choice in client.choices(server.chat.completions.create(**chat(model))):
        print("whole", choice.choice, repr(choice.text), choice.rewards, choice.stop_reason)
    for scored in client.score(server, model, input=["One text.", "Another."]):
        print("scored", scored["rewards"])


async def together(url: str, model: str, count: int = 3) -> None:
    """Prints how many tokens each of several streams has, all read at once."""
    server = AsyncOpenAI(base_url=url, api_key="-")

    async def tokens() -> list[int]:
        stream = await server.chat.completions.create(**chat(model), stream=True)
        choices = client.join([piece async for piece in client.read_async(stream)])
        return [len(next(iter(choice.rewards.values()))) for choice in choices]

    print("tokens", await asyncio.gather(*(tokens() for _ in range(count))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the name of what the server serves")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    arguments = parser.parse_args()
    streamed(arguments.url, arguments.model)
    whole(arguments.url, arguments.model)
    asyncio.run(together(arguments.url, arguments.model))


if __name__ == "__main__":
    main()
