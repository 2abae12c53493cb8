"""The catalog behind `dsc explain CODE`: one page per code.

`wrong` and `right` are fragments of a spec, and tests hold that they are. For the codes of the file (DSC00x) the wrong
one is a whole file; the others, laid over a valid spec, give the code and none. DSC03x show configs, DSC04x commands.
"""

from dsc.spec.code_page import Page
from dsc.spec.errors import Code
from dsc.spec.pages_of_runs import PAGES_OF_RUNS

_HEADS = "num_attention_heads: 8, num_key_value_heads: 2, head_dim: 64, rope: {layout: half}"
_TWO_ATTENTIONS = f"""attention:
  full: {{kind: gqa, {_HEADS}}}
  window: {{kind: window, window: 512, {_HEADS}}}"""

PAGES: dict[Code, Page] = {
    "DSC001": Page(
        "the file cannot be read",
        "A spec is named by the path of a regular file or by its name in the zoo, which `dsc zoo` lists. Folders, "
        "pipes and devices are refused, because reading them could block or never end.",
        "dsc check deepsek-v3",
        "dsc check deepseek-v3",
    ),
    "DSC002": Page(
        "the file is not plain text",
        "A spec is UTF-8. Control characters, byte order marks within the text and characters that reorder it on "
        "screen are refused: what a reviewer sees must be what the compiler reads.",
        'name: "my<U+202E>model"',
        "name: my-model",
    ),
    "DSC003": Page(
        "the file is not YAML",
        "The parser stops at the first place where the text follows no rule of YAML 1.2: a tab in the "
        "indentation, keys that do not line up, a bracket or a quote that is not closed, a text that holds ': ' "
        "and is not quoted.",
        "ffn:\n  dense:\n\t  intermediate_size: 1024",
        "ffn:\n  dense:\n    intermediate_size: 1024",
    ),
    "DSC004": Page(
        "the file is too large",
        "A spec is a small mapping. Limits on the file's size, on the length of a line and of a number, on the "
        "number of values and on the depth of nesting keep hostile files from taking time or memory.",
        "vocab_size: " + "9" * 70,
        "vocab_size: 129280",
    ),
    "DSC005": Page(
        "a part of YAML that specs do not use",
        "Anchors, aliases, merge keys, tags, several documents in one file, and mappings or lists as keys: a spec "
        "has no need of them, and readers and editors disagree on what they mean. Write values out.",
        "norm: &norm {eps: 1.0e-6}",
        "norm: {eps: 1.0e-6}",
    ),
    "DSC006": Page(
        "the file is no mapping",
        "The root of a spec is a mapping, from `name` to `layers`. An empty file, a list or a single value is no spec.",
        "- name: my-model",
        "name: my-model",
    ),
    "DSC007": Page(
        "a key is given twice",
        "Many YAML readers silently keep the last of two equal keys. Here the second one is an error.",
        "hidden_size: 2048\nvocab_size: 512\nhidden_size: 4096",
        "hidden_size: 4096\nvocab_size: 512",
    ),
    "DSC008": Page(
        "a file of another kind",
        "The file is something else that dsc or a model's publisher writes: a plan, a config.json, a lock file, an "
        "index of a checkpoint, a JSON Schema, a cluster. The help names the command that takes it.",
        '{"model_type": "deepseek_v3", "hidden_size": 7168}',
        "name: my-model",
    ),
    "DSC010": Page(
        "a value of the wrong type",
        "Nothing is converted: a size is a whole number without quotes, underscores or a decimal point, a switch "
        "is true or false (YAML 1.2 reads yes, no, on and off as texts), a section is a mapping.",
        "hidden_size: 7_168",
        "hidden_size: 7168",
    ),
    "DSC011": Page(
        "a value out of bounds",
        "Sizes are at least 1, rates are above 0, and no number is infinite or NaN. The help names the bound.",
        "norm: {eps: 0.0}",
        "norm: {eps: 1.0e-6}",
    ),
    "DSC012": Page(
        "an unknown word",
        "The key takes one of a few fixed words, which the help lists. `kind` chooses which keys its section has, "
        "so a wrong kind hides whatever else is wrong in that section.",
        "mtp: {depth: 1, hidden: postnorm}",
        "mtp: {depth: 1, hidden: post_norm}",
    ),
    "DSC013": Page(
        "a missing key",
        "The key has no default, because implementations disagree on it or because no value would suit most "
        "models. The position is that of the section which lacks it.",
        "norm: {}",
        "norm: {eps: 1.0e-6}",
    ),
    "DSC014": Page(
        "an unknown key",
        "No key is ignored: a misspelt one would silently leave its default in place. The help names the nearest "
        "key, or the section where the key belongs.",
        "tie_word_embedings: true",
        "tie_word_embeddings: true",
    ),
    "DSC015": Page(
        "a malformed name",
        "The name becomes a folder and a Python package. It has 64 characters at most: lower-case words of "
        "letters and digits, the first starting with a letter, joined by '-', '_' or '.'. Names of attentions and "
        "feed-forwards become parts of class names: they are one such word, of 32 characters at most.",
        "name: DeepSeek V3",
        "name: deepseek-v3",
    ),
    "DSC016": Page(
        "a name that would collide",
        "The emitted package is named after the spec, with '_' for '-' and '.'. A keyword of Python cannot be "
        "imported, and a package named like a library or a module of the standard library would hide it from "
        "every program nearby.",
        "name: types",
        "name: types-1b",
    ),
    "DSC017": Page(
        "a token outside the vocabulary",
        "tokens.bos, tokens.eos and tokens.pad are rows of the embedding, counted from 0. A larger id would be read "
        "beyond its end.",
        "vocab_size: 512\ntokens: {eos: 512}",
        "vocab_size: 512\ntokens: {eos: 511}",
    ),
    "DSC020": Page(
        "experts that do not form equal groups",
        "Group-limited routing views the scores as [tokens, n_group, n_routed_experts / n_group]. Where that "
        "division has a remainder, some implementations mix the scores of different tokens without an error.",
        "ffn: {moe: {n_routed_experts: 16, router: {n_group: 3, topk_group: 2}}}",
        "ffn: {moe: {n_routed_experts: 16, router: {n_group: 4, topk_group: 2}}}",
    ),
    "DSC021": Page(
        "more groups selected than there are",
        "A token chooses its experts from its best topk_group of n_group groups, so topk_group is at most n_group.",
        "ffn: {moe: {router: {n_group: 4, topk_group: 5}}}",
        "ffn: {moe: {router: {n_group: 4, topk_group: 3}}}",
    ),
    "DSC022": Page(
        "more experts per token than its groups have",
        "A token chooses among the experts of its topk_group best groups, n_routed_experts / n_group * topk_group "
        "in all. Beyond those, a top-k silently picks experts that were masked out.",
        "ffn: {moe: {num_experts_per_tok: 9, n_routed_experts: 16, router: {n_group: 4, topk_group: 2}}}",
        "ffn: {moe: {num_experts_per_tok: 8, n_routed_experts: 16, router: {n_group: 4, topk_group: 2}}}",
    ),
    "DSC023": Page(
        "groups without a score",
        "When only some groups are selected, the score of a group decides which. DeepSeek-V2 takes its best expert, "
        "DeepSeek-V3 the sum of its two best; using the wrong one changes the experts of almost half the "
        "tokens. So there is no default.",
        "ffn: {moe: {router: {n_group: 4, topk_group: 2, group_score: null}}}",
        "ffn: {moe: {router: {n_group: 4, topk_group: 2, group_score: top2_sum}}}",
    ),
    "DSC024": Page(
        "groups too small for their score",
        "top2_sum adds the two best experts of each group, so each group needs two.",
        "ffn: {moe: {n_routed_experts: 16, router: {n_group: 16, topk_group: 8, group_score: top2_sum}}}",
        "ffn: {moe: {n_routed_experts: 16, router: {n_group: 16, topk_group: 8, group_score: max}}}",
    ),
    "DSC025": Page(
        "a group score without effect",
        "When all groups are selected, none is scored. A key that changes nothing would mislead its readers.",
        "ffn: {moe: {router: {n_group: 4, topk_group: 4, group_score: top2_sum}}}",
        "ffn: {moe: {router: {n_group: 4, topk_group: 4, group_score: null}}}",
    ),
    "DSC026": Page(
        "an update of a bias that does not exist",
        "bias_update_rate moves the router's selection bias after each step (DeepSeek-V3, section 2.1.2). Without "
        "selection_bias there is nothing to move, and the load would stay as unbalanced as it is.",
        "ffn: {moe: {router: {selection_bias: false, balance: {bias_update_rate: 0.001}}}}",
        "ffn: {moe: {router: {selection_bias: true, balance: {bias_update_rate: 0.001}}}}",
    ),
    "DSC027": Page(
        "one expert per token, normalized",
        "Divided by their sum, one chosen weight is 1 whatever its score was. The router would get no gradient "
        "from the model's loss.",
        "ffn: {moe: {num_experts_per_tok: 1, router: {norm_topk_prob: true}}}",
        "ffn: {moe: {num_experts_per_tok: 1, router: {norm_topk_prob: false}}}",
    ),
    "DSC030": Page(
        "a config that is not understood",
        "A Hugging Face config.json holds a value of the wrong type, two names for one key, or a key whose meaning for "
        "the model is not known. Nothing is guessed: what a config says and a spec does not would be lost silently.",
        '{"model_type": "deepseek_v3", "hidden_size": "7168"}',
        '{"model_type": "deepseek_v3", "hidden_size": 7168}',
    ),
    "DSC031": Page(
        "a config that has no spec, or a spec that has no config",
        "The config asks for something that the language cannot say, or the spec for something that no Hugging Face "
        "model type can.",
        '{"model_type": "bert"}',
        '{"model_type": "deepseek_v3"}',
    ),
    "DSC040": Page(
        "a file that was edited by hand",
        "An emitted file no longer has the hash in dsc.lock.json. An edit is merged with what is emitted now. That "
        "takes git, and the file as it was emitted: dsc prints it again from the spec in the lock or, where its own "
        "version has changed, looks for it among the file's revisions in git. Here one of these is missing, or the "
        "file is not emitted any more. Nothing was written at all.",
        "dsc compile spec.yaml",
        "dsc compile spec.yaml --force",
    ),
    "DSC041": Page(
        "a file that leads out of its package",
        "A link in the package's folder points to somewhere else. Only files within the folder are written.",
        "my_model/model.py -> ../elsewhere.py",
        "my_model/model.py",
    ),
    "DSC042": Page(
        "a folder that is being written",
        "One dsc at a time writes to a package's folder, so that two specs never mix in it. Another one had it for "
        "longer than this one waits.",
        "dsc compile a.yaml -o package & dsc compile b.yaml -o package  # and the first one hangs",
        "dsc compile a.yaml -o a; dsc compile b.yaml -o b",
    ),
    "DSC043": Page(
        "an edit that clashes",
        "The same lines were edited by hand and are emitted in another form now. The file stays as it was edited. "
        "Beside it one whose name ends in .merge shows both sides between git's markers, and what was there before; "
        "everything else is written. While that file is there, nothing more is written to the package: move it over "
        "the other once it is right, or delete it to leave the other as it is.",
        "dsc compile spec.yaml  # model.py.merge shows a clash",
        "mv my_model/model.py.merge my_model/model.py; dsc compile spec.yaml",
    ),
    "DSC044": Page(
        "one folder for two packages",
        "Each package of dsc.yaml has a folder of its own, which is not inside that of another.",
        "packages: [{spec: a.yaml, output: models}, {spec: b.yaml, output: models}]",
        "packages: [{spec: a.yaml, output: models/a}, {spec: b.yaml, output: models/b}]",
    ),
    "DSC050": Page(
        "heads that cannot share keys and values",
        "In grouped-query attention num_attention_heads / num_key_value_heads query heads share one key-value head.",
        "attention: {kind: gqa, num_attention_heads: 32, num_key_value_heads: 5, head_dim: 64, rope: {layout: half}}",
        "attention: {kind: gqa, num_attention_heads: 32, num_key_value_heads: 4, head_dim: 64, rope: {layout: half}}",
    ),
    "DSC051": Page(
        "an odd rotary dimension",
        "Rotary embeddings rotate pairs of components: qk_rope_head_dim of mla, head_dim of gqa and window are even.",
        "attention: {qk_rope_head_dim: 63}",
        "attention: {qk_rope_head_dim: 64}",
    ),
    "DSC052": Page(
        "bounds of rope scaling in the wrong order",
        "Between its two bounds rope scaling blends original and divided frequencies. YaRN needs "
        "beta_fast >= beta_slow, Llama 3 needs high_freq_factor > low_freq_factor; otherwise frequencies are silently "
        "wrong or a division by zero follows.",
        "attention: {rope: {scaling: {beta_fast: 1.0, beta_slow: 32.0}}}",
        "attention: {rope: {scaling: {beta_fast: 32.0, beta_slow: 1.0}}}",
    ),
    "DSC053": Page(
        "rope scaling to a shorter context",
        "original_max_position_embeddings is the context length before rope scaling, max_position_embeddings the "
        "one after.",
        "max_position_embeddings: 4096\nattention: {rope: {scaling: {original_max_position_embeddings: 8192}}}",
        "max_position_embeddings: 32768\nattention: {rope: {scaling: {original_max_position_embeddings: 8192}}}",
    ),
    "DSC054": Page(
        "a rotary base of 1 or less",
        "Pair i rotates by theta ** (-2 i / dim) per position. With theta = 1 all pairs rotate alike and YaRN divides "
        "by log(theta) = 0; below 1 later pairs rotate faster.",
        "attention: {rope: {theta: 1.0}}",
        "attention: {rope: {theta: 10000.0}}",
    ),
    "DSC055": Page(
        "blocks of different width",
        "Activations and weights are multiplied along the input dimension block by block, each product with one "
        "scale of either side. So both blocks need the same width there: the last number of each list.",
        "precision: {linear: {kind: fp8_block, weight_block: [128, 128], activation_block: [1, 64]}}",
        "precision: {linear: {kind: fp8_block, weight_block: [128, 128], activation_block: [1, 128]}}",
    ),
    "DSC056": Page(
        "an FP8 cache without whole groups of a latent",
        "An FP8 cache keeps of a token its latent in FP8, with a scale for every 128 numbers, and its rotary part in "
        "bfloat16. So attention needs a latent, of a width that is a multiple of 128.",
        "attention: {kind: mla, kv_lora_rank: 320}\nprecision: {kv_cache: fp8}",
        "attention: {kind: mla, kv_lora_rank: 512}\nprecision: {kv_cache: fp8}",
    ),
    "DSC060": Page(
        "layers with a feed-forward that is not described",
        "Every kind that `layers` names must be described under `ffn`.",
        "ffn: {dense: null}\nlayers: [{repeat: 2, ffn: dense}, {repeat: 2, ffn: moe}]",
        "ffn: {dense: {intermediate_size: 1024}}\nlayers: [{repeat: 2, ffn: dense}, {repeat: 2, ffn: moe}]",
    ),
    "DSC061": Page(
        "a feed-forward that no layer has",
        "A section that changes nothing is a mistake in `layers` or a leftover.",
        "layers: [{repeat: 4, ffn: moe}]",
        "layers: [{repeat: 1, ffn: dense}, {repeat: 3, ffn: moe}]",
    ),
    "DSC062": Page(
        "too many layers",
        "The groups of `layers` have 10,000 layers together at most.",
        "layers: [{repeat: 9000, ffn: dense}, {repeat: 9000, ffn: moe}]",
        "layers: [{repeat: 90, ffn: dense}, {repeat: 90, ffn: moe}]",
    ),
    "DSC063": Page(
        "sequences longer than the model's positions",
        "Training at workload.sequence_length uses positions up to it, which the model must have. The default is 4096.",
        "max_position_embeddings: 4096\nworkload: {sequence_length: 8192}",
        "max_position_embeddings: 8192\nworkload: {sequence_length: 8192}",
    ),
    "DSC064": Page(
        "a prediction beyond the end of the sequence",
        "Depth k of multi-token prediction predicts the token k + 1 positions ahead, and so learns from "
        "sequence_length - k positions. With depth >= sequence_length there are none.",
        "mtp: {depth: 4}\nworkload: {sequence_length: 4}",
        "mtp: {depth: 1}\nworkload: {sequence_length: 4}",
    ),
    "DSC065": Page(
        "an unknown cluster",
        "cluster.kind names one of the machines that ship with the compiler, by the name of its file in spec/clusters, "
        "or is the path of such a file of your own, as seen from the spec's folder. `nodes` or `gpus` says how many.",
        "cluster: {kind: h8000, nodes: 4}",
        "cluster: {kind: h800, nodes: 4}",
    ),
    "DSC066": Page(
        "layers with an attention that is not described",
        "With several attentions, each name in `layers` must be described under `attention`. With one, which has no "
        "name, layers do not name it.",
        "layers: [{repeat: 2, attention: full, ffn: dense}, {repeat: 2, ffn: moe}]",
        "layers: [{repeat: 2, ffn: dense}, {repeat: 2, ffn: moe}]",
    ),
    "DSC067": Page(
        "an attention that no layer has",
        "A section that changes nothing is a mistake in `layers` or a leftover.",
        f"{_TWO_ATTENTIONS}\nlayers: [{{repeat: 4, attention: full, ffn: dense}}, "
        "{repeat: 4, attention: full, ffn: moe}]",
        f"{_TWO_ATTENTIONS}\nlayers: [{{repeat: 4, attention: full, ffn: dense}}, "
        "{repeat: 4, attention: window, ffn: moe}]",
    ),
    "DSC068": Page(
        "layers that do not say which attention they have",
        "With several attentions, each layer names one. Only a single attention is for all layers.",
        f"{_TWO_ATTENTIONS}\nlayers: [{{repeat: 4, attention: full, ffn: dense}}, "
        "{repeat: 2, cycle: [{ffn: moe}, {attention: window, ffn: moe}]}]",
        f"{_TWO_ATTENTIONS}\nlayers: [{{repeat: 4, attention: full, ffn: dense}}, "
        "{repeat: 2, cycle: [{attention: full, ffn: moe}, {attention: window, ffn: moe}]}]",
    ),
    "DSC069": Page(
        "a ramp that does not end at the batch",
        "`training.batch_ramp` says how a step grows from `start` sequences by `increment` each time. It ends at "
        "`workload.global_batch`, so that is needed, above `start` by a multiple of `increment`.",
        "workload: {global_batch: 15360}\ntraining: {batch_ramp: {start: 3072, increment: 1000, tokens: 469000000000}}",
        "workload: {global_batch: 15360}\ntraining: {batch_ramp: {start: 3072, increment: 1536, tokens: 469000000000}}",
    ),
    **PAGES_OF_RUNS,
}
