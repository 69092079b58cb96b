#!/bin/sh
# transformers 5.23.0, sentencepiece 0.2.3: tokenizers read by from_pretrained from a SentencePiece model with no tokenizer.json beside it. Expected: the
# pieces that SentencePiece gives, whose models hold their normalization (nmt_nfkc by default), as XLMRobertaTokenizer's and T5Tokenizer's are. Seen:
# DebertaV2Tokenizer, MBartTokenizer and BigBirdTokenizer leave it out: full-width letters, ligatures, circled digits and half-width kana, and for BigBird
# tabs and line ends, are unknown, without a warning. T5Tokenizer takes piece 2 for the unknown one, whatever the model says: with SentencePiece's default ids
# an unknown character is read as </s>, the end of the text.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import pathlib
import sys

import sentencepiece
import transformers

transformers.logging.set_verbosity_error()
texts = [f"the quick brown fox jumps over the lazy dog {i} times, and finds a word or two" for i in range(200)] + ["カタカナ ABC 123"] * 20
folder = pathlib.Path("files")
folder.mkdir()


def train(name, **ids):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / name), vocab_size=120, hard_vocab_limit=False, minloglevel=2, **ids,
    )
    return folder / f"{name}.model"


default, of_t5 = train("default"), train("of_t5", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
samples = {"plain": "the quick fox", "full width": "ＡＢＣ", "ligature": "ﬁnds", "circled": "①", "kana": "ｶﾀｶﾅ"}
samples |= {"line end": "the\nfox", "unknown": "the Я fox"}
found = {}
for case, (name, file, model) in {
    "XLMRoberta": ("XLMRoberta", "sentencepiece.bpe.model", default), "T5": ("T5", "spiece.model", of_t5), "DebertaV2": ("DebertaV2", "spm.model", default),
    "MBart": ("MBart", "sentencepiece.bpe.model", default), "BigBird": ("BigBird", "spiece.model", default), "T5, default ids": ("T5", "spiece.model", default),
}.items():
    place = folder / case
    place.mkdir()
    (place / file).write_bytes(model.read_bytes())
    tokenizer = getattr(transformers, name + "Tokenizer").from_pretrained(place)
    exact = sentencepiece.SentencePieceProcessor(model_file=str(model))
    found[case] = {}
    for kind, text in samples.items():
        pieces, expected = tokenizer.tokenize(text), [exact.id_to_piece(i) for i in exact.encode(text)]
        tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
        if kind == "unknown":
            expected = [tokenizer.unk_token if piece == "<unk>" else piece for piece in expected]
            pieces = tokens
        if pieces != expected:
            found[case][kind] = " ".join(pieces), " ".join(expected)
print("transformers", transformers.__version__, "pieces unlike SentencePiece's, and SentencePiece's:", found)
lost = all({"full width", "ligature", "circled", "kana"} <= set(found[name]) and "plain" not in found[name] for name in ("DebertaV2", "MBart", "BigBird"))
t5 = "</s>" in found["T5, default ids"].get("unknown", ("",))[0] and set(found["T5, default ids"]) == {"unknown"}
sys.exit(not (lost and t5 and "line end" in found["BigBird"] and not found["XLMRoberta"] and not found["T5"]))
PYTHON
