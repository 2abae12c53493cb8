"""Initial weights."""

from dsc.compiler.graph.op import Op, Types, register


@register
class InitWeights(Op):
    """Matrices from a normal distribution, norms (the only vectors) to one, buffers (biases and counts) to zero."""

    kind = "init_weights"
    std: str

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class InitWeightsAndBiases(InitWeights):
    """The same where projections have biases, vectors that begin at zero."""

    kind = "init_weights_and_biases"
