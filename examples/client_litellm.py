"""Reads rewards with LiteLLM, of chats that are streamed or not.

    pip install litellm
    vllm serve FOLDER
    python examples/client_litellm.py FOLDER

LiteLLM drops the pieces of a stream that have no text, so a guard's stop reason is not among them. A response that is
not streamed has it. It also drops the numbers of streamed completions: use chats.
"""

import argparse
from typing import Any

import litellm

from otterlm import client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the name of what the server serves")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    arguments = parser.parse_args()
    chat: dict[str, Any] = {
        "model": f"hosted_vllm/{arguments.model}",
        "api_base": arguments.url,
        "api_key": "-",
        "messages": [{"role": "user", "content": "Hello"}],
        "n": 2,
        "extra_body": {"vllm_xargs": {"otter_rewards": 1}},
    }
    for choice in client.join(client.read(litellm.completion(**chat, stream=True))):
        print("streamed", choice.choice, repr(choice.text), choice.rewards)
    for choice in client.choices(litellm.completion(**chat)):
        print("whole", choice.choice, repr(choice.text), choice.rewards, choice.stop_reason)


if __name__ == "__main__":
    main()
