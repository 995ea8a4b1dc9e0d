"""The tokenizer: the ids and texts of `transformers` and of the original ones, BOS and EOS as the files say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate
from litgpt.tokenizer import Tokenizer, char_tokenizer, save_tokenizer
from tests import tokenizers_made_here as made

FETCHED = ("llama3", "qwen3", "gemma3", "mistral_7b_v01")
HARD = [
    "",
    " ",
    "  two",
    "naïve café",
    "😀👩‍👩‍👧",
    "日本語 text",
    "tab\tand\nlines\n\n",
    "3.14 ½",
    "a\u0301",
    "▁▁",
    "\x00",
    "�",
    "нещо",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of each kind."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in made.MAKERS.items()}


def copied(source: Path, target: Path, **files: dict[str, object]) -> Path:
    """A copy of a tokenizer's folder with some of its JSON files replaced."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for name, content in files.items():
        (target / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return target


# -------------------------------------------------------------------------------------------- ids and texts


@pytest.mark.parametrize("kind", made.MAKERS)
def test_known_text_survives_a_round_trip(folders, kind):
    tokenizer = Tokenizer(folders[kind])
    for line in made.TEXT.splitlines():
        assert tokenizer.decode(tokenizer.encode(line)) == line


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", HARD)
def test_any_text_survives_a_round_trip_where_bytes_are_tokens(folders, kind, text):
    tokenizer = Tokenizer(folders[kind])
    space = "▁" if kind == "byte_level" else " "  # which the others write as `▁`
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", space)


def test_encode_gives_int32_on_the_device_asked_for(folders):
    ids = Tokenizer(folders["byte_level"]).encode("a truth", device="cpu")
    assert (ids.dtype, ids.ndim, ids.device.type) == (torch.int32, 1, "cpu")


@pytest.mark.parametrize("kind", made.MAKERS)
def test_a_batch_is_its_texts(folders, kind):
    tokenizer = Tokenizer(folders[kind])
    assert tokenizer.encode_batch(HARD[1:5]) == [tokenizer.encode_ids(text) for text in HARD[1:5]]
    assert tokenizer.encode_batch([]) == []


def test_max_length_cuts(folders):
    tokenizer = Tokenizer(folders["byte_fallback"])
    assert tokenizer.encode("hello", max_length=3).tolist() == tokenizer.encode("hello").tolist()[:3]
    assert tokenizer.encode("hello", max_length=0).tolist() == []


@pytest.mark.parametrize("tokens", [torch.tensor(70), torch.tensor([70]), [70], 70])
def test_decode_takes_tensors_lists_and_single_ids(folders, tokens):
    assert Tokenizer(folders["byte_level"]).decode(tokens) == Tokenizer(folders["byte_level"]).decode([70])


@pytest.mark.parametrize("kind", made.MAKERS)
def test_ids_outside_the_vocabulary_show_nothing(folders, kind):
    tokenizer = Tokenizer(folders[kind])
    ids = tokenizer.encode_ids("a man")
    assert tokenizer.decode([*ids, len(tokenizer), len(tokenizer) + 7]) == tokenizer.decode(ids)


def test_special_tokens_are_shown_when_asked(folders):
    tokenizer = Tokenizer(folders["byte_level"])
    ids = tokenizer.encode("<|im_start|>a man<|im_end|>")
    assert tokenizer.decode(ids) == "a man"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>a man<|im_end|>"


def test_sizes_with_and_without_added_tokens(folders):
    tokenizer = Tokenizer(folders["byte_level"])
    assert (tokenizer.vocab_size, len(tokenizer)) == (340, 340)
    tokenizer.processor.add_tokens(["<new>"])
    assert (tokenizer.vocab_size, len(tokenizer)) == (340, 341)


def test_a_token_the_vocabulary_lacks_is_named(folders):
    for kind in ("byte_level", "sentencepiece"):
        with pytest.raises(LitGPTError, match="has no token '<nope>'"):
            Tokenizer(folders[kind]).token_to_id("<nope>")


def test_padding_and_truncation_in_the_file_are_off(folders, tmp_path):
    processor = Tokenizer(folders["byte_level"]).processor
    processor.enable_truncation(2)
    processor.enable_padding(length=8)
    save_tokenizer(processor, tmp_path)
    assert len(Tokenizer(tmp_path).encode_ids(made.TEXT)) > 8
    assert len(Tokenizer(tmp_path).encode_ids("a")) == 1


def test_tokens_only_the_settings_list_are_added(folders, tmp_path):
    token = {"content": "<tool>", "special": True}
    folder = copied(folders["byte_level"], tmp_path / "t", tokenizer_config={"added_tokens_decoder": {"340": token}})
    assert Tokenizer(folder).encode_ids("<tool>") == [340]


def test_gpt2s_two_files_are_a_tokenizer(folders, tmp_path):
    model = json.loads((folders["byte_level"] / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])))
    with pytest.raises(LitGPTError, match="nothing says they are GPT-2's"):
        Tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": 0}')
    ours = Tokenizer(tmp_path)
    assert ours.encode_ids(made.TEXT) == Tokenizer(folders["byte_level"]).encode_ids(made.TEXT)
    assert ours.eos_id == 0


# -------------------------------------------------------------------------------------------- BOS and EOS


@pytest.mark.parametrize(
    ("settings", "use_bos"),
    [({}, True), ({"add_bos_token": None}, True), ({"add_bos_token": False}, False), ({"add_bos_token": True}, True)],
)
def test_bos_is_what_the_settings_say_else_the_post_processor(folders, tmp_path, settings, use_bos):
    named = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    tokenizer = Tokenizer(copied(folders["byte_fallback"], tmp_path / "t", tokenizer_config=named))
    assert tokenizer.use_bos is use_bos
    assert (tokenizer.encode_ids("a")[0] == tokenizer.bos_id) is use_bos


def test_bos_of_a_sentencepiece_model_is_its_own(folders, tmp_path):
    plain = Tokenizer(folders["sentencepiece"])
    assert (plain.bos_id, plain.eos_id, plain.use_bos) == (1, 2, False)
    named = copied(folders["sentencepiece"], tmp_path / "t", tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    assert Tokenizer(named).use_bos
    assert Tokenizer(named).encode_ids("a truth") == [1, *plain.encode_ids("a truth")]


@pytest.mark.parametrize("name", ["Meta-Llama-3-8B", "SmolLM2-135M-Instruct", "other"])
def test_the_folders_name_changes_nothing(folders, tmp_path, name):
    """LitGPT adds BOS by the name of the directory."""
    folder = copied(folders["byte_level"], tmp_path / name)
    assert Tokenizer(folder).encode_ids("a truth") == Tokenizer(folders["byte_level"]).encode_ids("a truth")


@pytest.mark.parametrize("bos", [None, True])
def test_a_text_that_begins_with_bos_gets_no_second_one(folders, bos):
    tokenizer = Tokenizer(folders["byte_fallback"])
    assert tokenizer.encode_ids("<s>a man", bos=bos).count(tokenizer.bos_id) == 1
    assert tokenizer.encode_ids("a man", bos=bos).count(tokenizer.bos_id) == 1
    assert tokenizer.encode_ids("a man", bos=False).count(tokenizer.bos_id) == 0


def test_an_eos_the_text_ends_with_is_kept(folders):
    """LitGPT removes it, and then there is none."""
    tokenizer = Tokenizer(folders["byte_fallback"])
    assert tokenizer.encode_ids("a man</s>", eos=True) == tokenizer.encode_ids("a man", eos=True)
    assert tokenizer.encode_ids("a man", eos=True)[-1] == tokenizer.eos_id
    assert tokenizer.encode_ids("a man</s>")[-1] == tokenizer.eos_id
    assert tokenizer.encode_ids("", eos=True) == [tokenizer.bos_id, tokenizer.eos_id]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [0, 2]}}, (2, 0)),
        ({"generation_config": {"eos_token_id": 0}, "config": {"eos_token_id": 1}}, (2, 0)),
        ({"config": {"eos_token_id": 1}}, (2, 1)),
        ({"tokenizer_config": {}, "generation_config": {"eos_token_id": [1, 0]}}, (1, 0)),
        ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": {"content": "<|endoftext|>"}}}, (0,)),
        ({"tokenizer_config": {}}, ()),
    ],
)
def test_stop_ids_are_the_tokenizers_eos_and_those_of_the_generation_config(folders, tmp_path, files, expected):
    tokenizer = Tokenizer(copied(folders["byte_level"], tmp_path / "t", **files))
    assert tokenizer.stop_ids == expected
    assert tokenizer.eos_id == (expected[0] if expected else None)


def test_a_comma_too_many_in_the_generation_config_is_overlooked(folders, tmp_path):
    folder = copied(folders["byte_level"], tmp_path / "t")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1,],\n}')
    assert Tokenizer(folder).stop_ids == (2, 0, 1)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0')
    with pytest.raises(LitGPTError, match="generation_config.json is not valid JSON"):
        Tokenizer(folder)


@pytest.mark.parametrize("asked", [{"bos": True}, {"eos": True}])
def test_asking_for_a_token_that_is_not_there_is_an_error(folders, asked):
    with pytest.raises(LitGPTError, match="has no (BOS|EOS) token"):
        Tokenizer(folders["unigram"]).encode("a", **asked)


def test_sentencepiece_reads_special_tokens_written_out(folders, tmp_path):
    folder = copied(folders["sentencepiece"], tmp_path / "t", added_tokens={"<|tool|>": 420})
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode_ids("<s>a truth</s><|tool|> well")
    assert (ids[0], ids.count(2), ids.count(420)) == (1, 1, 1)
    assert tokenizer.decode(ids) == "a truth<|tool|> well"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s> a truth</s><|tool|> well"


# -------------------------------------------------------------------------------------------- character level


def test_a_char_tokenizer_counts_characters_in_order(tmp_path):
    text = "hello\nworld 你"
    save_tokenizer(char_tokenizer(text), tmp_path)
    tokenizer = Tokenizer(tmp_path)
    order = sorted(set(text))
    assert tokenizer.encode_ids(text) == [order.index(character) for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.use_bos) == (len(order), None, False)


def test_an_unknown_character_is_named(tmp_path):
    save_tokenizer(char_tokenizer("abc"), tmp_path)
    with pytest.raises(LitGPTError, match="no token for the character 'X'"):
        Tokenizer(tmp_path).encode("abXc")


def test_a_char_tokenizer_of_nothing_is_refused():
    with pytest.raises(LitGPTError, match="not empty"):
        char_tokenizer("")


def test_half_a_character_is_named(folders):
    with pytest.raises(LitGPTError, match="half a character"):
        Tokenizer(folders["byte_level"]).encode("a\ud83d")


# -------------------------------------------------------------------------------------------- bad folders


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer.json or tokenizer.model"),
        ({"tekken.json": "{}"}, "as tekken.json only"),
        ({"tokenizer.json": '{"version": "1.0"'}, "tokenizer.json is no tokenizer"),
        ({"tokenizer.model": "rubbish"}, "tokenizer.model is no sentencepiece model"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "{"}, "tokenizer_config.json is not valid JSON"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[]"}, "holds no JSON object"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(LitGPTError, match=message) as raised:
        Tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(LitGPTError, match="There is no folder"):
        Tokenizer(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------- against the originals


def real_lines(assets: Path, count: int = 1000) -> list[str]:
    """Lines of a play and of a novel, as they stand."""
    files = (assets / "text" / "tinyshakespeare.txt", assets / "text" / "janeausten" / "emma.txt")
    texts = [file.read_text(encoding="utf-8").split("\n")[: count // 2] for file in files]
    return [line for lines in texts for line in lines]


def assert_equals_transformers(folder: Path, lines: list[str]) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    expected = theirs(lines)["input_ids"]
    assert ours.encode_batch(lines) == expected
    assert [ours.decode(ids) for ids in expected] == theirs.batch_decode(expected, skip_special_tokens=True)
    assert [ours.decode(ids, False) for ids in expected] == theirs.batch_decode(expected, skip_special_tokens=False)
    if theirs.eos_token_id is not None:
        assert ours.eos_id == theirs.eos_token_id


@pytest.mark.parametrize("name", ["models/stories260k", "tokenizers/gpt2"])
def test_real_lines_become_the_ids_of_transformers(shared_assets, name):
    assert_equals_transformers(shared_assets / name, real_lines(shared_assets))


def test_a_sentencepiece_model_gives_the_ids_of_transformers(shared_assets, tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(shared_assets / "models" / "stories260k" / name, tmp_path / name)
    assert_equals_transformers(tmp_path, real_lines(shared_assets))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", *(f"tokenizers/{name}" for name in FETCHED)])
def test_real_lines_become_the_ids_of_transformers_for_large_vocabularies(fetched_assets, shared_assets, name):
    assert_equals_transformers(fetched_assets / name, real_lines(shared_assets))


def assert_equals_golden(assets: Path, name: str, folder: Path, but: str = "") -> None:
    """Ids and texts recorded from `transformers` for some prompts and answers."""
    tokenizer = Tokenizer(folder)
    for case in json.loads((assets / "golden" / f"{name}.json").read_text(encoding="utf-8"))["cases"]:
        is_chat = case["kind"] == "chat"
        text = ChatTemplate(folder).apply(case["prompt"]) if is_chat else case["prompt"]
        if not but or but not in text:
            assert tokenizer.encode_ids(text, bos=False if is_chat else None) == case["input_ids"]
        assert tokenizer.decode(case["greedy_ids"], skip_special_tokens=False) == case["greedy_text"]


def test_recorded_prompts_of_stories260k(shared_assets, stories260k):
    assert_equals_golden(shared_assets, "stories260k", stories260k)


@pytest.mark.slow
def test_recorded_prompts_of_smollm2(shared_assets, smollm2):
    """But for `½`, a digit of its own in its tokenizer.json; `transformers` 5 leaves that step out for this class."""
    assert_equals_golden(shared_assets, "smollm2-135m-instruct", smollm2, but="½")
    ids = Tokenizer(smollm2).encode_ids("4 ½")
    assert Tokenizer(smollm2).processor.encode("4 ½").ids == ids
    assert Tokenizer(smollm2).decode(ids[-1:]) == "½"


def golden_vectors(assets: Path, name: str) -> list[tuple[str, list[int]]]:
    """Hard strings and the ids the model's original tokenizer has for them."""
    folder = assets / "tokenizers" / "golden_vectors"
    texts = (folder / f"{name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    rows = (folder / f"{name}.out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(index) for index in row.split()]) for text, row in zip(texts, rows, strict=False)]


def test_gpt2_gives_the_original_ids_for_hard_strings(shared_assets):
    tokenizer = Tokenizer(shared_assets / "tokenizers" / "gpt2")
    for text, ids in golden_vectors(shared_assets, "gpt-2"):
        assert tokenizer.encode_ids(text) == ids
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_mistrals_sentencepiece_model_and_its_tokenizer_json_agree(fetched_assets, shared_assets, tmp_path):
    folder = fetched_assets / "tokenizers"
    shutil.copyfile(folder / "mistral_common" / "tokenizer.model.v1", tmp_path / "tokenizer.model")
    shutil.copyfile(folder / "mistral_7b_v01" / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    pieces, file = Tokenizer(tmp_path), Tokenizer(folder / "mistral_7b_v01")
    lines = [*real_lines(shared_assets), *(text for text, _ in golden_vectors(shared_assets, "llama-spm"))]
    assert (pieces.backend, file.backend) == ("sentencepiece", "huggingface")
    ids = file.encode_batch(lines)
    assert pieces.encode_batch(lines) == ids
    assert [pieces.decode(row) for row in ids] == [file.decode(row) for row in ids]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "name"), [("llama3", "llama-bpe"), ("qwen3", "qwen2")])
def test_hard_strings_become_the_original_ids(fetched_assets, shared_assets, folder, name):
    tokenizer = Tokenizer(fetched_assets / "tokenizers" / folder)
    for text, ids in golden_vectors(shared_assets, name):
        assert tokenizer.encode_ids(text, bos=False) == ids


def test_leading_spaces_are_kept_as_the_sentencepiece_model_keeps_them(stories260k):
    """`transformers` 5 drops one, for it rebuilds this class without the file's normalizer; file and model agree."""
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_file=str(stories260k / "tokenizer.model"))
    for text in (" ", "  two", " Hello", "    indented\n    twice"):
        assert Tokenizer(stories260k).encode_ids(text, bos=False) == original.encode(text)


def test_transformers_opens_a_char_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(char_tokenizer(made.TEXT), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = Tokenizer(tmp_path).encode_ids(made.TEXT)
    assert theirs(made.TEXT)["input_ids"] == ids
    assert theirs.decode(ids) == made.TEXT
