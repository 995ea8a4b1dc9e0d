"""FLAN: 66 older data sets, each written as instructions in ten ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.sft.data_module import SFTModule, in_litgpts_order
from litgpt.data.sft.formats import Conversation, Row, parse_instruction
from litgpt.data.storage.download import fetch_file
from litgpt.errors import LitGPTError, closest, quoted
from litgpt.prompts import PromptStyle

SUBSETS = [
    f"{name}_10templates"
    for name in """
    aeslc ag_news_subset anli_r1 anli_r2 anli_r3 arc_challenge arc_easy bool_q cb cnn_dailymail cola common_gen copa
    coqa cosmos_qa dart definite_pronoun_resolution drop e2e_nlg fix_punct gigaword glue_mrpc glue_qqp hellaswag
    imdb_reviews math_dataset mnli_matched mnli_mismatched multi_news multirc natural_questions openbookqa
    opinion_abstracts_idebate opinion_abstracts_rotten_tomatoes para_crawl_enes paws_wiki piqa qnli quac record rte
    samsum sentiment140 snli squad_v1 squad_v2 sst2 story_cloze stsb trec trivia_qa true_case web_nlg_en wic
    wiki_lingua_english_en wmt14_enfr wmt16_translate_csen wmt16_translate_deen wmt16_translate_fien
    wmt16_translate_roen wmt16_translate_ruen wmt16_translate_tren wnli word_segment wsc yelp_polarity_reviews
    """.split()
]


@in_litgpts_order
@dataclass
class FLAN(SFTModule):
    """The FLAN instructions, all or some of their subsets, with validation samples of their own."""

    prompt_style: str | PromptStyle = "flan"
    """How a sample is put into words: a style's name, or `chat` for the tokenizer's own chat template."""
    download_dir: Path = Path("data/flan")
    """Where the files are kept."""
    url: str = "https://huggingface.co/datasets/Muennighoff/flan/resolve/main"
    """Where the files come from."""
    subsets: str | None = None
    """Names of subsets, with commas between them; null: all 66."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._names():
            if name not in SUBSETS:
                raise LitGPTError(f"FLAN has no subset {quoted(name)}.{closest(f'{name}_10templates', SUBSETS)}")

    def _names(self) -> list[str]:
        if self.subsets is None:
            return SUBSETS
        return [name.strip() for name in self.subsets.split(",") if name.strip()]

    def fetch(self) -> None:
        for split, files in zip(("train", "test"), self.files(), strict=True):
            for file in files:
                fetch_file(f"{self.url}/{split}/{file.name}", file)

    def files(self) -> tuple[list[Path], list[Path]]:
        folder, names = Path(self.download_dir), self._names()
        return [folder / f"{name}_train.jsonl" for name in names], [folder / f"{name}_test.jsonl" for name in names]

    def conversation(self, row: Row) -> Conversation:
        return parse_instruction({"instruction": row.get("inputs"), "output": row.get("targets")})
