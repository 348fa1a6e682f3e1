"""Computes the loss of a teacher with 152,064 columns and a student with 151,936 over one tokenizer of 151,646 ids,
with PyTorch.

usage: PYTHON tests/reference/padded_vocabulary.py        PYTHON: from tools/python-env

The weights come from a formula that crates/engine/tests/padded_vocabulary.rs also computes; that test contains the
numbers printed here. The logits of both models are sliced to the tokenizer's ids before any softmax.
"""

import torch
import transformers

VOCABULARY, GAMMA = 151646, 0.2


def model(vocab_size, width, phase):
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if parameter.dim() == 2:
                place = torch.arange(parameter.numel(), dtype=torch.float64) % 9973
                parameter.copy_((0.4 * torch.sin(0.7 * place + 1.3 * index + phase)).reshape(parameter.shape))
            else:
                parameter.fill_(1.0)
    # In f64, so that the numbers do not depend on the processor's order of summation.
    return model.double()


tokens = (torch.arange(2 * 12).reshape(2, 12) * 7919 + 151000) % VOCABULARY
teacher, student = model(152064, 8, 0.1), model(151936, 4, 0.5)
teacher_logits = teacher(tokens).logits[:, :-1, :VOCABULARY].reshape(-1, VOCABULARY)
student_logits = student(tokens).logits[:, :-1, :VOCABULARY].reshape(-1, VOCABULARY)
ce = torch.nn.functional.cross_entropy(student_logits, tokens[:, 1:].reshape(-1))
kl = torch.nn.functional.kl_div(
    student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True, reduction="batchmean"
)
(ce + GAMMA * kl).backward()
norm = torch.sqrt(sum((parameter.grad.double() ** 2).sum() for parameter in student.parameters()))
print(f"ce {ce.item():.7f}  kl {kl.item():.7f}  gradient norm {norm.item():.7f}")
