"""Makes the pairs of tiny models that tests/it/model_folders.rs initializes, checks and distills, with Hugging Face
transformers.

usage: PYTHON tests/reference/make_pairs.py        PYTHON: from tools/python-env

Each pair of families in the paper gets one pair of models with random weights and a shared tokenizer. As in Qwen1.5,
the Qwen2 teacher's vocabulary has more padding than its student's.
"""

import pathlib
import shutil

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

here = pathlib.Path(__file__).parent.parent / "fixtures" / "pairs"
llama = (
    lambda **shape: dict(
        num_key_value_heads=2, num_attention_heads=4, max_position_embeddings=128, rms_norm_eps=1e-5
    )
    | shape
)
bigcode = lambda **shape: dict(n_head=4, n_positions=128) | shape
pairs = {
    "qwen2": (
        "Qwen2",
        llama(vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2),
        llama(vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=1, tie_word_embeddings=True),
    ),
    "llama": (
        "Llama",
        llama(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2),
        llama(vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1),
    ),
    "gpt-bigcode": (
        "GPTBigCode",
        bigcode(vocab_size=300, n_embd=32, n_layer=2),
        bigcode(vocab_size=300, n_embd=16, n_layer=1),
    ),
}
words = "the coin the river a gale silver gravel hail turns into follows hides shows carries holds meets and . ".split()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
)
tokenizer.train_from_iterator(
    [" ".join(words[i % len(words)] for i in range(k, 400 + 7 * k, 1 + k % 3)) for k in range(40)], trainer
)
for name, (family, teacher, student) in pairs.items():
    for seed, (role, shape) in enumerate({"teacher": teacher, "student": student}.items()):
        torch.manual_seed(seed)
        config = getattr(transformers, family + "Config")(**shape, bos_token_id=None, eos_token_id=0, pad_token_id=None)
        folder = here / name / role
        shutil.rmtree(folder, ignore_errors=True)
        getattr(transformers, family + "ForCausalLM")(config).save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
            folder
        )
        print(folder, sum(path.stat().st_size for path in folder.iterdir()), "bytes")
print("tokens:", tokenizer.get_vocab_size())
