"""Tokenizers made on the fly: byte-level (like GPT-2) and sentencepiece-like with byte fallback (like Llama 2)."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

HAS_RESPONSE_TEMPLATES = hasattr(PreTrainedTokenizerFast, "get_response_parser")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system message must come first') }}{% endif %}"
    "<s>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}{{ '\n' }}{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def byte_tokenizer(merges: tuple[str, ...] = ("th", "he", " t", "é")) -> PreTrainedTokenizerFast:
    """256 bytes, <eos> = 256, <s> = 257, a reserved special token = 258, then a few merges."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs = []
    special = ["<eos>", "<s>", "<reserved>"]
    for text in merges:
        piece = level.pre_tokenize_str(text)[0][0]
        pairs.append((piece[0], piece[1]))
        vocab[piece] = 256 + len(special) + len(pairs) - 1
    vocab |= {text: 256 + i for i, text in enumerate(special)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    core.pre_tokenizer, core.decoder = level, decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Words with a leading space mark, single characters, and all bytes as fallback."""
    pieces = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "c", ".", "▁a", "▁b", "ab", "é"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As sentencepiece_tokenizer, but only the first word of a text gets a space (like Llama 3's conversions)."""
    tokenizer = sentencepiece_tokenizer()
    core = tokenizer.backend_tokenizer
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return tokenizer


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram over single characters (like T5), whose own vocabulary has </s> and <|im_end|>; NFKC before all else."""
    pieces = [(text, 0.0) for text in ("<unk>", "<s>", "</s>", "<|im_end|>")]
    pieces += [(f"<0x{i:02X}>", -20.0) for i in range(256)] + [(chr(i), -5.0) for i in range(0x21, 0x7F)]
    core = Tokenizer(models.Unigram([*pieces, ("▁", -3.0), ("ab", -4.0), ("▁a", -4.0)], unk_id=0, byte_fallback=True))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = sentencepiece_tokenizer().backend_tokenizer.decoder
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def json_tokenizer() -> PreTrainedTokenizerFast:
    """29 pieces, byte-level: <pad>, <s>, <eos> = 2, what small JSON needs, and four merges. Most bytes are missing."""
    special = ["<pad>", "<s>", "<eos>"]
    pairs = [('"', ":"), ("a", "b"), ('"', ","), ("t", "r")]
    pieces = [*special, *'{}[]":,0123abtruenl-.', "Ġ", *("".join(pair) for pair in pairs)]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=pairs))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<s>", pad_token="<pad>")
