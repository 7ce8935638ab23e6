"""What transformers makes of Foil's result directories.

Reads a JSON list of requests from standard input and prints one JSON list of answers; see common/src/conform/peer.rs
for the fields of both. Everything is computed in float32 on the CPU. A fault is an answer too: {"error": …}.
"""

import json
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

BATCHES = [1, 4, 32]


def listed(ids) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]


def load(kind, directory):
    auto = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    model, info = auto.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    faults = {what: sorted(map(str, names)) for what, names in info.items() if names}
    return model.eval(), faults


def rendered(tokenizer, dialogue, is_prompt):
    text = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=is_prompt)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def scores(model, tokenizer, rows):
    """Per batch size and padding side, the scores of all rows, padded as a user of the tokenizer would."""
    found = {}
    for side in ["right", "left"]:
        tokenizer.padding_side = side
        for size in BATCHES:
            values = []
            for start in range(0, len(rows), size):
                batch = [{"input_ids": row} for row in rows[start : start + size]]
                batch = tokenizer.pad(batch, return_tensors="pt") if size > 1 else {"input_ids": torch.tensor([rows[start]])}
                values += model(**batch).logits.squeeze(-1).tolist()
            found[f"{side} padding, batches of {size}"] = values
    return found


def greedy(model, prompt, request):
    """The greedy continuation, and how far each of its tokens is ahead of the one that Foil took there."""
    beyond = list(range(request["vocabulary"], model.config.vocab_size))
    own = model.generation_config
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=request["new_tokens"],
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
        suppress_tokens=beyond or None,
    )
    # The model's own defaults would fill in what the settings leave out.
    model.generation_config = settings
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=settings,
        return_dict_in_generate=True,
        output_scores=True,
    )
    model.generation_config = own
    ids = made.sequences[0, len(prompt) :].tolist()
    return {"ids": ids, "scores": [step[0] for step in made.scores]}


def leads(continuation, foil):
    ids, steps = continuation["ids"], continuation["scores"]
    pairs = zip(ids, foil, steps)
    return {"ids": ids, "leads": [(step[mine] - step[theirs]).item() for mine, theirs, step in pairs]}


def answer(request):
    kind, directory = request["kind"], request["directory"]
    model, faults = load(kind, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    generation = model.generation_config if kind == "policy" else None
    found = {
        "version": transformers.__version__,
        "loading_faults": faults,
        "tokenizer": {
            "bos": listed(tokenizer.bos_token_id),
            "eos": listed(tokenizer.eos_token_id),
            "pad": listed(tokenizer.pad_token_id),
        },
        "generation_eos": listed(generation.eos_token_id) if generation else [],
        "has_template": bool(tokenizer.chat_template),
    }
    if tokenizer.chat_template:
        found["prompts"] = [rendered(tokenizer, dialogue, True) for dialogue in request["dialogues"]]
    if kind == "reward":
        found["scores"] = scores(model, tokenizer, request["rows"])
        return found
    rows = request["rows"][: request["logit_rows"]]
    found["logits"] = [model(torch.tensor([row])).logits[0, -1].tolist() for row in rows]
    continuations = [greedy(model, prompt, request) for prompt in request["greedy_prompts"]]
    found["greedy"] = [leads(*pair) for pair in zip(continuations, request["foil_greedy"])]
    return found


def safely(request):
    try:
        with torch.no_grad():
            found = answer(request)
        json.dumps(found, allow_nan=False)  # JSON has no NaN
        return found
    except Exception as error:  # noqa: BLE001 — whatever a library raises is the finding
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def main():
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "2"))))
    requests = json.load(sys.stdin)
    # Libraries print; the answer is the last line.
    print("\n" + json.dumps([safely(request) for request in requests]))


main()
