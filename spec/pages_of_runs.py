"""Pages of the codes of plans, of learning by reward and of serving: what is asked of a model that stands."""

from dsc.spec.code_page import Page
from dsc.spec.errors import Code

PAGES_OF_RUNS: dict[Code, Page] = {
    "DSC070": Page(
        "an impossible placement",
        "What `placement` pins must multiply up to the GPUs of the cluster, divide the model's sizes and suit the "
        "pipeline schedule. The message has the arithmetic.",
        "cluster: {kind: h800, nodes: 128} # 1024 GPUs\nplacement: {pp: 16, dp: 8, tp: 16} # 2048",
        "cluster: {kind: h800, nodes: 128}\nplacement: {pp: 16, dp: 8, tp: 8}",
    ),
    "DSC071": Page(
        "a plan of something else",
        "`dsc compile` keeps to a plan of the same model's training: `dsc plan SPEC -o plan.yaml` writes one. The "
        "message says what the file is. One that merely stands beside the spec is passed over; one that --plan names "
        "is not.",
        "dsc compile large.yaml --plan small.plan.yaml",
        "dsc plan large.yaml -o large.plan.yaml; dsc compile large.yaml --plan large.plan.yaml",
    ),
    "DSC072": Page(
        "a plan that does not hold any more",
        "plan.yaml has the hashes of what it was made for: of the spec, less what no plan depends on (its name, "
        "special tokens, post-training), and of the machines' figures. Where the spec has changed since, names other "
        "machines or pins other choices, or where an edit of the plan's placement is impossible, the plan is not "
        "followed. The message says which.",
        "dsc plan spec.yaml -o plan.yaml; vi spec.yaml; dsc compile spec.yaml",
        "dsc plan spec.yaml -o plan.yaml; dsc compile spec.yaml",
    ),
    "DSC080": Page(
        "a choice of experts that cannot be replayed",
        "rl.router_replay trains with the experts that the engine chose for each token. A model whose feed-forwards "
        "are all dense has no such choice, and one whose layers choose unequal numbers has no single table of them.",
        "ffn: {moe: null}\nlayers: [{repeat: 4, ffn: dense}]\nrl: {max_new_tokens: 512, router_replay: true}",
        "rl: {max_new_tokens: 512, router_replay: true}",
    ),
    "DSC081": Page(
        "answers as long as the model's positions",
        "A question and its answer are one sequence of at most max_position_embeddings tokens, and a question has at "
        "least one. The default of rl.max_new_tokens is 32768.",
        "max_position_embeddings: 4096\nrl: {}",
        "max_position_embeddings: 4096\nrl: {max_new_tokens: 2048}",
    ),
    "DSC082": Page(
        "a length penalty longer than any answer",
        "rl.length_penalty.buffer counts the last tokens of max_new_tokens, over which the penalty rises; there are "
        "no more of them than an answer has.",
        "rl: {max_new_tokens: 512, length_penalty: {buffer: 1024}}",
        "rl: {max_new_tokens: 512, length_penalty: {buffer: 128}}",
    ),
    "DSC090": Page(
        "experts that cannot be shared out",
        "serving.ep ranks hold equally many routed experts each, so their number divides n_routed_experts of every "
        "mixture of experts, with serving.redundant_experts added. A model whose feed-forwards are all dense has "
        "nothing to share.",
        "ffn: {moe: {n_routed_experts: 64}}\nserving: {ep: 48}",
        "ffn: {moe: {n_routed_experts: 64}}\nserving: {ep: 32}",
    ),
    "DSC091": Page(
        "an engine that several programs need otherwise",
        "In reinforcement learning each rank answers its questions with an engine that holds all experts; an engine "
        "of serving.ep ranks steps on all of them together. One package has one of the two.",
        "rl: {max_new_tokens: 512}\nserving: {ep: 8}",
        "serving: {ep: 8}",
    ),
    "DSC092": Page(
        "layers that ranks cannot divide",
        "Each rank of a group of serving.tp has equally many heads, of queries and of keys and values, equally much of "
        "the width of dense layers and of the vocabulary: serving.tp divides all of them. Routed experts are not "
        "divided but shared out, by serving.ep, over all ranks: as many as one group or several.",
        "attention: {num_attention_heads: 8}\nserving: {tp: 16, ep: 16}",
        "attention: {num_attention_heads: 8}\nserving: {tp: 8, ep: 16}",
    ),
}
