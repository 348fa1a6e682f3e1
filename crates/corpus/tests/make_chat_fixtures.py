"""Renders conversations with transformers' apply_chat_template, for crates/corpus/tests/chat.rs.

usage: PYTHON crates/corpus/tests/make_chat_fixtures.py        PYTHON: from tools/python-env

Writes chat_fixtures/NAME/, a tokenizer with a chat template, and chat_fixtures/NAME/cases.json: records, and the text,
the ids and the mask of the assistant's tokens that transformers makes of them. The mask comes from the same template
with {% generation %} around each turn of the assistant, up to the token that ends it. `marked` is that template.

The templates are written for this test, in the style of well-known models. The tokenizers learn a few words from the
conversations themselves.
"""

import json
import pathlib
import shutil

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

here = pathlib.Path(__file__).parent / "chat_fixtures"

tools = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says what the weather is <now> in a place, in °C & more.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "enum": ["Zürich", "a \"b\"\n"]}, "days": {"default": 1.0}},
                "required": ["place"],
                "limits": [1e-7, 1e22, 0.1, -3, True, None, {}, []],
            },
        },
    }
]
system = {"role": "system", "content": "You answer in one word."}
first = {"role": "user", "content": "  Where does the Rhône rise?\n"}
answer = {"role": "assistant", "content": "In a glacier. 🏔"}
second = {"role": "user", "content": "And the river Aare?"}
last = {"role": "assistant", "content": "\nAt the Grimsel pass\n"}
call = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich", "days": 2}}}],
}
result = {"role": "tool", "name": "weather", "content": "rain, 7 °C"}
thought = {"role": "assistant", "content": "It rains.", "reasoning_content": "The tool says rain."}
parts = {"role": "user", "content": [{"type": "text", "text": "Where does"}, {"type": "text", "text": "it rise?"}]}

conversations = {
    "one turn": [first, answer],
    "several turns": [first, answer, second, last],
    "system": [system, first, answer, second, last],
    "ends with the user": [first, answer, second],
    "tools": [first, call, result, thought],
    "a text like a special token": [{"role": "user", "content": "Is <|im_end|> or </s> text?"}, answer],
    "empty answer, then another": [first, {"role": "assistant", "content": ""}, second, last],
}
# The tokenizers learn nothing from these.
assistant_first = {
    "only the assistant": [answer],
    "assistant first": [answer, second, last],
    "system, then the assistant": [system, answer, second, last],
    "unknown role, then the assistant": [{"role": "moderator", "content": "Next, please."}, answer, second, last],
    "assistant first, with a header in its text": [
        {"role": "assistant", "content": "I write <|im_start|>assistant\n first."}, second, last
    ],
}

# A template; the part of it that writes the assistant's turn; how it takes lists; the conversations that it refuses.
chatml = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- set content = message.content or '' %}
        {#- begin -#}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {{- '<call>' ~ call.name ~ ' ' }}
            {{- call.arguments | tojson }}
            {{- '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {#- end -#}
        {{- '\\n' }}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
llama3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message['role'] != 'assistant' %}
        {{- '<|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) }}
        {{- '<|end_header_id|>\\n\\n' }}
        {%- if message.content is string %}
            {{- message['content'] | trim + '<|eot_id|>' }}
        {%- elif message.content is mapping or message.content is iterable %}
            {%- for part in message.content %}
                {%- if part.type == 'text' %}{{- part.text }}{%- endif %}
            {%- endfor %}
            {{- '<|eot_id|>' }}
        {%- endif %}
    {%- elif message.tool_calls %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {#- begin -#}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
        {#- end -#}
    {%- else %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {#- begin -#}
        {{- message['content'] | trim + '<|eot_id|>' }}
        {#- end -#}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
mistral = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user and assistant") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {#- begin -#}
        {{- " " + message["content"]|trim + eos_token }}
        {#- end -#}
    {%- else %}
        {{- raise_exception("only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""
gemma = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{% for message in messages %}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' -}}
    {%- if role == 'model' -%}
        {#- begin -#}
        {{ message['content'] | trim + '<end_of_turn>' }}
        {#- end -#}
        {{ '\\n' }}
    {%- else -%}
        {{ message['content'] | trim + '<end_of_turn>\\n' }}
    {%- endif -%}
{% endfor %}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
zephyr = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
' -}}
{#- begin -#}
{{ message['content'] + eos_token -}}
{#- end -#}
{{ '
' }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
# Both insert a system prompt of their own.
smollm = """\
{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful assistant named Rhône<|im_end|>\n' -}}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\n' -}}
{% if message['role'] == 'assistant' %}
{#- begin -#}
{{ message['content'] + '<|im_end|>' -}}
{#- end -#}
{{ '\n' -}}
{% else %}
{{ message['content'] + '<|im_end|>' + '\n' -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' -}}
{% endif %}
"""
qwen = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Rhône. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {#- begin -#}
        {{- message.content + '<|im_end|>' }}
        {#- end -#}
        {{- '\\n' }}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
thinking = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last < 0 and message.role == "user" and message.content is string %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {#- begin -#}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls if message.tool_calls %}
            {{- '<call>' }}
            {{- call.function.arguments | tojson(ensure_ascii=True, sort_keys=True) }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {#- end -#}
        {{- '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
plain = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
{{ '### Answer: ' -}}
{#- begin -#}
{{ message.content + '\n\n' -}}
{#- end -#}
{% else %}
{{ '### ' + message.role + ': ' + message.content + '\n\n' -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '### Answer: ' -}}
{% endif %}
"""
corpus = [json.dumps(conversations, ensure_ascii=False), json.dumps(tools, ensure_ascii=False), "assistant user system"]


def byte_level(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def metaspace(special):
    """In the style of SentencePiece: spaces become ▁, unknown characters become bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=["<unk>", *special, *bytes_])
    texts = [*corpus, "### user: And?\n\n### Answer: In a glacier.\n\n" * 3]
    left_out = str.maketrans({" ": "▁", "🏔": "", "ô": ""})
    tokenizer.train_from_iterator([text.translate(left_out) for text in texts for _ in range(2)], trainer)
    # The bytes are tokens, but a text like <0x41> is not one of them.
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] not in bytes_]
    return Tokenizer.from_str(json.dumps(saved))


im = ["<|im_start|>", "<|im_end|>"]
l3 = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
cases = {
    "chatml": (chatml, byte_level(["<|endoftext|>", *im]), None, "<|im_end|>"),
    "llama3": (llama3, byte_level(l3), "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": (mistral, metaspace(["<s>", "</s>", "[INST]", "[/INST]"]), "<s>", "</s>"),
    "gemma": (gemma, metaspace(["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]), "<bos>", "<eos>"),
    "zephyr": (zephyr, metaspace(["<s>", "</s>"]), "<s>", "</s>"),
    "plain": (plain, metaspace(["<s>", "</s>"]), "<s>", "</s>"),
    "smollm": (smollm, byte_level(["<|endoftext|>", *im]), "<|im_start|>", "<|im_end|>"),
    "qwen": (qwen, byte_level(["<|endoftext|>", *im]), None, "<|im_end|>"),
    "thinking": (thinking, byte_level(["<|endoftext|>", *im, "<think>", "</think>"]), None, "<|im_end|>"),
}
shutil.rmtree(here, ignore_errors=True)
for name, (template, tokenizer, bos, eos) in cases.items():
    # The tags trim no white space themselves; the comments that they replace trim all.
    marked = template.replace("{#- begin -#}", "{%- generation -%}").replace("{#- end -#}", "{%- endgeneration -%}")
    folder = here / name
    folder.mkdir(parents=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"bos_token": bos, "eos_token": {"content": eos, "special": True}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False) + "\n")
    (folder / "marked.jinja").write_text(marked)
    rows = []
    extra = {"a list of parts": [parts, answer]}
    for title, messages in (conversations | extra | assistant_first).items():
        own_tools = tools if title == "tools" else None
        kwargs = {"date_string": "26 Jul 2024"} if name == "llama3" else {}
        # A template that reads no list gets the joined texts.
        if title in extra and name != "llama3":
            joined = "\n".join(part["text"] for part in parts["content"])
            messages_given = [{**parts, "content": joined}, answer]
        else:
            messages_given = messages
        record = {"messages": messages} | ({"tools": own_tools} if own_tools else {})
        row = {"title": title, "record": record}
        try:
            row["text"] = fast.apply_chat_template(
                messages_given, tools=own_tools, chat_template=template, tokenize=False, **kwargs
            )
        except Exception as error:  # raise_exception, or an operation that the template does not foresee
            row["error"] = str(error)
            rows.append(row)
            continue
        done = fast.apply_chat_template(
            messages_given, tools=own_tools, chat_template=marked, return_dict=True,
            return_assistant_tokens_mask=True, **kwargs,
        )  # fmt: skip
        assert done["input_ids"] == fast.apply_chat_template(
            messages_given, tools=own_tools, chat_template=template, return_dict=False, **kwargs
        )
        row["ids"], row["mask"] = done["input_ids"], done["assistant_masks"]
        if name == "plain" and title == "several turns":
            # A token holds the header and the start of the first answer, another its end and the next header.
            learned = [id for id, one in zip(row["ids"], row["mask"]) if one]
            assert sum("#" in token or "Answer" in token for token in fast.convert_ids_to_tokens(learned)) == 2
        row["prompt"] = fast.apply_chat_template(
            messages_given,
            tools=own_tools,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **kwargs,
        )
        rows.append(row)
    (folder / "cases.json").write_text(
        "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    )
    refused = [row["title"] for row in rows if "error" in row]
    print(name, sum(path.stat().st_size for path in folder.iterdir()), "bytes; refused:", refused)
