"""A scorer goes into the model: whatever it is, it is asked once, and the reward learns to say it early."""

import importlib
import json
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from conftest import close, refused, tiny_base
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.signals.reward.losses import lambda_returns
from otterlm.training.data.conversations import Dialogue, Prompt
from otterlm.training.data.tokens import Limits, dialogue_tokens
from otterlm.training.teachers import responses
from otterlm.training.teachers.responses import Sampling, scored_responses
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.teachers.scorers import load_scorer

PROMPTS = [(("user", " ".join(WORDS[10 : 11 + n])),) for n in range(5)]


def letters(texts: list[str]) -> list[float]:
    """Scores by how many letters a there are."""
    return [float(text.count("a")) for text in texts]


def both(prompts: list[str], texts: list[str]) -> list[float]:
    """Scores by the prompts, too."""
    return [float(len(prompt) + len(text)) for prompt, text in zip(prompts, texts, strict=True)]


class Pipeline:
    """As scikit-learn has them."""

    def predict_proba(self, texts: list[str]) -> list[list[float]]:
        return [[0.75, 0.25] for _ in texts]


PIPELINE, NOTHING = Pipeline(), 3


def wrong(texts: list[str]) -> list[float]:
    """Gives too few numbers."""
    return [1.0]


def digits(texts: list[str]) -> str:
    """Gives a text, of which Python would read one digit a response."""
    return "1" * len(texts)


def by_response(texts: list[str]) -> dict[str, float]:
    """Gives a mapping, of which Python would read the responses."""
    return dict.fromkeys(texts, 1.0)


def leaves(texts: list[str]) -> list[float]:
    """Ends the process."""
    raise SystemExit(3)


def prompt_of(text: str) -> Prompt:
    return (("user", text),)


EMPTY = [prompt_of(""), prompt_of("")]


def test_functions_pipelines_and_patterns() -> None:
    assert load_scorer("test_distillation:letters")(EMPTY, ["banana", "b"]) == [3.0, 0.0]
    assert load_scorer("test_distillation:both")([prompt_of("xy"), prompt_of("")], ["abc", ""]) == [5.0, 0.0]
    assert load_scorer("test_distillation:PIPELINE")(EMPTY, ["a", "b"]) == [0.25, 0.25]
    assert load_scorer("regex:[aeiou]")(EMPTY[:1], ["banana"]) == [3.0]


def test_a_judge_behind_an_endpoint() -> None:
    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = "no idea" if "silence" in request["messages"][0]["content"] else "Score: 7.5"
            body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        judge = load_scorer(f"openai:{url}#some-model")
        assert judge([prompt_of("p"), prompt_of("q")], ["r", "s"]) == [7.5, 7.5]
        refused(lambda: judge([prompt_of("p")], ["silence"]), "without a number")
    finally:
        server.shutdown()
    refused(lambda: load_scorer("openai:http://127.0.0.1:9/v1#m")([prompt_of("p")], ["r"]), "did not answer")


def test_a_classifier_of_transformers(tmp_path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    labels = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    config = AutoConfig.for_model(
        "llama", **sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, **labels
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer(TEMPLATE).save_pretrained(tmp_path)
    good, bad = (load_scorer(f"hf:{tmp_path}#{label}")(EMPTY, ["a b", "c"]) for label in ("good", "bad"))
    close(torch.tensor(good) + torch.tensor(bad), torch.ones(2))
    assert load_scorer(f"hf:{tmp_path}")(EMPTY[:1], ["a b"]) == bad[:1]
    refused(lambda: load_scorer(f"hf:{tmp_path}#ugly"), "ugly", "bad, good")


def test_a_reward_model_reads_the_dialogue(tmp_path) -> None:
    torch.manual_seed(0)
    model = SeparateRewardModel.of(tiny_base(vocab_size=len(WORDS)))
    torch.nn.init.normal_(model.classifier.score.weight)
    model.save_pretrained(tmp_path)
    tokenizer(TEMPLATE).save_pretrained(tmp_path)
    scorer = load_scorer(f"hf:{tmp_path}")
    first, second = scorer([prompt_of("a"), prompt_of("b c")], ["c", "c"])
    assert first != second
    prompt, response = dialogue_tokens(Dialogue(prompt_of("b c"), "c"), tokenizer(TEMPLATE), Limits())
    read = SeparateRewardModel.from_pretrained(tmp_path).read(input_ids=torch.tensor([prompt + response]))
    assert second == float(read[0, -1])


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("nothing", "module:name"),
        ("no_such_module:f", "no_such_module"),
        ("test_distillation:no_such_function", "no_such_function"),
        ("test_distillation:NOTHING", "neither"),
        ("regex:[", "regular expression"),
        ("hf:no/such", "no/such"),
        ("openai:here", "URL#MODEL"),
    ],
)
def test_scorers_that_are_none(spec, named) -> None:
    refused(lambda: load_scorer(spec), named)


def test_scorers_that_fail() -> None:
    refused(lambda: load_scorer("test_distillation:wrong")(EMPTY, ["", ""]), "one finite number")
    for name, named in (("digits", "str"), ("by_response", "dict"), ("leaves", "SystemExit")):
        scorer = load_scorer(f"test_distillation:{name}")
        refused(partial(scorer, EMPTY, ["1", "2"]), f"test_distillation:{name} failed", named)
    refused(lambda: load_scorer("math:sqrt")(EMPTY[:1], ["a"]), "failed", "TypeError")


def sample(tmp_path, seed=0, spec="test_distillation:letters", base=None):
    model = base or tiny_base(vocab_size=len(WORDS))
    sampling = Sampling(per_prompt=3, max_new_tokens=5, batch_size=2, seed=seed)
    rate = load_scorer(spec)
    return scored_responses(
        model, tokenizer(TEMPLATE), PROMPTS, responses.of_texts(rate), rate.identity, sampling, tmp_path / "r"
    )


def test_responses_are_sampled_scored_and_kept(tmp_path, monkeypatch) -> None:
    examples = sample(tmp_path)
    assert [example.row for example in examples] == list(range(5))
    for example in examples:
        texts = [tokenizer(TEMPLATE).decode(branch, skip_special_tokens=True) for branch in example.branches]
        assert len(texts) == 3
        assert example.scores == tuple(text.count("a") for text in texts)
    assert len({branch for example in examples for branch in example.branches}) > 5
    (tmp_path / "r" / "part-00001.parquet").unlink()  # as if killed
    assert sample(tmp_path) == examples
    monkeypatch.setattr(responses, "_sample", None)
    assert sample(tmp_path) == examples
    refused(lambda: sample(tmp_path, seed=1), "another run", "seed (0 there, 1 now)")
    refused(lambda: sample(tmp_path, spec="regex:a"), "scorer.spec (test_distillation:letters there, regex:a now)")
    refused(lambda: sample(tmp_path, base=tiny_base(vocab_size=len(WORDS), seed=3)), "other base:")
    (tmp_path / "r" / "part-00000.parquet").write_bytes(b"garbage")
    refused(lambda: sample(tmp_path), "part-00000.parquet", "damaged")
    (tmp_path / "r" / "identity.json").unlink()
    refused(lambda: sample(tmp_path), "identity.json", "delete")


def test_a_scorer_of_the_current_folder(tmp_path, monkeypatch) -> None:
    """A console script does not look there by itself. Its source is part of what the responses depend on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    source = tmp_path / "my_scorer_here.py"
    source.write_text("def score(texts, bonus=1.0):\n    return [len(text) + bonus for text in texts]\n")
    scorer = load_scorer("my_scorer_here:score")
    assert scorer(EMPTY, ["ab", ""]) == [3.0, 1.0]
    source.write_text(source.read_text() + "# another\n")
    sys.modules.pop("my_scorer_here")
    assert load_scorer("my_scorer_here:score").identity != scorer.identity
    for text, named in (
        ("def score(:\n", "SyntaxError"),
        ("import surely_not_installed\n", "needs a module surely_not_installed"),
        ("raise SystemExit('bye')\n", "SystemExit"),
    ):
        (tmp_path / "broken_scorer.py").write_text(text)
        sys.modules.pop("broken_scorer", None)
        importlib.invalidate_caches()
        refused(lambda: load_scorer("broken_scorer:score"), "broken_scorer", named)


def test_lambda_returns() -> None:
    values = torch.tensor([[0.1, 0.2, 0.3, 0.3], [0.5, 0.5, 0.5, 0.5]])
    lengths, scores = torch.tensor([3, 1]), torch.tensor([1.0, -1.0])
    assert torch.equal(lambda_returns(values, lengths, scores, 1.0), scores[:, None].expand(2, 4))
    close(lambda_returns(values, lengths, scores, 0.0), torch.tensor([[0.2, 0.3, 1, 1], [-1.0, -1, -1, -1]]))
    half = 0.5 * 0.3 + 0.5 * 1.0
    close(lambda_returns(values, lengths, scores, 0.5)[0], torch.tensor([0.5 * 0.2 + 0.5 * half, half, 1, 1]))


def test_the_whole_way(answer, refusal, base, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"{a} {b}\n" for a in WORDS[10:18] for b in WORDS[10:14]))
    shape = ("--hidden-size", 8, "--heads", 2, "--kv-heads", 1, "--intermediate-size", 12, "--vocabulary-rank", 4)
    how = ("--epochs", 6, "--batch-size", 16, "--learning-rate", 0.01, "--eval-fraction", 0.2, "--max-new-tokens", 8)
    command = (
        "distill",
        "--base",
        base,
        "--prompts",
        tmp_path / "prompts.txt",
        "--out",
        tmp_path / "out",
        *shape,
        *how,
    )
    scorer = ("--scorer", "test_distillation:letters", "--lambda", 0.9)
    result = answer(*command, *scorer)
    assert result["correlation_100"] > 0.5
    assert result["correlation_100"] > result["correlation_25"]
    assert (tmp_path / "out" / "adapter_config.json").exists()
    assert "same score" in refusal(*command[:-1], 7, "--out", tmp_path / "x", "--scorer", "regex:zzz")
    assert "lambda must be from 0 to 1, got 2" in refusal(*command, "--scorer", "regex:a", "--lambda", 2)
    assert "--per-prompt" in refusal(*command, *scorer, "--per-prompt", 0)
