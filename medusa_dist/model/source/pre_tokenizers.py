"""How a GGUF file's byte-level BPE vocabulary splits text before it merges, by llama.cpp's names.

Owns the table from `tokenizer.ggml.pre` to regular expressions, and what else a name implies. Not here: building the
tokenizer (gguf_tokenizer.py).

The patterns are those of the models' own tokenizer.json files; llama.cpp rewrites some of them for its regex engine. A
name stands for one or more patterns, each applied to the pieces that the ones before it left.
"""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from medusa_dist.errors import ModelError


@dataclass(frozen=True)
class PreTokenizer:
    """What a name of `tokenizer.ggml.pre` stands for.

    patterns: each match is a piece, and so is what lies between. ignore_merges: a piece that is a token stays whole.
    add_bos: texts begin with the bos token unless the file says otherwise. nfc: the model's own tokenizer composes
    characters first, which a GGUF file cannot say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer of the tokenizers library; its pieces are in the byte alphabet."""
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, level])


def pre_tokenizer(name: str) -> PreTokenizer:
    """What `tokenizer.ggml.pre` = name stands for. Raises ModelError for an unknown name."""
    found = _BY_NAME.get(name)
    if found is None:
        raise ModelError(
            f"the GGUF file's pre-tokenizer (tokenizer.ggml.pre) is {name!r}, which is not known, and without it texts "
            f"would be cut into wrong tokens; use the model's safetensors. Known: {', '.join(sorted(_BY_NAME))}"
        )
    return found


_DIGIT, _DIGITS = r"\p{N}", r"\p{N}{1,3}"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HAN_KANA = "[一-龥぀-ゟ゠-ヿ]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(digits: str, suffix: str = f"{_SUFFIX}|", letters: str = r"\p{L}", rest: str = r"[^\s\p{L}\p{N}]") -> str:
    """The pattern of GPT-4 and its kin: contractions, words with one sign before them, digits, signs, blanks."""
    return rf"{suffix}[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?{rest}+[\r\n]*|{_BLANKS}"


def _cased(suffix: str, digits: str) -> str:
    """The pattern of GPT-4o and its kin: a word also ends where a capital follows a small letter."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{suffix}|{before}{_UPPER}+{_LOWER}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"


def _signs(*before: str, breaks: str = r"[\r\n]*", blanks: str = _BLANKS) -> tuple[str, ...]:
    """The patterns of DeepSeek-V3 and its kin: signs stay with the Latin letters that follow them."""
    words = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    return (*before, _HAN_KANA, rf"{words}| ?[\p{{P}}\p{{S}}]+{breaks}|{blanks}")


_CASED_SUFFIX = f"{_SUFFIX}?"
_LLAMA3 = PreTokenizer((_words(_DIGITS),), ignore_merges=True, add_bos=True)
_QWEN2 = _words(_DIGIT)
_ONE_DIGIT_GPT2 = PreTokenizer((_DIGIT, _GPT2))
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"

# Not here: names of encoders, and of vocabularies that are not in the byte alphabet (gemma4, whitespace, kimi-k2).
_NAMES: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": _LLAMA3,
    "dbrx smaug-bpe glm4 chatglm-bpe": PreTokenizer((_words(_DIGITS),)),
    "minicpm5": PreTokenizer((_DIGITS, _words(r"\p{N}+")), ignore_merges=True),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer((_QWEN2,)),
    "qwen35": PreTokenizer(
        (_words(_DIGIT, letters=r"[\p{L}\p{M}]", rest=r"[^\s\p{L}\p{M}\p{N}]"),),
        nfc=True,
    ),
    "ufakzeka": PreTokenizer((_words(_DIGIT, suffix=""),)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer(
        (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "seed-coder": PreTokenizer(
        (rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}",)
    ),
    "exaone-moe": PreTokenizer(
        (
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "jais-2": PreTokenizer(
        (
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_DIGITS}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
            + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
            + r"|\s{1}",
        )
    ),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum jais trillion granite-docling exaone4": PreTokenizer((_GPT2,)),
    "mpt olmo": PreTokenizer((_GPT2,), nfc=True),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": _ONE_DIGIT_GPT2,
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "bloom poro-chat gpt3-finnish": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, _DIGIT)),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            "([\\t\\n]|    |  )",
            _DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "tekken": PreTokenizer((_cased("", _DIGIT),), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_cased(_CASED_SUFFIX, _DIGITS),)),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(_signs(_DIGITS)),
    "spark2_5": PreTokenizer((*_signs(_DIGITS, breaks="", blanks=r"[\r\n]|\s+(?!\S)|\s+"), _DIGIT)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
}
_BY_NAME = {name: meaning for names, meaning in _NAMES.items() for name in names.split()}
