"""Scores of the last position equal lm-eval's for every family on the list; other models use the stock engine."""

import random

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from int4_qat.data import letters, mmlu
from int4_qat.evaluation import last_position, stock_scores
from int4_qat.standin import standin
from int4_qat.system.errors import InputError

WORDS = [f"w{index}" for index in range(60)]
LENGTHS = [3, 25, 8, 40, 1, 12]  # words per question
ENDINGS = ["w3", "w3 w9", "w3 w9 w1", "w7 w2 w30 w4 w59 w8 w21"]  # choices of several tokens, which share beginnings
WINDOW, PREFIX = 16, 90
FULL, SLIDING = "full_attention", "sliding_attention"
SMALL = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0}
GROUPED = SMALL | {"num_key_value_heads": 2}
HEAD = GROUPED | {"head_dim": 16}
SWITCHED = GROUPED | {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2}
MIXED = HEAD | {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING, FULL]}
GEMMA_4 = MIXED | {"global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA_3_VISION = VISION | {"image_size": 28, "patch_size": 14}
PROVEN = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": HEAD,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "ministral3": HEAD,
    "phi": GROUPED,
    "phi3": GROUPED | {"sliding_window": WINDOW},
    "gemma": HEAD,
    "gemma2": MIXED,
    "gemma3": {"text_config": MIXED, "vision_config": GEMMA_3_VISION, "mm_tokens_per_image": 4},
    "gemma3_text": MIXED,
    "gemma4": {"text_config": GEMMA_4, "vision_config": VISION, "audio_config": None},
    "gemma4_text": GEMMA_4,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": MIXED,
    "gpt_neox": SMALL,
    "granite": GROUPED,
    "cohere": GROUPED,
    "cohere2": MIXED,
    "starcoder2": GROUPED | {"sliding_window": WINDOW},
    "stablelm": GROUPED,
    "glm": HEAD,
    "glm4": HEAD,
    "smollm3": GROUPED,
    "exaone4": MIXED,
}
ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
LENGTH_DEPENDENT = {
    "original_max_position_embeddings": 100,
    "rope_parameters": {"rope_theta": 1e4, **LONGROPE},
}
VARIANTS = [
    ("qwen2", SWITCHED),
    ("qwen3", SWITCHED | {"head_dim": 16}),
    ("mistral", GROUPED | {"sliding_window": None}),
    ("llama", GROUPED | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    ("llama", GROUPED | {"rope_parameters": ROPE | {"rope_type": "yarn"}}),
    ("llama", GROUPED | {"rope_parameters": ROPE | LLAMA_3}),
    ("gemma4_text", GEMMA_4 | {"num_kv_shared_layers": 2}),
    (
        "gemma4",
        PROVEN["gemma4"] | {"text_config": GEMMA_4 | {"use_bidirectional_attention": "vision"}},
    ),
]
ASIDE = [
    ("llama", GROUPED | {"rope_parameters": ROPE | {"rope_type": "dynamic"}}, "'dynamic'"),
    ("phi3", GROUPED | LENGTH_DEPENDENT, "'longrope'"),
    ("gemma3_text", MIXED | {"rope_parameters": {FULL: ROPE | {"rope_type": "dynamic"}, SLIDING: ROPE}}, "'dynamic'"),
    ("gemma3_text", MIXED | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma4_text", GEMMA_4 | {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ("llama", GROUPED | {"layer_types": ["linear_attention", FULL] * 2}, "'linear_attention'"),
    *((name, {}, f"model_type '{name}'") for name in ("mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "zamba2")),
    *((name, {}, f"model_type '{name}'") for name in ("bamba", "falcon_h1", "granitemoehybrid", "qwen3_next", "lfm2")),
    *((name, {}, f"model_type '{name}'") for name in ("recurrent_gemma", "bloom", "mpt", "llama4_text", "t5gemma")),
    *((name, {}, f"model_type '{name}'") for name in ("bert", "doge", "deepseek_v32", "xlnet", "gemma4_unified")),
]


@pytest.fixture(scope="module")
def tokenizer():
    return standin.build_tokenizer([" ".join(WORDS), "Answer:", *(f" {letter}" for letter in "ABCD")])


def make_model(model_type, settings, dtype=torch.float32):
    """Return a random model whose likelihoods are far apart, and whose context is much longer than its window."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**settings)
    auto_class = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = auto_class.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1 if len(parameter) == SMALL["vocab_size"] else 0.3)
    return model.to(dtype).eval()


def ask(prefix, asked=mmlu.LETTERS):
    """Return requests for six questions of one subject, which share a prefix; the choices have the given letters."""
    chance = random.Random(0)
    shared = chance.choices(WORDS, k=prefix)
    prompts = [" ".join([*shared, *chance.choices(WORDS, k=length), "Answer:"]) for length in LENGTHS]
    return [
        Instance("loglikelihood", {}, (prompt, f" {letter}"), choice, ("mmlu_anatomy", index, 1))
        for index, prompt in enumerate(prompts)
        for choice, letter in enumerate(asked)
    ]


def engine(kind, model, tokenizer, batch_size=4):
    return kind(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32)


def likelihoods(engine, requests):
    return torch.tensor([value for value, _ in engine.loglikelihood(requests, disable_tqdm=True)])


def test_every_family_on_the_list_is_proven():
    assert set(PROVEN) == set(last_position.MODEL_TYPES)


@pytest.mark.parametrize(("model_type", "settings"), [*PROVEN.items(), *VARIANTS])
def test_scores_are_lm_evals(tokenizer, model_type, settings):
    model = make_model(model_type, settings)
    assert last_position.objection(model.config) is None
    for prefix in (0, PREFIX):  # PREFIX is longer than the window
        requests = ask(prefix)
        expected = likelihoods(engine(stock_scores.StockScores, model, tokenizer), requests)
        ours = engine(last_position.LastPosition, model, tokenizer)
        assert expected.max() - expected.min() > 1
        torch.testing.assert_close(likelihoods(ours, requests), expected, rtol=2e-5, atol=2e-5)
        assert ours.stock_check["questions"] == 2
        assert ours.stock_check["largest_difference"] < 2e-5


@pytest.mark.parametrize(("model_type", "settings"), [*PROVEN.items(), *VARIANTS])
@pytest.mark.parametrize("questions", [1, len(LENGTHS)])
def test_choices_of_several_tokens_score_as_lm_evals(tokenizer, model_type, settings, questions, monkeypatch):
    model = make_model(model_type, settings)
    for prefix, saved in ((0, last_position.SAVED), (0, 30), (PREFIX, last_position.SAVED)):
        monkeypatch.setattr(last_position, "SAVED", saved)
        requests = ask(prefix, ENDINGS)[: questions * len(ENDINGS)]
        expected = engine(stock_scores.StockScores, model, tokenizer).loglikelihood(requests, disable_tqdm=True)
        found = engine(last_position.LastPosition, model, tokenizer).loglikelihood(requests, disable_tqdm=True)
        values, wanted = (torch.tensor([value for value, _ in scores]) for scores in (found, expected))
        torch.testing.assert_close(values, wanted, rtol=2e-5, atol=2e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_choice_is_likeliest_if_each_of_its_tokens_is(tokenizer):
    model = make_model("llama", GROUPED)
    words = set(tokenizer.convert_tokens_to_ids([f" {word}" for word in WORDS]))
    others = [number for number in range(SMALL["vocab_size"]) if number not in words]
    model.get_output_embeddings().weight.data[others] = 0
    first, second = (ask(PREFIX)[4 * number].args[0] for number in range(2))
    ids = tokenizer(first, return_tensors="pt")["input_ids"]
    likeliest = tokenizer.decode(model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :])
    other = next(word for word in WORDS if word not in likeliest.split())
    words = likeliest.split()
    choices = [f" {' '.join(chosen)}" for chosen in (words, [*words[:-1], other], [other, *words[1:]], words[:-1])]
    requests = [
        Instance("loglikelihood", {}, (prompt, choice), number, ("task", document, 1))
        for document, prompt in enumerate([first, second])
        for number, choice in enumerate(choices)
    ]
    for kind in (stock_scores.StockScores, last_position.LastPosition):
        found = engine(kind, model, tokenizer).loglikelihood(requests, disable_tqdm=True)
        assert [likeliest for _, likeliest in found[: len(choices)]] == [True, False, False, True]


def test_choices_that_fill_the_context_score_as_lm_evals(tokenizer):
    model = make_model("llama", GROUPED | {"max_position_embeddings": 96})
    requests = ask(PREFIX, [*ENDINGS, " " + " ".join(WORDS[:50])])
    expected = likelihoods(engine(stock_scores.StockScores, model, tokenizer), requests)
    ours = engine(last_position.LastPosition, model, tokenizer)
    torch.testing.assert_close(likelihoods(ours, requests), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("model_type", "settings", "reason"), ASIDE)
def test_what_is_not_proven_steps_aside(model_type, settings, reason):
    assert reason in last_position.objection(CONFIG_MAPPING[model_type](**settings))


def test_questions_of_any_number_of_choices_score_as_lm_evals():
    tokenizer = standin.build_tokenizer([" ".join(WORDS), "Answer:", *(f" {letter}" for letter in letters.ALL)])
    model = make_model("gemma3_text", MIXED)
    numbers = [2, 26, 5, 3, 2, 12]
    for prefix in (0, PREFIX):
        requests = [one for one in ask(prefix, letters.ALL) if one.idx < numbers[one.doc_id]]
        assert len(requests) == sum(numbers)
        expected = likelihoods(engine(stock_scores.StockScores, model, tokenizer), requests)
        found = likelihoods(engine(last_position.LastPosition, model, tokenizer), requests)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_a_model_that_does_not_belong_on_the_list_ends_the_run(tokenizer):
    """phi3's longrope reads short and long texts differently, which the run's own comparison detects."""
    model = make_model("phi3", GROUPED | LENGTH_DEPENDENT)
    ours = engine(last_position.LastPosition, model, tokenizer)
    with pytest.raises(InputError, match=r"^mmlu_anatomy, question 0: last_position's log-likelihoods differ from lm-"):
        ours.loglikelihood(ask(PREFIX), disable_tqdm=True)


def test_a_batch_counts_what_its_questions_add_to_their_examples(monkeypatch):
    monkeypatch.setattr(last_position, "ATTENDED", 3)
    examples = (0,) * 30
    prompts = [(*examples, *range(1, length)) for length in (21, 19, 11, 11, 6, 6)]
    lengths = [[len(batch[0]), len(batch)] for batch in last_position.batches(prompts, 40, len(examples))]
    assert lengths == [[50, 2], [40, 3], [35, 1]]  # of 40 tokens' questions, and of 120 tokens with their examples
    assert [len(batch) for batch in last_position.batches(prompts, 40)] == [1] * 4 + [1, 1]


def test_a_long_prompt_is_read_once_for_all_its_choices(monkeypatch):
    monkeypatch.setattr(last_position, "SAVED", 12)
    long, short, choices = tuple(range(6)), (7, 8), [(1,), (2, 3), (4, 5, 6)]
    asked = {(*prompt, 9, *choice[:-1]): {choice} for prompt in (short, long) for choice in choices}
    rest, apart = last_position.families(asked)
    assert rest == ((), [(*short, 9, 4, 5), (*short, 9, 2), (*short, 9)])
    assert apart == (long, [(*long, 9, 4, 5), (*long, 9, 2), (*long, 9)])


def test_a_text_that_is_read_for_two_prompts_is_read_with_the_shorter_one(monkeypatch):
    monkeypatch.setattr(last_position, "SAVED", 12)
    prompt = tuple(range(6))
    asked = {(*prompt, 9): {(1,), (9, 1)}, (*prompt, 9, 2): {(2, 3)}, (*prompt, 9, 4, 5): {(4, 5, 6)}}
    rest, *apart = last_position.families(asked)
    assert apart == []  # two texts have the long prompt, which saves 6 tokens
    assert len(rest[1]) == len(asked)
    both = last_position.families(asked | {(*prompt, 9, 7): {(7, 8)}})
    assert both == [((), [(*prompt, 9)]), (prompt, [(*prompt, 9, 4, 5), (*prompt, 9, 2), (*prompt, 9, 7)])]


def test_the_larger_saving_decides_what_is_read_once():
    common = tuple(range(100))
    questions = [(*common, *range(1000 * number, 1000 * number + 1500)) for number in range(2)]
    asked = {(*question, 9, *choice[:-1]): {choice} for question in questions for choice in [(1,), (2, 3), (4, 5, 6)]}
    assert [prefix for prefix, _ in last_position.families(asked)] == [(), *questions]
    assert [prefix for prefix, _ in last_position.families(dict(list(asked.items())[2:4]))] == [common]


def test_lm_evals_own_code_reads_few_rows_at_once_for_the_comparison(tokenizer):
    model = make_model("llama", GROUPED)
    ours, rows = engine(last_position.LastPosition, model, tokenizer, batch_size=8), []
    requests = ask(0, ENDINGS)
    tokens = [ours.tokens(request) for request in requests]
    scores = ours.score_subject(requests, tokens)
    model.model.register_forward_pre_hook(lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True)
    ours.check_subject(requests, tokens, scores)
    assert rows == [last_position.CHECKED_AT_ONCE] * 2
    assert ours.batch_size == 8


def test_examples_are_read_once_and_kept_once(tokenizer):
    model = make_model("gemma3_text", MIXED)
    ours = engine(last_position.LastPosition, model, tokenizer)
    read, sizes = [], []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    own = ours.read
    ours.read = lambda prefix: sizes.append(own(prefix)) or sizes[-1]
    requests = ask(PREFIX)
    ours.score_subject(requests, [ours.tokens(request) for request in requests])
    assert [shape[0] for shape in read] == [1, len(LENGTHS)]
    assert read[0][1] >= PREFIX
    assert read[1][1] <= max(LENGTHS) + 2
    assert [len(layer.keys) for layer in sizes[0].layers] == [1] * SMALL["num_hidden_layers"]
