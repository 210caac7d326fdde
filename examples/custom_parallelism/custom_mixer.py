"""The model "mixer": each layer mixes the last few positions by a causal convolution, then the channels.

[model]
name = "mixer"
dim = 64
layers = 2
"""

import iostack
from iostack.errors import SettingsError


def build(options, *, vocab_size, seq_len):
    """Build the model on the meta device; torch is imported only here."""
    if unknown := sorted(options.keys() - {"dim", "layers", "width"}):
        raise SettingsError(f"the model 'mixer' has no option {unknown[0]!r}", hint="it has dim, layers, width")
    from torch import nn

    class Layer(nn.Module):
        def __init__(self, dim, width):
            super().__init__()
            self.norm = nn.RMSNorm(dim)
            self.positions = nn.Conv1d(dim, dim, width, padding=width - 1)
            self.channels = nn.Linear(dim, dim)

        def forward(self, x_BSD):
            mixed_BDS = self.positions(self.norm(x_BSD).transpose(1, 2))[..., : x_BSD.shape[1]]
            return x_BSD + self.channels(mixed_BDS.transpose(1, 2).relu())

    class Mixer(nn.Module):
        def __init__(self, *, dim=64, layers=2, width=8):
            super().__init__()
            self.embedding = nn.Embedding(vocab_size, dim)
            self.layers = nn.ModuleList(Layer(dim, width) for _ in range(layers))
            self.head = nn.Linear(dim, vocab_size)

        def forward(self, tokens_BS):
            x_BSD = self.embedding(tokens_BS)
            for layer in self.layers:
                x_BSD = layer(x_BSD)
            return self.head(x_BSD)

        def layer_names(self):
            return [f"layers.{number}" for number in range(len(self.layers))]

        def flops_per_token(self, seq_len):
            matrices = sum(parameter.numel() for parameter in self.parameters() if parameter.ndim > 1)
            return 6.0 * (matrices - self.embedding.weight.numel())

    return Mixer(**options)


@iostack.hookimpl
def iostack_models():
    """Offer ``[model] name = "mixer"``."""
    return {"mixer": build}
