"""The transformer: one decoder-only model that every family is a setting of, and the layers that it is made of."""

from litgpt.model.attention import CausalSelfAttention as CausalSelfAttention
from litgpt.model.attention import MultiheadLatentAttention as MultiheadLatentAttention
from litgpt.model.cache import KVCache as KVCache
from litgpt.model.delta_net import GatedDeltaNet as GatedDeltaNet
from litgpt.model.gpt import GPT as GPT
from litgpt.model.gpt import Block as Block
from litgpt.model.mlp import GemmaMLP as GemmaMLP
from litgpt.model.mlp import GptNeoxMLP as GptNeoxMLP
from litgpt.model.mlp import LLaMAMLP as LLaMAMLP
from litgpt.model.moe import LLaMAMoE as LLaMAMoE
from litgpt.model.norm import RMSNorm as RMSNorm
