"""The workloads' models in PyTorch, with first parameters and data."""

import importlib
from typing import Any

from benchmarks.training.peers.layout import from_torch, to_torch
from benchmarks.training.rounds import Job
from benchmarks.training.workloads import RANK, SYMBOLS, TOKENS, Examples, Parameters

# It is there in the environments of some peers alone.
torch: Any = importlib.import_module("torch")
nn, functional, Tensor = torch.nn, torch.nn.functional, Any


class CNN(nn.Module):
    def __init__(self, inputs: tuple[int, ...]):
        super().__init__()
        side, channels = (inputs[0] - 4) // 2, inputs[-1]
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dense1 = nn.Linear(side * side * 64, 128)
        self.dense2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        x = functional.max_pool2d(x, 2).flatten(1)
        return self.dense2(functional.relu(self.dense1(x)))


class MLP(nn.Module):
    def __init__(self, inputs: tuple[int, ...]):
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(inputs[0], 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(functional.relu(self.dense1(x)))


class Logistic(nn.Module):
    def __init__(self, inputs: tuple[int, ...]):
        super().__init__()
        self.dense = nn.Linear(inputs[0], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class LoRALinear(nn.Module):
    """A linear layer that stays, and beside it a product of two thin ones."""

    def __init__(self, width: int):
        super().__init__()
        self.base = nn.Linear(width, width)
        self.a = nn.Parameter(torch.zeros(width, RANK))
        self.b = nn.Parameter(torch.zeros(RANK, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a @ self.b


class Block(nn.Module):
    def __init__(self, width: int, with_lora: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.q = LoRALinear(width) if with_lora else nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = LoRALinear(width) if with_lora else nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 512), nn.Linear(512, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        heads = (z.unflatten(-1, (4, -1)).transpose(1, 2) for z in self._of(y))
        y = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(y)

    def _of(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(y), self.k(y), self.v(y)


class Transformer(nn.Module):
    def __init__(self, inputs: tuple[int, ...], with_lora: bool = False):
        super().__init__()
        width = 128
        self.embed = nn.Embedding(SYMBOLS, width)
        self.positions = nn.Parameter(torch.zeros(TOKENS, width))
        self.block1, self.block2 = (Block(width, with_lora) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.logits = nn.Linear(width, SYMBOLS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions
        return self.logits(self.norm(self.block2(self.block1(x))))


class LoRA(Transformer):
    """A transformer of which the thin layers alone are trained."""

    def __init__(self, inputs: tuple[int, ...]):
        super().__init__(inputs, with_lora=True)
        for name, x in self.named_parameters():
            x.requires_grad_(name.endswith((".a", ".b")))


MODELS: dict[str, Any] = {
    "cnn": CNN,
    "logistic": Logistic,
    "mlp": MLP,
    "transformer": Transformer,
    "lora": LoRA,
}


def model_of(job: Job) -> nn.Module:
    """With the first parameters; of LoRA with those that stay, too."""
    model = MODELS[job.workload.model](job.workload.clients[0][0].shape[1:])
    model.load_state_dict(tensors(to_torch(job.start | job.frozen)))
    return model


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def data_of(examples: Examples) -> tuple[Tensor, Tensor]:
    """Examples as PyTorch has them: channels come first, whole numbers are long."""
    inputs, targets = map(torch.from_numpy, examples)
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2)
    inputs = inputs if inputs.is_floating_point() else inputs.long()
    return inputs.contiguous(), targets.long().contiguous()


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What is sent there and back."""
    parameters = model.named_parameters()
    return {name: x.detach() for name, x in parameters if x.requires_grad}


def tensors(named: Parameters) -> dict[str, Tensor]:
    return {name: torch.from_numpy(x.copy()) for name, x in named.items()}


def parameters_of(job: Job, named: dict[str, Tensor]) -> Parameters:
    return from_torch({name: x.numpy() for name, x in named.items()}, job.start)
