"""Starts and stops real vLLM servers on loopback, and makes small models for them. Used by tools/vllm-record and
tools/vllm-check."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

POOLING = ["--runner", "pooling", "--convert", "embed"]
# Rows of hidden states as the model computes them. By default, vLLM scales each row to length 1.
AS_COMPUTED = ["--pooler-config", '{"task":"token_embed","tok_pooling_type":"ALL","use_activation":false}']
NORMALIZED = ["--pooler-config", '{"task":"token_embed","tok_pooling_type":"ALL"}']
START_SECONDS = 300
STOP_SECONDS = 20


def run_inside(environment):
    """Restarts this script with the Python of the environment, which has vLLM, torch and transformers."""
    python = pathlib.Path(environment) / "bin/python"
    if not python.exists():
        sys.exit(f"{sys.argv[0]}: {environment} is not an environment: run 'tools/vllm-env {environment}' first")
    if pathlib.Path(sys.prefix).resolve() != pathlib.Path(environment).resolve():
        os.execv(python, [str(python), *sys.argv])
    # A stop signal also stops the servers, which are in process groups of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """One vLLM server. Its processes form one group, so that a stop or a kill reaches all of them."""

    def __init__(self, model, arguments, port=None, name="tiny"):
        self.model, self.arguments, self.name = pathlib.Path(model).absolute(), arguments, name
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.model.parent / f"vllm-{self.port}.log"
        self.process = None

    def __enter__(self):
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            # Python does not call __exit__ for these.
            self.kill()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        # A relative path, because /v1/models returns it.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.model.name,
                   "--served-model-name", self.name, "--host", "127.0.0.1", "--port", str(self.port),
                   "--dtype", "float32", "--enforce-eager", *self.arguments]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
                    "HF_HUB_OFFLINE": "1"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env=os.environ | settings, cwd=self.model.parent, stdout=log,
                                            stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait_until_ready(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"vLLM ended with {self.process.returncode} while starting:\n{self.last_lines()}")
            try:
                if exchange(self.port, "GET", "/health")["response"]["status"] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.25)
        raise RuntimeError(f"vLLM did not start within {START_SECONDS} s:\n{self.last_lines()}")

    def last_lines(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def stop(self):
        if self.process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        # The engine is a child of its own, and may outlive the server.
        self.kill()

    def kill(self):
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _signal(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


def exchange(port, method, path, body=None, headers=None, timeout=120):
    """One HTTP request and its response, as sent and received."""
    sent = {"host": f"127.0.0.1:{port}", **(headers or {})}
    text = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        sent |= {"content-type": "application/json", "content-length": str(len(text))}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in sent.items()) + "\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout) as connection, connection.makefile("rb") as answer:
        connection.sendall(head.encode() + text)
        status = answer.readline().split()
        if not status:
            raise ConnectionError("the server closed the connection without an answer")
        received = []
        while (line := answer.readline().strip()):
            key, value = line.decode().split(":", 1)
            received.append([key, value.strip()])
        fields = {key.lower(): value for key, value in received}
        response = {"status": int(status[1]), "headers": received}
        if fields.get("transfer-encoding") == "chunked":
            chunks = []
            while (size := int(answer.readline(), 16)):
                chunks.append(answer.read(size))
                answer.readline()
            response |= {"chunks": [len(chunk) for chunk in chunks], "body": b"".join(chunks)}
        else:
            response["body"] = answer.read(int(fields.get("content-length", 0)))
    return {"request": {"method": method, "path": path, "headers": sent, "body": body}, "response": response}


def pooling(port, sequences, dtype="float32", headers=None, name="tiny", **more):
    """A request for the hidden states of one sequence, or of several."""
    body = {"model": name, "input": sequences, "task": "token_embed", "encoding_format": "bytes",
            "embed_dtype": dtype, "endianness": "little", **more}
    return exchange(port, "POST", "/pooling", body, headers)


def sentences(domain, count, seed=0):
    """Documents from a small grammar, with a separate vocabulary per domain. The same ones on every machine."""
    nouns = {"coins": ["a coin", "the mint", "bronze", "silver", "an edge", "the king", "a purse"],
             "rivers": ["the river", "a delta", "gravel", "the source", "a weir", "trout", "the ford"]}[domain]
    verbs = ["holds", "meets", "turns into", "follows", "hides", "shows", "carries"]
    chance = random.Random(f"{domain} {seed}")
    for _ in range(count):
        yield " ".join(f"{chance.choice(nouns)} {chance.choice(verbs)} {chance.choice(nouns)}."
                       for _ in range(chance.randint(4, 24)))


def make_tokenizer(vocabulary):
    """A byte-level BPE tokenizer. Random words let it reach the whole vocabulary without added tokens."""
    import tokenizers
    import transformers
    chance = random.Random(0)
    words = ["".join(chance.choices("aeinorstd", k=5)) for _ in range(2000)]
    texts = [text for domain in ("coins", "rivers") for text in sentences(domain, 200)] + [" ".join(words)]
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[end], show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    whole.train_from_iterator(texts, trainer)
    assert whole.get_vocab_size() == vocabulary, f"{whole.get_vocab_size()} tokens, not {vocabulary}"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=whole, eos_token=end)


def make_llama(folder, seed, tokenizer, hidden_size=128, layers=2, heads=4):
    """A random Llama with this tokenizer, in fp32. vLLM for the CPU needs heads of 32 or more."""
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
        max_position_embeddings=128, initializer_range=0.1, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        # A norm whose weights are 1 could be left out unnoticed.
        model.model.norm.weight += 0.2 * torch.randn(hidden_size)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
